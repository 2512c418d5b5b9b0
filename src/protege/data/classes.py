"""The classes of a set: their names, the order they are numbered in, and how two lists of names go together."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset

from ..errors import UserError
from .labels import MOST_CLASSES, UNLABELLED
from .naming import Naming, read_naming

BARE, SORTED, GIVEN, SETTLED = "bare", "sorted", "given", "settled"
"""How a set's classes are numbered: they are only numbers, without names; names that were sorted here, as nothing
numbers them; the set itself numbers its names; or the user (or a teacher) has said in which order they are."""

_BESIDE_LETTERS = re.compile(r"(?<=[^\W\d_])[\s_-]+|[\s_-]+(?=[^\W\d_])")
_RUNS = re.compile(r"[0-9]+|[^0-9]")


def by_number(name: str) -> tuple:
    """Sorts names as text, except that digits are read as the number they make: "img2" comes before "img10"."""
    runs = _RUNS.findall(name)
    return tuple((ord("0"), int(run)) if run.isdecimal() else (ord(run), 0) for run in runs), name


ORDERS: dict[str, Callable[[str], Any]] = {"number": by_number, "text": lambda name: name}


def ordered(names: Iterable[str], order: str) -> tuple[str, ...]:
    """The names in one of the `ORDERS`."""
    return tuple(sorted(names, key=ORDERS[order]))


def other_order(names: Sequence[str]) -> tuple[str, str] | None:
    """For names that stand in the order of their numbers or of their text, where these differ: which of the two it is,
    and which is the other. None for all others."""
    both = {order: ordered(names, order) for order in ORDERS}
    if both["number"] == both["text"]:
        return None
    own = next((order for order, names_then in both.items() if names_then == tuple(names)), None)
    return None if own is None else (own, next(order for order in ORDERS if order != own))


def check_order(order: str | None, spec: str) -> None:
    """Raise `UserError` unless it is one of the `ORDERS`, or none is asked for."""
    if order is not None and order not in ORDERS:
        raise UserError(f"data '{spec}' has order={order}; expected number (0, 1, 2 … 10) or text (0, 1, 10, 2 …).")


def places(names: Sequence[str], classes: Sequence[str]) -> list[int | None]:
    """Where each of the names stands among the classes, None for one that is not there.

    Names that differ only in case, spaces, dashes and underscores are the same, unless that makes two of one list the
    same. Of a name that occurs twice in either list nobody can tell which is meant: it is not found.
    """
    found = _places(names, classes)
    if None in found:
        plain = [[_plain(name) for name in each] for each in (names, classes)]
        if all(len(set(each)) == len(each) for each in plain):
            return _places(*plain)
    return found


def _places(names: Sequence[str], classes: Sequence[str]) -> list[int | None]:
    ours, theirs = Counter(names), Counter(classes)
    at = {name: place for place, name in enumerate(classes) if theirs[name] == 1}
    return [at.get(name) if ours[name] == 1 else None for name in names]


def among(names: Sequence[str], classes: Sequence[str], what: str) -> Tensor:
    """Where each of the names stands among classes that hold them all, int64 [K]."""
    found = places(names, classes)
    if None in found:
        raise UserError(f"the {what} have several named '{names[found.index(None)]}'; give each class its own name.")
    return torch.tensor(found)


def union(lists: Iterable[Sequence[str]]) -> tuple[str, ...]:
    """The names of the first list, and behind them those that only later ones have."""
    found: tuple[str, ...] = ()
    for names in lists:
        known = set(found)
        new = [name for name, place in zip(names, places(names, found), strict=True) if place is None]
        found += tuple(name for name in new if name not in known)
    return found


def _plain(name: str) -> str:
    return _BESIDE_LETTERS.sub("", unicodedata.normalize("NFKC", name).strip()).casefold()


def seems_id(where: str) -> str:
    """What is wrong with a label that is too large to be a class."""
    return (
        f"{where} is too large for the number of a class, and seems to be an id; whole numbers from 0, without gaps, "
        "are expected: number the classes."
    )


def renumbered(labels: Tensor, place: Tensor) -> Tensor:
    """Labels (of any shape) with class k called place[k]; those of `UNLABELLED` stay."""
    return torch.where(labels == UNLABELLED, labels, place[labels.clamp(min=0)])


def naming_of(dataset: Any, who: str) -> Naming | None:
    """The classes that a Dataset names: by its `classes` (names by number, {name: number}, {number: name}, or how many
    there are), `class_to_idx`, or the features of the Hugging Face hub; a Subset's are those of the whole.

    None where it says nothing. Raises `UserError` naming `who` for what cannot be meant.
    """
    if isinstance(dataset, Subset):
        return naming_of(dataset.dataset, who)
    if isinstance(dataset, ConcatDataset):
        parts = [naming_of(part, who) for part in dataset.datasets]
        return parts[0] if all(part == parts[0] for part in parts) else None
    for attribute in ("classes", "class_to_idx"):
        try:
            found = getattr(dataset, attribute, None)
            found = found() if callable(found) and not isinstance(found, type) else found
        except Exception as error:
            raise UserError(
                f"the {attribute} of {who} cannot be read ({type(error).__name__}: {error}); expected the names of the "
                "classes in the order of their numbers."
            ) from error
        if found is not None and (naming := read_naming(found, f"{attribute} of {who}")) is not None:
            return naming
    features = getattr(dataset, "features", None)
    if isinstance(features, Mapping):
        lists = [getattr(features.get(key), "names", None) for key in ("label", "fine_label", "labels")]
        found = next((names for names in lists if names), None)
        return None if found is None else read_naming(found, f"features of {who}")
    return None


def check_labels(name: str, splits: dict[str, Tensor], classes: tuple[str, ...] | None) -> None:
    """Labels must be numbers of classes, and of these where they are named."""
    for split, labels in splits.items():
        count = MOST_CLASSES if classes is None else len(classes)
        wrong = ((labels < 0) | (labels >= count)) & (labels != UNLABELLED)
        if not wrong.any():
            continue
        row = int(wrong.nonzero()[0])
        label = f"label {int(labels[row])} of {split} sample {row} in '{name}'"
        if labels[row] < 0:
            raise UserError(f"{label} is below 0; number the classes from 0.")
        if classes is None:
            raise UserError(seems_id(label))
        there = "are" if count > 1 else "is"
        raise UserError(
            f"{label} is out of range; 0 to {count - 1} is expected, as there {there} {count} "
            f"class{'es' * (count > 1)}."
        )
