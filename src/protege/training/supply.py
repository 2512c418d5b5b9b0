"""Where a phase's batches come from, and the signals that go with them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from ..data import CLEAN, Batch, Samples, bare_batches, batches, forward_size
from ..models.placing import place
from ..signals import Source
from ..signals.cache import bytes_of_view, layout_of
from ..signals.feed import PROBE, Feed
from .phase import Fit
from .precision import autocast_for
from .progress import Display
from .state import Corpus, Memory


class Supply:
    """Makes feeds and batches of a corpus; signals that no other run can use lie in ``passing`` while it runs."""

    def __init__(
        self,
        corpus: Corpus,
        memory: Memory,
        passing: Path,
        precision: str,
        accelerator: Accelerator,
        display: Display,
    ) -> None:
        self.corpus, self.memory, self.passing, self.precision = corpus, memory, passing, precision
        self.accelerator, self.device, self.display = accelerator, accelerator.device, display

    def feed(self, source: Source, samples: Samples, positions: Tensor, phase: int) -> Feed:
        """The way from a source to the batches of these samples, in phase number ``phase``."""
        place(source.network, self.device)
        training = samples is self.corpus.train
        folder = self.memory.folder
        if not source.lasting:
            folder = self.passing / str(phase)
        return Feed(
            source,
            samples,
            positions,
            self.corpus.augment,
            views=self.corpus.views,
            budget=self.memory.budget,
            folder=folder,
            part="train" if training else "other",
            precision=self.precision,
            autocast=autocast_for(self.precision, self.device),
            device=self.device,
            workers=self.corpus.workers,
        )

    def bytes_of(self, source: Source) -> int:
        """The most that the signals of the training samples will take on disk, all views together."""
        corpus = self.corpus
        if not corpus.views:
            return 0
        place(source.network, self.device)
        first = torch.arange(min(forward_size(corpus.train, PROBE), len(corpus.train)))
        example = next(iter(batches(corpus.train, [first], CLEAN, corpus.augment, device=self.device))).inputs
        with autocast_for(self.precision, self.device)():
            layout = layout_of(source.remembered.compute(example))
        a_view = bytes_of_view(layout, total=len(corpus.train), used=len(corpus.positions))
        return min(corpus.views * a_view, self.memory.budget)

    def clear(self) -> None:
        """Delete the passing signals, also those that a killed run left behind."""
        if self.accelerator.is_local_main_process:
            for phase in self.passing.glob("[0-9]*"):
                shutil.rmtree(phase, ignore_errors=True)
            with suppress(OSError):  # it is not there, or holds something else
                self.passing.rmdir()
        self.accelerator.wait_for_everyone()

    def fill(self, feed: Feed, view: int, between: Callable[[], None]) -> int:
        """Store a view's missing signals; returns how many samples all processes forwarded for it.

        ``between`` is called after each forward pass.
        """
        accelerator, world = self.accelerator, self.accelerator.num_processes
        part = f"view {view + 1}/{self.corpus.views}" if view >= 0 else "validation"
        bar = self.display.reporter(f"{feed.source.name}: {part}")

        def progress(done: int, total: int) -> None:
            bar(done, total)
            between()

        count = feed.fill(view, accelerator.process_index, world, progress)
        if world > 1:
            count = int(accelerator.reduce(torch.tensor(count, device=self.device), "sum"))
        feed.load(view)  # only now, when every process has stored its share
        return count

    def stream(
        self, phase: Fit, samples: Samples, order: list[Tensor], view: int, feeds: list[Feed]
    ) -> Iterator[Batch]:
        """The batches of an order, without their images where caches have all that the phase looks at."""
        augment, workers = self.corpus.augment, self.corpus.workers
        needs = {"pixels"} if samples.labels is not None else {"pixels", "labels"}
        if not needs & phase.reads and all(feed.serves(view) for feed in feeds):
            return bare_batches(samples, order, view, augment, device=self.device)
        return iter(batches(samples, order, view, augment, workers=workers, device=self.device))
