"""How good a candidate is, on images that no candidate learns from."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ..data import CLEAN, Augment, Batch, Samples, batches, forward_size
from ..models import Model
from ..numerics import exact
from ..tasks import Task
from ..tasks.task import Shortfall
from ..torch_utils import device_of, eval_mode, logits_in

BATCH = 250
KEPT = 2**29  # bytes of the teacher's outputs that are kept


class Judge:
    """Measures models against the teacher on held-out ``samples``: ``agreement`` (how often both decide alike),
    ``error`` (the squared difference of outputs as a share of their variance), and the task's metrics where there are
    labels. ``metric`` is the one that counts; without labels the agreement, of vectors the error."""

    def __init__(self, teacher: Model, samples: Samples, task: Task, classes: int, labelled: bool) -> None:
        self.teacher, self.samples, self.task, self.classes = teacher, samples, task, classes
        self.metric = task.metric if labelled else "agreement" if task.named_classes else "error"
        self.higher = task.higher_is_better if labelled else task.named_classes
        self.labelled = labelled
        self._kept: list[Tensor] | None = []
        self._spread = 0.0
        self.shortfall: Shortfall | None = None  # of the teacher
        self.figures = self._measure(teacher, first=True)

    def better(self, one: dict[str, float], other: dict[str, float]) -> bool:
        """Whether the first figures are better than the second: by the metric, where that is the same by the error."""
        a, b = one[self.metric], other[self.metric]
        if math.isnan(a) or math.isnan(b):
            return math.isnan(b) and not math.isnan(a)
        if a == b:
            return one["error"] < other["error"]
        return (a > b) == self.higher

    def drop(self, figures: dict[str, float]) -> float:
        """How much worse than the teacher's the metric is."""
        loss = self.figures[self.metric] - figures[self.metric]
        return loss if self.higher else -loss

    def __call__(self, model: nn.Module, samples: Samples | None = None) -> dict[str, float]:
        """Of a model, or an opened file that takes the ``samples`` as they are framed for it."""
        return self._measure(model, samples)

    @exact()
    @torch.no_grad()
    def _measure(self, model: nn.Module, samples: Samples | None = None, first: bool = False) -> dict[str, float]:
        metrics = self.task.metrics(self.classes, device_of(model)) if self.labelled else None
        same = count = 0
        error = spread = total = 0.0
        mean: Tensor | None = None
        with eval_mode(model, self.teacher):
            for number, batch in enumerate(self._batches(model, samples)):
                outputs = logits_in(model(batch.inputs))
                theirs = self._theirs(number, batch, outputs if first else None)
                alike = outputs.argmax(self.task.class_dim) == theirs.argmax(self.task.class_dim)
                same, count = same + int(alike.sum()), count + alike.numel()
                error += float((outputs - theirs).double().square().sum())
                if first:
                    size, now = len(theirs), theirs.double()
                    part = now.mean(0)
                    spread += float((now - part).square().sum())
                    if mean is not None:  # of the parts together
                        spread += float((part - mean).square().sum()) * total * size / (total + size)
                    mean = part if mean is None else mean + (part - mean) * size / (total + size)
                    total += size
                if metrics is not None:
                    metrics.update(outputs, batch.labels, batch.inputs)
        if first:
            self._spread = max(spread, 1e-30)
        figures = {"agreement": same / max(count, 1), "error": error / self._spread}
        if metrics is not None:
            figures |= metrics.compute()
            if first:
                self.shortfall = self.task.shortfall(figures, metrics.details())
        return figures

    def _batches(self, model: nn.Module, samples: Samples | None) -> Iterator[Batch]:
        order = torch.arange(len(self.samples)).split(forward_size(self.samples, BATCH))
        return batches(
            self.samples if samples is None else samples, list(order), CLEAN, Augment(), device=device_of(model)
        )

    def _theirs(self, number: int, batch: Batch, outputs: Tensor | None) -> Tensor:
        """The teacher's outputs for a batch, computed once where there is room for them."""
        if outputs is not None:
            if self._kept is not None:
                self._kept.append(outputs)
                if sum(part.nbytes for part in self._kept) > KEPT:
                    self._kept = None
            return outputs
        if self._kept is not None:
            return self._kept[number]
        original = next(iter(batches(self.samples, [batch.index.cpu()], CLEAN, Augment())))
        return logits_in(self.teacher(original.inputs.to(device_of(self.teacher))))
