"""What the stagewise methods share: the two networks in stages that correspond, and learners made of stages.

Stages are those of Kulkarni et al. 2020 (arXiv 1911.06786, section 3), see `surgery/stages/`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field
from torch import Tensor, nn

from ..data import Batch
from ..errors import UserError
from ..losses import regressor
from ..models import Model
from ..signals import Feature, Outputs, Source
from ..surgery import HEAVY, Chain, Cut, Pair, Stage, Tapped, describe, pair, split
from .method import MethodSettings, Setup, once

_LOG = logging.getLogger("protege")
WRAPPERS = {"OptimizedModule": "_orig_mod", "DataParallel": "module", "DistributedDataParallel": "module"}


class StageSettings(MethodSettings):
    """Which features correspond."""

    stages: str | None = Field(
        None,
        description="student_module=teacher_module,…: where stages end; default: the last cut at each resolution",
    )


@dataclass(frozen=True)
class Staged:
    """Both networks cut where they correspond: one pair for each stage but the last, the head."""

    pairs: list[Pair]
    stages: list[Stage]


@once
def paired(setup: Setup) -> list[Pair]:
    """Where the networks of a setup correspond. Raises `UserError` where they do not."""
    for role, model in (("student", setup.student), ("teacher", setup.teacher)):
        wrapper = type(model.network).__name__
        if inner := WRAPPERS.get(wrapper):
            raise UserError(
                f"the {role} is wrapped in {wrapper}, which hides its stages; expected the network itself: pass its "
                f".{inner}."
            )
    raw = setup.transfer.example()
    ours, theirs = setup.student.prepared(raw), setup.teacher.prepared(raw)
    return pair(setup.student.network, setup.teacher.network, ours, theirs, setup.settings.stages)


@once
def staged(setup: Setup) -> Staged:
    """Pair and cut the networks of a setup. Raises `UserError` where that cannot be done."""
    pairs = paired(setup)
    if not any(p.requires_grad for p in setup.student.parameters()):
        raise UserError(
            "every parameter of the student is frozen; expected some that learn: call requires_grad_(True) on them."
        )
    example = setup.student.prepared(setup.transfer.example())
    stages = split(setup.student.network, [p.student.name for p in pairs], example)
    if setup.settings.stages is None and len(pairs) > 1 and not list(stages[-1].parameters()):  # it ends by pooling
        pairs = pairs[:-1]
        stages = split(setup.student.network, [p.student.name for p in pairs], example)
    for stage in stages:
        if not any(p.requires_grad for p in stage.parameters()):
            where = f"after the cut {pairs[-1].student.name!r}" if stage is stages[-1] else f"in stage {stage.name!r}"
            raise UserError(
                f"{where} nothing is left to learn; expected parameters there that are not frozen: name other stages=…."
            )
    sizes = [sum(p.numel() for p in stage.parameters()) for stage in stages]
    if max(sizes) > HEAVY * sum(sizes):
        _LOG.warning(
            "stage %r holds %.1f %% of the student's parameters, so that the stages hardly divide it; name others with "
            "stages=….",
            stages[sizes.index(max(sizes))].name,
            100 * max(sizes) / sum(sizes),
        )
    return Staged(pairs, stages)


def preview(setup: Setup) -> list[dict[str, Any]]:
    """How the networks pair up."""
    return describe(paired(setup))


def preview_staged(setup: Setup) -> list[dict[str, Any]]:
    """The student's stages and how they pair up."""
    cut = staged(setup)
    return describe(cut.pairs, cut.stages)


class LaidOut(nn.Module):
    """The output at a cut as losses take it."""

    def __init__(self, cut: Cut) -> None:
        super().__init__()
        self.cut = cut

    def forward(self, feature: Tensor) -> Tensor:
        return self.cut.laid_out(feature)


def adapter(pair: Pair, learned: bool = True) -> nn.Module:
    """What stands between the student's features and the teacher's: their layout is brought about and, while a stage
    learns, the number of channels, by a 1×1 layer."""
    ours, theirs = pair.student, pair.teacher
    layout = nn.Identity() if ours.is_plain else LaidOut(ours)
    if not learned or not pair.adapter:
        return layout
    layer = regressor(ours.channels, theirs.channels, maps=ours.is_map)
    return layer if ours.is_plain else nn.Sequential(layout, layer)


class Apprentice(nn.Module):
    """Stages that learn to give a teacher's features: what is alive before them → the last one's (adapted) feature."""

    def __init__(self, student: Model, stages: Sequence[Stage], pair: Pair) -> None:
        super().__init__()
        self.chain, self.adapter, self.layout = Chain(stages), adapter(pair), student.layout

    def forward(self, live: Tensor | tuple[Tensor, ...]) -> Tensor:
        return self.adapter(self.chain(live)[0])


class Prefix(nn.Module):
    """The first stages of a student, frozen: raw inputs → what is alive after them."""

    def __init__(self, student: Model, stages: Sequence[Stage]) -> None:
        super().__init__()
        self.input, self.layout, self.chain = student.input, student.layout, Chain(stages)
        self._run = student.run

    def forward(self, raw: Tensor) -> tuple[Tensor, ...]:
        return self._run(self.chain, raw)


def frozen(setup: Setup, stages: Sequence[Stage]) -> Source:
    """A student's first stages as a source of what the next one takes; of no use to another run."""
    return Source("prefix", Prefix(setup.student, stages), [Outputs()], setup.task, lasting=False)


def live(setup: Setup, batch: Batch) -> tuple[Tensor, ...]:
    """What `frozen` stages have left in a batch."""
    fields = batch.signals["prefix"]
    values = tuple(fields[key] for key in sorted(fields, key=int))
    return values if setup.student.layout == "channels_last" else tuple(value.contiguous() for value in values)


def features(setup: Setup, names: Sequence[str], together: Sequence[str] = ()) -> Source:
    """The teacher as a source of the features at named modules; ``together``: all those that phases will ask for."""
    asked, all_asked = ([Feature(name) for name in part] for part in (names, together))
    return Source("teacher", setup.teacher, asked, setup.task, together=all_asked)


def teacher_feature(batch: Batch, pair: Pair) -> Tensor:
    """The teacher's feature at a pair's cut, as losses take it, in a batch that `features` were asked for."""
    return pair.teacher.laid_out(batch.signals["teacher"][f"feature:{pair.teacher.name}"])


def tapped(student: Model, pairs: Sequence[Pair], adapt: bool = True) -> Tapped:
    """The whole student, which also gives its features at the cuts, adapted to the teacher's."""
    return Tapped(student, [p.student.name for p in pairs], [adapter(p, adapt) for p in pairs])
