"""The classes of a set: their names, the order they are numbered in, and how two lists of names go together."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import EnumMeta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset

from ..errors import UserError, shown
from ..files import read_text
from .labels import MOST_CLASSES, UNLABELLED

BARE, SORTED, GIVEN, SETTLED, VECTORS = "bare", "sorted", "given", "settled", "vectors"
"""How a set's classes are numbered: they are only numbers, without names; names that were sorted here, as nothing
numbers them; the set itself numbers its names; or the user (or a teacher) has said in which order they are; or outputs
are no classes but the values of a vector."""

_BESIDE_LETTERS = re.compile(r"(?<=[^\W\d_])[\s_-]+|[\s_-]+(?=[^\W\d_])")
_RUNS = re.compile(r"[0-9]+|[^0-9]")


# ---- names, in whatever form they are given -------------------------------------------------------------------------


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


def read_classes(given: Any) -> tuple[str, ...]:
    """Names of classes as the user gives them: of any kind, or a text file with one a line; () for None.

    Raises `UserError` for what names no classes, or two alike."""
    if given is None:
        return ()
    what = "names given as classes"
    if isinstance(given, str | Path):
        what = f"classes of {str(given)!r}"
        given = _lines(given)
    naming = read_naming(given, what)
    if naming is None or not naming.named:
        raise UserError(f"the {what} are no names; expected a name for each output of the network, one a line.")
    if not all(map(str.strip, naming.names)):
        raise UserError(f"the {what} have an empty one; expected a name for each output of the network: fill it in.")
    if twice := [name for name, times in Counter(naming.names).items() if times > 1]:
        raise UserError(f"the {what} have {twice[0]!r} twice; expected another name for each class: rename one.")
    return naming.names


def _lines(path: str | Path) -> list[str]:
    lines = [line.strip() for line in read_text(path, "classes").splitlines()]
    while lines and not lines[-1]:
        lines.pop()
    if "" in lines:
        raise UserError(f"line {lines.index('') + 1} of {str(path)!r} is empty; expected the name of a class in each.")
    return lines


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


# ---- their order, and how two lists of them go together -------------------------------------------------------------


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
    this = next((order for order, names_then in both.items() if names_then == tuple(names)), None)
    return None if this is None else (this, next(order for order in ORDERS if order != this))


def places(names: Sequence[str], classes: Sequence[str]) -> list[int | None]:
    """Where each of the names stands among the classes, None for one that is not there.

    Names that differ only in case, spaces, dashes and underscores are the same, unless that makes two of one list the
    same. Of a name that occurs twice in either list nobody can tell which is meant: it is not found.
    """
    place: list[int | None] = []
    for plain in (False, True):
        here, there = ([_plain(name) for name in listed] if plain else listed for listed in (names, classes))
        if plain and (len(set(here)) < len(here) or len(set(there)) < len(there)):
            break
        times, times_there = Counter(here), Counter(there)
        at = {name: number for number, name in enumerate(there) if times_there[name] == 1}
        place = [at.get(name) if times[name] == 1 else None for name in here]
        if None not in place:
            break
    return place


def among(names: Sequence[str], classes: Sequence[str], what: str) -> Tensor:
    """Where each of the names stands among classes that hold them all, int64 [K]."""
    place = places(names, classes)
    if None in place:
        raise UserError(f"the {what} have several named '{names[place.index(None)]}'; give each class its own name.")
    return torch.tensor(place)


def union(lists: Iterable[Sequence[str]]) -> tuple[str, ...]:
    """The names of the first list, and behind them those that only later ones have."""
    classes: tuple[str, ...] = ()
    for names in lists:
        known = set(classes)
        new = [name for name, place in zip(names, places(names, classes), strict=True) if place is None]
        classes += tuple(name for name in new if name not in known)
    return classes


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
            names = getattr(dataset, attribute, None)
            names = names() if callable(names) and not isinstance(names, type) else names
        except Exception as error:
            raise UserError(
                f"the {attribute} of {who} cannot be read ({type(error).__name__}: {error}); expected the names of the "
                "classes in the order of their numbers."
            ) from error
        if names is not None and (naming := read_naming(names, f"{attribute} of {who}")) is not None:
            return naming
    features = getattr(dataset, "features", None)
    if isinstance(features, Mapping):
        lists = [getattr(features.get(key), "names", None) for key in ("label", "fine_label", "labels")]
        names = next(filter(None, lists), None)
        return None if names is None else read_naming(names, f"features of {who}")
    return None


@dataclass(frozen=True)
class RawLabels:
    """Labels of a table or a Dataset: numbers of classes, or their names; and the `naming` of its classes, if it has
    one. `where(at)` says in a sentence whose label number `at` is: "in row 3 of …"."""

    values: Tensor | np.ndarray | Sequence[int | str]
    where: Callable[[int], str]
    naming: Naming | None = None


@dataclass(frozen=True)
class CommonClasses:
    """Classes and how they are numbered; labels by split, int64 [N]; and by split what number a label has that is
    text, and (int64 [K]) that is another number in this split."""

    classes: tuple[str, ...]
    numbering: str
    labels: dict[str, Tensor]
    numbers: dict[str, dict[str, int]]
    place: dict[str, Tensor]


def common_classes(splits: Mapping[str, Sequence[RawLabels]], order: str | None = None) -> CommonClasses:
    """The classes of the splits of one set, each part of which may number them in its own way.

    A part that does not name its classes is taken to number them as the first that does. Names that nothing numbers
    are put into one of the `ORDERS`. Raises `UserError` for labels that are no classes.
    """
    for split, given in splits.items():
        if not sum(len(part.values) for part in given):
            raise UserError(f"the {split} split has no rows; give some with images.")
    parts = [(split, part) for split in sorted(splits, key=lambda s: s != "train") for part in splits[split]]
    named = [part.naming.names if part.naming is not None and part.naming.named else () for _, part in parts]
    classes = union(filter(None, named))
    texts = [
        ()
        if isinstance(part.values, Tensor | np.ndarray)
        else sorted({value for value in part.values if isinstance(value, str)})
        for _, part in parts
    ]
    labels: dict[str, list[Tensor]] = {split: [] for split in splits}
    numbers_of: dict[str, dict[str, int]] = {split: {} for split in splits}
    place: dict[str, Tensor] = {}
    if any(texts):
        numbering = GIVEN if classes else SETTLED if order else SORTED
        by_split: dict[str, set[str]] = {split: set() for split in dict(parts)}
        for (split, _), names in zip(parts, texts, strict=True):
            by_split[split].update(names)
        classes = classes or ordered(union(ordered(names, "text") for names in by_split.values()), order or "number")
        for (split, part), names in zip(parts, texts, strict=True):
            known = zip(names, places(names, classes), strict=True)
            numbers_of[split] |= {text: number for text, number in known if number is not None}
            labels[split].append(_numbers(part, numbers_of[split], classes))
    else:
        if order is not None:
            raise UserError(f"order={order} is for labels that are text, but those {parts[0][1].where(0)} are numbers.")
        numbering = GIVEN if classes else BARE
        for (split, part), part_names in zip(parts, named, strict=True):
            _check(np.asarray(part.values), part.where, len(part_names or classes) or None)
            values = torch.from_numpy(np.asarray(part.values).astype(np.int64))
            if part_names and part_names != classes[: len(part_names)]:
                place[split] = among(part_names, classes, "class names")
                values = renumbered(values, place[split])
            labels[split].append(values)
    joined = {split: torch.cat(chunks) for split, chunks in labels.items()}
    if not classes:
        counts = [len(part.naming.names) for _, part in parts if part.naming is not None]
        classes = numbers(max(*counts, *(int(numbered.max()) + 1 for numbered in joined.values()), 0))
    return CommonClasses(classes, numbering, joined, numbers_of, place)


def _numbers(part: RawLabels, number: Mapping[Any, int], classes: Sequence[str]) -> Tensor:
    """Labels that are text by their numbers, int64 [N]."""
    values = part.values.tolist() if isinstance(part.values, Tensor | np.ndarray) else part.values
    for at, label in enumerate(values):
        if label not in number and label != UNLABELLED:
            known = ", ".join(map(repr, classes[:8])) + (", …" if len(classes) > 8 else "")
            raise UserError(
                f"label {label!r} {part.where(at)} is none of the names {known}, which are expected, as other labels "
                "are names: give labels that are all names, or all numbers."
            )
    return torch.tensor([number.get(label, UNLABELLED) for label in values])


def check_labels(name: str, splits: Mapping[str, Tensor], classes: Sequence[str]) -> None:
    """Raise `UserError` where labels are no numbers of these classes."""
    for split, labels in splits.items():
        _check(labels.numpy(), partial("of {0} sample {1} in '{name}'".format, split, name=name), len(classes))


def _check(labels: np.ndarray, where: Callable[[int], str], count: int | None) -> None:
    wrong = ((labels < 0) | (labels >= (count or MOST_CLASSES))) & (labels != UNLABELLED)
    if not wrong.any():
        return
    at = int(wrong.argmax())
    label = f"label {labels[at]} {where(at)}"
    if labels[at] < 0:
        raise UserError(f"{label} is below 0; number the classes from 0.")
    if count is None:
        raise UserError(seems_id(label))
    are = "are" if count > 1 else "is"
    raise UserError(
        f"{label} is out of range; 0 to {count - 1} is expected, as there {are} {count} class{'es' * (count > 1)}."
    )
