"""Methods that learn from features along the way, which Stagewise KD is compared with.

FitNets (Romero et al. 2015, arXiv 1412.6550), attention transfer (Zagoruyko & Komodakis 2017, arXiv 1612.03928), FSP
(Yim et al. 2017) and "simultaneous", all stages at once (Kulkarni et al. 2020, arXiv 1911.06786, section 4). Layers
are compared where the stages end; losses are in `features`.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from pydantic import Field
from torch import Tensor, nn

from ..data import Batch
from ..errors import UserError
from ..losses import attention_loss, flow_loss, hint_loss
from ..signals import Feature
from ..surgery import Pair, Tapped
from ..training.phase import Fit
from . import kd
from .method import Setup
from .stages import Apprentice, StageSettings, features, paired, staged, tapped, teacher_feature
from .teaching import TargetSettings

Step = Callable[[nn.Module, Batch], dict[str, Tensor]]
ATTENTION = 500.0  # half of the authors' β of 1000


class HintSettings(StageSettings, TargetSettings):
    """Where the hint is; the target is that of the second phase."""


class AttentionSettings(StageSettings):
    """How much the attention maps count beside the labels."""

    feature_weight: float = Field(ATTENTION, ge=0, description="β/2: weight of the attention maps' term")


def fitnets(setup: Setup) -> list[Fit]:
    """The first half of the student learns the teacher's middle features through a regressor; then the whole by KD."""
    cut = staged(setup)
    middle = (len(cut.pairs) - 1) // 2
    pair = cut.pairs[middle]

    def step(apprentice: nn.Module, batch: Batch) -> dict[str, Tensor]:
        feature = setup.student.run(apprentice, batch.inputs)
        return {"loss": hint_loss(feature, teacher_feature(batch, pair))}

    guided = Apprentice(setup.student, cut.stages[: middle + 1], pair)
    source = features(setup, [pair.teacher.name])
    hint = Fit("hint", guided, step, (source,), select_by="loss", reads=frozenset({"pixels"}))
    return [hint, *kd.plan(setup)]


def at(setup: Setup) -> list[Fit]:
    """``CE(y, q) + β/2·Σ_s MSE(attention maps at cut s)``."""
    pairs = _maps(paired(setup), "at")

    def step(trainee: nn.Module, batch: Batch) -> dict[str, Tensor]:
        ours, outputs = trainee(batch.inputs)
        task_loss = setup.task_loss(*setup.rows(outputs, batch))
        theirs = [teacher_feature(batch, pair) for pair in pairs]
        losses = [attention_loss(a, b) for a, b in zip(ours, theirs, strict=True)]
        loss = torch.stack(losses).sum()
        return {"loss": task_loss + setup.settings.feature_weight * loss, "task_loss": task_loss, "feature_loss": loss}

    plain = tapped(setup.student, pairs, adapt=False)
    return [_whole(setup, "attention", plain, step, pairs)]


def fsp(setup: Setup) -> list[Fit]:
    """The whole student learns the flows between the teacher's neighbouring cuts; then the task from labels."""
    cut = staged(setup)
    pairs = _maps(cut.pairs, "fsp")
    if len(pairs) < 2:
        raise UserError(
            f"method 'fsp' found one cut, {pairs[0].student.name!r}; expected two or more, as it compares what flows "
            "between them: name them with stages=…."
        )

    def flows(trainee: nn.Module, batch: Batch) -> dict[str, Tensor]:
        ours, _ = trainee(batch.inputs)
        theirs = [teacher_feature(batch, pair) for pair in pairs]
        losses = [flow_loss(a, b) for a, b in zip(pairwise(ours), pairwise(theirs), strict=True)]
        return {"loss": torch.stack(losses).mean()}

    def labels(trainee: nn.Module, batch: Batch) -> dict[str, Tensor]:
        return {"loss": setup.task_loss(*setup.rows(trainee(batch.inputs), batch))}

    first = _whole(setup, "flow", tapped(setup.student, pairs), flows, pairs, truth=False)
    first.select_by = "loss"
    head = {name for name, _ in cut.stages[-1].named_parameters()}  # no flow reaches it
    first.learns = lambda name: name.removeprefix("model.") not in head
    return [first, Fit("labels", setup.student, labels, setup.asked())]


def simultaneous(setup: Setup) -> list[Fit]:
    """All stage losses and the task's at once, summed and divided by their count."""
    pairs = paired(setup)

    def step(trainee: nn.Module, batch: Batch) -> dict[str, Tensor]:
        ours, outputs = trainee(batch.inputs)
        task_loss = setup.task_loss(*setup.rows(outputs, batch))
        theirs = [teacher_feature(batch, pair) for pair in pairs]
        loss = torch.stack([hint_loss(a, b) for a, b in zip(ours, theirs, strict=True)]).sum()
        return {"loss": (task_loss + loss) / (len(pairs) + 1), "task_loss": task_loss, "feature_loss": loss}

    whole = _whole(setup, "simultaneous", tapped(setup.student, pairs), step, pairs)
    whole.parts = len(pairs) + 1
    return [whole]


def _maps(pairs: list[Pair], method: str) -> list[Pair]:
    """The pairs, which must be of feature maps."""
    for pair in pairs:
        if not pair.student.is_map:
            raise UserError(
                f"method {method!r} compares feature maps, and {pair.student.name!r} gives values of shape "
                f"{pair.student.shape}; expected maps, such as [C, H, W]: choose skd, simultaneous or fitnets."
            )
    return pairs


def _whole(setup: Setup, name: str, trainee: Tapped, step: Step, pairs: list[Pair], truth: bool = True) -> Fit:
    """A phase in which the whole student learns, seen through its taps; with ``truth`` by the task's loss as well."""
    sources = setup.asked(*(Feature(pair.teacher.name) for pair in pairs), truth=truth)
    return Fit(name, trainee, step, sources, readout=lambda tapped: tapped.get_submodule("model"))
