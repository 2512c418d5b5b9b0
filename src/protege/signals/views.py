"""The views of some samples: what networks are shown, and in which order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ..data import CLEAN, Augment, Batch, Samples, batches
from ..torch_utils import mix

DEFAULT_VIEWS = 8  # studies/views.toml


@dataclass(frozen=True)
class Views:
    """``count`` views of each of the ``samples`` at ``positions`` (int64, sorted), or a fresh one each epoch (0).

    Batches come on ``device``; samples that are not in memory are decoded by ``workers`` processes.
    """

    samples: Samples
    positions: Tensor
    augment: Augment
    count: int
    device: torch.device
    workers: int = 0

    def __len__(self) -> int:
        return len(self.positions)

    def of_epoch(self, epoch: int) -> int:
        """The view that samples are seen in."""
        return epoch % self.count if self.count else epoch

    def ordered(self, order: Sequence[Tensor], view: int) -> Iterator[Batch]:
        """A batch of a view for each tensor of positions."""
        return batches(self.samples, order, view, self.augment, workers=self.workers, device=self.device)

    def batches(self, size: int, view: int = CLEAN, positions: Tensor | None = None) -> Iterator[Batch]:
        """The samples (or those at some ``positions``) in their order, ``size`` at a time; as they are by default."""
        return self.ordered((self.positions if positions is None else positions).split(size), view)

    def example(self, count: int = 4) -> Tensor:
        """Raw inputs of the first few samples."""
        return next(self.batches(count, positions=self.positions[:count])).inputs


def settled(augment: Augment, views: int | Literal["all"], positions: Tensor, seed: int) -> tuple[Augment, int]:
    """The augmentation among these samples and the number of views (0 for ``all``): one where all are the same.

    Views that come again are those of every run, so that runs share what is remembered of them; ``seed`` gives a run
    views of its own where they do not.
    """
    every = views == "all"
    augment = replace(augment.among(positions), seed=augment.seed or (seed if every else 0))
    if not augment.changes:
        return augment, 1
    return augment, 0 if every else int(views)


def shuffled(positions: Tensor, parts: int, *key: int) -> list[Tensor]:
    """The positions in an order that is a function of ``key``, cut into parts whose sizes differ by at most 1."""
    generator = torch.Generator().manual_seed(mix(*key))
    return list(positions[torch.randperm(len(positions), generator=generator)].tensor_split(parts))
