"""Where a phase's batches come from, and the signals that go with them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from ..data import Batch, Samples, bare_batches, batches
from ..models.placing import place
from ..signals import Signals, Source, Views
from .phase import Fit
from .progress import Display
from .state import CacheLimits, RunData


class Feeder:
    """Makes signals and batches of a run; signals that no other run can use lie in ``passing`` while it runs."""

    def __init__(
        self,
        run_data: RunData,
        memory: CacheLimits,
        passing: Path,
        precision: str,
        accelerator: Accelerator,
        display: Display,
    ) -> None:
        self.run_data, self.memory, self.passing, self.precision = run_data, memory, passing, precision
        self.accelerator, self.device, self.display = accelerator, accelerator.device, display
        self._made: dict[tuple, Signals] = {}

    def signals(self, source: Source, samples: Samples, positions: Tensor, phase: int) -> Signals:
        """What a source says about these samples, in phase number ``phase``.

        Made once where other runs will want it too, so that what a check has opened is what a phase reads.
        """
        key = (id(source.network), source.signals, source.remembered.signals, id(samples), id(positions))
        if key in self._made:
            return self._made[key]
        place(source.network, self.device)
        run_data = self.run_data
        made = Signals(
            source,
            Views(samples, positions, run_data.augment, run_data.views, self.device, run_data.workers),
            budget=self.memory.budget,
            folder=self.memory.folder if source.lasting else self.passing / str(phase),
            part="train" if samples is run_data.train else "other",
            precision=self.precision,
        )
        if source.lasting:
            self._made[key] = made
        return made

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
        accelerator, world = self.accelerator, self.accelerator.num_processes
        part = f"view {view + 1}/{self.run_data.views}" if view >= 0 else "validation"
        bar = self.display.reporter(f"{signals.source.name}: {part}")

        def progress(done: int, total: int) -> None:
            bar(done, total)
            between()

        count = signals.fill(view, accelerator.process_index, world, progress)
        if world > 1:
            count = int(accelerator.reduce(torch.tensor(count, device=self.device), "sum"))
        signals.load(view)  # only now, when every process has stored its share
        return count

    def stream(
        self, phase: Fit, samples: Samples, order: list[Tensor], view: int, signals: list[Signals]
    ) -> Iterator[Batch]:
        """The batches of an order, without their images where caches have all that the phase looks at."""
        augment, workers = self.run_data.augment, self.run_data.workers
        needs = {"pixels"} if samples.labels is not None else {"pixels", "labels"}
        if not needs & phase.reads and all(known.serves(view) for known in signals):
            return bare_batches(samples, order, view, augment, device=self.device)
        return iter(batches(samples, order, view, augment, workers=workers, device=self.device))
