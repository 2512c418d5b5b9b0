"""What every step of a compression needs, and the record that is written after each."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import words
from ..data import Data
from ..files import write_json
from ..models import Model
from ..training.progress import Display, in_words
from .budget import Budget, written

RECORD = "compress.json"


class Clock:
    """The seconds that were spent, and how many are left of those there are."""

    def __init__(self, spent: float, limit: float | None) -> None:
        self.began, self.limit = time.monotonic() - spent, limit

    @property
    def spent(self) -> float:
        return time.monotonic() - self.began

    def left(self, share: float = 1.0) -> float:
        """The seconds that are left of a share of the time; without a limit, endless."""
        return math.inf if self.limit is None else share * self.limit - self.spent


@dataclass
class Work:
    """What every step needs: the networks and data, and the record that is written after each."""

    teacher: Model
    data: Data
    budget: Budget
    record: dict[str, Any]
    out: Path
    seed: int
    clock: Clock
    display: Display

    def say(self, line: str) -> None:
        left = f"  ({in_words(max(0, self.clock.left()))} left)" if self.clock.limit else ""
        self.display.say(line + left, always=True)

    def keep(self, **values: Any) -> None:
        """Write the record with what is new."""
        self.record |= {**values, "seconds": round(self.clock.spent, 1)}
        write_json(self.out / RECORD, self.record)


def said(figures: Mapping[str, float], whole: Mapping[str, float], metrics: Mapping[str, float], metric: str) -> str:
    """What a network costs, as shares of the teacher's, and what it is worth."""
    costs = [f"{figures[name] / whole[name]:.1%} of the {name}" for name in ("macs", "params") if name in figures]
    costs += [written(name, figures[name]) for name in ("size", "latency") if name in figures]
    return f"{', '.join(costs)}, {words.metric_name(metric)} {words.metric_value(metric, metrics[metric])}"
