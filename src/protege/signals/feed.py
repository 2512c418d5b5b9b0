"""A source's signals on the way to a batch: from the cache where the view is stored, else from a forward pass."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch import Tensor

from ..data import CLEAN, Augment, Batch, Samples, batches, cache_root, forward_size
from .cache import VERSION, SignalCache, Vanished, bytes_of_view, halved, layout_of, widened
from .sharing import evict
from .signals import Source, behaviour

logger = logging.getLogger(__name__)

BLOCK = 256  # samples in one forward pass of a fill; fixed, so that a stored row does not depend on who asked
KEPT = 8 * 2**30  # bytes that all caches under `cache_root` may take together in any case
ATTEMPTS = 3  # to fill a view of a cache that is deleted meanwhile
PROBE = 64  # samples on which a network shows that it is the one whose signals are stored


class Feed:
    """Attaches a source's fields to batches of ``samples`` at ``positions`` (sorted).

    ``views`` is how many views a sample has (0: a fresh one each epoch, nothing is stored). ``folder`` is where the
    source has a cache folder for this ``part`` of the data; None takes one under `cache_root` by fingerprint, where
    those that were not used for long make room when all take more than `KEPT` and twice the budget. ``autocast`` gives
    the precision's context.
    """

    def __init__(
        self,
        source: Source,
        samples: Samples,
        positions: Tensor,
        augment: Augment,
        *,
        views: int,
        budget: int,
        folder: Path | None,
        part: str = "train",
        precision: str,
        autocast: Callable[[], AbstractContextManager],
        device: torch.device,
        workers: int,
    ) -> None:
        self.source, self.samples, self.positions, self.augment = source, samples, positions, augment
        self.autocast, self.device, self.workers = autocast, device, workers
        self.cache: SignalCache | None = None
        self._views, self._told = views, False
        if views and budget:
            first = torch.arange(min(forward_size(samples, PROBE), len(samples)))
            example = next(batches(samples, [first], CLEAN, augment, device=device)).inputs
            sizes = {"total": len(samples), "used": len(positions)}
            own = self._forward(source, example)
            self.stored, fields = source, own
            if source.remembered is not source:
                self.stored, fields = source.remembered, self._forward(source.remembered, example)
            share = budget
            together, alone = (views * bytes_of_view(layout_of(each), **sizes) for each in (fields, own))
            if together > budget:  # then its signals share the budget
                self.stored, fields, share = source, own, budget * alone // together
            self._wanted = frozenset(own)
            identity = {
                "network": self.stored.fingerprint(),
                "outputs": behaviour(fields),
                "data": samples.fingerprint(),
                "views": augment.identity(),
                "signals": repr(self.stored.signals),
                "precision": f"{precision} on {device.type}",
            }
            if folder is None:
                path = cache_root() / _digest([VERSION, *sorted(identity.items())])
            else:  # of one network, and so refused to another
                path = folder / f"{source.name}_{part}-{_digest(self.stored.signals)}"
            self.cache = SignalCache(
                path, identity, fields, **sizes, budget=share, named=folder, durable=source.lasting
            )
            if folder is None:
                evict(cache_root(), max(2 * budget, KEPT))

    def serves(self, view: int) -> bool:
        """Whether the cache has every signal of the view, so that nobody needs the pixels for it."""
        return self.cache is not None and self.cache.holds(view) and self.cache.known(view, self.positions)

    def _forward(self, source: Source, inputs: Tensor) -> dict[str, Tensor]:
        with self.autocast():
            return source.compute(inputs)

    def fill(self, view: int, rank: int = 0, world: int = 1, progress: Callable[[int, int], None] | None = None) -> int:
        """Store the view's missing signals; returns how many samples were forwarded for it.

        Missing positions are planned in blocks, and a planned block is forwarded whole whoever completes it, so that
        a fill that was killed and resumed stores bit for bit what an undisturbed one would have.
        """
        if self.cache is None or not self.cache.holds(view):
            self._tell(view)
            return 0
        for _ in range(ATTEMPTS):
            try:
                return self._fill(self.cache, view, f"{rank}of{world}", self._mine(rank, world), progress)
            except Vanished:  # a user or another program deleted the cache
                self.cache.forget(view)
        return 0  # `attach` computes what is not stored

    def _mine(self, rank: int, world: int) -> Tensor:
        size = forward_size(self.samples, BLOCK)
        return torch.cat([self.positions[:0], *self.positions.split(size)[rank::world]])

    def _fill(
        self, cache: SignalCache, view: int, part: str, mine: Tensor, progress: Callable[[int, int], None] | None
    ) -> int:
        done, size = 0, forward_size(self.samples, BLOCK)
        with cache.lock(view, part):
            planned = cache.plan(view, part)
            fresh = cache.missing(view, mine)
            fresh = fresh[~torch.isin(fresh, torch.cat([mine[:0], *planned]))]
            if len(fresh):
                planned += fresh.split(size)
                cache.set_plan(view, part, planned)
            missing = [block for block in planned if torch.isin(block, mine).any()]
            if missing:
                saved = time.monotonic()
                stream = batches(self.samples, missing, view, self.augment, workers=self.workers, device=self.device)
                for batch in stream:
                    cache.write(view, batch.index.cpu(), self._forward(self.stored, batch.inputs))
                    done += len(batch)
                    if time.monotonic() - saved > 5:
                        cache.commit(view)
                        saved = time.monotonic()
                    if progress:
                        progress(done, sum(map(len, missing)))
                cache.commit(view)
                cache.set_plan(view, part, cache.plan(view, part))
        return done

    def _tell(self, view: int) -> None:
        """Say once that a view is not stored though views are."""
        if self.cache is not None and view >= 0 and not self._told:
            held = f"{self.cache.capacity} of {self._views} views of the {self.source.name}'s signals"
            size = self.cache.view_bytes >> 20
            logger.info("the cache holds %s (%d MB each); the others are computed anew.", held, size)
            self._told = True

    def load(self, view: int) -> None:
        """Bring a stored view to the device, where there is room."""
        if self.cache is not None and self.cache.holds(view):
            self.cache.load(view, self.device, self._wanted)

    def attach(self, batch: Batch) -> int:
        """Put the source's fields into ``batch.signals``, as float32; returns how many rows the cache served.

        Where views come again, numbers are those that a cache gives back, whatever is stored: no run depends on what
        the disk can hold."""
        view, index, cache = batch.view, batch.index, self.cache
        if cache is not None and cache.holds(view) and cache.known(view, index):  # unknown: another machine's rows
            batch.signals[self.source.name] = cache.read(view, index, self.device, self._wanted)
            return len(batch)
        fields = self._forward(self.source, batch.inputs)
        if self._views:
            fields = {name: halved(name, value) for name, value in fields.items()}
        batch.signals[self.source.name] = {name: widened(value) for name, value in fields.items()}
        return 0


def _digest(values: object) -> str:
    return hashlib.blake2b(repr(values).encode(), digest_size=8).hexdigest()
