"""Plain training on labels: how teachers are made, and what every method must beat."""

from __future__ import annotations

from torch import Tensor, nn

from ..data import Batch
from ..training.phase import Fit
from .method import Cast, MethodSettings


class Settings(MethodSettings):
    """Nothing beyond the common ones."""


def plan(cast: Cast) -> list[Fit]:
    """One phase: cross-entropy with the labels."""

    def step(student: nn.Module, batch: Batch) -> dict[str, Tensor]:
        return {"loss": cast.task_loss(*cast.rows(student(batch.inputs), batch))}

    return [Fit("labels", cast.student, step, cast.asked())]
