"""Class relations: which classes a teacher holds to be alike (Tang et al. 2020, arXiv 2002.03532, section 3.2).

Classes are vectors, and their likeness is a cosine: the rows of the teacher's logit layer, or, for a teacher without
a linear one, its mean predictions on each class. One temperature τ turns cosines into distributions.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .rows import in_own_precision

TABLE = 2**24  # entries of a class-by-class table that may stay in memory (64 MiB): 4096 classes


class Relations(nn.Module):
    """Labels ``[M]`` → ``softmax_j(cos(w_t, w_j)/τ)`` of each true class t, ``[M, K]``, from class vectors w ``[K, D]``
    (section 3.2). A label below 0 counts as class 0.

    >>> Relations(torch.eye(2), tau=1.0)(torch.tensor([0]))
    tensor([[0.7311, 0.2689]])
    """

    vectors: Tensor
    table: Tensor | None

    def __init__(self, vectors: Tensor, tau: float) -> None:
        super().__init__()
        self.tau = tau
        self.register_buffer("vectors", F.normalize(vectors.detach().float(), dim=1))
        self.register_buffer("table", self._rows(self.vectors) if len(vectors) ** 2 <= TABLE else None)

    def _rows(self, vectors: Tensor) -> Tensor:
        with torch.no_grad(), in_own_precision(vectors.device):  # half precision is coarse
            return (vectors @ self.vectors.T / self.tau).softmax(1)

    def forward(self, labels: Tensor) -> Tensor:
        labels = labels.clamp(min=0)
        return self._rows(self.vectors[labels]) if self.table is None else self.table[labels]


def calibrate(vectors: Tensor, truth: float) -> float:
    """The τ at which the mean over classes of a class's relation to itself is ``truth``, by bisection between 1e-4 and
    1e4; with more than 4096 classes, the mean over some of them, evenly spaced.

    >>> tau = calibrate(torch.eye(3), truth=0.9)
    >>> Relations(torch.eye(3), tau).table.diagonal()
    tensor([0.9000, 0.9000, 0.9000])
    """
    vectors = F.normalize(vectors.detach().float().cpu(), dim=1)
    count = len(vectors)
    chosen = torch.arange(0, count, -(-count // max(1, min(count, TABLE // count))))
    cosines = vectors[chosen] @ vectors.T
    low, high = math.log(1e-4), math.log(1e4)
    for _ in range(40):
        middle = (low + high) / 2
        share = (cosines / math.exp(middle)).softmax(1)[torch.arange(len(chosen)), chosen].mean().item()
        low, high = (middle, high) if share > truth else (low, middle)  # a higher τ spreads the row
    return math.exp((low + high) / 2)
