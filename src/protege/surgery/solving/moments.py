"""The least squares behind FSKD (arXiv 1812.01839), from sums alone: memory O(n²) for n columns, whatever the samples.

Sought are Q and c with ``X·Q + c ≈ Y`` over rows (pixels, tokens) of ``C`` channels, and a ridge that pulls Q
*towards the identity*: ``(XᵀX + λI)·Q = XᵀY + λI``. With ``Q = I + Δ`` and ``D = Y − X`` this is plain ridge
regression of what is missing, ``(XᵀX + λI)·Δ = XᵀD``, which is how it is computed: a perfect student has D = 0 and
loses no digit, and where the samples say nothing (dead, constant or dependent channels) Δ is zero. Where a whole kernel
is sought, X holds the k²·C values the kernel sees, Δ is what is added to it, and the ridge pulls towards no change.

Sums are kept for each fold of the samples, in float64, so that λ is chosen by what Q does to samples it was not
solved on. One eigendecomposition a fold gives the held-out error for every λ in O(n²): no second look at the data.
Rows that are added together are multiplied in their own precision, about their mean. For float32 that saves a quarter
of a whole recovery (benchmarks/fskd.py --norm takes 5.4 s, and 7.5 with sums of float64 products), and leaves about
seven digits of an error; each product is exact to that share of its two channels' sizes, so a direction is trusted
only where it is longer than what the channels in it may have lost, and an error is told only down to there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...numerics import exact

GRID = tuple(10 ** (step / 2) for step in range(-12, 7))  # λ relative to the mean of XᵀX's diagonal
NARROW = 16  # columns of X, up to which products in float64 cost next to nothing
WIDE = 512  # columns of X; beyond them one fold is left out, not each in turn: an eigendecomposition takes seconds
FEW = 1024  # columns of X, from which on rows that are fewer than half as many save most of the decomposition
LARGE = 512  # columns of X, from which on a GPU decomposes what lies there; a processor is quicker with fewer


@dataclass
class Moments:
    """Sums over rows of X and of what is missing, D, each leading with ``[folds, blocks]``.

    A block has n columns of X and m of D. ``rows [folds]``, ``x [.., n]``, ``d [.., m]``, ``xx = XᵀX [.., n, n]``,
    ``xd = XᵀD [.., n, m]``, ``dd = ‖D‖² [folds]``, and ``rounding [.., n]``, how far the precision of the rows leaves
    the diagonal of ``xx`` open.
    """

    rows: Tensor
    x: Tensor
    d: Tensor
    xx: Tensor
    xd: Tensor
    dd: Tensor
    rounding: Tensor

    @classmethod
    def zeros(cls, folds: int, blocks: int, n: int, m: int, device: torch.device | str = "cpu") -> Moments:
        """No rows seen yet."""

        folds = min(folds, 2) if n > WIDE else folds  # one that is left out, and the rest

        def zero(*shape: int) -> Tensor:
            return torch.zeros(folds, *shape, dtype=torch.float64, device=device)

        square, cross = (blocks, n, n), (blocks, n, m)
        return cls(zero(), zero(blocks, n), zero(blocks, m), zero(*square), zero(*cross), zero(), zero(blocks, n))

    @exact()
    def add(self, fold: int, x: Tensor, d: Tensor) -> None:
        """Add rows ``[M, blocks·n]`` of X and ``[M, blocks·m]`` of D."""
        if not len(x):
            return
        fold = min(fold, len(self.rows) - 1)
        kind = self.x.dtype if self.x.shape[-1] <= NARROW else torch.promote_types(x.dtype, torch.float32)
        x, d = (v.to(kind).unflatten(1, (self.x.shape[1], -1)).transpose(0, 1) for v in (x, d))  # [blocks, M, n or m]
        (mean_x, x, sum_x), (mean_d, d, sum_d) = _about_mean(x), _about_mean(d)
        rows, wide = x.shape[1], self.x.dtype
        xx, xd, dd = ((x.mT @ x).to(wide), (x.mT @ d).to(wide), torch.linalg.vector_norm(d, dim=(1, 2)).to(wide) ** 2)
        self.rows[fold] += rows
        self.x[fold] += sum_x + rows * mean_x
        self.d[fold] += sum_d + rows * mean_d
        self.xx[fold] += xx + _outer(sum_x, mean_x) + _outer(mean_x, sum_x) + rows * _outer(mean_x, mean_x)
        self.xd[fold] += xd + _outer(sum_x, mean_d) + _outer(mean_x, sum_d) + rows * _outer(mean_x, mean_d)
        self.dd[fold] += (dd + 2 * (sum_d * mean_d).sum(-1) + rows * (mean_d * mean_d).sum(-1)).sum()
        self.rounding[fold] += torch.finfo(x.dtype).eps * xx.diagonal(dim1=-2, dim2=-1)

    def total(self, folds: Sequence[int] | None = None) -> Moments:
        """The sums over these folds, or over all, as a single one."""
        chosen = range(len(self.rows)) if folds is None else folds
        return Moments(*(value[list(chosen)].sum(0, keepdim=True) for value in vars(self).values()))

    def about(self, mean_x: Tensor, mean_d: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``xx``, ``xd`` and ``dd`` of the rows less these means (``[blocks, n]``, ``[.., m]``), summed over folds."""
        rows, x, d = self.rows.sum(), self.x.sum(0), self.d.sum(0)
        xx = self.xx.sum(0) - _outer(x, mean_x) - _outer(mean_x, x) + rows * _outer(mean_x, mean_x)
        xd = self.xd.sum(0) - _outer(x, mean_d) - _outer(mean_x, d) + rows * _outer(mean_x, mean_d)
        dd = self.dd.sum() - 2 * (d * mean_d).sum() + rows * (mean_d * mean_d).sum()
        return xx, xd, dd

    def means(self, intercept: bool) -> tuple[Tensor, Tensor]:
        """Means of X and D, ``[blocks, n]`` and ``[blocks, m]``; zeros where there is no intercept to take them up."""
        rows = self.rows.sum().clamp(min=1) if intercept else torch.full_like(self.rows.sum(), torch.inf)
        return self.x.sum(0) / rows, self.d.sum(0) / rows

    def image(self, weight: Tensor, constant: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean and variance ``[blocks·m]`` of ``X·weight + constant``: ``[blocks, n, m]`` and ``[blocks·m]``."""
        rows, weight = self.rows.sum().clamp(min=1), weight.to(self.xx.device)
        mean = self.x.sum(0) / rows
        covariance = self.xx.sum(0) / rows - _outer(mean, mean)
        shift = torch.einsum("bi,bio->bo", mean, weight).flatten()
        shift = shift if constant is None else shift + constant.to(shift)
        return shift, torch.einsum("bio,bij,bjo->bo", weight, covariance, weight).clamp(min=0).flatten()


@dataclass(frozen=True)
class Solution:
    """``delta [blocks, n, m]`` (input first), ``intercept [blocks·m]`` or None, and what they do.

    ``ridge`` is the relative λ (infinite: Δ = 0, at most an intercept). ``before`` and ``after`` are ``‖D‖²`` and
    ``‖D − XΔ − c‖²`` over all rows.
    """

    delta: Tensor
    intercept: Tensor | None
    ridge: float
    before: float
    after: float

    @property
    def q(self) -> Tensor:
        """``I + Δ``, where X is the student's output and D what it lacks to the target."""
        return torch.eye(self.delta.shape[-1], dtype=torch.float64, device=self.delta.device) + self.delta


@exact()
def solve(moments: Moments, intercept: bool = True, ridge: float | None = None) -> Solution:
    """Δ and c from the sums; never worse than no change on the rows that were added.

    ``ridge`` is λ relative to the mean of a block's ``XᵀX`` diagonal (about its mean, with an intercept). None
    chooses it, and whether to change anything at all, by the error on each fold after solving on the others (of wide
    blocks on the first alone); with one fold only it is 0.01.

    >>> rows, moments = torch.randn(100, 4), Moments.zeros(folds=1, blocks=1, n=4, m=4)
    >>> moments.add(0, rows, 2 * rows - rows)  # what is missing to the double
    >>> solve(moments, ridge=0.0).q[0].round(decimals=6).diag()
    tensor([2., 2., 2., 2.], dtype=torch.float64)
    """
    if moments.x.shape[-1] < LARGE:
        moments = Moments(*(value.cpu() for value in vars(moments).values()))
    whole = moments.total()
    before = float(whole.dd)
    nothing = torch.zeros_like(whole.xd[0]), torch.zeros_like(whole.d).flatten() if intercept else None
    if ridge is None and before:
        ridge = 0.01 if len(moments.rows) == 1 else _held_out_choice(moments, intercept)
    if ridge is None:
        return Solution(*nothing, torch.inf, before, before)
    mean_x, mean_d = whole.means(intercept)
    path = _Path(whole, mean_x, mean_d)
    delta = path.delta(ridge)
    least = float((delta.square().sum(-1) * whole.rounding[0]).sum())  # no error can be told that is smaller
    after = max(float(path.errors(whole, path.unit.new_tensor([ridge]))), least)
    if not after <= before:
        return Solution(*nothing, torch.inf, before, before)
    c = mean_d - torch.einsum("bi,bio->bo", mean_x, delta)
    return Solution(delta, c.flatten() if intercept else None, ridge, before, after)


def _held_out_choice(moments: Moments, intercept: bool) -> float | None:
    """The λ whose solutions do best on the folds that were left out; None where no change does best."""
    ridges = moments.x.new_tensor([*GRID, torch.inf])
    errors = torch.zeros_like(ridges)
    wide = moments.x.shape[-1] > WIDE
    for fold in range(1 if wide else len(moments.rows)):
        rest = moments.total([other for other in range(len(moments.rows)) if other != fold])
        path = _Path(rest, *rest.means(intercept))
        errors += path.errors(moments.total([fold]), ridges)
    best = int(errors.flip(0).argmin())  # of equals the strongest ridge
    return float(ridges[len(GRID) - best]) if errors.min() < moments.dd[: 1 if wide else None].sum() else None


class _Path:
    """All ridge solutions of one set of sums, by the eigenvectors of XᵀX."""

    def __init__(self, moments: Moments, mean_x: Tensor, mean_d: Tensor) -> None:
        self.means = mean_x, mean_d
        xx, xd, _ = moments.about(mean_x, mean_d)
        n = xx.shape[-1]
        values, self.vectors = _eigen((xx + xx.mT) / 2, int(moments.rows.sum()))
        self.values = values.clamp(min=0)
        self.unit = self.values.mean(-1, keepdim=True) * (values.shape[-1] / n)
        # Rounding alone makes eigenvalues of this size, as those of a random matrix with such entries; nothing is known
        # in their directions. Without a unit (a constant block) nothing is known at all.
        noise = torch.finfo(torch.float64).eps * n * self.values.amax(-1, keepdim=True)
        level = moments.xx.sum(0).diagonal(dim1=-2, dim2=-1).amax(-1, keepdim=True)
        lost = 8 * n**0.5 * (self.vectors.square() * moments.rounding.sum(0).unsqueeze(-1)).sum(-2)
        self.known = self.values > noise.maximum(lost).maximum(torch.finfo(torch.float64).eps * 16 * level)
        self.rotated = self.vectors.mT @ xd

    def shrunk(self, ridges: Tensor) -> Tensor:
        """``1/(s + λ)`` for every ridge and eigenvalue s, ``[R, blocks, n]``; 0 in directions not known."""
        return torch.where(self.known, 1 / (self.values + ridges.view(-1, 1, 1) * self.unit), 0.0)

    def delta(self, ridge: float) -> Tensor:
        """Δ, ``[blocks, n, m]``."""
        return self.vectors @ (self.shrunk(self.unit.new_tensor([ridge]))[0, ..., None] * self.rotated)

    def errors(self, moments: Moments, ridges: Tensor) -> Tensor:
        """The squared error of the solutions for these ridges ``[R]`` on other sums; each costs O(n²)."""
        xx, xd, dd = moments.about(*self.means)
        quadratic = (self.vectors.mT @ xx @ self.vectors) * (self.rotated @ self.rotated.mT)
        linear = (self.rotated * (self.vectors.mT @ xd)).sum(-1)
        w = self.shrunk(ridges)
        return dd + ((torch.einsum("rbi,bij->rbj", w, quadratic) - 2 * linear) * w).sum((1, 2))


def _eigen(xx: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Eigenvalues ``[blocks, n]`` and vectors ``[blocks, n, n]`` of XᵀX; of a wide one of few rows only those, as many
    as there are rows, that are not 0: in the space that it maps any such number of directions to."""
    blocks, n, _ = xx.shape
    if n < FEW or 2 * rows >= n:
        return torch.linalg.eigh(xx)
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(blocks, n, max(1, rows), generator=generator, dtype=xx.dtype).to(xx.device)
    basis = torch.linalg.qr(xx @ directions).Q
    values, vectors = torch.linalg.eigh(basis.mT @ xx @ basis)
    return values, basis @ vectors


def _about_mean(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``[blocks, M, n]`` → its mean over rows and the sum of what is left, in float64, and what is left."""
    mean = values.mean(1)
    left = values - mean.unsqueeze(1)
    return mean.double(), left, left.sum(1).double()


def _outer(a: Tensor, b: Tensor) -> Tensor:
    return a[..., :, None] * b[..., None, :]
