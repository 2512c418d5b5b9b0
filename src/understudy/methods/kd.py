"""Knowledge distillation (Hinton, Vinyals & Dean 2015, "Distilling the Knowledge in a Neural Network")."""

from __future__ import annotations

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from ..data import Batch
from ..tasks import cross_entropy
from ..teacher import Logits, Source
from ..train.phase import Fit
from .method import Cast, MethodSettings


class Settings(MethodSettings):
    """The two numbers of Hinton's loss."""

    temperature: float = Field(4.0, gt=0, description="T: how far both distributions are softened")
    weight: float = Field(0.9, ge=0, le=1, description="λ: share of the loss that comes from the teacher")


def kd_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """``T²·KL(p^T ‖ q^T)``, mean over rows: ``student`` and ``teacher`` logits ``[M, K]`` → scalar (section 2)."""
    q = F.log_softmax(student.float() / temperature, dim=1)
    p = F.log_softmax(teacher.float() / temperature, dim=1)
    return F.kl_div(q, p, reduction="sum", log_target=True) / max(len(q), 1) * temperature**2


def plan(cast: Cast) -> list[Fit]:
    """One phase: ``(1-λ)·CE(y, q) + λ·T²·KL(p^T ‖ q^T)``."""
    s = cast.settings

    def step(student: nn.Module, batch: Batch) -> dict[str, Tensor]:
        outputs = student(batch.inputs)
        z, labels = cast.task.rows(outputs, batch.labels)
        v, _ = cast.task.rows(batch.signals["teacher"]["logits"], batch.labels)
        task_loss = cross_entropy(z, labels, s.label_smoothing)
        kd = kd_loss(z, v, s.temperature)
        return {"loss": (1 - s.weight) * task_loss + s.weight * kd, "task_loss": task_loss, "kd_loss": kd}

    return [Fit("kd", cast.student, step, sources=(Source("teacher", cast.star, [Logits()], cast.task),))]
