"""The least squares behind FSKD (arXiv 1812.01839), from sums alone.

Sought are Q and c with ``X·Q + c ≈ Y`` over rows (pixels, tokens) of ``C`` channels, and a ridge that pulls Q
*towards the identity*: ``(XᵀX + λI)·Q = XᵀY + λI``. With ``Q = I + Δ`` and ``D = Y − X`` this is plain ridge
regression of what is missing, ``(XᵀX + λI)·Δ = XᵀD``, which is how it is computed: a perfect student has D = 0 and
loses no digit, and where the samples say nothing (dead, constant or dependent channels) Δ is zero. Where a whole kernel
is sought, X holds the k²·C values the kernel sees, Δ is what is added to it, and the ridge pulls towards no change.

λ is chosen by what Q does to samples it was not solved on. Of few columns one eigendecomposition gives that for every
λ in O(n²). Of many it takes fifteen times as long as a Cholesky factor, so a few λ are tried instead, in single
precision and on some mixtures of D's columns. As rows of float32 are summed, a direction is trusted only where it is
longer than what the channels in it may have lost, and an error is told only down to there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from ...numerics import exact
from .moments import WIDE, Moments

GRID = tuple(10 ** (step / 2) for step in range(-12, 7))  # λ relative to the mean of XᵀX's diagonal
FIRST = GRID.index(0.1)  # where the search for that of many columns begins
SURE = 1e-4  # the least λ, above what float32 rows leave open in up to some thousands of columns, for a Cholesky factor
NEARLY = 0.01  # behind the best λ on what was left out are as good: the least of these holds back least
MIXED = 64  # mixtures of D's columns on which the λ of many columns is chosen
MANY = 192  # columns of X, beyond which an eigendecomposition takes longer than all other work
LARGE = 512  # columns of X, from which on a GPU solves what lies there; a processor is quicker with fewer


@dataclass(frozen=True)
class Solution:
    """``delta [blocks, n, m]`` (input first), ``intercept [blocks·m]`` or None, and what they do.

    ``ridge`` is the relative λ (infinite: Δ = 0, at most an intercept), None where nothing changes. ``before`` and
    ``after`` are ``‖D‖²`` and ``‖D − XΔ − c‖²`` over all rows. ``apart`` is what the same λ gives without each of the
    folds that it was chosen on, with the errors on that fold: what is to be expected of other samples.
    """

    delta: Tensor
    intercept: Tensor | None
    ridge: float | None
    before: float
    after: float
    apart: tuple[Solution, ...] = ()

    @property
    def q(self) -> Tensor:
        """``I + Δ``, where X is the student's output and D what it lacks to the target."""
        return torch.eye(self.delta.shape[-1], dtype=torch.float64, device=self.delta.device) + self.delta


@exact()
def solve(
    moments: Moments, intercept: bool = True, ridge: float | None = None, judges: Moments | None = None
) -> Solution:
    """Δ and c from the sums; never worse than no change on the rows that were added.

    ``ridge`` is λ relative to the mean of a block's ``XᵀX`` diagonal (about its mean, with an intercept). None
    chooses it, and whether to change anything at all, by the errors on each fold after solving on the others (of wide
    blocks on the first alone), or on that fold of the ``judges``: the rows of the same samples where nothing before has
    been solved on them either. With one fold only λ is 0.01.

    >>> rows, moments = torch.randn(100, 4), Moments.zeros(folds=1, blocks=1, n=4, m=4)
    >>> moments.add(0, rows, 2 * rows - rows)  # what is missing to the double
    >>> solve(moments, ridge=0.0).q[0].round(decimals=6).diag()
    tensor([2., 2., 2., 2.], dtype=torch.float64)
    """
    if moments.x.shape[-1] < LARGE:
        moments, judges = moments.to("cpu"), None if judges is None else judges.to("cpu")
    whole = moments.total()
    if ridge is not None or len(moments.rows) == 1:
        return _solved(whole, whole, intercept, 0.01 if ridge is None else ridge)
    folds = range(len(moments.rows))
    held = [(moments if judges is None else judges).total([fold]) for fold in folds]
    rest = [moments.total([other for other in folds if other != fold]) for fold in folds]
    parts = list(zip(rest, held, strict=True))[: 1 if moments.x.shape[-1] > WIDE else None]
    before = sum(float(part.missing) for _, part in parts)
    choice = _choice_of_many if moments.x.shape[-1] > MANY else _choice_of_few
    ridge = choice(parts, intercept) if before else None
    apart = tuple(_solved(*part, intercept, ridge, always=True) for part in parts)
    made = _solved(whole, whole, intercept, ridge if sum(each.after for each in apart) < before else None)
    if made.ridge is None:
        apart = tuple(_nothing(part, intercept) for _, part in parts)
    return replace(made, apart=apart)


def _nothing(judged: Moments, intercept: bool) -> Solution:
    """No change."""
    missing, d = float(judged.missing), judged.d[0].flatten()
    return Solution(torch.zeros_like(judged.xd[0]), torch.zeros_like(d) if intercept else None, None, missing, missing)


def _solved(moments: Moments, judged: Moments, intercept: bool, ridge: float | None, always: bool = False) -> Solution:
    """What one λ gives, with its errors on some sums; none for None, nor, but ``always``, where they do not fall."""
    nothing = _nothing(judged, intercept)
    if ridge is None:
        return nothing
    mean_x, mean_d = moments.means(intercept)
    many = moments.x.shape[-1] > MANY and ridge >= SURE
    delta = (_Factors if many else _Path)(moments, mean_x, mean_d).delta(ridge)
    xx, xd, dd = judged.about(mean_x, mean_d)
    least = float((delta.square().sum(-1) * judged.rounding[0]).sum())  # no error can be told that is smaller
    after = max(float(dd + (delta * (xx @ delta - 2 * xd)).sum()), least)
    if not (always or after <= nothing.before):
        return nothing
    c = mean_d - torch.einsum("bi,bio->bo", mean_x, delta)
    return Solution(delta, c.flatten() if intercept else None, ridge, nothing.before, after)


def _choice_of_few(parts: Sequence[tuple[Moments, Moments]], intercept: bool) -> float | None:
    """The least λ whose solutions from the rest do nearly as well as any on what was left out; None where no change
    does best."""
    ridges = parts[0][0].x.new_tensor([*GRID, torch.inf])
    errors = torch.zeros_like(ridges)
    for rest, held in parts:
        errors += _Path(rest, *rest.means(intercept)).errors(held, ridges)
    best, missing = float(errors.min()), sum(float(held.missing) for _, held in parts)
    if not best < missing:
        return None
    return float(ridges[int((errors <= best + _slack(best, missing)).nonzero()[0])])


def _slack(error: float, missing: float) -> float:
    """What a λ may be behind the best: little of its error, and of what it gains."""
    return NEARLY * max(0.0, min(error, missing - error))


def _choice_of_many(parts: Sequence[tuple[Moments, Moments]], intercept: bool) -> float | None:
    """The same, searched for by steps of ten times as much."""
    outputs = parts[0][0].d.shape[-1]
    count = min(outputs, MIXED)
    mixtures = torch.randn(outputs, count, generator=torch.Generator().manual_seed(0), dtype=torch.float64) / count**0.5
    trials, shifted, missing = list[tuple[_Factors, Tensor, Tensor]](), 0.0, 0.0
    for rest, held in parts:
        means = rest.means(intercept)
        xx, xd, dd = held.about(*means)
        mixed = mixtures.to(xd.device)
        trials.append((_Factors(rest, *means).mixed(mixed), xx.float(), (xd @ mixed).float()))
        shifted, missing = shifted + float(dd), missing + float(held.missing)

    @cache
    def error(step: int) -> float:
        if not 0 <= step < len(GRID) or GRID[step] < SURE:
            return math.inf
        deltas = [(factors.delta(GRID[step]), xx, xd) for factors, xx, xd in trials]
        made = shifted + sum(float((delta * (xx @ delta - 2 * xd)).sum()) for delta, xx, xd in deltas)
        return made if math.isfinite(made) else math.inf

    best = FIRST
    while (better := min((best + 2, best, best - 2), key=error)) != best:  # of equals the strongest ridge
        best = better
    if not min(error(best), shifted) < missing:
        return None
    if shifted < error(best):
        return math.inf
    nearly = error(best) + _slack(error(best), missing)
    while error(best - 2) <= nearly:
        best -= 2
    return GRID[best]


class _Path:
    """All ridge solutions of one set of sums, by the eigenvectors of XᵀX."""

    def __init__(self, moments: Moments, mean_x: Tensor, mean_d: Tensor) -> None:
        self.means = mean_x, mean_d
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
        self.xx, self.xd, _ = moments.about(mean_x, mean_d)
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
