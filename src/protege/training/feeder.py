"""Where a phase's batches come from, and the signals that go with them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from accelerate import Accelerator
from torch import Tensor, nn

from ..data import CLEAN, Batch, bare_batches
from ..models.placing import leave, place
from ..signals import Signals, Source, Views
from .drawn import Drawn
from .phase import Fit
from .progress import Display


class Feeder:
    """Makes signals and batches of a run that learns from ``train``.

    Signals that other runs may use lie in ``cache`` (None: by fingerprint), within ``budget`` bytes; those that none
    can use in ``passing``, while the run lasts. ``record``: whether what a GPU repeats is launched as one.
    """

    def __init__(
        self,
        train: Views,
        cache: Path | None,
        budget: int,
        passing: Path,
        precision: str,
        accelerator: Accelerator,
        display: Display,
        record: bool = True,
    ) -> None:
        self.train, self.cache, self.budget, self.passing = train, cache, budget, passing
        self.precision, self.accelerator, self.display = precision, accelerator, display
        self._lasting: dict[tuple, Signals] = {}
        self._away: list[Callable[[], None]] = []
        self.record, self._drawn = record, dict[int, Drawn | None]()

    def signals(self, source: Source, views: Views, phase: int) -> Signals:
        """What a source says about these views, in phase number ``phase``.

        Made once where other runs will want it too, so that what a check has opened is what a phase reads.
        """
        key = (id(source.network), source.signals, source.remembered.signals, id(views))
        if key in self._lasting:
            return self._lasting[key]
        place(source.network, self.accelerator.device)
        signals = Signals(
            source,
            views,
            budget=self.budget,
            folder=self.cache if source.lasting else self.passing / str(phase),
            part="train" if views.samples is self.train.samples else "other",
            precision=self.precision,
            record=self.record,
        )
        if source.lasting:
            self._lasting[key] = signals
        return signals

    def clear(self) -> None:
        """Delete the passing signals, also those that a killed run left behind."""
        if self.accelerator.is_local_main_process:
            for phase in self.passing.glob("[0-9]*"):
                shutil.rmtree(phase, ignore_errors=True)
            with suppress(OSError):  # it is not there, or holds something else
                self.passing.rmdir()
        self.accelerator.wait_for_everyone()

    def fill(self, signals: Signals, view: int, between: Callable[[], None]) -> int:
        """Store a view's missing signals; returns how many samples all processes forwarded for it.

        ``between`` is called after each forward pass.
        """
        part = f"view {view + 1}/{self.train.count}" if view >= 0 else "validation"
        bar = self.display.reporter(f"{signals.source.name}: {part}")

        def progress(done: int, total: int) -> None:
            bar(done, total)
            between()

        count = signals.fill_together(view, progress)
        signals.load(view)
        return count

    def dismiss(self, signals: Iterable[Signals], epochs: int, *learning: nn.Module) -> None:
        """Before a phase records anything: let teachers of whom all is remembered leave the accelerator until they are
        called, or until `recall`, but for those that share weights with what is ``learning``."""
        if self.accelerator.device.type == "cpu":
            return
        kept = {id(value) for network in learning for value in (*network.parameters(), *network.buffers())}
        for network in {asked.source.network for asked in signals if asked.source.lasting}:
            shared = any(id(value) in kept for value in (*network.parameters(), *network.buffers()))
            if not shared and all(asked.remembers(epochs) for asked in signals if asked.source.network is network):
                self._away.append(leave(network))

    def recall(self) -> None:
        """Have those that left the accelerator back on it."""
        while self._away:
            self._away.pop()()

    def stream(
        self, phase: Fit, views: Views, order: Sequence[Tensor], view: int, signals: list[Signals]
    ) -> Iterator[Batch]:
        """The batches of an order, without their images where caches have all that the phase looks at; signals are to
        be attached to them in that order."""
        for known in signals:
            known.expect(view, order)
        needs = {"pixels"} if views.samples.labels is not None else {"pixels", "labels"}
        if not needs & phase.reads and all(known.serves(view) for known in signals):
            return bare_batches(views.samples, order, view, views.augment, device=views.device)
        if self.record and view != CLEAN and views.device.type == "cuda":
            if id(views) not in self._drawn:
                self._drawn[id(views)] = Drawn.of(views)
            if drawn := self._drawn[id(views)]:
                return drawn.batches(order, view)
        return views.ordered(order, view)
