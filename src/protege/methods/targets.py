"""The targets by name: what of a teacher's rows is taught, which settings that has, and which signals it takes.

Those of Tang et al. 2020 (arXiv 2002.03532, section 3), DKD (Zhao et al. 2022, arXiv 2203.08679), and the teacher's
outputs as they are; see `losses`. A function of one's own comes through the same table, see `from_outside`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import losses
from ..errors import UserError, nearest, told
from ..lookup import GivenInPython, find_callable, place_of, refuse_unknown, split_query
from ..losses import divergence, true_probability
from ..signals import Logits, Signal, Source, TopK
from ..synonyms import VALUE_NAMES
from .method import Setup
from .relations import class_relations

Fields = Mapping[str, Tensor]


def _one_setting_each(setup: Setup, settings: dict[str, Any]) -> dict[str, Any]:
    return settings


@dataclass(frozen=True)
class Knowledge:
    """A part of what a teacher knows, and how it is taught.

    ``loss(z, labels, fields, **settings)`` gives the loss of each row, ``[M]``, of student logits ``[M, K]``, labels
    ``[M]`` (below 0 where there is none: that row is left out if the target ``needs_labels``) and the fields of
    ``signals`` as rows. ``settings`` are its own with their defaults, `weight` apart (None: decided by the run; a
    temperature by the task). ``of_classes``: whether rows must be logits. ``prepare`` makes of the settings what
    ``loss`` gets, where the teacher must be looked at for that.
    """

    loss: Callable[..., Tensor]
    settings: Mapping[str, Any]
    signals: Callable[[Mapping[str, Any]], tuple[Signal, ...]] = lambda settings: (Logits(),)
    needs_labels: bool = True
    of_classes: bool = True
    prepare: Callable[[Setup, dict[str, Any]], dict[str, Any]] = _one_setting_each


def _kd(z: Tensor, labels: Tensor, fields: Fields, temperature: float) -> Tensor:
    return divergence(z, losses.kd(fields["logits"], temperature), temperature) * temperature**2


def _topk(z: Tensor, labels: Tensor, fields: Fields, temperature: float, k: int) -> Tensor:
    target = losses.topk(fields["probs"], fields["classes"], z.shape[1])
    return divergence(z, target, temperature) * temperature**2


def _ls(z: Tensor, labels: Tensor, fields: Fields, epsilon: float) -> Tensor:
    return divergence(z, losses.smoothed(labels, epsilon, z.shape[1]))


def _pt(z: Tensor, labels: Tensor, fields: Fields) -> Tensor:
    return divergence(z, losses.pt(true_probability(fields["logits"], labels), labels, z.shape[1]))


def _sim(z: Tensor, labels: Tensor, fields: Fields, relations: losses.Relations) -> Tensor:
    return divergence(z, losses.sim(relations(labels)))


def _pt_sim(z: Tensor, labels: Tensor, fields: Fields, relations: losses.Relations, mix: float | None) -> Tensor:
    truth = true_probability(fields["logits"], labels)
    return divergence(z, losses.pt_sim(truth, relations(labels), labels, mix))


def _dkd(z: Tensor, labels: Tensor, fields: Fields, temperature: float, alpha: float, beta: float) -> Tensor:
    first, second = losses.decoupled(z, fields["logits"], labels, temperature)
    return (alpha * first + beta * second) * temperature**2


def _vectors(z: Tensor, labels: Tensor, fields: Fields) -> Tensor:
    return losses.vector_loss(z, fields["logits"])


def _related(setup: Setup, settings: dict[str, Any]) -> dict[str, Any]:
    tau = settings.pop("tau")
    return {**settings, "relations": class_relations(setup, tau)}


# T is the task's. λ of kd is common in the field. DKD's are its authors' for CIFAR-100, who add the term to the labels'
# loss: λ = 1/2 is half of that. Their warm-up of the term over 20 epochs is left to the learning rate's.
TARGETS: dict[str, Knowledge] = {
    "kd": Knowledge(_kd, {"weight": 0.9, "temperature": None}, needs_labels=False),
    "topk": Knowledge(
        _topk,
        {"weight": 0.9, "temperature": None, "k": 10},
        signals=lambda settings: (TopK(settings["k"], settings["temperature"]),),
        needs_labels=False,
    ),
    "ls": Knowledge(_ls, {"weight": 0.9, "epsilon": 0.1}, signals=lambda settings: ()),
    "pt": Knowledge(_pt, {"weight": 0.9}),
    "sim": Knowledge(_sim, {"weight": 0.9, "tau": None}, signals=lambda settings: (), prepare=_related),
    "pt_sim": Knowledge(_pt_sim, {"weight": 0.9, "tau": None, "mix": None}, prepare=_related),
    "dkd": Knowledge(_dkd, {"weight": 0.5, "temperature": None, "alpha": 1.0, "beta": 8.0}),
    "vectors": Knowledge(_vectors, {"weight": 0.9}, needs_labels=False, of_classes=False),
}


# ---- one's own --------------------------------------------------------------------------------------------------


_given = GivenInPython("target")


def name_of(target: Any) -> str:
    """The name under which `find_target` finds a target; of a function by its place where it has one. Raises
    `ValueError` for what is neither in the table nor looks like a function."""
    if callable(target):
        return _given.name(target, place_of(target))
    if isinstance(target, str) and (target in TARGETS or ":" in target):
        return target
    message = f"input should be {', '.join(map(repr, TARGETS))} or package.module:function"
    hint = nearest(str(target), TARGETS, " ", also=VALUE_NAMES["target"]).strip()
    raise ValueError(f"{message} ({hint})" if hint else message)


def function_of(name: str) -> Callable[..., Any]:
    """The function that a target from outside names. Raises `UserError` where there is none."""
    place, arguments = split_query(name, "target")
    otherwise = f", or use {', '.join(TARGETS)}"
    does = "turns a teacher's rows into distributions"
    function = _given.find(name) or find_callable(place, "target", does, otherwise)
    refuse_unknown(function, arguments, f"target {name!r}")
    first, *_ = inspect.signature(function).parameters
    if taken := sorted({first, "labels", "temperature"} & set(arguments)):
        raise UserError(
            f"target {name!r} sets {taken[0]!r}, which the run gives it; expected other arguments in its name, and a "
            "temperature as temperature=…: leave it out."
        )
    return partial(function, **arguments) if arguments else function


def find_target(name: str) -> Knowledge:
    """What a name or ``package.module:function`` stands for. Raises `UserError` where there is none."""
    return TARGETS[name] if name in TARGETS else from_outside(function_of(name), name)


def from_outside(function: Callable[..., Any], name: str = "") -> Knowledge:
    """A function of the teacher's logits ``[M, K]`` that returns distributions over the K classes, ``[M, K]`` or a
    `losses.Target`, as an entry of the table.

    One that takes a second argument by place gets the labels, int64 ``[M]``, as well: rows without a label then come
    with label 0 and are left out. One with an argument ``temperature`` gets that setting, and is taught at that T.
    Other arguments with a default are set in its name, ``mine:sharper?power=3``.

        def sharper(logits, temperature):
            return (2 * logits / temperature).softmax(1)

        protege.distill(…, method="kd", target=sharper)
    """
    parameters = inspect.signature(function).parameters
    by_place = [
        name
        for name, parameter in parameters.items()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        and name != "temperature"
        and (parameter.default is parameter.empty or name == "labels")
    ]
    heated = "temperature" in parameters

    def target_of(logits: Tensor, labels: Tensor, **settings: float) -> losses.Target:
        given = (logits, labels.clamp(min=0)) if len(by_place) > 1 else (logits,)
        made = function(*given, **settings)
        return made if isinstance(made, losses.Target) else losses.Target(made.detach())

    def loss(z: Tensor, labels: Tensor, fields: Fields, **settings: float) -> Tensor:
        temperature = settings.get("temperature", 1.0)
        return divergence(z, target_of(fields["logits"], labels, **settings), temperature) * temperature**2

    def tried(setup: Setup, settings: dict[str, Any]) -> dict[str, Any]:
        batch = next(setup.transfer.batches(4, positions=setup.transfer.positions[:4]))
        logits = Source("teacher", setup.teacher, [Logits()], setup.task).compute(batch.inputs)["logits"].float()
        rows, labels, _ = setup.task.rows(logits, batch.labels)
        refuse_no_distributions(name or name_of(function), lambda: target_of(rows, labels, **settings), rows)
        return settings

    defaults = {"weight": 0.9, **({"temperature": None} if heated else {})}
    return Knowledge(loss, defaults, needs_labels=len(by_place) > 1, prepare=tried)


@torch.no_grad()
def refuse_no_distributions(name: str, make: Callable[[], losses.Target], rows: Tensor) -> None:
    """Raise `UserError` where what is made of a teacher's rows ``[M, K]`` are no distributions."""
    try:
        dense = make().dense(rows.shape[1])
    except Exception as error:
        raise UserError(
            f"target {name!r} fails on the teacher's logits of shape {list(rows.shape)} ({told(error)}); expected a "
            "function of logits, or of logits and labels, that returns distributions: correct it."
        ) from error
    wrong = ""
    if dense.shape != rows.shape:
        wrong = f"values of shape {list(dense.shape)} for logits of shape {list(rows.shape)}"
    elif not bool(dense.isfinite().all()) or bool((dense < 0).any()):
        wrong = "values that are negative or not finite"
    elif bool(((dense.sum(1) - 1).abs() > 1e-3).any()):
        wrong = f"rows that sum to {float(dense.sum(1)[0]):.4g}"
    if wrong:
        raise UserError(
            f"target {name!r} gives {wrong}; expected a distribution over the classes for each row: correct it."
        )
