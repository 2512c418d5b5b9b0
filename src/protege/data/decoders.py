"""Processes that decode a stream, and run ahead of who asks."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..errors import UserError
from .augment import Augment
from .batch import Batch
from .samples import Samples
from .views import CLEAN

_FEW, _MANY = 8, 32  # processes
_AHEAD = 4  # batches that each of a few processes is ahead, and fewer where there are more


def default_workers() -> int:
    """How many processes decode streamed images for this one: as many as it has threads, at most 8, or 32 where there
    is an accelerator, which takes more than a processor does."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # torchrun gives each of its processes one thread
    share = torch.get_num_threads() if local == 1 else (os.cpu_count() or 1) // local
    return max(1, min(_MANY if torch.accelerator.is_available() else _FEW, share))


_LASTING: ContextVar[dict[Samples, Decoders] | None] = ContextVar("lasting", default=None)


@contextmanager
def lasting_decoders() -> Iterator[None]:
    """Inside, the processes that decode a stream live on from one pass over some of it to the next, until the end."""
    lasting: dict[Samples, Decoders] = {}
    token = _LASTING.set(lasting)
    try:
        yield
    finally:
        _LASTING.reset(token)
        for decoders in lasting.values():
            decoders.end()


def decoded(
    samples: Samples, order: Sequence[Tensor], view: int, augment: Augment, workers: int, pinned: bool
) -> Iterator[Batch]:
    """A batch of a view for each tensor of positions, decoded by so many processes; `pinned`: in page-locked memory.
    Raises UserError where an image cannot be read."""
    lasting = _LASTING.get()
    there = None if lasting is None else lasting.get(samples)
    if there is not None and not there.busy and there.make(augment, view, workers, pinned):
        yield from there.batches(order, view)
        return
    made = Decoders(samples, augment, workers, pinned)
    last = lasting is not None and (there is None or not there.busy)
    if lasting is not None and last:
        if there is not None:
            there.end()
        lasting[samples] = made
    try:
        yield from made.batches(order, view)
    finally:
        if not last:
            made.end()


class Decoders:
    """Some processes that hold ``samples``, until the `end`."""

    def __init__(self, samples: Samples, augment: Augment, workers: int, pinned: bool) -> None:
        self.busy = False
        self._made_for = augment, workers, pinned
        self._order: list[tuple[int, list[int]]] = []  # of a pass, each batch's view and positions
        self._loader: DataLoader = DataLoader(
            _Fetches(samples, augment),
            batch_sampler=self._order,  # type: ignore[arg-type]
            collate_fn=_unchanged,
            num_workers=workers,
            prefetch_factor=min(_AHEAD, max(2, _AHEAD * _FEW // workers)),
            persistent_workers=True,
            pin_memory=pinned,
            generator=torch.Generator(),
            worker_init_fn=_apart,
        )

    def make(self, augment: Augment, view: int, workers: int, pinned: bool) -> bool:
        """Whether such batches are what these make."""
        its_augment, *others = self._made_for
        same = its_augment == augment and its_augment.pool is augment.pool
        return (same or view == CLEAN) and others == [workers, pinned]

    def batches(self, order: Sequence[Tensor], view: int) -> Iterator[Batch]:
        """A batch for each tensor of positions; one pass at a time."""
        self.busy = True
        self._order[:] = [(view, positions.tolist()) for positions in order]
        try:
            for batch in self._loader:
                if isinstance(batch, UserError):
                    raise batch
                yield batch
        finally:
            self.busy = False

    def end(self) -> None:
        """End the processes now, whoever still holds a pass that was broken off, such as a traceback."""
        if self._loader._iterator is not None:
            self._loader._iterator._shutdown_workers()  # type: ignore[attr-defined]


class _Fetches(Dataset):
    """What the processes hold: turns a view and a list of positions into a batch.

    A UserError is handed over as a value, because DataLoader would bury its sentence in a worker's traceback.
    """

    def __init__(self, samples: Samples, augment: Augment) -> None:
        self.samples, self.augment = samples, augment

    def __getitems__(self, asked: tuple[int, list[int]]) -> Batch | UserError:
        view, positions = asked
        try:
            return self.samples.fetch(torch.tensor(positions), view, self.augment)
        except UserError as error:
            return error

    def __getitem__(self, position: int) -> Any:
        raise TypeError("samples are fetched a batch at a time.")


def _unchanged(batch: Any) -> Any:
    return batch


def _apart(worker: int) -> None:
    """Ctrl-C in a terminal, or `timeout`, reaches a group of processes, and is for the one that these work for."""
    if hasattr(os, "setpgid"):  # not on Windows
        os.setpgid(0, 0)
