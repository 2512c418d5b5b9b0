"""Judging a student without labels: how often it chooses its teacher's class, on images that did not teach it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from ..data import CLEAN, Augment, Samples, batches, choose, forward_size
from ..modes import eval_mode
from .evaluate import BATCH

FEW = 100  # images that did not teach, below which those that did are judges
MOST = 2000


def judges_of(positions: Tensor, count: int) -> tuple[Tensor, bool]:
    """Which of `count` samples judge a student taught with those at `positions`, and whether it has not seen them."""
    teaching = torch.zeros(count, dtype=torch.bool)
    teaching[positions] = True
    unseen = count - len(positions) >= min(FEW, len(positions))
    pool = (teaching != unseen).nonzero()[:, 0]
    return pool[choose(None, samples=min(len(pool), MOST), seed=0, count=len(pool))], unseen


@torch.no_grad()
def agreement(
    network: nn.Module,
    other: nn.Module,
    samples: Samples,
    positions: Tensor,
    *,
    device: torch.device | str = "cpu",
    autocast: Callable[[], AbstractContextManager] = nullcontext,
    workers: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> float:
    """The share of samples for which both networks, called on raw inputs, choose the same class; needs no labels."""
    same = done = 0
    order = list(positions.split(forward_size(samples, BATCH)))
    with eval_mode(network, other), autocast():
        for batch in batches(samples, order, CLEAN, Augment(), workers=workers, device=torch.device(device)):
            same += int((network(batch.inputs).argmax(1) == other(batch.inputs).argmax(1)).sum())
            done += len(batch)
            progress(done, len(positions))
    return same / len(positions)
