"""Tasks turn outputs into rows.

Classification, segmentation and language modelling differ in how logits flatten to ``[M, K]`` rows and in
their metrics. Everything else in the house (targets, losses, methods) works on rows and so on every task
(notation of Tang et al. 2020, "Understanding and Improving Knowledge Distillation").
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UserError
from ..labels import UNLABELLED, blind
from ..outputs import refuse_odd

AT_ONCE = 2**24  # logits that metrics look at in one go
BINS = 15  # of confidence, in calibration
SHOWN = 20  # classes up to which the confusion of all pairs is told


@dataclass(frozen=True)
class Task:
    """How one kind of problem flattens to rows, which metric decides, and which fit settings suit it by default.

    ``temperature`` is the default T of targets that have one, ``accuracy_name`` what the share of rows guessed right
    is called.
    """

    name: str
    class_dim: int  # dimension of the outputs that holds the K classes
    metric: str  # the metric that picks a best state
    higher_is_better: bool = True
    defaults: Mapping[str, Any] = field(default_factory=dict, hash=False)
    temperature: float = 4.0
    accuracy_name: str = "accuracy"

    def rows(self, outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Logits ``outputs`` as ``[M, C]`` and ``labels`` as ``[M]``, see `flat`. Raises `UserError` for what is no
        logits of these labels."""
        if not isinstance(outputs, Tensor):
            raise UserError(
                f"a network gives a {type(outputs).__name__} in place of logits; expected one tensor, or a dict with "
                "'logits', in training as well: wrap the network in a module that returns its logits."
            )
        refuse_odd(outputs, "a network")
        if len(outputs) != len(labels):
            raise UserError(
                f"a network gives outputs of shape {list(outputs.shape)} for {len(labels)} samples; expected as many: "
                "keep the batch dimension in its forward."
            )
        if self.name == "language" and (outputs.dim() != 3 or outputs.shape[1] < labels.shape[1]):
            raise UserError(
                f"a network gives outputs of shape {list(outputs.shape)} where labels have {list(labels.shape)}; "
                "expected [batch, tokens, words], in training as well: return the logits of every token."
            )
        return self.flat(outputs, labels)

    def flat(self, outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Flatten ``outputs`` to ``[M, C]`` and ``labels`` to ``[M]``.

        ``outputs`` is ``[N, C]``, ``[N, C, H, W]`` or ``[N, L, C]`` after the task; C is the class count for
        logits, k for top-k signals, anything for features. Pixels and tokens labelled `UNLABELLED` are dropped; a
        whole sample without a label stays, because a teacher can still teach it.
        """
        if outputs.dim() == 2:
            return outputs, labels
        if self.name == "language":  # some networks answer to the context too, which is not scored
            outputs = outputs[:, -labels.shape[1] :]
        flat = outputs.movedim(self.class_dim, -1).reshape(-1, outputs.shape[self.class_dim])
        valid = (labels.reshape(-1) != UNLABELLED).nonzero()[:, 0]
        return flat.index_select(0, valid), labels.reshape(-1).index_select(0, valid)

    def better(self, new: float, old: float | None) -> bool:
        """Whether ``new`` beats ``old`` in this task's metric."""
        return old is None or (new > old if self.higher_is_better else new < old)


# Rows of thousands of words: SGD at the rates of images crawls, and a T above 1 buries the likely words under the rest.
_WORDS = {"optimizer": "adamw", "lr": 3e-3, "weight_decay": 0.01, "clip": 1.0, "select": "best"}

TASKS = {
    "classification": Task("classification", class_dim=1, metric="accuracy"),
    "segmentation": Task("segmentation", class_dim=1, metric="miou", accuracy_name="pixel_accuracy"),
    "language": Task(
        "language", class_dim=-1, metric="perplexity", higher_is_better=False, defaults=_WORDS, temperature=1.0
    ),
}


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float = 0.0, weights: Tensor | None = None) -> Tensor:
    """Mean cross-entropy of rows ``[M, K]`` with labels ``[M]``, in float32; rows without a label count as 0.

    ``weights`` ``[K]`` are those of `torch.nn.CrossEntropyLoss`, with ``smoothing`` too; but the sum is divided by the
    number of rows rather than by their weights, so that a row counts the same in whatever batch it is.
    """
    total = F.cross_entropy(
        logits.float(), labels, weights, ignore_index=UNLABELLED, label_smoothing=smoothing, reduction="sum"
    )
    return total / (labels != UNLABELLED).sum().clamp(min=1)


def class_weights(wanted: str | Sequence[float], counts: Tensor) -> Tensor:
    """Weights ``[K]``, float32, of classes of which ``counts`` ``[K]`` rows are to be learned from; over these rows
    their mean is 1.

    "balanced" gives all classes that occur the same sum; else the weights given, one a class. Raises `UserError`
    where their number is another, or no row has a weight.
    """
    counts = counts.double()
    if not counts.any():
        raise UserError("class_weights need labels, which the data does not have; expected some: leave them out.")
    if wanted == "balanced":
        raw = torch.where(counts > 0, 1 / counts, 0.0)
    else:
        raw = torch.tensor(list(wanted), dtype=torch.float64, device=counts.device)
        if len(raw) != len(counts):
            raise UserError(
                f"class_weights has {len(raw)} values for {len(counts)} classes; expected one for each class, in their "
                "order: correct the list, or write balanced."
            )
    mean = (raw * counts).sum() / counts.sum()
    if mean == 0:
        raise UserError(
            "class_weights are 0 for every class that there is to learn from; expected some above 0: correct the list."
        )
    return (raw / mean).float()


@dataclass(frozen=True)
class Chance:
    """What is to be had without looking at the samples, by who has only counted the labels.

    ``accuracy`` is the share of the commonest label and ``least`` that of the rarest, ``nll`` the entropy of their
    shares in nats, ``rows`` how many were counted, ``classes`` how many labels occur.
    """

    accuracy: float
    least: float
    nll: float
    rows: int
    classes: int = 0

    @staticmethod
    def of(labels: Tensor) -> Chance | None:
        """Of labels of any shape, those of `UNLABELLED` rows left out; None where there is none."""
        return Chance.counted(labels[labels != UNLABELLED].bincount())

    @staticmethod
    def counted(counts: Tensor) -> Chance | None:
        """Of how many rows each class has, ``[K]``; None where there are none."""
        counts = counts.double()
        if not counts.any():
            return None
        shares = counts[counts > 0] / counts.sum()
        entropy = -float((shares * shares.log()).sum())
        return Chance(float(shares.max()), float(shares.min()), entropy, int(counts.sum()), len(shares))

    def explains(self, accuracy: float, nll: float, balanced: float | None = None) -> bool:
        """Whether neither first guesses (within three deviations) nor probabilities (within 1 %) show any more, nor
        ``balanced``, the accuracy averaged over classes, where that is known.

        All must fail: an over-confident network has a high NLL and yet guesses well; where one label is frequent,
        probabilities may say much while the first guess is always that label; and a network that was trained to heed
        rare labels names them too often to beat a count in either.
        """
        if balanced is not None and self.classes and balanced > blind(self.classes):
            return False
        bound = min(self.accuracy + self._three(self.accuracy), (1 + self.accuracy) / 2)  # three deviations of few rows
        return self.accuracy < 1 and accuracy <= bound and nll >= 0.99 * self.nll

    def is_above(self, accuracy: float) -> bool:
        """Whether first guesses are worse than any that do not look: the labels mean something else."""
        return accuracy < self.least - self._three(self.least)

    def _three(self, share: float) -> float:
        return 3 * (share * (1 - share) / self.rows) ** 0.5


class Metrics:
    """Metrics of a task, accumulated over rows on the device; `compute` sums over processes."""

    def __init__(self, task: Task, classes: int, device: torch.device | str = "cpu") -> None:
        self.task, self.classes = task, classes
        self.chance: Chance | None = None  # once computed
        self.sums = torch.zeros(3, dtype=torch.float64, device=device)  # rows, correct, negative log-likelihood
        # rows of each class: of its label, guessed as it, and both; a matrix of all pairs only where it is shown. The
        # last place is for what is no class: rows without a label, words that a language model has to spare.
        self.counts = torch.zeros(3, classes + 1, dtype=torch.int64, device=device)
        shown = classes + 1 if task.name != "language" and classes <= SHOWN else 0
        self.confusion = torch.zeros(shown, shown, dtype=torch.int64, device=device)
        # by confidence: rows, their confidences and how many of them are right
        self.bins = torch.zeros(3, BINS, dtype=torch.float64, device=device)

    def update(self, outputs: Tensor, labels: Tensor) -> None:
        """Add a batch: outputs and labels as the network and the data give them."""
        step = max(1, AT_ONCE * len(outputs) // max(1, outputs.numel()))  # logits of pixels are copied in float32
        for some, truth in zip(outputs.split(step), labels.split(step), strict=True):
            self._update(some, truth)

    def _update(self, outputs: Tensor, labels: Tensor) -> None:
        logits, labels = self.task.rows(outputs, labels)
        logits, none = logits.float(), self.classes
        nll = F.cross_entropy(logits, labels, ignore_index=UNLABELLED, reduction="sum")
        guesses = logits.argmax(1)
        known, right = labels != UNLABELLED, guesses == labels  # never used to choose rows: that waits for the device
        self.sums += torch.stack([known.sum().double(), right.sum().double(), nll.double()])
        truth, chosen = (rows.clamp(max=none).where(known, none) for rows in (labels, guesses))
        once = known.long()
        for counts, rows, weights in zip(self.counts, (truth, chosen, truth), (once, once, right.long()), strict=True):
            counts.scatter_add_(0, rows, weights)
        if len(self.confusion):
            self.confusion.view(-1).scatter_add_(0, truth * len(self.confusion) + chosen, once)
        if self.task.name == "classification":
            confidence = logits.softmax(1).amax(1).double()
            values = torch.stack([known.double(), confidence.where(known, 0), right.double()])
            places = torch.arange(BINS, device=values.device)
            self.bins += values @ (bin_of(confidence)[:, None] == places).double()  # in one order on every device

    def compute(self) -> dict[str, float]:
        """The task's metrics as fractions and natural numbers; empty where no row had a label.

        ``balanced_accuracy`` and ``macro_f1`` are means of recall and of F1 over the classes that occur
        among the labels.
        """
        totals = [total.clone() for total in (self.sums, self.counts, self.confusion, self.bins)]
        sums, counts, confusion, bins = totals
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            for total in totals:
                torch.distributed.all_reduce(total)
        rows, correct, nll = sums.tolist()
        if rows == 0:
            return {}
        values = {self.task.accuracy_name: correct / rows, "nll": nll / rows}
        counts, confusion = counts[:, :-1], confusion[:-1, :-1]
        self.found = counts, confusion
        self.chance = Chance.counted(counts[0])
        if self.task.name == "language":
            return {"perplexity": math.exp(min(nll / rows, 700.0)), **values}
        truth, guesses, right = counts.double()
        occurs = truth > 0
        values = {
            self.task.accuracy_name: correct / rows,
            "balanced_accuracy": (right / truth)[occurs].mean().item(),
            "macro_f1": (2 * right / (truth + guesses))[occurs].mean().item(),
            "nll": nll / rows,
        }
        if self.task.name == "segmentation":
            return {"miou": _overlap(counts).nanmean().item(), **values}
        return {**values, "ece": ((bins[1] - bins[2]).abs().sum() / rows).item()}

    def details(self) -> dict[str, Any]:
        """After `compute`: ``chance`` (`Chance` of the labels); ``per_class`` accuracy (recall), in segmentation also
        ``per_class_iou``, each None for a class that does not occur; ``commonest_guess``, the ``class`` that is chosen
        most often and its ``share`` of the rows; and ``confusion`` (rows: truth) up to `SHOWN` classes."""
        if self.chance is None:
            return {}
        chance = {"chance": asdict(self.chance)}
        if self.task.name == "language":
            return chance
        counts, confusion = self.found
        truth, guesses, right = counts.double()
        favourite = int(guesses.argmax())
        recall = (right / truth.clamp(min=1)).tolist()
        found: dict[str, Any] = {
            **chance,
            "commonest_guess": {"class": favourite, "share": float(guesses[favourite] / guesses.sum())},
        }
        found |= {"per_class": [r if c else None for r, c in zip(recall, truth.tolist(), strict=True)]}
        if self.task.name == "segmentation":
            found["per_class_iou"] = [None if math.isnan(v) else v for v in _overlap(counts).tolist()]
        if len(confusion):
            found["confusion"] = confusion.tolist()
        return found


def bin_of(confidence: Tensor) -> Tensor:
    """Which of `BINS` bins of equal width a confidence [M] is in (Guo et al. 2017, section 2)."""
    return (confidence * BINS).ceil().long().clamp(1, BINS) - 1


def _overlap(counts: Tensor) -> Tensor:
    """Intersection over union of each class, ``[K]``, of `Metrics.counts`; nan for one neither there nor guessed."""
    truth, guesses, right = counts.double()
    return right / (truth + guesses - right)
