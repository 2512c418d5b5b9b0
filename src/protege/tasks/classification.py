"""Images of one class each: outputs ``[N, K]``, labels ``[N]``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..data.labels import UNLABELLED
from .chance import Chance
from .metrics import ClassMetrics, Metrics, over_processes
from .task import Shortfall, Task

BINS = 15  # of confidence, in calibration
FEW = 60  # samples of a class, a tenth of what the usual sets have


@dataclass(frozen=True)
class Classification(Task):
    weighed: bool = False  # whether the labels' loss has class weights: then the commonest class is not all that counts
    name = "classification"

    @property
    def metric(self) -> str:  # type: ignore[override]
        return "balanced_accuracy" if self.weighed else "accuracy"

    def metrics(self, classes: int, device: torch.device | str = "cpu") -> Metrics:
        return CalibratedMetrics(self.rows, classes, device)

    def shortfall(self, metrics: Mapping[str, float], details: Mapping[str, Any]) -> Shortfall | None:
        if not details.get("chance") or not {"accuracy", "nll", "balanced_accuracy"} <= metrics.keys():
            return None  # metrics of one's own
        chance = Chance(**details["chance"])
        if not chance.explains(metrics["accuracy"], metrics["nll"], metrics["balanced_accuracy"]):
            return None
        return Shortfall("accuracy", metrics["accuracy"], chance.accuracy)

    def few(self, samples: int, classes: int) -> str:
        per_class = samples / classes
        count = "1 sample" if round(per_class) == 1 else f"{per_class:.0f} samples"
        return f"{count} a class are few" if per_class <= FEW else ""

    def weighing_classes(self) -> Task:
        return replace(self, weighed=True)


class CalibratedMetrics(ClassMetrics):
    """Those of rows, and the expected calibration error (Guo et al. 2017, arXiv 1706.04599)."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        # by confidence: rows, their confidences and how many of them are right
        self.bins = torch.zeros(3, BINS, dtype=torch.float64, device=self.sums.device)

    def add(self, logits: Tensor, labels: Tensor) -> None:
        super().add(logits, labels)
        known, right = labels != UNLABELLED, logits.argmax(1) == labels
        confidence = logits.softmax(1).amax(1).double()
        values = torch.stack([known.double(), confidence.where(known, 0), right.double()])
        places = torch.arange(BINS, device=values.device)
        self.bins += values @ (bin_of(confidence)[:, None] == places).double()  # in one order on every device

    def compute(self) -> dict[str, float]:
        metrics, bins = super().compute(), over_processes(self.bins)
        error = (bins[1] - bins[2]).abs().sum().item()
        return {**metrics, "ece": error / self.total[0].item()} if metrics else {}


def bin_of(confidence: Tensor) -> Tensor:
    """Which of `BINS` bins of equal width a confidence [M] is in (Guo et al. 2017, section 2)."""
    return (confidence * BINS).ceil().long().clamp(1, BINS) - 1
