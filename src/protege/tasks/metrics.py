"""Metrics, accumulated over batches on the device; sums of all processes are added when they are asked for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.labels import UNLABELLED
from ..numerics import in_any_order
from ..torch_utils import eval_mode
from .chance import Chance

AT_ONCE = 2**24  # logits that metrics look at in one go
SHOWN = 20  # classes up to which the confusion of all pairs is shown

Rows = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


class Metrics(ABC):
    """Sums over the samples of a set."""

    @abstractmethod
    def update(self, outputs: Tensor, labels: Tensor, inputs: Tensor | None = None) -> None:
        """Add a batch: outputs and labels as the network and the data give them, and the ``inputs`` they are of."""

    @abstractmethod
    def compute(self) -> dict[str, float]:
        """The metrics as fractions and natural numbers; empty where no row can be judged."""

    def details(self) -> dict[str, Any]:
        """After `compute`: what is worth keeping beside it."""
        return {}


class ClassMetrics(Metrics):
    """Metrics of rows that choose one of ``classes``, by their labels. ``rows`` is that of the task."""

    def __init__(
        self, rows: Rows, classes: int, device: torch.device | str = "cpu", *, accuracy: str = "accuracy"
    ) -> None:
        self.rows, self.classes, self.accuracy = rows, classes, accuracy
        self.chance: Chance | None = None  # once computed
        self.sums = torch.zeros(3, dtype=torch.float64, device=device)  # rows, correct, negative log-likelihood
        # rows of each class: of its label, guessed as it, and both; a matrix of all pairs only where it is shown. The
        # last place is for what is no class: rows without a label, words that a language model has to spare.
        self.counts = torch.zeros(3, classes + 1, dtype=torch.int64, device=device)
        shown = classes + 1 if classes <= SHOWN else 0
        self.confusion = torch.zeros(shown, shown, dtype=torch.int64, device=device)

    def update(self, outputs: Tensor, labels: Tensor, inputs: Tensor | None = None) -> None:
        step = max(1, AT_ONCE * len(outputs) // max(1, outputs.numel()))  # logits of pixels are copied in float32
        for part, truth in zip(outputs.split(step), labels.split(step), strict=True):
            logits, truth, _ = self.rows(part, truth)
            self.add(logits.float(), truth)

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Add rows ``[M, K]`` in single precision with their labels ``[M]``."""
        none = self.classes
        nll = F.cross_entropy(logits, labels, ignore_index=UNLABELLED, reduction="sum")
        guesses = logits.argmax(1)
        known, right = labels != UNLABELLED, guesses == labels  # never used to choose rows: that waits for the device
        self.sums += torch.stack([known.sum().double(), right.sum().double(), nll.double()])
        truth, chosen = (rows.clamp(max=none).where(known, none) for rows in (labels, guesses))
        once = known.long()
        with in_any_order():  # they are whole numbers
            weights = once, once, right.long()
            for counts, rows, weight in zip(self.counts, (truth, chosen, truth), weights, strict=True):
                counts.scatter_add_(0, rows, weight)
            if len(self.confusion):
                self.confusion.view(-1).scatter_add_(0, truth * len(self.confusion) + chosen, once)

    def compute(self) -> dict[str, float]:
        """Accuracy, the means of recall (``balanced_accuracy``) and of F1 over the classes that occur among the labels,
        and the negative log-likelihood."""
        self.total, self.by_class, self.pairs = (over_processes(x) for x in (self.sums, self.counts, self.confusion))
        self.by_class, self.pairs = self.by_class[:, :-1], self.pairs[:-1, :-1]
        rows, correct, nll = self.total.tolist()
        if rows == 0:
            return {}
        self.chance = Chance.counted(self.by_class[0])
        truth, guesses, right = self.by_class.double()
        occurs = truth > 0
        return {
            self.accuracy: correct / rows,
            "balanced_accuracy": (right / truth)[occurs].mean().item(),
            "macro_f1": (2 * right / (truth + guesses))[occurs].mean().item(),
            "nll": nll / rows,
        }

    def details(self) -> dict[str, Any]:
        """``chance`` (`Chance` of the labels); ``commonest_guess``, the ``class`` that is chosen most often and its
        ``share`` of the rows; ``per_class`` accuracy (recall), None for a class that does not occur; and ``confusion``
        (rows: truth) up to `SHOWN` classes."""
        if self.chance is None:
            return {}
        truth, guesses, right = self.by_class.double()
        favourite = int(guesses.argmax())
        recall = (right / truth.clamp(min=1)).tolist()
        return {
            "chance": asdict(self.chance),
            "commonest_guess": {"class": favourite, "share": float(guesses[favourite] / guesses.sum())},
            "per_class": [value if count else None for value, count in zip(recall, truth.tolist(), strict=True)],
            **self.more_details(),
            **({"confusion": self.pairs.tolist()} if len(self.pairs) else {}),
        }

    def more_details(self) -> dict[str, Any]:
        """What a task has beside the details of all."""
        return {}


class Agreement(Metrics):
    """How often a network chooses its teacher's class, pixel or word: needs no labels."""

    def __init__(self, teacher: nn.Module, class_dim: int, device: torch.device | str = "cpu") -> None:
        self.teacher, self.class_dim = teacher, class_dim
        self.sums = torch.zeros(2, dtype=torch.float64, device=device)  # chosen alike, chosen

    def update(self, outputs: Tensor, labels: Tensor, inputs: Tensor | None = None) -> None:
        with eval_mode(self.teacher):
            same = outputs.argmax(self.class_dim) == self.teacher(inputs).argmax(self.class_dim)
        right = same.sum()
        self.sums += torch.stack([right, torch.full_like(right, same.numel())]).double()

    def compute(self) -> dict[str, float]:
        same, count = over_processes(self.sums).tolist()
        return {"agreement": same / count}


def over_processes(total: Tensor) -> Tensor:
    """The sum of this tensor in all processes."""
    total = total.clone()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(total)
    return total
