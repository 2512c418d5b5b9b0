"""The options of `distill` and `train`: the keys of their recipes, as text that the recipe itself parses and judges.

Which keys there are is read off the text of the files that declare them: importing these imports torch, which takes
longer than to refuse. Only help, and a method from outside, need them imported.
"""

from __future__ import annotations

import ast
import inspect
import tomllib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cache, wraps
from importlib.metadata import entry_points
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

from typer import Option

from ..errors import UserError
from ..run.toml import merge, read_toml
from .options import FLAG, parse_sets

_PACKAGE = Path(__file__).parents[1]
_COMMON = ("run/recipe.py", "training/phase.py", "methods/method.py")  # what recipes of all methods have
_NO_OPTION = ("phases",)


def with_recipe_options(
    command: Callable[..., None],
    words: Sequence[str],
    method: str | None = None,
    without: Collection[str] = (),
    also: Mapping[str, str] | None = None,
) -> Callable[..., None]:
    """``command`` with an option for each key of a recipe in the place of its ``**options``: those of a ``method`` of
    this package, else of all of them and of one from outside that the ``words`` name. ``also``: other names of keys."""
    outside = None if method else outside_in(words)
    if outside or "--help" in words:
        options = _described([method] if method else [], outside)
    else:
        options = {key: (FLAG if kind == "bool" else "VALUE", "") for key, kind in _declared(method).items()}
    parameters = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != "options"]
    for key, (metavar, text) in options.items():
        if key not in (*_NO_OPTION, *without):
            names = [f"--{key.replace('_', '-')}", *filter(None, [(also or {}).get(key)])]
            kind = Annotated[str | None, Option(*names, metavar=metavar, help=text)]
            parameters.append(inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind))

    @wraps(command)
    def with_options(**values: Any) -> None:
        command(**values)

    with_options.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    with_options.__annotations__ = {p.name: p.annotation for p in parameters}
    return with_options


@cache
def _declared(method: str | None) -> dict[str, str]:
    """Name and type of every field that the classes of settings declare, as they are written."""
    fields = {}
    rest = [f"methods/{'plain' if method == 'none' else method}.py"] if method else _PACKAGE.glob("methods/*.py")
    for file in (*_COMMON, *rest):
        for node in ast.walk(ast.parse((_PACKAGE / file).read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and any(ast.unparse(base).endswith("Settings") for base in node.bases):
                for field in node.body:
                    if isinstance(field, ast.AnnAssign):
                        fields[ast.unparse(field.target)] = ast.unparse(field.annotation)
    return fields


def _described(methods: Iterable[str], outside: str | None) -> dict[str, tuple[str, str]]:
    """What stands for the value of each key, and what it is for, with its default and those of methods that have
    another."""
    from pydantic_core import PydanticUndefined

    from ..methods import METHODS, find_method
    from ..run.recipe import Recipe

    known = {name: find_method(name) for name in [*(methods or METHODS), *([outside] if outside else [])]}
    fields = dict(Recipe.model_fields)
    for method in known.values():
        fields |= method.settings.model_fields
    options = {}
    for key, field in fields.items():
        defaults = [] if field.default in (None, PydanticUndefined) else [str(field.default)]
        defaults += [f"{name}: {method.defaults[key]}" for name, method in known.items() if key in method.defaults]
        default = f"[default: {'; '.join(defaults)}]" if defaults else ""
        text = f"{field.description or ''} {default}".strip()
        options[key] = (FLAG if field.annotation is bool else "VALUE", text)
    return options


def outside_in(words: Sequence[str]) -> str | None:
    """The method from outside that a command's words name, else its recipe, else the run that goes on, if any does."""
    names = _values("--method", words)
    files = [Path(word) for word in words if word.endswith(".toml")]
    files += [Path(out) / "recipe.toml" for out in _values("--out", words) if "--resume" in words]
    for file in files if not names else ():
        with suppress(OSError, ValueError):  # told where it is read in earnest
            names.append(str(tomllib.loads(file.read_text(encoding="utf-8")).get("method", "kd")))
    outside = bool(names) and (":" in names[-1] or names[-1] in entry_points(group="protege.methods").names)
    return names[-1] if outside else None


def _values(option: str, words: Sequence[str]) -> list[str]:
    """What the words give to an option."""
    together = [word.partition("=")[2] for word in words if word.startswith(f"{option}=")]
    return together + [value for word, value in pairwise(words) if word == option]


def settings_of(recipe: Path | None, options: Mapping[str, Any], sets: list[str] | None) -> dict[str, Any]:
    """Recipe, over it options, over them ``--set``. A run that is resumed brings its own recipe."""
    changes = parse_sets(sets)
    settings = read_toml(recipe) if recipe else {}
    settings = merge(settings, {key: value for key, value in options.items() if value is not None})
    settings = merge(settings, changes)
    for action in ("out", "resume", "overwrite", "recipe"):
        if action in settings:
            raise UserError(f"the key {action!r} stands in a recipe; expected it as the option --{action} only.")
    return settings
