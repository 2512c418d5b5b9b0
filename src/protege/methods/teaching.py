"""The one term that stands wherever a method learns from the teacher's rows: which target, at what temperature.

The term is the mean over rows of ``T²·KL(ρ ‖ q^T)``, where ρ is what the target asks (see `targets`); one that is not
made from the teacher's tempered logits (`ls`, `pt`, `sim`, `pt_sim`) has T = 1. A row without a label is taught by
targets that need none, `kd` and `topk` among them; for the others it does not count.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from torch import Tensor

from ..data import Batch
from ..data.labels import UNLABELLED
from ..errors import UserError
from ..losses import average
from ..losses.rows import labelled
from ..losses.targets import HOTTEST
from ..signals import Signal
from ..tasks import Task
from .method import MethodSettings, Setup
from .targets import TARGETS, find_target, name_of

ALL_KEYS = frozenset(key for entry in TARGETS.values() for key in entry.settings)

Target = Annotated[str, BeforeValidator(name_of)]


class TargetSettings(MethodSettings):
    """What of the teacher's knowledge is taught. Settings that are None have their target's default."""

    target: Target = Field(
        "kd",
        description="what is taught: kd (the teacher's rows), topk (their k largest), ls (label smoothing), pt (its "
        "confidence), sim (class relations), pt_sim (both), dkd (decoupled kd), vectors (the outputs as they are), or "
        "package.module:function",
    )
    temperature: float | None = Field(
        None,
        gt=0,
        le=HOTTEST,
        description="T of kd, topk and dkd: how far both distributions are softened; default: 4 (text: 1)",
    )
    weight: float | None = Field(
        None, ge=0, le=1, description="λ: share of the loss that comes from the teacher; default: 0.9 (dkd, gpd: 0.5)"
    )
    k: int | None = Field(None, ge=1, description="of topk: classes that keep their probability; default: 10")
    epsilon: float | None = Field(None, ge=0, le=1, description="ε of ls: mass spread over all classes; default: 0.1")
    tau: float | None = Field(
        None, gt=0, description="τ of sim, pt_sim: temperature of the cosines; default: as confident as the teacher"
    )
    mix: float | None = Field(
        None, ge=0, le=1, description="of pt_sim: share of pt in a sum with sim; default: pt, its rest shared as in sim"
    )
    alpha: float | None = Field(None, ge=0, description="α of dkd: weight of the true class's part; default: 1")
    beta: float | None = Field(None, ge=0, description="β of dkd: weight of the other classes' part; default: 8")

    def idle(self, taught: bool) -> dict[str, str]:
        """The weights of the labels' loss where that has no share."""
        return {"class_weights": "weight = 1 leaves the labels no share; expected less"} if self.weight == 1 else {}

    def defaults(self) -> dict[str, Any]:
        """What the target's settings are where they are None."""
        return dict(find_target(self.target).settings)


TARGET_KEYS = [key for key in TargetSettings.model_fields if key not in MethodSettings.model_fields]


@dataclass(frozen=True)
class Teaching:
    """A term of a loss: the ``signals`` it wants of the teacher, λ, and the term itself.

    ``loss(z, labels, weights, batch)`` takes the student's rows as `Setup.rows` gives them, ``[M, K]``, ``[M]`` and
    ``[M]``, and the batch with the teacher's fields; it returns a scalar, of which λ is the share.
    """

    signals: tuple[Signal, ...]
    weight: float
    loss: Callable[[Tensor, Tensor, Tensor, Batch], Tensor]


def teaching(settings: TargetSettings, setup: Setup, source: str = "teacher") -> Teaching:
    """The term of these settings; ``source`` is the name under which batches carry the teacher's fields.

    For `sim`, `pt_sim` and functions from outside the teacher is looked at here. Raises `UserError` for a setting that
    the target does not have, and where a target would get no labels or no classes that needs some.
    """
    settings = on_task(settings, setup.task)
    target, chosen = find_target(settings.target), resolved(settings, setup.task.temperature)
    _refuse_unsuited(settings.target, target.needs_labels, target.of_classes, setup)
    weight, signals = chosen.pop("weight"), target.signals(chosen)
    prepared = target.prepare(setup, chosen)

    def loss(z: Tensor, labels: Tensor, weights: Tensor, batch: Batch) -> Tensor:
        fields = {k: setup.task.flat(v, batch.labels) for k, v in batch.signals.get(source, {}).items()}
        values = target.loss(z, labels, fields, **prepared)
        return average(values, labelled(labels, weights) if target.needs_labels else weights)

    return Teaching(signals, weight, loss)


def on_task(settings: TargetSettings, task: Task) -> TargetSettings:
    """The settings with the target that stands on this task for the one chosen."""
    return settings.model_copy(update={"target": task.targets.get(settings.target, settings.target)})


def beside(advised: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the ``advised`` settings of a target that stand beside what a user has ``given``, which decides on the
    target."""
    asked = ALL_KEYS & set(given)
    fitting = [name for name, entry in TARGETS.items() if asked <= set(entry.settings)]
    first = [name for name in (advised.get("target"), *fitting) if name in fitting]
    target = given.get("target") or (first or [advised.get("target")])[0]  # where nothing fits, the refusal says so
    others = ALL_KEYS - set(find_target(target).settings if target in TARGETS else ())
    kept = {key: value for key, value in advised.items() if key not in given and key not in others}
    return {**kept, "target": target} if "target" in kept else kept


def resolved(settings: TargetSettings, temperature: float) -> dict[str, Any]:
    """The target's settings, defaults filled in; refuses those of other targets. ``temperature``: the default T."""
    chosen = dict(settings.defaults())
    chosen |= {"temperature": temperature} if "temperature" in chosen else {}
    for key in sorted(ALL_KEYS):
        value = getattr(settings, key)
        if value is not None and key not in chosen:
            owners = ", ".join(name for name, entry in TARGETS.items() if key in entry.settings)
            raise UserError(
                f"{key} = {value!r} does not belong to target {settings.target!r}; expected it with target "
                f"{owners}: leave it out or change target=…."
            )
        chosen |= {key: value} if value is not None else {}
    return chosen


def _refuse_unsuited(name: str, needs_labels: bool, of_classes: bool, setup: Setup) -> None:
    task, labels, augment = setup.task, setup.transfer.samples.labels, setup.transfer.augment
    if not task.labelled and (needs_labels or of_classes):
        fitting = " or ".join(key for key, entry in TARGETS.items() if not entry.needs_labels and not entry.of_classes)
        raise UserError(
            f"target {name!r} teaches classes, which the task {task.name!r} does not have; expected {fitting}: change "
            "target=…, or leave it out."
        )
    if needs_labels and augment.mixes:
        raise UserError(
            f"target {name!r} needs the true class, which an image that augment = '{augment}' mixes does not have; "
            "expected kd or topk: change target=…, or leave out mixup and cutmix."
        )
    if needs_labels and labels is not None and bool((labels[setup.transfer.positions] == UNLABELLED).all()):
        raise UserError(
            f"target {name!r} needs labels, which the data does not have; expected kd or topk: change target=…."
        )
