"""Mixup and CutMix: an image of a view is mixed with the same view of another sample.

Which sample and how much of it are functions of (seed, sample, view), as all that a view shows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .augment import Augment
from .labels import UNLABELLED
from .views import Draw, below, draws, uniform

WHOLE = 256  # a share of 1


def partners(augment: Augment, index: Tensor, view: int, count: int) -> Tensor:
    """The sample that is mixed in with each of those at `index` (int64 [B]), of `count` in all or of the `pool`."""
    random = draws(augment.seed, index, view, Draw.PARTNER + 1)[:, Draw.PARTNER]
    if augment.pool is None:
        return below(random, count)
    return augment.pool.to(index.device)[below(random, len(augment.pool))]


def weights(augment: Augment, index: Tensor, view: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """How much of its own each pixel keeps, int32 [B, H, W] or [B, 1, 1], and of a whole image its share, int64 [B],
    both from 0 to 256; on the CPU."""
    from scipy.special import betaincinv  # slow to import

    random = draws(augment.seed, index.cpu(), view, Draw.CENTRE_RIGHT + 1)
    cuts = torch.full((len(index),), bool(augment.cutmix))
    if augment.mixup and augment.cutmix:
        cuts = below(random[:, Draw.WAY], 2) == 1
    alpha = torch.where(cuts, augment.cutmix, augment.mixup).double().numpy()
    share = torch.from_numpy(betaincinv(alpha, alpha, uniform(random[:, Draw.SHARE]).numpy()))
    blended = (share * WHOLE).round().int()
    if not augment.cutmix:
        return blended[:, None, None], blended.long()
    inside = _boxes(random, 1 - share, height, width)
    weight = torch.where(cuts[:, None, None], torch.where(inside, 0, WHOLE), blended[:, None, None]).int()
    lowest, highest = weight.amin((1, 2)), weight.amax((1, 2))
    return weight, torch.where(lowest == highest, lowest, WHOLE // 2).long()  # a pixel more or less is not the whole


def blend(images: Tensor, others: Tensor, weight: Tensor) -> Tensor:
    """Images uint8 [B, C, H, W] mixed with `others` by `weights`."""
    weight = weight.to(images.device)[:, None]
    return ((images.int() * weight + others.int() * (WHOLE - weight) + WHOLE // 2) >> 8).to(torch.uint8)


def _boxes(random: Tensor, area: Tensor, height: int, width: int) -> Tensor:
    """Which pixels lie in boxes of this share of the image, bool [B, H, W]. Boxes are shaped like the image; their
    centres may lie anywhere in it, and what lies beyond is cut off."""
    sides = []
    for centre, size in ((Draw.CENTRE_DOWN, height), (Draw.CENTRE_RIGHT, width)):
        length = (area.sqrt() * size).long()
        first = below(random[:, centre], size) - length // 2
        at = torch.arange(size)
        sides.append((at >= first[:, None]) & (at < (first + length)[:, None]))
    return sides[0][:, :, None] & sides[1][:, None, :]


def mixed_labels(labels: Tensor, others: Tensor, share: Tensor) -> Tensor:
    """The labels of mixed images, int64 [B]: none unless all of an image is of one class."""
    share = share.to(labels.device)
    alone = torch.where(share == 0, others, torch.where(labels == others, labels, UNLABELLED))
    return torch.where(share == WHOLE, labels, alone)
