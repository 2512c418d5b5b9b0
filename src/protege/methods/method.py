"""What a method is: a function from the setup to a plan of phases, and its settings."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, wraps
from typing import Annotated, Any, Literal, TypeVar
from weakref import WeakKeyDictionary

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor

from ..data import Batch
from ..data.labels import UNLABELLED
from ..errors import UserError
from ..losses import class_weights
from ..models import Model
from ..numerics import exact
from ..settings import Settings
from ..signals import Logits, Signal, Source, Views
from ..tasks import Task
from ..torch_utils import eval_mode
from ..training.phase import Phase

T = TypeVar("T")
LOOKED_AT = 2000  # samples whose masks are read to count the classes of pixels


def _weights(value: Any) -> Any:
    """Class weights as the command line gives them, "1,2,0.5", or in any kind of array."""
    if isinstance(value, str) and value.strip() != "balanced":
        value = [word for word in value.strip("[] ").split(",") if word.strip()]
    value = value.tolist() if hasattr(value, "tolist") else value
    if value is None or isinstance(value, str):
        return value and value.strip()
    try:
        numbers = tuple(map(float, value))
    except (TypeError, ValueError, OverflowError):
        numbers = ()
    if not numbers or not all(0 <= number < math.inf for number in numbers) or not any(numbers):
        raise ValueError("expected balanced, or a number from 0 for each class of which some are above 0")
    return numbers


ClassWeights = Annotated[Literal["balanced"] | tuple[float, ...] | None, BeforeValidator(_weights)]


class MethodSettings(Settings):
    """Settings of every method. Each key is an option, a recipe key and an argument beside the common ones."""

    label_smoothing: float = Field(0.0, ge=0, lt=1, description="smoothing of the labels' own loss")
    class_weights: ClassWeights = Field(
        None,
        description="weights of classes in the labels' own loss, scaled so that their mean over samples is 1: balanced "
        "(rare classes count as much as frequent ones) or a number for each class, with commas between",
    )

    def idle(self, taught: bool) -> dict[str, str]:
        """The settings that would do nothing beside the others, and why; ``taught``: whether there is a teacher."""
        return {}


@dataclass(frozen=True, eq=False)
class Setup:
    """What a method gets to write its plan. ``teacher`` is None only where the method does without one; ``transfer``
    are the samples that the run may learn from, for methods that look at them while they plan or solve.

    Raises `UserError` for a setting that would do nothing and is not at its default, so meant to do something.
    """

    student: Model
    teacher: Any  # a Model, or None
    task: Task
    settings: Any  # an instance of the method's own settings
    transfer: Views

    def __post_init__(self) -> None:
        for key, sentence in self.task.unsuited.items():
            if getattr(self.settings, key, None) != MethodSettings.model_fields[key].default:
                raise UserError(sentence)
        for key, why in self.settings.idle(self.teacher is not None).items():
            if (value := getattr(self.settings, key)) != type(self.settings).model_fields[key].default:
                raise UserError(f"{key} = {value!r} would do nothing, as {why}: add that or leave {key} out.")
        _ = self.class_weights  # refused now rather than in the first step

    @cached_property
    def class_weights(self) -> Tensor | None:
        """The weights ``[K]`` of the labels' loss, on the device; None where all labels count the same."""
        wanted = self.settings.class_weights
        if wanted is None:
            return None
        with torch.no_grad(), eval_mode(self.student):
            classes = self.student(self.transfer.example(2)).shape[self.task.class_dim]
        return class_weights(wanted, _class_counts(self.transfer, classes))

    def rows(self, outputs: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Outputs as rows ``[M, K]``, what is true of them, and their weights ``[M]``.

        That is a label each, ``[M]``; in a task without labels the teacher's row, which `asked` has put in the batch.
        """
        rows, labels, weights = self.task.rows(outputs, batch.labels)
        if self.task.labelled:
            return rows, labels, weights
        return rows, self.task.flat(batch.signals["teacher"]["logits"], batch.labels), weights

    def task_loss(self, rows: Tensor, truth: Tensor, weights: Tensor) -> Tensor:
        """The task's loss of `rows`: cross-entropy with the labels, smoothed and weighted as is set."""
        return self.task.loss(rows, truth, weights, self.settings.label_smoothing, self.class_weights)

    def asked(self, *signals: Signal, truth: bool = True) -> tuple[Source, ...]:
        """The teacher as the source of these signals, and of what `rows` says is true where a phase learns by it."""
        if truth and not self.task.labelled and Logits() not in signals:
            signals = (*signals, Logits())
        return (Source("teacher", self.teacher, signals, self.task),) if signals else ()


def once(function: Callable[[Setup], T]) -> Callable[[Setup], T]:
    """The function, computed once for a setup: what a preview has made is what the plan takes."""
    known: WeakKeyDictionary[Setup, T] = WeakKeyDictionary()

    @wraps(function)
    def call(setup: Setup) -> T:
        if setup not in known:
            known[setup] = function(setup)
        return known[setup]

    return call


@dataclass(frozen=True, eq=False)
class Method:
    """A plan of phases, the settings it reads, whether it needs a teacher, and what it does with labels.

    ``defaults`` are fit settings that suit the method better than the common defaults. ``preview`` gives the rows of
    the table that a preview prints: how the method will treat these two networks. Samples of a method that never
    reads ``labels`` are drawn without them as well; one that can do without them draws them class by class if it can.
    """

    plan: Callable[[Setup], Sequence[Phase]]
    settings: type[MethodSettings]
    needs_teacher: bool = True
    defaults: Mapping[str, Any] = field(default_factory=dict)
    preview: Callable[[Setup], list[dict[str, Any]]] | None = None
    labels: Literal["needed", "used", "unread"] = "needed"

    def __call__(self, setup: Setup) -> list[Phase]:
        """The plan for these networks. Raises `UserError` where it is none."""
        with exact():
            phases = list(self.plan(setup))
        if not phases or not all(isinstance(phase, Phase) for phase in phases):
            raise UserError(f"a plan of phases is {phases!r}; expected a list of Fit and Solve: correct it.")
        names = [phase.name for phase in phases]
        if len({*names}) < len(names):
            raise UserError(f"two phases have the same name among {', '.join(names)}; expected different ones.")
        return phases

    def __post_init__(self) -> None:
        if not (isinstance(self.settings, type) and issubclass(self.settings, MethodSettings)):
            raise UserError(
                f"settings = {self.settings!r} of a Method; expected a class derived from "
                "protege.methods.MethodSettings: derive it from that."
            )


def _class_counts(transfer: Views, classes: int) -> Tensor:
    """How many rows of each class there are to learn from, ``[classes]`` on the device; of pixels, in at most
    `LOOKED_AT` samples."""
    labels = transfer.samples.labels
    if labels is not None:
        parts = iter([labels[transfer.positions.to(labels.device)]])
    else:
        step = -(-len(transfer) // LOOKED_AT)
        parts = (batch.labels for batch in transfer.batches(64, positions=transfer.positions[::step]))
    counts = torch.zeros(classes, dtype=torch.int64, device=transfer.device)
    for part in parts:
        counts += part[part != UNLABELLED].to(transfer.device).bincount(minlength=classes)
    return counts
