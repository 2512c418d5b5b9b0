"""What a method is: a function from the cast to a plan of phases, and its settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from ..models import Model
from ..tasks import Task
from ..train.phase import Phase


class MethodSettings(BaseModel):
    """Settings of every method. Each key is an option, a recipe key and an argument beside the common ones."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    label_smoothing: float = Field(0.0, ge=0, lt=1, description="smoothing of the labels' own loss")


@dataclass(frozen=True)
class Cast:
    """Who plays: what a method gets to write its plan."""

    student: Model
    teacher: Model | None
    task: Task
    settings: Any  # an instance of the method's own settings

    @property
    def star(self) -> Model:
        """The teacher, for methods that need one."""
        assert self.teacher is not None
        return self.teacher


@dataclass(frozen=True)
class Method:
    """A plan of phases, the settings it reads, and whether it needs a teacher."""

    plan: Callable[[Cast], Sequence[Phase]]
    settings: type[MethodSettings]
    needs_teacher: bool = True
