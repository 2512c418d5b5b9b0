"""A source's signals for batches: read from the cache where the view is stored, else computed by a forward pass."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..data import CLEAN, Batch, cache_root, forward_size
from ..models.captured import Captured, Recorder, Tensors, steady_of
from ..models.precision import autocast_for, cast_once, single_precision
from ..torch_utils import as_it_was
from .behind import Ahead, behind, to_host
from .cache import SignalCache, Vanished
from .exchange import by_each, by_first, disks_of, give_each_disk, on_disks, process
from .folder import VERSION, evict
from .identity import behaviour
from .rows import as_computed, as_stored, bytes_of_view, kind_of, layout_of, not_finite, refuse_infinite, widened
from .source import Fields, Source
from .views import Views

logger = logging.getLogger(__name__)

BLOCK = 256  # samples in one forward pass of a fill, at most
PIXELS = 2**24  # in one forward pass of a fill on an accelerator, at most, but for a single sample
KEPT = 8 * 2**30  # bytes that all caches under `cache_root` may take together in any case
ATTEMPTS = 3  # to fill a view of a cache that is deleted meanwhile
PROBE = 64  # samples on which a network shows that it is the one whose signals are stored


class Signals:
    """What a source says about `Views`: `attach` puts it into a batch, from a cache or by a forward pass.

    Nothing is remembered before `open`, and never where views do not come again or there is no ``budget`` (bytes).
    ``folder`` is where the source has a cache folder for this ``part`` of the data; None takes one under `cache_root`
    by fingerprint, where those that were not used for long make room when all take more than `KEPT` and twice the
    budget. The network runs in ``precision``, ``bf16`` or ``fp32``; ``record``: whether a pass over a batch is launched
    as one on a GPU.
    """

    def __init__(
        self,
        source: Source,
        views: Views,
        *,
        budget: int,
        folder: Path | None = None,
        part: str = "train",
        precision: str = "fp32",
        record: bool = False,
    ) -> None:
        self.source, self.views, self.budget, self.folder, self.part = source, views, budget, folder, part
        self.precision = precision
        self.stored = source  # what a fill computes
        self.cache: SignalCache | None = None
        self._names = frozenset[str]()  # the source's fields
        self._announced = False
        self._disks: list[int] | None = None  # of each process, once it is asked for
        self.record = record and source.lasting and views.device.type == "cuda"
        self._recorded: Captured | None = None
        self._ahead: tuple[int, Ahead] | None = None  # the rows of batches to come, and of which view they are
        self._infinite: dict[str, Tensor] = {}  # on an accelerator, by field: whether `attach` met what is not finite

    # ---- the cache ----------------------------------------------------------------------------------------------

    def open(self) -> Signals:
        """Find or make the cache, which knows then how many views it has room for; may be called again.

        The network's weights are hashed the first time. Raises `UserError` where a folder that the user named cannot be
        written, or holds other files or other signals.
        """
        if not (self.views.count and self.budget):
            return self
        cache = self.cache = self.cache or self._find()
        capacities, blocks = zip(*by_each(lambda: (cache.open().capacity, cache.block)), strict=True)
        cache.capacity, cache.block = min(capacities), blocks[0]  # all store the same views, and share them alike
        if self.folder is None:
            evict(cache_root(), max(2 * self.budget, KEPT))
        return self

    def bytes_at_most(self) -> int:
        """What the source's signals, and those that are remembered with them, may take on disk."""
        if not self.views.count:
            return 0
        return min(self._bytes(self._tried(self.source.remembered)), self.budget)

    def _tried(self, source: Source) -> dict[str, Tensor]:
        """The fields of a few samples."""
        return self._forward(source, self._first())

    def _first(self) -> Tensor:
        samples = self.views.samples
        first = torch.arange(min(forward_size(samples, PROBE), len(samples)))
        return next(iter(self.views.ordered([first], CLEAN))).inputs

    def _behaviour(self, fields: Mapping[str, Tensor]) -> str:
        """What the network does, by a pass in single precision, in which every machine says the same; ``fields`` are
        what it said in the run's."""
        if self.precision == "fp32" and self.views.device.type == "cpu":
            return behaviour(fields)
        with single_precision(self.views.device):
            return behaviour(self.stored.compute(self._first()))

    def _bytes(self, fields: Mapping[str, Tensor]) -> int:
        sizes = {"total": len(self.views.samples), "used": len(self.views.positions)}
        return self.views.count * bytes_of_view(layout_of(fields), **sizes)

    def _find(self) -> SignalCache:
        source, views, budget = self.source, self.views, self.budget
        alone = fields = self._tried(source)
        if source.remembered is not source:
            together = self._tried(source.remembered)
            if (wanted := self._bytes(together)) <= budget:
                self.stored, fields = source.remembered, together
            else:  # then its signals share the budget
                budget = budget * self._bytes(alone) // wanted
        for name, value in as_stored(fields).items():  # rather now than when a run has begun
            refuse_infinite(name, value)
        self._names = frozenset(alone)
        identity = {
            "network": self.stored.fingerprint(),
            "outputs": by_first(lambda: self._behaviour(fields)),
            "data": views.samples.fingerprint(),
            "views": views.augment.identity(),
            "signals": repr(self.stored.signals),
            "precision": f"{self.precision} on {views.device.type}",
        }
        if "bfloat16" in map(kind_of, fields.values()):  # which were stored as float16 once
            identity["precision"] += ", bfloat16 rows"
        if self.folder is None:
            path = cache_root() / _digest([VERSION, *sorted(identity.items())])
        else:  # of one network, and so refused to another
            path = self.folder / f"{source.name}_{self.part}-{_digest(self.stored.signals)}"
        return SignalCache(
            path,
            identity,
            fields,
            total=len(views.samples),
            used=len(views.positions),
            budget=budget,
            block=self._block(),
            named=self.folder,
            durable=source.lasting,
        )

    def holds(self, view: int) -> bool:
        """Whether the view is one that the cache stores."""
        return self.cache is not None and self.cache.holds(view)

    def serves(self, view: int) -> bool:
        """Whether the cache has every signal of the view, so that nobody needs the pixels for it."""
        return self.cache is not None and self.cache.holds(view) and self.cache.known(view, self.views.positions)

    def remembers(self, epochs: int) -> bool:
        """Whether the cache has all that so many epochs ask for, so that nobody calls the source's network for it."""
        return bool(self.views.count) and all(map(self.serves, range(min(epochs, self.views.count))))

    def load(self, view: int) -> None:
        """Bring what is used of a stored view to the device, where there is room."""
        if self.cache is not None and self.serves(view):
            self.cache.load(view, self.views.positions, self.views.device, self._names)

    def expect(self, view: int, order: Sequence[Tensor]) -> None:
        """Say which batches will come, so that their rows are on the way to an accelerator before they do."""
        self._expect_nothing()
        cache, names, device = self.cache, self._names, self.views.device
        if device.type != "cuda" or cache is None or not self.serves(view) or cache.loaded(view, names):
            return

        def read(index: Tensor) -> dict[str, Tensor]:
            return {name: value.pin_memory() for name, value in cache.rows(view, index, names).items()}

        self._ahead = view, Ahead(read, order, partial(torch.cuda.set_device, torch.empty(0, device=device).device))

    def _expect_nothing(self) -> None:
        if self._ahead is not None:
            self._ahead[1].close()
        self._ahead = None

    def release(self) -> None:
        """Let go of the memory that open views take. Raises what `check` raises."""
        self._expect_nothing()
        self._recorded = None
        if self.cache is not None:
            self.cache.forget()
        self.check()

    def check(self) -> None:
        """Raise `UserError` where `attach` met numbers on an accelerator that are not finite; waits for the device."""
        seen, self._infinite = self._infinite, {}
        for name, infinite in seen.items():
            if bool(infinite):
                raise not_finite(name)

    # ---- filling it ---------------------------------------------------------------------------------------------

    def fill_together(self, view: int, progress: Callable[[int, int], None] | None = None) -> int:
        """Store the view's missing signals on the disks of all processes, which call this together; returns how many
        samples they forwarded for it.

        Each row is forwarded by one of them at most; what one disk has another is given.
        """
        rank, world = process()
        cache, positions = self.cache, self.views.positions
        if world == 1 or cache is None or not cache.holds(view):
            return self.fill(view, progress=progress)
        self.check()
        if all(by_each(lambda: cache.known(view, positions))):
            return 0
        self._disks = disks = self._disks or disks_of(cache.folder)
        several = len(set(disks)) > 1
        elsewhere = torch.stack([*on_disks(cache, view, disks).values()]).any(0) if several else None
        count = sum(by_each(lambda: self.fill(view, rank, world, progress, elsewhere)))
        if several:
            give_each_disk(cache, view, positions, disks)
        return count

    def fill(
        self,
        view: int,
        rank: int = 0,
        world: int = 1,
        progress: Callable[[int, int], None] | None = None,
        elsewhere: Tensor | None = None,
    ) -> int:
        """Store a process's share of the view's missing signals; returns how many samples were forwarded for it.

        Missing positions, but for those that are stored ``elsewhere`` (bool, of all samples), are planned in blocks,
        and a planned block is forwarded whole whoever completes it, so that a fill that was killed and resumed stores
        bit for bit what an undisturbed one would have.
        """
        self.check()
        if self.cache is None or not self.cache.holds(view):
            self._announce(view)
            return 0
        for _ in range(ATTEMPTS):
            try:
                mine = self._mine(rank, world)
                mine = mine if elsewhere is None else mine[~elsewhere[mine]]
                return self._fill(self.cache, view, f"{rank}of{world}", mine, progress)
            except Vanished:  # a user or another program deleted the cache
                self.cache.forget(view)
        return 0  # `attach` computes what is not stored

    def _mine(self, rank: int, world: int) -> Tensor:
        positions = self.views.positions
        return torch.cat([positions[:0], *positions.split(self._cut)[rank::world]])

    def _block(self) -> int:
        """Samples in one forward pass of a fill of a cache that is made now."""
        samples = self.views.samples
        if self.views.device.type == "cpu":
            return forward_size(samples, BLOCK)
        return max(1, min(BLOCK, PIXELS // samples.extent))

    @property
    def _cut(self) -> int:
        """Samples in one forward pass of a fill."""
        return (self.cache and self.cache.block) or forward_size(self.views.samples, BLOCK)

    def _fill(
        self, cache: SignalCache, view: int, part: str, mine: Tensor, progress: Callable[[int, int], None] | None
    ) -> int:
        done = 0
        with cache.lock(view, part):
            planned = cache.plan(view, part)
            fresh = cache.missing(view, mine)
            fresh = fresh[~torch.isin(fresh, torch.cat([mine[:0], *planned]))]
            if len(fresh):
                planned += fresh.split(self._cut)
                cache.set_plan(view, part, planned)
            missing = [block for block in planned if torch.isin(block, mine).any()]
            if missing:
                saved, source = time.monotonic(), self.stored
                if self.precision == "bf16" and self.views.device.type == "cuda":
                    source = lighter(source, self._forward, self._first())
                with behind(self.views.device.type == "cuda") as do:
                    for batch in self.views.ordered(missing, view):
                        said = to_host(as_stored(self._forward(source, batch.inputs)))
                        do(partial(_write, cache, view, batch.index, said))
                        done += len(batch)
                        if time.monotonic() - saved > 5:
                            do(partial(cache.commit, view))
                            saved = time.monotonic()
                        if progress:
                            progress(done, sum(map(len, missing)))
                cache.commit(view)
                cache.set_plan(view, part, cache.plan(view, part))
        return done

    def _announce(self, view: int) -> None:
        """Say once that a view is not stored though views are."""
        if self.cache is not None and view >= 0 and not self._announced:
            held = f"{self.cache.capacity} of {self.views.count} views of the {self.source.name}'s signals"
            size = self.cache.view_bytes >> 20
            logger.info("the cache holds %s (%d MB each); the others are computed anew.", held, size)
            self._announced = True

    # ---- to a batch ---------------------------------------------------------------------------------------------

    def _forward(self, source: Source, inputs: Tensor) -> dict[str, Tensor]:
        device = self.views.device
        with autocast_for("bf16", device)() if self.precision == "bf16" else single_precision(device):
            return source.compute(inputs)

    def _online(self, inputs: Tensor) -> dict[str, Tensor]:
        """The source's fields, by a pass that a GPU repeats where it can."""
        if not self.record:
            return self._forward(self.source, inputs)
        self._recorded = self._recorded or self._captured()
        return {name: value.clone() for name, value in self._recorded({"inputs": inputs}).items()}

    def _captured(self, record: Recorder | None = None) -> Captured:
        return Captured(
            self._said,
            self.views.device,
            steady=lambda: steady_of(self.source.network, self.views.device),
            kept=lambda: as_it_was(self.source.network),
            record=record,
        )

    def _said(self, tensors: Tensors) -> dict[str, Tensor]:
        return self._forward(self.source, tensors["inputs"])

    def attach(self, batch: Batch) -> int:
        """Put the source's fields into ``batch.signals``, as float32; returns how many rows the cache served.

        Where views come again, numbers are rounded as a cache stores them, whatever is stored: no run depends on what
        the disk can hold. What is remembered is what a pass over a block said; one over this batch says the same to
        within the precision that the network runs in, whose kernels may differ with the number of samples.
        """
        view, index, cache = batch.view, batch.index, self.cache
        if cache is not None and cache.holds(view) and cache.known(view, index):  # unknown: another machine's rows
            if self._ahead is not None and self._ahead[0] == view:
                fields = as_computed(self._ahead[1].take(index), self.views.device)
            else:
                fields = cache.read(view, index, self.views.device, self._names)
            batch.signals[self.source.name] = Fields(fields)
            return len(batch)
        fields = self._online(batch.inputs)
        if self.views.count:
            fields = as_stored(fields)
            for name, value in fields.items():
                self._refuse_infinite(name, value)
        batch.signals[self.source.name] = Fields({name: widened(value) for name, value in fields.items()})
        return 0

    def _refuse_infinite(self, name: str, stored: Tensor) -> None:
        """Refuse what is not finite at once on a processor, by `check` elsewhere."""
        if self.views.device.type == "cpu":
            refuse_infinite(name, stored)
        elif stored.is_floating_point():
            infinite = ~stored.isfinite().all()
            self._infinite[name] = infinite | self._infinite.get(name, infinite)


def lighter(source: Source, forward: Callable[[Source, Tensor], dict[str, Tensor]], inputs: Tensor) -> Source:
    """The source by a copy of its network that has fewer casts in a pass, where that says the same to the bit."""
    try:
        copy = Source(source.name, cast_once(source.network, torch.bfloat16), source.signals, source.task)
        said, meant = forward(copy, inputs), forward(source, inputs)
    except Exception:  # its own code meets weights of another precision
        return source
    return copy if all(torch.equal(said[name], value) for name, value in meant.items()) else source


def _write(cache: SignalCache, view: int, index: Tensor, said: Callable[[], dict[str, Tensor]]) -> None:
    cache.write(view, index, said())


def _digest(values: object) -> str:
    return hashlib.blake2b(repr(values).encode(), digest_size=8).hexdigest()
