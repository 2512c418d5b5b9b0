"""Knowledge distillation (Hinton, Vinyals & Dean 2015, "Distilling the Knowledge in a Neural Network").

With any of the targets of `teaching`: the teacher's rows in full, or a part of what they know.
"""

from __future__ import annotations

from torch import Tensor, nn

from ..data import Batch
from ..training.phase import Fit
from .method import Setup
from .teaching import TargetSettings, teaching


class Settings(TargetSettings):
    """What is taught, and its share of the loss."""


def plan(setup: Setup) -> list[Fit]:
    """One phase: ``(1-λ)·CE(y, q) + λ·term``; for the target `kd` the term is ``T²·KL(p^T ‖ q^T)``."""
    term = teaching(setup.settings, setup)

    def step(student: nn.Module, batch: Batch) -> dict[str, Tensor]:
        z, truth, weights = setup.rows(student(batch.inputs), batch)
        task_loss = setup.task_loss(z, truth, weights)
        kd = term.loss(z, truth, weights, batch)
        return {"loss": (1 - term.weight) * task_loss + term.weight * kd, "task_loss": task_loss, "kd_loss": kd}

    return [Fit("kd", setup.student, step, setup.asked(*term.signals))]
