"""Heatmaps of square matrices as vector pictures: one path for each of a few shades, coloured by the page's theme."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

SHADES = 16
NAMED = 24  # classes up to which rows carry their names
PAIRS = 5


@dataclass(frozen=True)
class Heatmap:
    """A matrix, ready to draw in a box of ``size`` × ``size`` units.

    ``paths`` are (weight in per cent, path); ``lines`` lie between superclasses; ``low`` and ``high`` are the values
    of the lightest and darkest shade; ``pairs`` the classes most alike; ``names`` empty where there are too many.
    """

    title: str
    size: int
    paths: list[tuple[int, str]]
    lines: list[int]
    low: str
    high: str
    pairs: list[str]
    names: list[str]


def heatmap(
    title: str,
    values: Sequence[Sequence[float]],
    names: Sequence[str],
    groups: Sequence[int] | None,
    bounds: tuple[float, float],
) -> Heatmap:
    """A symmetric matrix without its diagonal, in shades between the ``bounds``."""
    size, (low, high) = len(values), bounds
    span = (high - low) or 1.0
    runs: dict[int, list[str]] = {}
    for i, row in enumerate(values):
        shades = [-1 if i == j else shade((value - low) / span) for j, value in enumerate(row)]
        start = 0
        for j in range(1, size + 1):  # neighbours of one shade are one rectangle
            if j == size or shades[j] != shades[start]:
                if shades[start] > 0:
                    runs.setdefault(shades[start], []).append(f"M{start} {i}h{j - start}v1h{start - j}z")
                start = j
    pairs = sorted(((values[i][j], i, j) for i in range(size) for j in range(i)), reverse=True)[:PAIRS]
    lines = [] if groups is None else [n for n in range(1, size) if groups[n] != groups[n - 1]]
    return Heatmap(
        title=title,
        size=size,
        paths=[(round(100 * level / SHADES), "".join(path)) for level, path in sorted(runs.items())],
        lines=lines,
        low=number(low),
        high=number(high),
        pairs=[f"{names[j]} and {names[i]}, {number(value)}" for value, i, j in pairs],
        names=list(names) if size <= NAMED else [],
    )


def scale_of(matrices: Sequence[Sequence[Sequence[float]]]) -> tuple[float, float]:
    """A scale for several matrices: the 2nd and the 98th percentile of what lies off their diagonals."""
    others = sorted(value for m in matrices for i, row in enumerate(m) for j, value in enumerate(row) if i != j)
    return others[round(0.02 * (len(others) - 1))], others[round(0.98 * (len(others) - 1))]


def shade(part: float) -> int:
    return round(SHADES * min(1.0, max(0.0, part)))


def number(value: float) -> str:
    return f"{value:.2f}".replace("-", "\u2212")
