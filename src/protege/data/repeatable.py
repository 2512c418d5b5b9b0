"""Whether the items of a user's Dataset are the same at every reading, as views that are replayed need them.

Comparing two readings misses transforms that seldom do something: a flip with p = 0.05 shows in one of ten second
readings. So the random number generators of the process are watched as well: an item that moves one of them, to a
state that depends on where it stood before, is random whatever its pixels show. Generators that an item makes and
throws away are left to the comparison of `COMPARED` items: where one reading in a hundred differs from the usual one,
it misses them with a probability of 0.6 %.
"""

from __future__ import annotations

import gc
import random
import tempfile
from collections.abc import Callable, Sequence
from itertools import compress
from operator import not_
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError

COMPARED = 256
_SEEDED = 16  # items that move only generators which they have seeded themselves, after which no more are looked at
_KINDS = (np.random.BitGenerator, random.Random, torch.Generator)

_CODE = {type(lambda: None), type(len), type}  # most of what there is, and no holder of anything drawn from

Read = Callable[[int], tuple[Any, ...]]


def spread(count: int, most: int = COMPARED) -> list[int]:
    """At most ``most`` of the positions below ``count``, evenly spread."""
    return torch.linspace(0, count - 1, min(most, count), dtype=torch.float64).long().unique().tolist()


class Watch:
    """The random number generators that live in this process, and where they stood when it was made."""

    def __init__(self) -> None:
        kinds = set().union(*map(_subclasses, _KINDS)) - {random.SystemRandom}
        objects = _objects()
        # torch's generators are not known to the collector, and so found only as what others refer to; type(), as
        # isinstance() would ask proxies and lazy modules for their class
        holders = compress(objects, map(not_, map(_CODE.__contains__, map(type, objects))))
        everything = [*objects, *gc.get_referents(*holders)]
        alive = {id(value): value for value in compress(everything, map(kinds.__contains__, map(type, everything)))}
        naming = getattr(getattr(tempfile, "_name_sequence", None), "_rng", None)  # of temporary files
        self._all = [generator for generator in alive.values() if generator is not naming]
        self._before = [_standing(generator) for generator in self._all]

    def moved(self) -> list[Any]:
        """The generators that have been used since."""
        return [now for now, before in zip(self._all, self._before, strict=True) if _standing(now) != before]


def _objects() -> list[Any]:
    """All that the collector knows, of a process that has frozen some of it as well."""
    frozen = gc.get_freeze_count()
    if frozen:
        gc.unfreeze()
    objects = gc.get_objects()
    if frozen:
        gc.freeze()
    return objects


def _subclasses(kind: type) -> set[type]:
    return {kind}.union(*map(_subclasses, kind.__subclasses__()))


def refuse_random(read: Read, known: Read, positions: Sequence[int], where: Callable[[int], str], watch: Watch) -> None:
    """Raise `UserError` where items (some tensors and numbers each) are not the same at every reading.

    ``read(position)`` reads an item anew, and ``known(position)`` is what was read of it since ``watch`` was made, for
    each of ``positions``; ``where`` names an item.
    """
    remedy = "remove random transforms from the dataset and use augment instead, whose views can be replayed"
    moved, seeded = watch.moved(), 0
    for at in positions if moved else ():
        depends = _depends(read, at, moved)
        if depends:
            raise UserError(
                f"{where(at)} is drawn at random, so that it may differ from one reading to the next; {remedy}."
            )
        seeded += depends is not None
        if seeded == _SEEDED:
            break
    for at in (positions[n] for n in spread(len(positions))):
        if not all(_same(a, b) for a, b in zip(read(at), known(at), strict=True)):
            raise UserError(f"{where(at)} differs from one reading to the next; {remedy}.")


def _depends(read: Read, at: int, generators: list[Any]) -> bool | None:
    """Whether an item depends on where generators stand, as it leaves one in another state when it finds it in another;
    None where it uses none. They stand where they stood afterwards."""
    kept = [_state(generator) for generator in generators]
    start = [_standing(generator) for generator in generators]
    read(at)
    end = [_standing(generator) for generator in generators]
    if start == end:
        return None
    try:
        for generator in generators:
            _draw(generator)
        read(at)
        return any(a != b != c for a, b, c in zip(start, end, map(_standing, generators), strict=True))
    finally:
        for generator, state in zip(generators, kept, strict=True):
            _restore(generator, state)


def _same(a: Any, b: Any) -> bool:
    return torch.equal(a, b) if isinstance(a, Tensor) else a == b


def _state(generator: Any) -> Any:
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    return generator.getstate() if isinstance(generator, random.Random) else generator.state


def _standing(generator: Any) -> Any:
    """A state by values that are equal where it is."""
    return _values(_state(generator))


def _values(state: Any) -> Any:
    if isinstance(state, dict):
        return {key: _values(value) for key, value in state.items()}
    return state.tolist() if isinstance(state, Tensor | np.ndarray) else state


def _draw(generator: Any) -> None:
    if isinstance(generator, torch.Generator):
        torch.empty((), device=generator.device).uniform_(generator=generator)
    elif isinstance(generator, random.Random):
        generator.random()
    else:
        generator.random_raw()


def _restore(generator: Any, state: Any) -> None:
    if isinstance(generator, torch.Generator):
        generator.set_state(state)
    elif isinstance(generator, random.Random):
        generator.setstate(state)
    else:
        generator.state = state
