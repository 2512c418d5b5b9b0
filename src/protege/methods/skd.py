"""Stagewise knowledge distillation, SKD (Kulkarni et al. 2020, arXiv 1911.06786): teach one stage after the other.

For s = 1..S only the student's stage s learns, by the mean squared error between its features and the teacher's;
what lies before is frozen, what lies after plays no part. Then the head learns the task. The same small share of the
data serves all phases (section 3, algorithm 1). Classification and segmentation have the same code.

While stage s learns, its input and its target are constants of the (sample, view): both come from caches, so that a
stage costs what that stage costs.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from ..data import Batch
from ..losses import hint_loss
from ..surgery import HEAD, Stage
from ..torch_utils import logits_in, tensors_of
from ..training.phase import Fit, Phase, Solve
from . import kd
from .method import Setup
from .stages import Apprentice, Staged, StageSettings, features, frozen, live, staged, teacher_feature
from .teaching import TARGET_KEYS, TargetSettings

_LOG = logging.getLogger("protege")

# The authors use Adam, and keep the best state of a stage by its validation loss. The rate is ours, by held-out samples
# (studies/skd_cifar100_tuning.toml, studies/skd_camvid_tuning.toml).
DEFAULTS: dict[str, Any] = {"optimizer": "adamw", "lr": 3e-2, "select": "best", "patience": 3}
FINETUNE_LR = 2e-3
PHASES = ("inherit", HEAD, "finetune")  # besides the stages, which are called like the modules they end with


class Settings(StageSettings, TargetSettings):
    """What comes before and after the stages. The target's settings are those of the joint fine-tuning."""

    inherit: bool = Field(
        False, description="start stem and head from the teacher's weights, where names and shapes agree"
    )
    finetune_epochs: int = Field(
        0, ge=0, description="epochs in which the whole student then learns by kd (see target); 0: the paper"
    )
    finetune_lr: float | None = Field(
        None,
        gt=0,
        description="peak learning rate of the fine-tuning (skd: by adamw, of an inherited head, too); "
        "default: 0.01 (fskd) or 0.002 (skd)",
    )

    def idle(self, taught: bool) -> dict[str, str]:
        """The target's without the joint fine-tuning; its rate if no inherited head has it either."""
        why = "skd has no phase that learns by it; expected finetune_epochs above 0"
        rate = [] if self.inherit else ["finetune_lr"]
        return {} if self.finetune_epochs else dict.fromkeys([*TARGET_KEYS, *rate], why)


def plan(setup: Setup) -> list[Phase]:
    """A phase for each stage, one for the head, and a joint one if asked for."""
    s, cut = setup.settings, staged(setup)
    taken = inherited(setup, cut) if s.inherit else []
    trained = set(cut.stages[-1].state_dict()) <= set(taken)  # few labels would spoil it at a full rate
    gently = {"optimizer": "adamw", "lr": s.finetune_lr or FINETUNE_LR}

    phases: list[Phase] = [Solve("inherit", partial(inherit, setup, taken), _layers(taken))] if s.inherit else []
    phases += [_stage_phase(setup, cut, i) for i in range(len(cut.pairs))]
    phases.append(_head_phase(setup, cut.stages[:-1], cut.stages[-1], gently if trained else {}))
    if s.finetune_epochs:
        joint = kd.plan(setup)[0]
        overrides = {"epochs": s.finetune_epochs, **gently}
        phases.append(replace(joint, name="finetune", overrides=overrides, continues=True))
    return phases


def _stage_phase(setup: Setup, cut: Staged, number: int) -> Fit:
    before, stage, pair = cut.stages[:number], cut.stages[number], cut.pairs[number]
    targets = [pair.teacher.name for pair in cut.pairs]

    def step(apprentice: nn.Module, batch: Batch) -> dict[str, Tensor]:
        feature = apprentice(live(setup, batch)) if before else setup.student.run(apprentice, batch.inputs)
        return {"loss": hint_loss(feature, teacher_feature(batch, pair))}

    name = f"stage {stage.name}" if stage.name in PHASES else stage.name
    sources = ([frozen(setup, before)] if before else []) + [features(setup, [pair.teacher.name], targets)]
    reads: Any = frozenset() if before else frozenset({"pixels"})
    return Fit(name, Apprentice(setup.student, [stage], pair), step, tuple(sources), select_by="loss", reads=reads)


def _head_phase(setup: Setup, before: list[Stage], head: Stage, overrides: dict[str, Any]) -> Fit:
    head.layout = setup.student.layout  # type: ignore[assignment]

    def step(head: nn.Module, batch: Batch) -> dict[str, Tensor]:
        rows = setup.rows(logits_in(head(live(setup, batch))), batch)
        return {"loss": setup.task_loss(*rows), **setup.task.score(*rows)}

    sources = (frozen(setup, before), *setup.asked())
    fit = Fit(HEAD, head, step, sources, overrides=overrides, select_by=setup.task.accuracy_name)
    fit.reads, fit.continues = frozenset({"labels"}), bool(overrides)  # an inherited head has learned already
    return fit


def inherited(setup: Setup, cut: Staged) -> list[str]:
    """What the student's stem (what stands before the module of the first cut; if nothing does, that module) and head
    can take from the teacher: the values of each layer for which it has one of that name whose shapes all agree."""
    first, head = cut.stages[0], cut.stages[-1]
    before = [name for name in first.state_dict() if not name.startswith(f"network.{first.name}.")]
    ours, theirs = tensors_of(setup.student), tensors_of(setup.teacher)
    fixed = {name.rpartition(".")[0] for name, p in setup.student.named_parameters() if not p.requires_grad}
    layers: dict[str, list[str]] = {}
    for name in [*(before or first.state_dict()), *head.state_dict()]:
        if name in ours and name.rpartition(".")[0] not in fixed:
            layers.setdefault(name.rpartition(".")[0], []).append(name)
    fitting = [
        name
        for names in layers.values()
        if all(name in theirs and theirs[name].shape == ours[name].shape for name in names)
        for name in names
    ]
    if not fitting:
        _LOG.warning("inherit: no layer of the student's stem and head has the teacher's name and shape.")
    return fitting


def _layers(names: list[str]) -> tuple[str, ...]:
    """The layers, by their names in the user's own network, of these weights."""
    return tuple(dict.fromkeys(name.removeprefix("network.").rpartition(".")[0] for name in names))


def inherit(setup: Setup, names: list[str], report: Any) -> dict[str, float]:
    """Copy the teacher's values of these names."""
    ours, theirs = tensors_of(setup.student), tensors_of(setup.teacher)
    with torch.no_grad():
        for name in names:
            ours[name].copy_(theirs[name])
    return {"copied_values": float(sum(ours[name].numel() for name in names))}
