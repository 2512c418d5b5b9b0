"""What processes that learn together tell each other about signals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import distributed

from ..errors import UserError

Told = TypeVar("Told")


def process() -> tuple[int, int]:
    """The number of this process, and how many learn together."""
    together = distributed.is_available() and distributed.is_initialized()
    return (distributed.get_rank(), distributed.get_world_size()) if together else (0, 1)


def from_the_first(make: Callable[[], Told]) -> Told:
    """What the first process makes, in all of them; where it fails, all do."""
    rank, world = process()
    if world == 1:
        return make()
    told: list[Any] = [None, None]
    failed: Exception | None = None
    if rank == 0:
        try:
            told[0] = make()
        except Exception as error:
            failed, told[1] = error, str(error)
    distributed.broadcast_object_list(told)
    if failed is not None:
        raise failed
    if told[1] is not None:
        raise UserError(told[1])
    return told[0]
