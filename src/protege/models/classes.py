"""Which output of a network is which class: the data is brought into the order of the network that knows its classes.

Names settle it, where both have some: the network's own, those that the user gives it, or ImageNet's. Otherwise names
may have been numbered in the order of their numbers (0, 1, 2 … 10) or of their text (0, 1, 10, 2 …, as folders are
listed): where these differ, both are tried on labelled samples.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data import CLEAN, Augment, Data, Samples, batches, choose, forward_size, imagenet
from ..data.classes import GIVEN, ORDERS, SETTLED, SORTED, VECTORS, numbers, ordered, other_order, places
from ..errors import UserError
from ..numerics import exact
from ..torch_utils import device_of, eval_mode
from . import Model, check_fit

TRIED = 512  # samples that two orders are tried on
BATCH = 256
RARE = 0.00135  # beyond three standard deviations on one side
LISTED = 10  # names in a sentence

logger = logging.getLogger("protege")


@dataclass(frozen=True)
class Order:
    """One way to number the data's classes: `place[k]` is the output that class k means, None for one without samples;
    `name` says which way."""

    name: str
    place: tuple[int | None, ...]


def with_names(model: Model, names: Sequence[str]) -> Model:
    """The model with names for its outputs, where it has none; itself without ``names``. `UserError` for one that has
    others."""
    if not names:
        return model
    if model.named and (len(model.classes) != len(names) or None in _places(names, model.classes)):
        raise UserError(
            f"the model names its {len(model.classes)} classes itself ({_list(model.classes, 3)}), and classes = "
            f"{_list(names, 3)} are others; expected names for a network that has none: leave them out."
        )
    if model.input.kind == "tokens":
        raise UserError("the model takes text, so that its outputs are words; expected images: leave out classes=….")
    named = copy.copy(model)  # it may be the caller's own
    named.classes, named.named = (model.classes if model.named else tuple(names)), True
    return named


def with_classes(data: Data, names: Sequence[str]) -> Data:
    """The data under classes of these names, in this order; itself without ``names``, or where it has no labels."""
    if not names or not data.classes or data.task == "language":
        return data
    if data.named:
        return data.numbered(tuple(names), _by_name(tuple(names), data, "the classes that are given").place)
    if max(data.shown, default=0) >= len(names):
        raise UserError(
            f"the data has labels up to {max(data.shown)} and classes = {_list(names, 3)} are {len(names)}; expected a "
            "name for each: add some."
        )
    return data.numbered(tuple(names), range(len(data.classes)))


@exact()
def in_order_of(model: Model, data: Data, must: bool = True) -> Data:
    """The data under the classes of a model that was trained before: as many as it has outputs, in their order.

    The names are the model's where it has some, else the data's. Tells in a sentence what was changed. Raises
    `UserError` where the data has classes that the model does not, and, if it `must` be certain, where two orders are
    possible and samples do not tell which is right.
    """
    outputs = check_fit(model, data)
    if data.task == "language":
        return data
    if data.numbering == VECTORS:
        return data.numbered(numbers(outputs), (), named=False)
    if model.named and len(model.classes) != outputs:
        raise UserError(
            f"the model names {len(model.classes)} classes but has {outputs} outputs; expected a name for each output."
        )
    classes = model.classes if model.named else numbers(outputs)
    if not data.classes:  # images without labels
        return data.numbered(classes, (), model.named)
    if model.named and data.named and not _only_numbers(model, data):
        order = _by_name(model.classes, data, "the model", model)
        if order.place != tuple(range(outputs)) or classes != data.classes:
            _tell_names(model, data, order)
        return data.numbered(classes, order.place)
    possible = _by_numbers(model, data, outputs)
    order = possible[0] if len(possible) == 1 else _tried(model, data, possible, must)
    if data.named and not model.named:
        names = dict(zip(order.place, data.classes, strict=True))
        others = imagenet.outputs(outputs) if order.name == "ImageNet's" else numbers(outputs)
        classes = tuple(names.get(number, name) for number, name in enumerate(others))
    return data.numbered(classes, order.place, model.named or data.named)


def _only_numbers(model: Model, data: Data) -> bool:
    """Whether the names on one side only count the outputs that the other side names in words."""
    if set(model.classes) & set(data.classes):
        return False
    numbered = all(map(_is_number, data.classes))
    return numbered or (model.classes == numbers(len(model.classes)) and data.numbering == GIVEN)


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdecimal()


def _places(names: Sequence[str], classes: Sequence[str]) -> list[int | None]:
    """`places`, by ImageNet's synsets too: of folders called by them, and of networks with its thousand classes."""
    place = places(names, classes)
    if None in place and (ours := imagenet.as_synsets(names)) and (theirs := imagenet.as_synsets(classes)):
        return places(ours, theirs)
    return place


def _by_name(classes: tuple[str, ...], data: Data, who: str, model: Model | None = None) -> Order:
    """Where the data's classes stand among ``classes``, which are those of ``who``."""
    if classes == data.classes:
        return Order("by name", tuple(range(len(classes))))
    place = _places(data.classes, classes)
    missing = [number for number in data.shown if place[number] is None]
    if missing:
        alike = len(classes) == len(data.classes) and all(number in (None, at) for at, number in enumerate(place))
        if not alike or model is None or len(missing) == len(data.shown) or not _knows(model, data, missing):
            raise UserError(_strangers(classes, data, missing, who))
        place = list(range(len(place)))  # some are only called otherwise: the others stand in their places
    return Order("by name", tuple(place))


def _strangers(classes: Sequence[str], data: Data, missing: Sequence[int], who: str) -> str:
    known, strange = _list(classes, 3), _list([data.classes[number] for number in missing], LISTED)
    count = len(data.classes)
    if count == 1:
        return (
            f"data '{data.name}' has only one class, {strange}; at least two are expected, or one of {who}'s "
            f"({known}), or images without classes in a folder without others."
        )
    if len(missing) == len(data.shown) and count != len(classes) and who == "the model":
        return (
            f"the model has {len(classes)} outputs but the data has {count} classes; use a model made for this "
            f"data, or name the data's classes as the model's ({known})."
        )
    return (
        f"{who} {'have' if who.endswith('given') else 'has'} no class {strange}, which the data has; expected some of "
        f"{'the' if who.endswith('given') else 'its'} {len(classes)} classes ({known}): name the data's classes so, or "
        "give images without classes (in a folder without others), which can teach too."
    )


def _list(names: Sequence[str], most: int) -> str:
    """Names in a sentence."""
    more = f" and {len(names) - most} more" if len(names) > most + 1 else ""
    return ", ".join(map(repr, names[: most + (not more)])) + more


@torch.no_grad()
def _knows(model: Model, data: Data, classes: Sequence[int]) -> bool:
    """Whether the model tells samples of these classes by their numbers, clearly better than chance, of every split
    that has enough to show it."""

    def clear(right: int, count: int) -> bool:
        return tail(right, count, 1 / len(data.classes)) < RARE

    judged = [(int((g == labels).sum()), len(g)) for labels, g in _judged(model, data, classes).values()]
    enough = [split for split in judged if clear(-(-split[1] // 2), split[1])]
    return any(clear(*split) for split in judged) and all(clear(*split) for split in enough)


def _by_numbers(model: Model, data: Data, outputs: int) -> list[Order]:
    """The ways to number the data's classes where it, or the model, has no names; the likeliest first."""
    count, shown = len(data.classes), data.shown
    identity = tuple(range(count))
    if not data.named:
        ways = [Order("labels as the outputs' numbers", identity)] if max(shown, default=0) < outputs else []
        if model.named:
            output_of = {name: place for place, name in enumerate(model.classes)}
            if all(str(label) in output_of for label in shown):
                ways.append(Order("labels as the outputs' names", tuple(output_of.get(str(k)) for k in range(count))))
            if ways and (orders := other_order(model.classes)):
                then = ordered(model.classes, orders[1])
                place = tuple(output_of[then[k]] for k in range(min(count, outputs)))
                ways.append(Order(f"labels in the order of the names' {orders[1]}", place))
        if not ways:
            raise UserError(_beyond(data, outputs))
        return _different(ways, shown)
    if count == outputs:
        ways = [Order("", identity)]
        if data.numbering != SETTLED and (orders := other_order(data.classes)):
            then = ordered(data.classes, orders[1])
            ways = [Order(orders[0], identity), Order(orders[1], tuple(then.index(name) for name in data.classes))]
        return ways
    if (ours := imagenet.as_synsets(data.classes)) and (theirs := imagenet.outputs(outputs)):
        there = places(ours, theirs)
        if all(there[number] is not None for number in shown):
            logger.info("the data's classes are ImageNet's, and the model's %d outputs are taken for these.", outputs)
            return [Order("ImageNet's", tuple(there))]
    if count < outputs and all(_is_number(name) and int(name) < outputs for name in data.classes):
        logger.info(
            "the model has %d outputs without names, and the data's %d classes are named by numbers: each is taken for "
            "the output of that number.",
            outputs,
            count,
        )
        return [Order("number", tuple(int(name) for name in data.classes))]
    raise UserError(
        f"the model has {outputs} outputs but the data has {count} class{'es' * (count != 1)}, and the model does not "
        "name its outputs; use a model made for this data, or tell which is which: give the outputs' names as "
        "classes=…, or name the data's classes by the outputs' numbers."
    )


def _different(ways: Sequence[Order], shown: Sequence[int]) -> list[Order]:
    """Those that differ on the classes that have samples."""
    different: dict[tuple, Order] = {}
    for way in ways:
        different.setdefault(tuple(way.place[k] for k in shown), way)
    return list(different.values())


def _beyond(data: Data, outputs: int) -> str:
    for split, samples in data.sets.items():
        if samples.labels is not None and bool((wrong := samples.labels >= outputs).any()):
            row = int(wrong.nonzero()[0])
            return (
                f"label {int(samples.labels[row])} of {split} sample {row} in '{data.name}' is out of range; 0 to "
                f"{outputs - 1} is expected, as the model has {outputs} outputs."
            )
    return (
        f"the model has {outputs} outputs but the data has {len(data.classes)} classes; use a model made for this data."
    )


def _tell_names(model: Model, data: Data, order: Order) -> None:
    """Say what the names have settled."""
    taken = {n: model.classes[k] for n in data.shown if (k := order.place[n]) is not None}
    renamed = [n for n, name in taken.items() if name != data.classes[n]]
    lines = []
    if any(number not in (None, at) for at, number in enumerate(order.place)):
        lines.append("the data's classes are brought into the model's order, by their names")
    if len(data.shown) < len(model.classes):
        have = "has" if len(data.shown) == 1 else "have"
        lines.append(f"{len(data.shown)} of the model's {len(model.classes)} classes {have} samples")
    if renamed:
        first = renamed[0]
        what = f"{data.classes[first]!r} is taken for the model's {taken[first]!r}"
        lines.append(what + (f", and {len(renamed) - 1} more so" if len(renamed) > 1 else ""))
    if lines:
        logger.info("%s.", "; ".join(lines))


@torch.no_grad()
def _tried(model: Model, data: Data, orders: Sequence[Order], must: bool) -> Order:
    """The order by which the model is right on labelled samples, where one is clearly better than the others and than
    chance; else the first, or `UserError` if it `must` be certain and the set does not number its classes itself."""
    differ = [k for k in data.shown if len({order.place[k] for order in orders}) > 1]
    if not differ:
        return orders[0]
    table = [torch.tensor([-1 if k is None else k for k in order.place]) for order in orders]
    judged: list[tuple[str, list[int], int]] = []  # split, how often each order is right, samples
    certain: dict[int, int] = {}  # order → the first of these that speaks for it
    for split, (labels, guesses) in _judged(model, data, differ).items():
        right, count = [int((guesses == place[labels]).sum()) for place in table], len(labels)
        best, next_best = sorted(range(len(orders)), key=lambda n: -right[n])[:2]
        # Where one order is right the other is wrong, so that each of these samples speaks for one of them.
        luck = tail(right[best], right[best] + right[next_best], 0.5)
        if max(luck, tail(right[best], count, float(labels.bincount().max()) / count)) < RARE:
            certain.setdefault(best, len(judged))
        judged.append((split, right, count))
    if len(certain) > 1:
        ways = " and ".join(f"the {judged[at][0]} samples in {_called(orders[n])}" for n, at in certain.items())
        raise UserError(
            f"as the model answers, the classes of '{data.name}' are numbered in several orders, {ways}; expected one "
            "for all: number those of one split anew."
        )
    for best, at in certain.items():
        _, right, count = judged[at]
        next_best = max((n for n in range(len(orders)) if n != best), key=right.__getitem__)
        logger.info(
            "of the ways to number the classes, %s is taken: by it the model is right on %d of %d labelled samples, "
            "and on %d by %s.",
            _called(orders[best]),
            right[best],
            count,
            right[next_best],
            _called(orders[next_best]),
        )
        return orders[best]
    _, right, count = judged[0] if judged else ("", [0] * len(orders), 0)
    if not must or data.numbering != SORTED:
        return orders[0]
    tried = f"is right on {right[0]} and {right[1]} of {count} labelled samples" if count else "cannot be tried"
    path, mark, query = data.name.rpartition("?")
    base = f"{path}?{query}&" if mark and "=" in query else f"{data.name}?"
    raise UserError(
        f"the model does not name its {len(data.classes)} outputs, and with the classes in order of their "
        f"{orders[0].name} or {orders[1].name} it {tried}; expected to know the order: write {base}order=number (0, 1, "
        f"2 … 10) or {base}order=text (0, 1, 10, 2 …)."
    )


def _called(order: Order) -> str:
    return f"the order of their {order.name}" if order.name in ORDERS else order.name


def _some(samples: Samples, classes: Sequence[int]) -> Tensor:
    """Positions of a few samples of these classes, class by class."""
    if samples.labels is None:
        return torch.empty(0, dtype=torch.int64)
    positions = torch.isin(samples.labels, torch.tensor(classes)).nonzero()[:, 0]
    if not len(positions):
        return positions
    labels = samples.labels[positions]
    return positions[choose(labels, samples=min(len(positions), TRIED), seed=0, each=False)]


def _judged(model: Model, data: Data, classes: Sequence[int]) -> dict[str, tuple[Tensor, Tensor]]:
    """The labels of a few samples of these classes, and what the model says of them, by split."""
    judged = {}
    for split, samples in data.sets.items():
        if samples.labels is not None and len(positions := _some(samples, classes)):
            judged[split] = samples.labels[positions], _guesses(model, samples, positions)
    return judged


def _guesses(model: Model, samples: Samples, positions: Tensor) -> Tensor:
    order = list(positions.split(forward_size(samples, BATCH)))
    with eval_mode(model):
        clean = batches(samples, order, CLEAN, Augment(), device=device_of(model))
        return torch.cat([model(batch.inputs).argmax(1).cpu() for batch in clean])


def tail(successes: int, trials: int, chance: float) -> float:
    """The probability of that many successes or more in independent trials."""
    return sum(math.comb(trials, k) * chance**k * (1 - chance) ** (trials - k) for k in range(successes, trials + 1))
