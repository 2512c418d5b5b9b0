"""What a run remembers while it goes on: its state, the lines of its log, its checkpoints, and where time went."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from ..files import LOG, flush, write_text
from ..signals import Signals
from .checkpoint import drop_old, save_checkpoint
from .in_progress import FitInProgress, random_state
from .state import State
from .stop import Stops

UNREAD = 4096  # spans of time at most that are not added up yet: reading one waits for the device
Moment = float | torch.cuda.Event


class Journal:
    """The `state` of a run that teaches ``student``, and all that is written of it in ``out``, by its first process.

    ``every`` is the number of seconds between checkpoints; ``stops`` is heeded after each chance to write one.
    """

    def __init__(self, student: nn.Module, out: Path, accelerator: Accelerator, every: float, stops: Stops) -> None:
        self.student, self.out, self.accelerator, self.every, self.stops = student, out, accelerator, every, stops
        self.writes, self.world = accelerator.is_main_process, accelerator.num_processes
        self.state = State()
        self._number, self._saved = 0, time.monotonic()
        self._phase_began = time.monotonic()
        self._spans: list[tuple[str, Moment, Moment]] = []  # times that were not added up yet

    def restore(self, number: int, state: dict[str, Any]) -> None:
        """Go on from checkpoint ``number``, which was saved with this state."""
        self._number, self.state = number, State(**state)
        if self.writes:
            drop_old(self.out / "checkpoint")

    def begin(self, event: dict[str, Any]) -> None:
        """Begin the log anew with this event, by which the folder is known as a run's (see `protege.files`)."""
        line = json.dumps(event) + "\n"
        if self.writes:
            write_text(self.out / LOG, line)
        self.state.log_bytes = len(line)

    def cut_log(self) -> None:
        """Forget the lines that were written after the checkpoint; those of the run that was killed come again. Of a
        log that was cut the whole lines stay."""
        if self.writes:
            with open(self.out / LOG, "r+b") as file:
                kept = file.read(self.state.log_bytes)
                self.state.log_bytes = kept.rfind(b"\n") + 1
                file.truncate(self.state.log_bytes)

    # ---- time -----------------------------------------------------------------------------------------------

    def begin_phase(self) -> None:
        self._phase_began = time.monotonic() - self.state.phase_seconds

    def phase_seconds(self) -> float:
        """How long this phase has taken, before it was resumed, too."""
        return time.monotonic() - self._phase_began

    def now(self) -> Moment:
        """This moment, to be given to `spent`: on a GPU that at which it will have done what it was asked so far."""
        if self.accelerator.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def spent(self, on: str, since: Moment) -> Moment:
        """Count the time from ``since`` until now, which is returned."""
        now = self.now()
        self._spans.append((on, since, now))
        if isinstance(now, float):
            self._read()
        elif len(self._spans) >= UNREAD:
            self._read(UNREAD // 2)
        return now

    def _read(self, count: int | None = None) -> None:
        """Add up the oldest spans, or all."""
        for on, since, now in self._spans[:count]:
            self.state.timing[on] = self.state.timing.get(on, 0.0) + _seconds(since, now)
        del self._spans[:count]

    # ---- the log --------------------------------------------------------------------------------------------

    def log(self, event: dict[str, Any]) -> None:
        """Append a line to ``metrics.jsonl``; the epochs go to the trackers, too."""
        if self.writes:
            path, known = self.out / LOG, self.state.log_bytes
            try:
                with open(path, "ab") as file:
                    file.write(json.dumps(event).encode() + b"\n")
                    self.state.log_bytes = file.tell()
            except OSError:  # the disk is full: no line is left half written
                self.state.log_bytes = known
                os.truncate(path, known)
                raise
        if event["event"] == "epoch":
            flat = {f"train/{k}": v for k, v in event["train"].items()}
            flat |= {f"eval/{k}": v for k, v in event.get("eval", {}).items()}
            self.accelerator.log(flat, step=self.state.past + event["step"])

    def count_remembered(self, signals: Signals, view: int, forwarded: int) -> None:
        """Count what was stored before this run first asked for it."""
        if signals.cache is None or not signals.source.lasting or not signals.cache.holds(view):
            return
        if (name := f"{signals.cache.folder} {view}") not in self.state.opened:
            self.state.opened.append(name)
            self.state.remembered += max(0, len(signals.views.positions) - forwarded)

    # ---- checkpoints ----------------------------------------------------------------------------------------

    def save_when_due(self, fit: FitInProgress, now: bool = False) -> None:
        """Save where it is time to, then stop where that was asked for. All processes meet at an epoch's end only."""
        if self.world > 1 and self.state.step:
            return
        due = now or time.monotonic() - self._saved >= self.every or self.stops.asked is not None
        if due and self.state.sums:
            fit.check_finite(float(self.state.sums["loss"]), self.state)
        if self.world > 1:  # the first process decides
            due = gather_object([due])[0]
        if due:
            self.save(fit.state_dict())
        self.stops.heed()

    def save_if_stopped(self, fit: FitInProgress | None) -> None:
        """Save and stop, where that was asked for, while signals are stored between two updates (``fit`` is given)."""
        if fit and self.stops.asked is not None:
            self.save(fit.state_dict())
            self.stops.heed()

    def save(self, running: dict[str, Any]) -> None:
        """Write a checkpoint of the state, the student and, within a fit phase, of what it has ``running``."""
        self._read()
        randoms = {"random": gather_object([random_state()]) if self.world > 1 else [random_state()]}
        if self.writes:
            self._number += 1
            state = {**vars(self.state), "phase_seconds": self.phase_seconds()}
            content = {"state": state, "student": self.student.state_dict(), **running, **randoms}
            with self.stops.later():
                flush(self.out / LOG)  # a checkpoint tells how long it is
                save_checkpoint(self.out / "checkpoint", self._number, content)
        self._saved = time.monotonic()


def _seconds(since: Moment, now: Moment) -> float:
    if isinstance(since, float) and isinstance(now, float):
        return now - since
    now.synchronize()  # type: ignore[union-attr]
    return since.elapsed_time(now) / 1000  # type: ignore[union-attr, arg-type]
