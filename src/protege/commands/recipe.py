"""The options of `distill` and `train`: the keys of their recipes, as text that the recipe itself parses and judges."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import wraps
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

from pydantic_core import PydanticUndefined
from typer import Option

from ..errors import UserError
from ..methods import find_method, is_method, is_outside
from ..run.recipe import Recipe, merge, read_toml
from .options import FLAG, parse_sets


def with_recipe_options(
    methods: Sequence[str], *, without: Sequence[str] = (), also: Mapping[str, str] | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command, in the place of its ``**options``, one for each key that recipes of these ``methods`` have, but
    for those it goes ``without``. ``also``: the other name of a key's option."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        fields = dict(Recipe.model_fields)
        for method in methods:
            fields |= find_method(method).settings.model_fields
        parameters = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != "options"]
        for key, field in fields.items():
            if key not in ("phases", *without):
                names = [f"--{key.replace('_', '-')}", *filter(None, [(also or {}).get(key)])]
                option = Option(*names, metavar=_metavar(field), help=_help(key, field, methods))
                kind = Annotated[str | None, option]
                parameters.append(inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind))

        @wraps(command)
        def with_options(**values: Any) -> None:
            command(**values)

        with_options.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        with_options.__annotations__ = {p.name: p.annotation for p in parameters}
        return with_options

    return decorate


def outside_in(words: Sequence[str]) -> str | None:
    """The method from outside that a command's words name, else its recipe, else the run that goes on, if any does."""
    names = _values("--method", words)
    files = [Path(word) for word in words if word.endswith(".toml")]
    files += [Path(out) / "recipe.toml" for out in _values("--out", words) if "--resume" in words]
    for file in files if not names else ():
        with suppress(UserError):  # told where it is read in earnest
            names += [str(read_toml(file).get("method", "kd"))]
    return names[-1] if names and is_outside(names[-1]) and is_method(names[-1]) else None


def _values(option: str, words: Sequence[str]) -> list[str]:
    """What the words give to an option."""
    together = [word.partition("=")[2] for word in words if word.startswith(f"{option}=")]
    return together + [value for word, value in pairwise(words) if word == option]


def _metavar(field: Any) -> str:
    return FLAG if field.annotation is bool else "VALUE"


def _help(key: str, field: Any, methods: Sequence[str]) -> str:
    """What a key is for, with its default, and those of methods that have another."""
    usual = [] if field.default in (None, PydanticUndefined) else [str(field.default)]
    others = [
        f"{method}: {find_method(method).defaults[key]}" for method in methods if key in find_method(method).defaults
    ]
    default = "; ".join([*usual, *others])
    return f"{field.description or ''} [default: {default}]".strip() if default else field.description or ""


def settings_of(recipe: Path | None, options: Mapping[str, Any], sets: list[str] | None) -> dict[str, Any]:
    """Recipe, over it options, over them ``--set``. A run that is resumed brings its own recipe."""
    settings = read_toml(recipe) if recipe else {}
    settings = merge(settings, {key: value for key, value in options.items() if value is not None})
    settings = merge(settings, parse_sets(sets))
    for action in ("out", "resume", "overwrite", "recipe"):
        if action in settings:
            raise UserError(f"the key {action!r} stands in a recipe; expected it as the option --{action} only.")
    return settings
