"""Knowledge distillation (Hinton, Vinyals & Dean 2015, "Distilling the Knowledge in a Neural Network").

With any of the targets of `teaching`: the teacher's rows in full, or a part of what they know.
"""

from __future__ import annotations

from torch import Tensor, nn

from ..data import Batch
from ..losses import targets
from ..teacher import Source
from ..train.phase import Fit
from .method import Cast
from .teaching import TargetSettings, teaching


class Settings(TargetSettings):
    """What is taught, and its share of the loss."""


def kd_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """``T²·KL(p^T ‖ q^T)``, mean over rows: ``student`` and ``teacher`` logits ``[M, K]`` → scalar (section 2)."""
    rows = targets.divergence(student, targets.kd(teacher, temperature), temperature)
    return rows.sum() / max(len(rows), 1) * temperature**2


def plan(cast: Cast) -> list[Fit]:
    """One phase: ``(1-λ)·CE(y, q) + λ·term``; for the target `kd` the term is ``T²·KL(p^T ‖ q^T)``."""
    term = teaching(cast.settings, cast)

    def step(student: nn.Module, batch: Batch) -> dict[str, Tensor]:
        z, labels = cast.task.rows(student(batch.inputs), batch.labels)
        task_loss = cast.task_loss(z, labels)
        kd = term.loss(z, labels, batch)
        return {"loss": (1 - term.weight) * task_loss + term.weight * kd, "task_loss": task_loss, "kd_loss": kd}

    sources = (Source("teacher", cast.teacher, term.signals, cast.task),) if term.signals else ()
    return [Fit("kd", cast.student, step, sources=sources)]
