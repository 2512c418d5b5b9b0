"""Judging a student by its teacher where there is no test set: on images that did not teach it."""

from __future__ import annotations

import torch
from torch import Tensor

from ..data import choose

FEW = 100  # images that did not teach, below which those that did are judges
MOST = 2000


def judges_of(positions: Tensor, count: int) -> tuple[Tensor, bool]:
    """Which of `count` samples judge a student taught with those at `positions`, and whether it has not seen them."""
    teaching = torch.zeros(count, dtype=torch.bool)
    teaching[positions] = True
    unseen = count - len(positions) >= min(FEW, len(positions))
    pool = (teaching != unseen).nonzero()[:, 0]
    return pool[choose(None, samples=min(len(pool), MOST), seed=0, count=len(pool))], unseen
