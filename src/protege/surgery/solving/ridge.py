"""The least squares behind FSKD (arXiv 1812.01839), from sums alone.

Sought are Q and c with ``X·Q + c ≈ Y`` over rows (pixels, tokens) of ``C`` channels, and a ridge that pulls Q
*towards the identity*: ``(XᵀX + λI)·Q = XᵀY + λI``. With ``Q = I + Δ`` and ``D = Y − X`` this is plain ridge
regression of what is missing, ``(XᵀX + λI)·Δ = XᵀD``, which is how it is computed: a perfect student has D = 0 and
loses no digit, and where the samples say nothing (dead, constant or dependent channels) Δ is zero. Where a whole kernel
is sought, X holds the k²·C values the kernel sees, Δ is what is added to it, and the ridge pulls towards no change.

λ is chosen by what Q does to samples it was not solved on. Of few columns one eigendecomposition a fold gives that for
every λ in O(n²). Of many it takes fifteen times as long as a Cholesky factor, so a few λ are tried instead, in single
precision and on some mixtures of D's columns. As rows of float32 are summed, a direction is trusted only where it is
longer than what the channels in it may have lost, and an error is told only down to there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from ...numerics import exact
from .moments import WIDE, Moments

GRID = tuple(10 ** (step / 2) for step in range(-12, 7))  # λ relative to the mean of XᵀX's diagonal
FIRST = GRID.index(0.1)  # where the search for that of many columns begins
SURE = 1e-4  # the least λ, above what float32 rows leave open in up to some thousands of columns, for a Cholesky factor
MIXED = 64  # mixtures of D's columns on which the λ of many columns is chosen
MANY = 192  # columns of X, beyond which an eigendecomposition takes longer than all other work
LARGE = 512  # columns of X, from which on a GPU solves what lies there; a processor is quicker with fewer


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
    many = moments.x.shape[-1] > MANY
    if moments.x.shape[-1] < LARGE:
        moments = moments.to("cpu")
    before = float(moments.missing)
    if ridge is None and before:
        choice = _choice_of_many if many else _choice_of_few
        ridge = 0.01 if len(moments.rows) == 1 else choice(moments, intercept)
    nothing = torch.zeros_like(moments.xd[0]), torch.zeros_like(moments.d[0]).flatten() if intercept else None
    if ridge is None:
        return Solution(*nothing, torch.inf, before, before)
    whole = moments.total()
    mean_x, mean_d = whole.means(intercept)
    path = (_Factors if many and ridge >= SURE else _Path)(whole, mean_x, mean_d)
    delta = path.delta(ridge)
    least = float((delta.square().sum(-1) * whole.rounding[0]).sum())  # no error can be told that is smaller
    after = max(float(path.error(delta, ridge)), least)
    if not after <= before:
        return Solution(*nothing, torch.inf, before, before)
    c = mean_d - torch.einsum("bi,bio->bo", mean_x, delta)
    return Solution(delta, c.flatten() if intercept else None, ridge, before, after)


def _choice_of_few(moments: Moments, intercept: bool) -> float | None:
    """The λ whose solutions do best on the folds that were left out; None where no change does best."""
    ridges = moments.x.new_tensor([*GRID, torch.inf])
    errors = torch.zeros_like(ridges)
    for fold in range(len(moments.rows)):
        rest = moments.total([other for other in range(len(moments.rows)) if other != fold])
        path = _Path(rest, *rest.means(intercept))
        errors += path.errors(moments.total([fold]), ridges)
    best = int(errors.flip(0).argmin())  # of equals the strongest ridge
    return float(ridges[len(GRID) - best]) if errors.min() < moments.missing else None


def _choice_of_many(moments: Moments, intercept: bool) -> float | None:
    """The same, searched for from one λ to the next better."""
    outputs = moments.d.shape[-1]
    count = min(outputs, MIXED)
    mixtures = torch.randn(outputs, count, generator=torch.Generator().manual_seed(0), dtype=torch.float64) / count**0.5
    left_out = range(1 if moments.x.shape[-1] > WIDE else len(moments.rows))
    parts, least = list[tuple[_Factors, Tensor, Tensor]](), 0.0
    for fold in left_out:
        rest = moments.total([other for other in range(len(moments.rows)) if other != fold])
        means = rest.means(intercept)
        xx, xd, dd = moments.total([fold]).about(*means)
        mixed = mixtures.to(xd.device)
        parts.append((_Factors(rest, *means).mixed(mixed), xx.float(), (xd @ mixed).float()))
        least += float(dd - moments.total([fold]).missing)

    def gain(ridge: float) -> float:
        """How much less is missing on what was left out than with an intercept alone."""
        deltas = [factors.delta(ridge) for factors, *_ in parts]
        return sum(float((d * (2 * xd - xx @ d)).sum()) for d, (_, xx, xd) in zip(deltas, parts, strict=True))

    ridge, most = _climb(gain)
    if most <= 0:
        ridge, most = torch.inf, 0.0
    return ridge if least < most else None


def _climb(gain: Callable[[float], float]) -> tuple[float, float]:
    """About the λ with the most gain, by steps of ten times as much, and the most that was seen."""

    @cache
    def known(step: int) -> float:
        worth = gain(GRID[step]) if 0 <= step < len(GRID) and GRID[step] >= SURE else -torch.inf
        return worth if math.isfinite(worth) else -torch.inf

    best, near = FIRST, (FIRST + 2, FIRST, FIRST - 2)
    while (better := max(near, key=known)) != best:  # of equals the strongest ridge
        best, near = better, (better + 2, better, better - 2)
    above, most, below = map(known, near)
    # Between them a parabola through the three.
    bend = 2 * most - above - below
    return GRID[best + (round((above - below) / bend) if 0 < bend < torch.inf else 0)], most


class _Path:
    """All ridge solutions of one set of sums, by the eigenvectors of XᵀX."""

    def __init__(self, moments: Moments, mean_x: Tensor, mean_d: Tensor) -> None:
        self.moments, self.means = moments, (mean_x, mean_d)
        xx, xd, _ = moments.about(mean_x, mean_d)
        n = xx.shape[-1]
        values, self.vectors = torch.linalg.eigh((xx + xx.mT) / 2)
        self.values = values.clamp(min=0)
        self.unit = self.values.mean(-1, keepdim=True)
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

    def error(self, delta: Tensor, ridge: float) -> Tensor:
        """The squared error of a solution on its sums."""
        return self.errors(self.moments, self.unit.new_tensor([ridge]))

    def errors(self, moments: Moments, ridges: Tensor) -> Tensor:
        """The squared error of the solutions for these ridges ``[R]`` on other sums; each costs O(n²)."""
        xx, xd, dd = moments.about(*self.means)
        quadratic = (self.vectors.mT @ xx @ self.vectors) * (self.rotated @ self.rotated.mT)
        linear = (self.rotated * (self.vectors.mT @ xd)).sum(-1)
        w = self.shrunk(ridges)
        return dd + ((torch.einsum("rbi,bij->rbj", w, quadratic) - 2 * linear) * w).sum((1, 2))


class _Factors:
    """Single ridge solutions of one set of sums, each by a Cholesky factor; λ must be above the sums' rounding."""

    def __init__(self, moments: Moments, mean_x: Tensor, mean_d: Tensor) -> None:
        self.xx, self.xd, self.dd = moments.about(mean_x, mean_d)
        self.diagonal = self.xx.diagonal(dim1=-2, dim2=-1).clone()
        self.unit = self.diagonal.mean(-1, keepdim=True)

    def mixed(self, mixtures: Tensor) -> _Factors:
        """For mixtures ``[m, k]`` of the outputs, in single precision."""
        made = copy(self)
        made.xx, made.xd = self.xx.float(), (self.xd @ mixtures).float()
        made.diagonal, made.unit = self.diagonal.float(), self.unit.float()
        return made

    def delta(self, ridge: float) -> Tensor:
        """Δ, ``[blocks, n, m]``; zero without a unit, as nothing is known then."""
        strength = torch.where(self.unit > 0, ridge * self.unit, 1.0)
        self.xx.diagonal(dim1=-2, dim2=-1).copy_(self.diagonal + strength)
        factor, failed = torch.linalg.cholesky_ex(self.xx)  # of single precision, where λ is too small for it
        return torch.cholesky_solve(self.xd, factor) if not failed.any() else torch.full_like(self.xd, torch.nan)

    def error(self, delta: Tensor, ridge: float) -> Tensor:
        """The squared error of a solution on its sums."""
        return self.dd - (delta * self.xd).sum() - (ridge * self.unit * delta.square().sum(-1)).sum()
