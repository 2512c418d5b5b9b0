"""Class relations: which classes a teacher holds to be alike (Tang et al. 2020, arXiv 2002.03532, section 3.2).

Classes are vectors, and their likeness is a cosine: the rows of the teacher's logit layer, or, for a teacher without
a linear one, its mean predictions on each class. One temperature τ turns cosines into distributions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data import Batch
from ..errors import UserError
from ..labels import UNLABELLED
from ..tasks import Task
from .signals import Feature, Logits, Source
from .targets import true_probability

TABLE = 2**24  # entries of a class-by-class table that may stay in memory (64 MiB): 4096 classes


class Relations:
    """``softmax_j(cos(w_t, w_j)/τ)`` for each class t, from class vectors w ``[K, D]``."""

    def __init__(self, vectors: Tensor, tau: float) -> None:
        self.vectors, self.tau = F.normalize(vectors.detach().float(), dim=1), tau
        self.table = self._rows(self.vectors) if len(vectors) ** 2 <= TABLE else None

    def _rows(self, some: Tensor) -> Tensor:
        with torch.no_grad(), torch.autocast(some.device.type, enabled=False):  # cosines in half precision are coarse
            return (some @ self.vectors.T / self.tau).softmax(1)

    def rows(self, labels: Tensor) -> Tensor:
        """The relations of the classes ``labels`` ``[M]``, ``[M, K]``; a label below 0 counts as class 0."""
        labels = labels.clamp(min=0)
        return self._rows(self.vectors[labels]) if self.table is None else self.table[labels]


def calibrate(vectors: Tensor, truth: float) -> float:
    """The τ at which the mean over classes of a class's own share is ``truth``, by bisection between 1e-4 and 1e4.

    With more than 4096 classes the mean is over some of them, evenly spaced.
    """
    vectors = F.normalize(vectors.detach().float().cpu(), dim=1)
    count = len(vectors)
    own = torch.arange(0, count, -(-count // max(1, min(count, TABLE // count))))
    cosines = vectors[own] @ vectors.T
    low, high = math.log(1e-4), math.log(1e4)
    for _ in range(40):
        middle = (low + high) / 2
        share = (cosines / math.exp(middle)).softmax(1)[torch.arange(len(own)), own].mean().item()
        low, high = (middle, high) if share > truth else (low, middle)  # a higher τ spreads the row
    return math.exp((low + high) / 2)


def logit_layer(network: nn.Module, classes: int, example: Tensor, task: Task) -> nn.Linear | None:
    """The linear layer of ``network`` whose output on raw inputs ``example`` are the network's logits, if any."""
    inner = getattr(network, "network", network)
    linear = {n: m for n, m in inner.named_modules() if isinstance(m, nn.Linear) and m.out_features == classes}
    for name, layer in reversed(linear.items()):
        try:
            found = Source("teacher", network, [Logits(), Feature(name)], task).compute(example)
        except UserError:  # never called
            continue
        logits, heard = found["logits"], found[f"feature:{name}"]
        if logits.shape == heard.shape and torch.allclose(logits, heard):
            return layer
    return None


@torch.no_grad()
def predictions(network: nn.Module, batches: Iterable[Batch], task: Task, classes: int | None) -> tuple[float, Any]:
    """The mean p_t over labelled rows, and the mean predictions on each class, ``[K, K]`` (None without ``classes``).

    A class that no row has gets a vector of its own, so that it is like no other.
    """
    source = Source("teacher", network, [Logits()], task)
    total, count, sums = 0.0, 0, None
    for batch in batches:
        logits, labels = task.rows(source.compute(batch.inputs)["logits"], batch.labels)
        logits, labels = logits[labels != UNLABELLED].float(), labels[labels != UNLABELLED]
        total, count = total + true_probability(logits, labels).sum().item(), count + len(labels)
        if classes is not None:
            sums = logits.new_zeros(classes, classes + 1) if sums is None else sums
            sums.index_add_(0, labels, F.pad(logits.softmax(1), (0, 1), value=1.0))
    means = None
    if sums is not None:
        seen = sums[:, -1:]
        means = torch.where(seen > 0, sums[:, :-1] / seen.clamp(min=1), torch.eye(len(sums), device=sums.device))
    return total / max(count, 1), means
