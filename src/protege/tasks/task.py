"""What every task has in common: outputs become rows, rows have a loss, metrics decide."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..data.labels import UNLABELLED
from ..errors import UserError
from ..losses import cross_entropy, gap_loss, kd_loss
from ..torch_utils import refuse_odd
from .metrics import Agreement, Metrics
from .probabilities import check_rows, refuse_squashed


@dataclass(frozen=True)
class Shown:
    """What is drawn: a few samples as the data gives them, with their ``positions`` in the set, the ``networks`` to ask
    by role, called on raw inputs within ``autocast``, and the names of the ``classes``."""

    inputs: Tensor
    labels: Tensor
    positions: Sequence[int]
    networks: Mapping[str, nn.Module]
    classes: Sequence[str]
    autocast: Callable[[], AbstractContextManager] = nullcontext


@dataclass(frozen=True)
class Shortfall:
    """A network at chance level: ``what`` was measured, what it ``reached``, and what ``chance`` gives."""

    what: str
    reached: float
    chance: float


@dataclass(frozen=True)
class Task(ABC):
    """One kind of problem: classes of images, in the methods that a task may change.

    ``metric`` picks a best state and ``accuracy_name`` is what the share of rows guessed right is called.
    ``class_dim`` is the dimension of outputs that becomes a row's. ``defaults`` are settings that suit the task better
    than the common ones, ``temperature`` the default T of targets that have one, ``targets`` those that stand here for
    others. ``labelled``: whether it is learned and judged by labels, else by what the teacher says. ``unsuited`` has
    the sentence that refuses a setting without a meaning here. ``of`` is the kind of data it is a task of.
    """

    name: ClassVar[str]
    metric: ClassVar[str] = "accuracy"
    defaults: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    of: ClassVar[str] = ""  # where that is not its name
    higher_is_better: ClassVar[bool] = True
    accuracy_name: ClassVar[str] = "accuracy"
    class_dim: ClassVar[int] = 1
    temperature: ClassVar[float] = 4.0
    labelled: ClassVar[bool] = True
    named_classes: ClassVar[bool] = True  # whether a result lists what the classes are called
    tried: ClassVar[int] = 1024  # samples on which a teacher shows that it knows the task
    drawn: ClassVar[int] = 0  # samples of which there is something to look at
    ambiguous: ClassVar[bool] = False  # whether a label is one of several right answers
    suspects: ClassVar[str] = (  # what to check in a network at chance level
        "its input normalisation, channel order and order of classes are those it was trained with"
    )
    targets: ClassVar[Mapping[str, str]] = {}
    unsuited: ClassVar[Mapping[str, str]] = {}

    @classmethod
    def kinds(cls) -> set[str]:
        """The kinds of data that it is a task of: its own, and those of the classes that it derives from."""
        return {getattr(kind, "of", "") or getattr(kind, "name", "") for kind in cls.__mro__} - {""}

    # ---- rows and their losses: tensors in, tensors out ------------------------------------------------------

    def rows(self, outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Outputs as rows ``[M, C]``, and of each row the label and the weight, ``[M]``.

        M depends on shapes only: what does not count has weight 0. A whole sample without a label counts, because a
        teacher can still teach it. Raises `UserError` for what is no logits of these labels.
        """
        self.refuse_shape(outputs, labels)
        return self.flat(outputs, labels), labels, torch.ones(len(labels), device=outputs.device)

    def flat(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Outputs, or anything else that has values in the place of their classes (the k of top-k signals, the
        channels of features), as rows ``[M, C]``."""
        return outputs

    def refuse_shape(self, outputs: Tensor, labels: Tensor) -> None:
        """Raise `UserError` for outputs that are no logits of these labels."""
        if not isinstance(outputs, Tensor):
            raise UserError(
                f"a network gives a {type(outputs).__name__} in place of logits; expected one tensor, or a dict with "
                "'logits', in training as well: wrap the network in a module that returns its logits."
            )
        refuse_odd(outputs, "a network", labels.is_meta)
        if len(outputs) != len(labels):
            raise UserError(
                f"a network gives outputs of shape {list(outputs.shape)} for {len(labels)} samples; expected as many: "
                "keep the batch dimension in its forward."
            )

    def loss(
        self,
        rows: Tensor,
        labels: Tensor,
        weights: Tensor,
        smoothing: float = 0.0,
        class_weights: Tensor | None = None,
    ) -> Tensor:
        """The mean loss of rows by their labels."""
        return cross_entropy(rows, labels, smoothing, class_weights, weights)

    def imitation(self, rows: Tensor, teacher: Tensor, weights: Tensor, temperature: float) -> Tensor:
        """The mean loss of rows by a teacher's rows, where no target is chosen."""
        return kd_loss(rows, teacher, temperature, weights)

    def gap(self, rows: Tensor, dynamic: Tensor, weights: Tensor, smoothing: float) -> Tensor:
        """The mean loss of rows by those of a dynamic teacher that learns with the student."""
        return gap_loss(rows, dynamic, smoothing, weights)

    @torch.no_grad()
    def score(self, rows: Tensor, labels: Tensor, weights: Tensor) -> dict[str, Tensor]:
        """How well rows of one batch do: quickly had, and never a loss."""
        counts = weights * (labels != UNLABELLED)
        return {self.accuracy_name: ((rows.argmax(1) == labels) * counts).sum() / counts.sum().clamp(min=1)}

    # ---- judging -----------------------------------------------------------------------------------------------

    @abstractmethod
    def metrics(self, classes: int, device: torch.device | str = "cpu") -> Metrics:
        """An empty sum of this task's metrics."""

    def unlabelled_metrics(self, classes: int, teacher: nn.Module, device: torch.device | str = "cpu") -> Metrics:
        """What can be measured without labels: how often two networks choose the same class."""
        return Agreement(teacher, self.class_dim, device)

    def better(self, new: float, old: float | None) -> bool:
        """Whether ``new`` beats ``old`` in this task's metric."""
        return old is None or (new > old if self.higher_is_better else new < old)

    @property
    def references(self) -> tuple[nn.Module, ...]:
        """The networks that metrics depend on beside the one that is judged."""
        return ()

    def level(self, chance: Mapping[str, float]) -> tuple[str, float]:
        """The metric that tells learning from guessing by a count of the labels, and its value for who guesses so."""
        return "balanced_accuracy", 1 / chance["classes"]

    def few(self, samples: int, classes: int) -> str:
        """The reason to call this number of samples few; "" for enough."""
        return ""

    @abstractmethod
    def shortfall(self, metrics: Mapping[str, float], details: Mapping[str, Any]) -> Shortfall | None:
        """Where a network shows no more on some samples than a count of their labels does."""

    # ---- checks ------------------------------------------------------------------------------------------------

    def check(self, network: nn.Module, inputs: Tensor, outputs: Tensor, labels: Tensor, who: str) -> None:
        """Raise `UserError` where the outputs of ``who`` on samples are not what this task learns from."""
        rows, _, weights = self.rows(outputs, labels)
        rows = rows[weights > 0]
        if not bool(rows.isfinite().all()):
            raise UserError(f"the {who} gives values that are not finite; expected finite outputs: check its weights.")
        self.check_values(network, inputs, rows, who)

    def check_values(self, network: nn.Module, inputs: Tensor, rows: Tensor, who: str) -> None:
        """Raise `UserError` where finite rows have values that no logits have."""
        check_rows(rows, who)
        refuse_squashed(network, inputs[:2], who)

    # ---- as a run changes it -----------------------------------------------------------------------------------

    def taught_by(self, teacher: nn.Module | None) -> Task:
        """The task of a run with this teacher."""
        return self

    def weighing_classes(self) -> Task:
        """The task of a run whose labels' loss has class weights."""
        return self

    # ---- drawing -----------------------------------------------------------------------------------------------

    def pictures(self, shown: Shown, out: Path) -> None:  # noqa: B027  (most tasks draw nothing)
        """Write files for the report into the run folder ``out``, where there is something to look at."""
