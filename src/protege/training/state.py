"""All that changes while a run goes on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class State:
    """All that changes while a run goes on, and so all that a checkpoint keeps (with the weights)."""

    phase: int = 0
    epoch: int = 0
    step: int = 0  # updates done in this epoch
    updates: int = 0  # updates done in this phase
    past: int = 0  # updates of finished phases
    record: float | None = None  # best value of an evaluation in this phase
    stale: int = 0  # evaluations without improvement
    best: dict[str, Any] | None = None  # epoch, value, metrics, state of the best evaluation so far
    sums: dict[str, Any] = field(default_factory=dict)  # loss parts summed over this epoch
    seen: int = 0  # student samples, whole run
    forwarded: int = 0  # samples through frozen networks for their signals, whole run
    served: int = 0  # rows read from caches
    remembered: int = 0  # samples whose signals earlier runs had stored, each view counted once
    opened: list[str] = field(default_factory=list)  # views of caches that were looked into for that
    phase_seconds: float = 0.0
    done: list[dict[str, Any]] = field(default_factory=list)  # finished phases
    timing: dict[str, float] = field(default_factory=dict)
    log_bytes: int = 0  # length of metrics.jsonl
    capacities: dict[str, int] = field(default_factory=dict)  # views that a phase's sources store, settled once
    caches: list[dict[str, Any]] = field(default_factory=list)  # those that finished phases used
    origin: dict[str, Any] = field(default_factory=dict)  # what it was begun with, which a resumed run must find

    def begin_next_phase(self) -> None:
        """Count the phase as finished."""
        self.phase, self.past = self.phase + 1, self.past + self.updates
        self.epoch = self.step = self.updates = self.stale = 0
        self.best, self.record, self.sums, self.phase_seconds = None, None, {}, 0.0
