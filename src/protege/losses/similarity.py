"""Class relations: which classes a teacher holds to be alike (Tang et al. 2020, arXiv 2002.03532, section 3.2).

Classes are vectors, and their likeness is a cosine: the rows of the teacher's logit layer, or, for a teacher without
a linear one, its mean predictions on each class. One temperature τ turns cosines into distributions.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

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
