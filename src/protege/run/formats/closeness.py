"""How near the outputs of a file come to those of its model, on images that need no labels."""

from __future__ import annotations

import torch
from torch import Tensor


class Closeness:
    """Sums over images of two networks' outputs [N, …, values] of any shape, decisions along dimension 1."""

    def __init__(self) -> None:
        self.images = 0
        self.same = self.decided = 0
        self.off = self.cross = self.square = self.theirs = 0.0
        self.total: Tensor | None = None
        self.sum = 0.0

    def update(self, ours: Tensor, theirs: Tensor) -> None:
        """``ours`` are the model's, ``theirs`` the file's, of the same images."""
        if ours.dim() > 1:
            same = ours.argmax(1) == theirs.argmax(1)
            self.same, self.decided = self.same + int(same.sum()), self.decided + same.numel()
        ours, theirs = ours.double(), theirs.double()
        self.images += len(ours)
        total = ours.sum(0)
        self.total = total if self.total is None else self.total + total
        self.off += float((ours - theirs).square().sum())
        self.square += float(ours.square().sum())
        self.theirs += float(theirs.square().sum())
        self.cross += float((ours * theirs).sum())
        self.sum += float(theirs.sum())

    @property
    def agreement(self) -> float:
        """The share of equal decisions: classes of images, of pixels."""
        return self.same / max(self.decided, 1)

    @property
    def error(self) -> float:
        """The root mean square of the outputs' difference, as a share of how much the model's outputs differ from image
        to image; of one image, or outputs that are the same for all, as a share of these."""
        assert self.total is not None
        spread = self.square - float(self.total.square().sum()) / self.images
        return (self.off / max(spread if spread > 1e-9 * self.square else self.square, 1e-30)) ** 0.5

    @property
    def correlation(self) -> float:
        """Pearson's, of all output values."""
        assert self.total is not None
        count, ours = self.total.numel() * self.images, float(self.total.sum())
        spreads = (self.square - ours**2 / count) * (self.theirs - self.sum**2 / count)
        return (self.cross - ours * self.sum / count) / max(spreads, 1e-300) ** 0.5

    def record(self) -> dict[str, float]:
        return {key: getattr(self, key) for key in ("agreement", "error", "correlation")}


@torch.no_grad()
def closeness(model, network, images) -> Closeness:
    """Of the batches of raw ``images``."""
    sums = Closeness()
    for raw in images:
        sums.update(model(raw), network(raw))
    return sums
