"""Gap preserving distillation, GPD (Guo et al. 2025, arXiv 2410.04140): a teacher that grows with the student.

A dynamic teacher, a wider and multi-branch version of the student, starts as exactly the student's function (inverse
reparameterisation) and shares its parameters with it (channel-branch reparameterisation), see
`surgery/widening/`. In each step (section 3)

    dynamic teacher   task loss + what the static teacher teaches
    student           task loss + what the static teacher teaches + λ·CE(softmax(dynamic teacher), student)

and one optimiser moves the parameters of both. The static teacher may be left out (training from scratch, fine-tuning).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor, nn

from ..data import Batch
from ..errors import UserError
from ..losses import cross_entropy, gap_loss
from ..models import Model
from ..surgery import BRANCHES, Shared, readout, share
from ..tasks import Task
from ..torch_utils import device_of
from ..training.phase import Fit
from .method import Setup
from .teaching import TARGET_KEYS, TargetSettings, teaching

# The authors average weights and clip gradients; the numbers are for some thousand updates rather than ImageNet.
DEFAULTS: dict[str, Any] = {"ema": 0.995, "clip": 5.0}


def _words(value: Any) -> Any:
    """A word list as the command line gives it, "pointwise,average"; "" is none."""
    return tuple(word.strip() for word in value.split(",") if word.strip()) if isinstance(value, str) else value


class Settings(TargetSettings):
    """The dynamic teacher, and how much it teaches. The target's settings are those of the static teacher."""

    ratio: int = Field(2, ge=2, description="r: how many times the student's channels the dynamic teacher has")
    gap_weight: float = Field(
        3.0, ge=0, description="weight of what the dynamic teacher teaches (λ), where that of the labels is 1"
    )
    gap_smoothing: float = Field(0.1, ge=0, lt=1, description="label smoothing of the dynamic teacher's predictions")
    branches: Annotated[tuple[str, ...], BeforeValidator(_words)] = Field(
        tuple(BRANCHES),
        description=f"branches of a kernel beside the unrestricted one, with commas between: {', '.join(BRANCHES)}",
    )
    perturbation: float = Field(
        0.05, ge=0, description="how far copies start apart, as a share of the weights; the function stays the same"
    )

    def defaults(self) -> dict[str, Any]:
        """The target's, but labels and static teacher weigh the same, as in the paper."""
        return {**super().defaults(), "weight": 0.5}

    def idle(self, taught: bool) -> dict[str, str]:
        """The target's without a static teacher."""
        without = dict.fromkeys(TARGET_KEYS, "there is no static teacher; expected one: teacher=…")
        return super().idle(taught) if taught else without


def dynamic_teacher(setup: Setup) -> Shared:
    """The student and its dynamic teacher in one set of parameters, called on raw inputs."""
    s, student = setup.settings, setup.student
    example = student.prepared(setup.transfer.example(2).to(device_of(student)))
    trainee = share(
        student.network, s.ratio, example, branches=s.branches, perturbation=s.perturbation, run=student.run
    )
    trainee.layout = student.layout  # type: ignore[assignment]
    return trainee


def plan(
    setup: Setup,
    build: Callable[[Setup], Any] = dynamic_teacher,
    read: Callable[[Any], nn.Module] = readout,
) -> list[Fit]:
    """One phase: ``(1-w)·(task + λ·gap) + w·term`` for the student, the same without the gap for its dynamic teacher.

    w is the target's ``weight``, 0 without a teacher. λ is relative to the labels' loss for every w, as in the paper,
    whose task and KD terms have the same weight: w = 1/2, or 0 without a static teacher.

    ``build`` makes what is trained, a module from raw inputs to the outputs of the dynamic teacher and of the student,
    and ``read`` takes the student's network out of it: ablations have others.
    """
    s, student = setup.settings, setup.student
    if not setup.task.labelled:
        raise UserError(
            f"method 'gpd' teaches by class probabilities, which the task {setup.task.name!r} does not have; expected "
            "another method: choose kd or skd."
        )
    term = teaching(s, setup) if setup.teacher is not None else None
    weight = term.weight if term else 0.0
    if weight == 1 and s.gap_weight:
        raise UserError(
            "weight = 1 leaves nothing for the dynamic teacher, whose gap_weight is relative to the labels' share; "
            "expected less than 1: lower weight=…, or use method='kd'."
        )
    trainee = build(setup)

    def step(trainee: nn.Module, batch: Batch) -> dict[str, Tensor]:
        wide, narrow = trainee(batch.inputs)
        v, labels, weights = setup.task.rows(wide, batch.labels)
        z = setup.task.flat(narrow, batch.labels)
        gap = gap_loss(z, v, s.gap_smoothing, weights)
        losses = {"gap_loss": gap}
        total = (1 - weight) * s.gap_weight * gap
        for name, logits in (("student", z), ("dynamic", v)):
            task_loss = setup.task_loss(logits, labels, weights)
            total = total + (1 - weight) * task_loss
            nll = None if s.label_smoothing or s.class_weights else task_loss.detach()
            standing = _standing(setup.task, logits, labels, weights, nll)
            losses |= {f"{name}_{key}": value for key, value in standing.items()}
            if term:
                losses[f"{name}_kd_loss"] = kd = term.loss(logits, labels, weights, batch)
                total = total + weight * kd
        if "logits" in batch.signals.get("teacher", {}):
            static = setup.task.flat(batch.signals["teacher"]["logits"], batch.labels)
            standing = _standing(setup.task, static, labels, weights)
            losses |= {f"static_{key}": value for key, value in standing.items()}
        return {"loss": total, **losses}

    def student_of(trainee: nn.Module) -> nn.Module:
        student_model = Model(read(trainee), student.input)
        student_model.layout = student.layout
        return student_model

    return [Fit("gpd", trainee, step, setup.asked(*(term.signals if term else ())), readout=student_of)]


@torch.no_grad()
def _standing(
    task: Task, logits: Tensor, labels: Tensor, weights: Tensor, nll: Tensor | None = None
) -> dict[str, Tensor]:
    """Where a network stands on the batch: the gap between three of them is what this method is about."""
    (accuracy,) = task.score(logits, labels, weights).values()
    nll = cross_entropy(logits, labels, weights=weights) if nll is None else nll
    return {"nll": nll, "accuracy": accuracy}
