"""Names of classes, in whatever form they are given."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import EnumMeta
from typing import Any

import numpy as np
from torch import Tensor

from ..errors import UserError, shown
from .labels import MOST_CLASSES


def numbers(count: int) -> tuple[str, ...]:
    """What classes without names are called: "0", "1", …"""
    return tuple(map(str, range(count)))


@dataclass(frozen=True)
class Naming:
    """Names of classes by number; if not `named`, they are only the `numbers`."""

    names: tuple[str, ...]
    named: bool


def check_text(names: Iterable[str], what: str) -> None:
    """Raise `UserError` for a name that no file can hold: one that is not UTF-8, as names of folders need not be."""
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise UserError(
                f"the {what} have the name {shown(name)}, which is not UTF-8; expected text: rename that one."
            ) from None


def read_naming(given: Any, what: str) -> Naming | None:
    """Names of any kind as `Naming`; None for an empty list."""
    if isinstance(given, Tensor):
        given = given.detach().cpu().numpy()
    if isinstance(given, np.ndarray | np.generic):
        given = given.tolist()
    if isinstance(given, int) and not isinstance(given, bool):
        if not 0 < given <= MOST_CLASSES:
            raise _nonsense(given, what)
        return Naming(numbers(given), named=False)
    if isinstance(given, EnumMeta):
        members: Mapping[str, Any] = given.__members__
        given = {name: member.value for name, member in members.items()}
    if isinstance(given, Mapping):
        given = _from_mapping(given, what)
    elif isinstance(given, str | bytes | set | frozenset | bool | float) or not hasattr(given, "__iter__"):
        raise _nonsense(given, what)
    listed = [entry.item() if isinstance(entry, Tensor | np.generic) and entry.ndim == 0 else entry for entry in given]
    if not listed:
        return None
    if [entry for entry in listed if type(entry) is int] == list(range(len(listed))):
        return Naming(numbers(len(listed)), named=False)
    names = tuple(_text(entry, what) for entry in listed)
    check_text(names, what)
    return Naming(names, named=True)


def _text(entry: Any, what: str) -> str:
    if isinstance(entry, bytes):
        return entry.decode("utf-8", errors="replace")
    if isinstance(entry, tuple) and entry and all(isinstance(word, str) for word in entry):  # synonyms
        return ", ".join(entry)
    if isinstance(entry, str | int) and not isinstance(entry, bool):
        return str(entry)
    raise UserError(f"the {what} hold {shown(entry)}, which is no name; expected text for each class.")


def _from_mapping(given: Mapping, what: str) -> list:
    """The names by number of {name: number} or {number: name}."""
    numbered: dict[Any, Any] = {}
    for key, value in given.items():
        of_name = isinstance(key, str) and not (isinstance(value, str) and key.isdecimal())
        number, name = (value, key) if of_name else (key, value)
        number = number.item() if isinstance(number, Tensor | np.generic) and number.ndim == 0 else number
        number = int(number) if isinstance(number, str) and number.isdecimal() else number
        numbered[number if type(number) is int else repr(number)] = name
    if set(numbered) != set(range(len(given))):
        raise UserError(
            f"the {what} are {shown(given)}, which does not number {len(given)} classes from 0 to {len(given) - 1}; "
            "expected names in the order of their numbers, or {name: number}."
        )
    return [numbered[number] for number in range(len(given))]


def _nonsense(given: Any, what: str) -> UserError:
    kind = "has no order" if isinstance(given, set | frozenset) else "names no classes"
    return UserError(
        f"the {what} are {shown(given)}, which {kind}; expected a list of names in the order of their numbers, or "
        "{name: number}."
    )
