"""TOML files, and tables over tables."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w

from ..errors import UserError, told
from ..files import read_text, write_text


def read_toml(path: str | Path) -> dict[str, Any]:
    """A TOML file as a dict. Raises `UserError` when it is missing or not TOML."""
    text = read_text(path, "TOML")
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{str(path)!r} is not readable as TOML ({told(error)}); expected a recipe: mend that line."
        ) from None


def write_toml(path: Path, values: Mapping[str, Any]) -> None:
    """Write settings as TOML, atomically, leaving out what is None."""
    write_text(path, tomli_w.dumps({key: value for key, value in values.items() if value is not None}))


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``changes``; nested tables are merged, everything else replaced."""
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged
