"""Sums over rows, of which least squares are solved (FSKD, arXiv 1812.01839): memory O(n²) for n columns, whatever the
samples.

They are kept for each fold of the samples, in float64, about the mean of the rows that came first. Rows that are added
together are multiplied in their own precision. For float32 that saves a quarter of a whole recovery, and leaves about
seven digits of an error; each product is exact to that share of its two channels' sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...numerics import exact

WIDE = 512  # columns of X; beyond them the first fold alone is left out: each has sums and factors of its own
NARROW = 16  # columns of X, up to which products in float64 cost next to nothing
BLOCK = 288  # columns whose products are formed at once, on and above the diagonal alone


@dataclass
class Moments:
    """Sums over rows of X and of what is missing, D, less where they begin; each leads with ``[folds, blocks]``.

    A block has n columns of X and m of D. ``rows [folds]``, ``x [.., n]``, ``d [.., m]``, ``xx = XᵀX [.., n, n]`` (on
    and above its diagonal), ``xd = XᵀD [.., n, m]``, ``dd = ‖D‖² [folds]``, ``rounding [.., n]``, how far the precision
    of the rows leaves the diagonal of ``xx`` open; and ``begin_x [blocks, n]`` and ``begin_d``, which have been
    taken off all rows.
    """

    rows: Tensor
    x: Tensor
    d: Tensor
    xx: Tensor
    xd: Tensor
    dd: Tensor
    rounding: Tensor
    begin_x: Tensor
    begin_d: Tensor

    @classmethod
    def zeros(cls, folds: int, blocks: int, n: int, m: int, device: torch.device | str = "cpu") -> Moments:
        """No rows seen yet."""
        folds = min(folds, 2) if n > WIDE else folds

        def zero(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        x, d = (folds, blocks, n), (folds, blocks, m)
        sums = zero(folds), zero(*x), zero(*d), zero(*x, n), zero(*x, m), zero(folds), zero(*x)
        return cls(*sums, zero(blocks, n), zero(blocks, m))

    @exact()
    def add(self, fold: int, x: Tensor, d: Tensor) -> None:
        """Add rows ``[M, blocks·n]`` of X and ``[M, blocks·m]`` of D."""
        if not len(x):
            return
        fold = min(fold, len(self.rows) - 1)
        kind = self.x.dtype if self.x.shape[-1] <= NARROW else torch.promote_types(x.dtype, torch.float32)
        x, d = (v.to(kind).unflatten(1, (self.x.shape[1], -1)).transpose(0, 1) for v in (x, d))  # [blocks, M, n or m]
        if not self.rows.any():
            self.begin_x, self.begin_d = (v.mean(1).to(self.x) for v in (x, d))
        x, d = x - self.begin_x.to(kind).unsqueeze(1), d - self.begin_d.to(kind).unsqueeze(1)
        self.rows[fold] += x.shape[1]
        self.x[fold] += x.sum(1)
        self.d[fold] += d.sum(1)
        self.xd[fold] += x.mT @ d
        self.dd[fold] += torch.linalg.vector_norm(d, dim=(1, 2)).to(self.dd).square().sum()
        for start in range(0, x.shape[-1], BLOCK):
            self.xx[fold, :, start : start + BLOCK, start:] += x[..., start : start + BLOCK].mT @ x[..., start:]
        self.rounding[fold] += torch.finfo(kind).eps * x.square().sum(1)

    def total(self, folds: Sequence[int] | None = None) -> Moments:
        """The sums over these folds, or over all, as a single one."""
        chosen = list(range(len(self.rows)) if folds is None else folds)
        sums = {name: _over(value, chosen) for name, value in vars(self).items() if not name.startswith("begin")}
        return replace(self, **sums)

    def to(self, device: torch.device | str) -> Moments:
        """The same on a device."""
        return Moments(*(value.to(device) for value in vars(self).values()))

    def about(self, mean_x: Tensor, mean_d: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``xx``, ``xd`` and ``dd`` of the rows less these means (``[blocks, n]``, ``[.., m]``), summed over folds."""
        rows, x, d = self.rows.sum(), self.x.sum(0), self.d.sum(0)
        mean_x, mean_d = mean_x - self.begin_x, mean_d - self.begin_d
        xx, xd = self.xx.sum(0), self.xd.sum(0)
        for stop in range(BLOCK, xx.shape[-1], BLOCK):
            xx[:, stop:, stop - BLOCK : stop] = xx[:, stop - BLOCK : stop, stop:].mT
        left = torch.stack([x, mean_x], -1)
        xx.baddbmm_(left, torch.stack([mean_x, x - rows * mean_x], -2), alpha=-1)
        xd.baddbmm_(left, torch.stack([mean_d, d - rows * mean_d], -2), alpha=-1)
        return xx, xd, self.dd.sum() - 2 * (d * mean_d).sum() + rows * (mean_d * mean_d).sum()

    def means(self, intercept: bool) -> tuple[Tensor, Tensor]:
        """Means of X and D, ``[blocks, n]`` and ``[blocks, m]``; zeros where there is no intercept to take them up."""
        if not intercept:
            return torch.zeros_like(self.begin_x), torch.zeros_like(self.begin_d)
        rows = self.rows.sum().clamp(min=1)
        return self.begin_x + self.x.sum(0) / rows, self.begin_d + self.d.sum(0) / rows

    @property
    def missing(self) -> Tensor:
        """``‖D‖²`` over all rows."""
        d, begin, rows = self.d.sum(0), self.begin_d, self.rows.sum()
        return self.dd.sum() + 2 * (d * begin).sum() + rows * (begin * begin).sum()

    def image(self, weight: Tensor, constant: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean and variance ``[blocks·m]`` of ``X·weight + constant``: ``[blocks, n, m]`` and ``[blocks·m]``."""
        rows, weight = self.rows.sum().clamp(min=1), weight.to(self.xx.device)
        mean_x, mean_d = self.means(intercept=True)
        scatter, *_ = self.about(mean_x, mean_d)
        shift = torch.einsum("bi,bio->bo", mean_x, weight).flatten()
        shift = shift if constant is None else shift + constant.to(shift)
        return shift, ((scatter @ weight) * weight).sum(-2).clamp(min=0).flatten() / rows


def _over(value: Tensor, folds: Sequence[int]) -> Tensor:
    """The sum over these folds, with one for all; a single one as it is."""
    return value[folds[0]].unsqueeze(0) if len(folds) == 1 else value[list(folds)].sum(0, keepdim=True)
