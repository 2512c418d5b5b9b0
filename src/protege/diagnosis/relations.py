"""Which classes a network holds to be alike: in its logit layer, and in what it says.

After the logit-layer geometry of Tang et al. 2020, "Understanding and Improving Knowledge Distillation":
under KD the cosines of the student's logit weights move towards the teacher's class relations.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from .rows import Rows


def cosines(weights: Tensor) -> Tensor:
    """Cosine of each pair of rows, [S, S]."""
    unit = nn.functional.normalize(weights.double(), dim=1)
    return unit @ unit.T


def prediction_similarity(rows: Rows) -> Tensor | None:
    """Class similarity ``[S, S]`` from predictions; None where a class has no row.

    The mean log-probabilities ``log p_j`` of the rows of class i, centred both ways, are the inner products of the mean
    feature of class i with the logit weight of class j; made symmetric and scaled by their diagonal they are
    to be read as cosines.
    """
    if not len(rows.counts) or bool((rows.counts == 0).any()):
        return None
    mean = rows.log_sums.double() / rows.counts.double()[:, None]
    centred = mean - mean.mean(0) - mean.mean(1, keepdim=True) + mean.mean()
    inner = (centred + centred.T) / 2
    scale = inner.diag().clamp(min=1e-12).sqrt()
    return (inner / scale[:, None] / scale).clamp(-1, 1)


def contrast(rows: Rows) -> float | None:
    """How far the mean share of each other class, given the true one, is from even: 0 where all are alike, 1 where one
    other class has it all. One minus the entropy in units of ``log(S − 1)``, mean over the classes seen."""
    seen = rows.counts > 0
    count = len(rows.counts)
    if count < 3 or not bool(seen.any()):
        return None
    shares = rows.share_sums.double()[seen]
    shares = shares / shares.sum(1, keepdim=True).clamp(min=1e-300)
    entropy = -torch.special.xlogy(shares, shares).sum(1) / np.log(count - 1)
    return 1 - float(entropy.mean())


def off_diagonal(matrix: Tensor) -> Tensor:
    """The entries above the diagonal, ``[S(S−1)/2]``."""
    i, j = torch.triu_indices(len(matrix), len(matrix), 1)
    return matrix[i, j]


def agreement(a: Tensor, b: Tensor) -> float | None:
    """Pearson correlation of the entries off the diagonal; None where one of them does not vary."""
    pair = torch.stack([off_diagonal(a), off_diagonal(b)]).double()
    if pair.shape[1] < 3 or bool((pair.std(1) < 1e-9).any()):
        return None
    return float(torch.corrcoef(pair)[0, 1])


def within_minus_between(matrix: Tensor, superclasses: Sequence[int]) -> float | None:
    """Mean similarity of two classes of one superclass, minus that of two classes of different ones."""
    groups = torch.tensor(list(superclasses))
    same = off_diagonal((groups[:, None] == groups).double()).bool()
    values = off_diagonal(matrix)
    if not bool(same.any()) or bool(same.all()):
        return None
    return float(values[same].mean() - values[~same].mean())


def class_order(matrix: Tensor, superclasses: Sequence[int] | None) -> list[int]:
    """Classes in the order that shows relations: by superclass where known, else by average-linkage clustering."""
    if superclasses is not None:
        return sorted(range(len(matrix)), key=lambda k: (superclasses[k], k))
    if len(matrix) < 3:
        return list(range(len(matrix)))
    from scipy.cluster.hierarchy import leaves_list, linkage  # slow to import
    from scipy.spatial.distance import squareform

    distance = (1 - (matrix + matrix.T) / 2).clamp(min=0).numpy().copy()
    np.fill_diagonal(distance, 0)
    return [int(k) for k in leaves_list(linkage(squareform(distance, checks=False), "average", optimal_ordering=True))]
