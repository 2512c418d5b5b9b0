"""Plain training on labels: how teachers are made, and what every method must beat."""

from __future__ import annotations

from torch import Tensor, nn

from ..data import Batch
from ..training.phase import Fit
from .method import MethodSettings, Setup


class Settings(MethodSettings):
    """Nothing beyond the common ones."""


def plan(setup: Setup) -> list[Fit]:
    """One phase: cross-entropy with the labels."""

    def step(student: nn.Module, batch: Batch) -> dict[str, Tensor]:
        return {"loss": setup.task_loss(*setup.rows(student(batch.inputs), batch))}

    return [Fit("labels", setup.student, step, setup.asked())]
