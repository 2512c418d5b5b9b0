"""Pixels of one class each: outputs ``[N, K, H, W]``, labels ``[N, H, W]``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.labels import UNLABELLED, blind
from .metrics import ClassMetrics, Metrics
from .pictures import draw_scenes
from .task import Shortfall, Shown, Task

FEW = 150  # labelled images, 40 % of CamVid


@dataclass(frozen=True)
class Segmentation(Task):
    metric = "miou"
    name = "segmentation"
    accuracy_name = "pixel_accuracy"
    tried = 64  # scenes, each of which has thousands of rows
    drawn = 4

    def rows(self, outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self.refuse_shape(outputs, labels)
        labels = labels.reshape(-1)
        return self.flat(outputs, labels), labels, (labels != UNLABELLED).float()

    def flat(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return outputs.movedim(1, -1).reshape(-1, outputs.shape[1])

    def metrics(self, classes: int, device: torch.device | str = "cpu") -> Metrics:
        return OverlapMetrics(self.rows, classes, device, accuracy=self.accuracy_name)

    def shortfall(self, metrics: Mapping[str, float], details: Mapping[str, Any]) -> Shortfall | None:
        """One class often fills most of the pixels, and neighbours are alike: so by the accuracy averaged over classes,
        whose chance is 1/K for every guess that does not look at the image."""
        if not details.get("chance") or "balanced_accuracy" not in metrics:
            return None  # metrics of one's own
        classes, reached = details["chance"]["classes"], metrics["balanced_accuracy"]
        if classes < 2 or reached > blind(classes):
            return None
        return Shortfall("mean accuracy of the classes", reached, 1 / classes)

    def few(self, samples: int, classes: int) -> str:
        return f"{samples} images are few" if samples <= FEW else ""

    def pictures(self, shown: Shown, out: Path) -> None:
        draw_scenes(shown, out)


class OverlapMetrics(ClassMetrics):
    """Those of rows, and the mean over classes of intersection over union (``miou``)."""

    def compute(self) -> dict[str, float]:
        metrics = super().compute()
        return {"miou": self.overlap().nanmean().item(), **metrics} if metrics else {}

    def more_details(self) -> dict[str, Any]:
        return {"per_class_iou": [None if math.isnan(value) else value for value in self.overlap().tolist()]}

    def overlap(self) -> Tensor:
        """Of each class, ``[K]``; nan for one that is neither there nor guessed."""
        truth, guesses, right = self.by_class.double()
        return right / (truth + guesses - right)
