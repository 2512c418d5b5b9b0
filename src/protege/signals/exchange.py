"""What processes that learn together tell each other about signals, and the rows that their disks give each other.

Processes on one machine share a disk, and so do machines on a network's; others have each a cache of their own. A row
is forwarded once, by one process, and then every disk has it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import numpy as np
import torch
from torch import Tensor, distributed

from ..errors import UserError, told
from .cache import SignalCache, Vanished

Made = TypeVar("Made")
SENT = 2**26  # bytes that are sent at once


def process() -> tuple[int, int]:
    """The number of this process, and how many learn together."""
    together = distributed.is_available() and distributed.is_initialized()
    return (distributed.get_rank(), distributed.get_world_size()) if together else (0, 1)


def by_each(make: Callable[[], Made]) -> list[Made]:
    """What each process makes, in all of them; where one fails all do, so that none waits for another in vain."""
    world = process()[1]
    if world == 1:
        return [make()]
    failed: Exception | None = None
    mine: tuple[Any, str, bool] = (None, "", False)
    try:
        mine = (make(), "", False)
    except Exception as error:
        users = isinstance(error, UserError)
        failed, mine = error, (None, str(error) if users else told(error), users)
    every: list[Any] = [None] * world
    distributed.all_gather_object(every, mine)
    if failed is not None:
        raise failed
    for number, (_, why, users) in enumerate(every):
        if why:
            text = f"process {number} failed: {why}"
            raise UserError(text) if users else RuntimeError(text)
    return [made for made, _, _ in every]


def by_first(make: Callable[[], Made]) -> Made:
    """What the first process makes, in all of them; where it fails all do."""
    return by_each(lambda: make() if process()[0] == 0 else None)[0]  # type: ignore[return-value]


def disks_of(folder: Path) -> list[int]:
    """For each process the first one that sees the same folder, by a file that each of them puts there."""
    rank, world = process()
    name = by_first(lambda: uuid4().hex)  # that nobody has looked for before, as a network's disk remembers
    files = [folder / f"disk-{name}-{number}" for number in range(world)]

    def put() -> None:
        with suppress(OSError):  # then others may see it, or it is alone
            files[rank].touch()

    by_each(put)
    disks = by_each(lambda: next((number for number, file in enumerate(files) if file.exists()), rank))
    with suppress(OSError):
        files[rank].unlink(missing_ok=True)
    return disks


def on_disks(cache: SignalCache, view: int, disks: Sequence[int]) -> dict[int, Tensor]:
    """Which rows each disk has, bool [total]."""
    first = process()[0] in disks
    packed = by_each(lambda: np.packbits(cache.stored(view).numpy()) if first else None)
    unpacked = {disk: np.unpackbits(packed[disk], count=cache.total) for disk in sorted(set(disks))}  # type: ignore[arg-type]
    return {disk: torch.from_numpy(bits).bool() for disk, bits in unpacked.items()}


def give_each_disk(cache: SignalCache, view: int, index: Tensor, disks: Sequence[int]) -> None:
    """Store on each disk those of these rows that another one has."""
    rank, _ = process()
    has = {disk: rows[index] for disk, rows in on_disks(cache, view, disks).items()}
    everywhere = torch.stack([*has.values()]).all(0)
    failed: Exception | None = None
    size = sum(value[:1].nbytes for value in cache.blank(1).values())
    for giver, given in has.items():
        for rows in index[given & ~everywhere].split(max(1, SENT // max(size, 1))):
            fields = cache.rows(view, rows) if rank == giver else cache.blank(len(rows))
            for value in fields.values():
                _send(value, giver)
            if rank in has and rank != giver and failed is None:
                try:
                    with cache.lock(view, "given"):
                        cache.put(view, rows, fields)
                        cache.commit(view)
                except Exception as error:  # it takes part in what is sent to the others
                    failed = error
        everywhere |= given  # the others have them now
    by_each(partial(_raise, failed))


def _send(value: Tensor, giver: int) -> None:
    """Give all processes the values that one of them has, bit for bit."""
    on_cpu = "cpu:" in distributed.get_backend_config()
    device = torch.device("cpu") if on_cpu else torch.accelerator.current_accelerator()
    if not value.numel():
        return
    bits = value.view(torch.uint8).to(device)
    distributed.broadcast(bits, giver)
    value.view(torch.uint8).copy_(bits)


def _raise(failed: Exception | None) -> None:
    if failed is not None and not isinstance(failed, Vanished):  # without a folder `attach` computes them
        raise failed
