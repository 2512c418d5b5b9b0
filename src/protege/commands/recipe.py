"""The options of `distill` and `train`: the keys of their recipes, as text that the recipe itself parses and judges."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic_core import PydanticUndefined
from typer import Option

from ..errors import UserError
from ..methods import METHODS
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
            fields |= METHODS[method].settings.model_fields
        parameters = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != "options"]
        for key, field in fields.items():
            if key not in ("phases", *without):
                names = [f"--{key.replace('_', '-')}", *filter(None, [(also or {}).get(key)])]
                option = Option(*names, metavar=_metavar(field), help=_help(key, field, methods))
                kind = Annotated[str | None, option]
                parameters.append(inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind))
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        return command

    return decorate


def _metavar(field: Any) -> str:
    return FLAG if field.annotation is bool else "VALUE"


def _help(key: str, field: Any, methods: Sequence[str]) -> str:
    """What a key is for, with its default, and those of methods that have another."""
    usual = [] if field.default in (None, PydanticUndefined) else [str(field.default)]
    others = [f"{method}: {METHODS[method].defaults[key]}" for method in methods if key in METHODS[method].defaults]
    defaults = "; ".join([*usual, *others])
    return f"{field.description} [default: {defaults}]" if defaults else field.description


def settings_of(recipe: Path | None, options: Mapping[str, Any], sets: list[str] | None) -> dict[str, Any]:
    """Recipe, over it options, over them ``--set``. A run that is resumed brings its own recipe."""
    settings = read_toml(recipe) if recipe else {}
    settings = merge(settings, {key: value for key, value in options.items() if value is not None})
    settings = merge(settings, parse_sets(sets))
    for action in ("out", "resume", "overwrite", "recipe"):
        if action in settings:
            raise UserError(f"the key {action!r} stands in a recipe; expected it as the option --{action} only.")
    return settings
