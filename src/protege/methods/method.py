"""What a method is: a function from the cast to a plan of phases, and its settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from ..data import CLEAN, Augment, Batch, Samples, batches
from ..errors import UserError
from ..models import Model
from ..tasks import Task
from ..train.phase import Phase


class MethodSettings(BaseModel):
    """Settings of every method. Each key is an option, a recipe key and an argument beside the common ones."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    label_smoothing: float = Field(0.0, ge=0, lt=1, description="smoothing of the labels' own loss")

    def idle(self, taught: bool) -> dict[str, str]:
        """The settings that would do nothing beside the others, and why; ``taught``: whether there is a teacher."""
        return {}


@dataclass(frozen=True)
class Transfer:
    """The transfer set: the samples that a run may learn from, for methods that look at them while they plan or solve.

    ``positions`` are those of this run in ``samples``; ``views`` is how many augmentations each has (0: a fresh one
    each epoch).
    """

    samples: Samples
    positions: Tensor
    augment: Augment
    views: int
    device: torch.device
    workers: int = 0

    def batches(self, size: int, view: int = CLEAN, positions: Tensor | None = None) -> Iterator[Batch]:
        """The run's samples (or some of them) in order, ``size`` at a time, on the device."""
        order = list((self.positions if positions is None else positions).split(size))
        return batches(self.samples, order, view, self.augment, workers=self.workers, device=self.device)

    def example(self, count: int = 4) -> Tensor:
        """Raw inputs of the first few samples."""
        return next(self.batches(count, positions=self.positions[:count])).inputs


@dataclass(frozen=True)
class Cast:
    """Who plays: what a method gets to write its plan. ``teacher`` is None only where the method does without one.

    Raises `UserError` for a setting that would do nothing and is not at its default, so meant to do something.
    """

    student: Model
    teacher: Any  # a Model, or None
    task: Task
    settings: Any  # an instance of the method's own settings
    transfer: Transfer

    def __post_init__(self) -> None:
        for key, why in self.settings.idle(self.teacher is not None).items():
            if (value := getattr(self.settings, key)) != type(self.settings).model_fields[key].default:
                raise UserError(f"{key} = {value!r} would do nothing, as {why}: add that or leave {key} out.")


@dataclass(frozen=True)
class Method:
    """A plan of phases, the settings it reads, whether it needs a teacher, and what it does with labels.

    ``defaults`` are fit settings that suit the method better than the common defaults. ``preview`` gives the rows of
    the table that ``--dry-run`` prints: how the method will treat these two networks. Samples of a method that never
    reads ``labels`` are drawn without them as well; one that can do without them draws them class by class if it can.
    """

    plan: Callable[[Cast], Sequence[Phase]]
    settings: type[MethodSettings]
    needs_teacher: bool = True
    defaults: Mapping[str, Any] = field(default_factory=dict)
    preview: Callable[[Cast], list[dict[str, Any]]] | None = None
    labels: Literal["needed", "used", "unread"] = "needed"
