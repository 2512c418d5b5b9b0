"""The one term that stands wherever a method learns from the teacher's rows: which target, at what temperature.

Targets are those of Tang et al. 2020 (arXiv 2002.03532, section 3), see `losses/targets.py`, and DKD (Zhao et al.
2022, arXiv 2203.08679). The term is the mean over rows of ``T²·KL(ρ ‖ q^T)``; a target that is not made from the
teacher's tempered logits (`ls`, `pt`, `sim`, `pt_sim`) has T = 1. A row without a label is taught by `kd` and `topk`;
for the others it does not count.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field
from torch import Tensor

from ..data import Batch, forward_size
from ..errors import UserError
from ..labels import UNLABELLED
from ..losses import similarity, targets
from ..teacher import Logits, Signal, Source, TopK
from .method import Cast, MethodSettings
from .relations import logit_layer, predictions

logger = logging.getLogger(__name__)

LOOKED_AT = 2000  # training samples behind a calibrated τ

# Which settings each target has, and what they are when not given; T is the task's. λ of kd is common in the field.
# DKD's are its authors' for CIFAR-100, who add the term to the labels' loss: λ = 1/2 is half of that. Their warm-up of
# the term over 20 epochs is left to the learning rate's.
DEFAULTS: dict[str, dict[str, Any]] = {
    "kd": {"weight": 0.9, "temperature": None},
    "topk": {"weight": 0.9, "temperature": None, "k": 10},
    "ls": {"weight": 0.9, "epsilon": 0.1},
    "pt": {"weight": 0.9},
    "sim": {"weight": 0.9, "tau": None},
    "pt_sim": {"weight": 0.9, "tau": None, "mix": None},
    "dkd": {"weight": 0.5, "temperature": None, "alpha": 1.0, "beta": 8.0},
}


class TargetSettings(MethodSettings):
    """What of the teacher's knowledge is taught. Settings that are None have their target's default."""

    target: Literal["kd", "topk", "ls", "pt", "sim", "pt_sim", "dkd"] = Field(
        "kd",
        description="what is taught: kd (the teacher's rows), topk (their k largest), ls (label smoothing), pt (its "
        "confidence), sim (class relations), pt_sim (both), dkd (decoupled kd)",
    )
    temperature: float | None = Field(
        None,
        gt=0,
        le=targets.HOTTEST,
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
        return DEFAULTS[self.target]


TARGET_KEYS = [key for key in TargetSettings.model_fields if key not in MethodSettings.model_fields]


@dataclass(frozen=True)
class Teaching:
    """A term of a loss: the ``signals`` it wants of the teacher, λ, and the term itself.

    ``loss(z, labels, batch)`` takes the rows ``task.rows(outputs, batch.labels)`` of the student, ``[M, K]`` and
    ``[M]``, and the batch with the teacher's fields; it returns a scalar, not yet weighted.
    """

    signals: tuple[Signal, ...]
    weight: float
    loss: Callable[[Tensor, Tensor, Batch], Tensor]


def teaching(settings: TargetSettings, cast: Cast, source: str = "teacher") -> Teaching:
    """The term of these settings; ``source`` is the name under which batches carry the teacher's fields.

    For `sim` and `pt_sim` the teacher is looked at here. Raises `UserError` for a setting that the target does not
    have, and where a target that needs labels would get none.
    """
    name, s = settings.target, resolved(settings, cast.task.temperature)
    signals: dict[str, tuple[Signal, ...]] = {"topk": (TopK(s["k"], s["temperature"]),)} if name == "topk" else {}
    signals |= {other: (Logits(),) for other in ("kd", "pt", "pt_sim", "dkd")}
    everyone = name in ("kd", "topk")
    if not everyone:
        _refuse_unlabelled(name, cast)
    relations: Any = _relations(cast, s["tau"]) if "tau" in s else None
    scale = s.get("temperature", 1.0)

    def rows(z: Tensor, labels: Tensor, said: dict[str, Tensor]) -> Tensor:
        classes = z.shape[1]
        if name == "dkd":
            first, second = targets.decoupled(z, said["logits"], labels, scale)
            return s["alpha"] * first + s["beta"] * second
        if name == "kd":
            target = targets.kd(said["logits"], scale)
        elif name == "topk":
            target = targets.topk(said["probs"], said["classes"], classes)
        elif name == "ls":
            target = targets.smoothed(labels, s["epsilon"], classes)
        elif name == "pt":
            target = targets.pt(targets.true_probability(said["logits"], labels), labels, classes)
        elif name == "sim":
            target = targets.sim(relations.rows(labels))
        else:
            truth = targets.true_probability(said["logits"], labels)
            target = targets.pt_sim(truth, relations.rows(labels), labels, s["mix"])
        return targets.divergence(z, target, scale)

    def loss(z: Tensor, labels: Tensor, batch: Batch) -> Tensor:
        said = {k: cast.task.flat(v, batch.labels)[0] for k, v in batch.signals.get(source, {}).items()}
        each = rows(z, labels, said) * scale**2
        if everyone:
            return each.sum() / max(len(each), 1)
        known = labels != UNLABELLED
        return (each * known).sum() / known.sum().clamp(min=1)

    return Teaching(signals.get(name, ()), s["weight"], loss)


def beside(advised: dict[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the ``advised`` settings of a target that stand beside a user's ``own``, which decide on the target."""
    asked = [key for key in own if any(key in one for one in DEFAULTS.values())]
    fitting = [name for name, one in DEFAULTS.items() if all(key in one for key in asked)]
    first = [name for name in (advised.get("target"), *fitting) if name in fitting]
    target = own.get("target") or (first or [advised.get("target")])[0]  # where nothing fits, the refusal says so
    others = {key for one in DEFAULTS.values() for key in one} - set(DEFAULTS.get(str(target), ()))
    kept = {key: value for key, value in advised.items() if key not in own and key not in others}
    return {**kept, "target": target} if "target" in kept else kept


def resolved(settings: TargetSettings, temperature: float) -> dict[str, Any]:
    """The target's own settings, defaults filled in; refuses those of other targets. ``temperature``: the default T."""
    own = dict(settings.defaults())
    own |= {"temperature": temperature} if "temperature" in own else {}
    for key in sorted({key for one in DEFAULTS.values() for key in one}):
        value = getattr(settings, key)
        if value is not None and key not in own:
            owners = ", ".join(name for name, one in DEFAULTS.items() if key in one)
            raise UserError(
                f"{key} = {value!r} does not belong to target {settings.target!r}; expected it with target {owners}: "
                f"leave it out or change target=…."
            )
        own |= {key: value} if value is not None else {}
    return own


def _refuse_unlabelled(name: str, cast: Cast) -> None:
    labels, augment = cast.transfer.samples.labels, cast.transfer.augment
    if augment.mixes:
        raise UserError(
            f"target {name!r} needs the true class, which an image that augment = '{augment}' mixes does not have; "
            "expected kd or topk: change target=…, or leave out mixup and cutmix."
        )
    if labels is not None and bool((labels[cast.transfer.positions] == UNLABELLED).all()):
        raise UserError(
            f"target {name!r} needs labels, which the data does not have; expected kd or topk: change target=…."
        )


def _relations(cast: Cast, tau: float | None) -> similarity.Relations:
    """The teacher's class relations, from its logit layer or else from its mean predictions."""
    transfer, task, teacher = cast.transfer, cast.task, cast.teacher
    example = transfer.example()
    classes = Source("teacher", teacher, [Logits()], task).compute(example)["logits"].shape[task.class_dim]
    layer = logit_layer(teacher, classes, example, task)
    if layer is None and classes**2 > similarity.TABLE:
        raise UserError(
            f"the teacher has no linear logit layer and {classes} classes; expected one, or at most "
            f"{int(similarity.TABLE**0.5)} classes: change target=… to pt or topk."
        )
    vectors, truth = None if layer is None else layer.weight, 0.0
    if vectors is None or tau is None:
        step = -(-len(transfer.positions) // LOOKED_AT)
        some = transfer.batches(forward_size(transfer.samples, 256), positions=transfer.positions[::step])
        truth, means = predictions(teacher, some, task, classes if vectors is None else None)
        vectors = means if vectors is None else vectors
    if layer is None:
        logger.info("the teacher has no linear logit layer; class relations come from its mean predictions")
    if tau is None:
        tau = similarity.calibrate(vectors, truth)
        logger.info("τ = %.4g gives classes the teacher's mean confidence, %.3f", tau, truth)
    return similarity.Relations(vectors, tau)
