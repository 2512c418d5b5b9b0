"""What is given in Python: text and numbers, as a recipe holds them, and objects, which it cannot hold."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ..data import Augment
from ..methods import name_of
from ..torch_utils import unwrapped
from .toml import merge, read_toml


def separate(given: Mapping[str, Any], recipe: str | Path | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Recipe and arguments (which win) as settings of text and numbers, and the objects among them by key."""
    if recipe is not None:
        given = merge(read_toml(recipe), {key: value for key, value in given.items() if value is not None})
    values = {key: str(value) if isinstance(value, Path) else value for key, value in given.items()}
    objects = {
        key: values[key] for key in ("teacher", "student", "data") if not isinstance(values.get(key), str | None)
    }
    objects = {key: unwrapped(value) if isinstance(value, nn.Module) else value for key, value in objects.items()}
    values |= {key: f"python:{type(getattr(value, 'network', value)).__qualname__}" for key, value in objects.items()}
    if not isinstance(values.get("method"), str | None):
        values["method"] = name_of(values["method"])
    if not isinstance(values.get("augment"), str | None):
        objects["augment"] = Augment.of(values["augment"])
        values["augment"] = str(objects["augment"])
    return values, objects
