"""What charts show, as data: lines, strips of dots, bars, heatmaps. How they look is told in ``templates/page.js``, in
the terms of Vega-Lite, whose script in ``vega/`` draws them; colours are those of the style sheet."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ..words import plain

Point = tuple[float, float]
COLOURS = 8  # c0 … c7


@dataclass(frozen=True)
class Series:
    """One line: segments of (x, y) points, not joined to each other; ``interval``: half widths at points."""

    label: str
    segments: list[list[Point]]
    colour: str = "c0"
    dashed: bool = False
    marks: bool = False
    interval: dict[Point, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Axis:
    """A horizontal axis: its title, its ends where they are not the data's, what its ticks are called, and what the
    places of points are called (else by their number), under the title ``point``."""

    title: str = "epoch"
    ends: tuple[float, float] | None = None
    log: bool = False
    ticks: Mapping[float, str] | None = None
    places: Mapping[float, str] = field(default_factory=dict)
    whole: bool = True
    point: str = ""


@dataclass(frozen=True)
class Key:
    """An entry of a legend; ``name`` is what the lines that it switches are called in the data."""

    name: str
    label: str
    colour: str
    dashed: bool


@dataclass(frozen=True)
class Chart:
    """A chart of a kind (``lines``, ``strips``, ``bars``, ``heatmap``) and the data that it shows."""

    kind: str
    title: str
    data: dict[str, Any]
    note: str = ""
    legend: Sequence[Key] = ()

    def json(self) -> dict[str, Any]:
        return {"kind": self.kind, "title": self.title, **self.data}


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    note: str = "",
    x: Axis | None = None,
    y_range: Sequence[float] = (),
    level: tuple[float, str] | None = None,
    best: Sequence[tuple[float, float, str]] = (),
    bands: Sequence[tuple[float, float, str]] = (),
    loss: bool = False,
    fold: float = 50,
    unit: str = "",
    height: int = 210,
    steps: bool = False,
) -> Chart | None:
    """A chart of lines; None when there is not one point.

    ``level`` is a horizontal reference (value, label), ``best`` are marked points (x, y, label), ``bands`` the phases
    (from, to, name) behind the lines. A ``loss`` starts at zero where that costs little, or is drawn on a log axis
    where it ranges over more than ``fold``. ``steps`` draws each value up to the next x.
    """
    series, x = [line for line in series if any(line.segments)], x or Axis()
    rows: dict[tuple[int, float], dict[str, Any]] = {}  # by segment and place: s0, s1 … values, h0 … half widths
    ys = [*y_range, *([level[0]] if level else [])]
    for n, line in enumerate(series):
        for g, segment in enumerate(line.segments):
            for point in (point for point in segment if math.isfinite(point[1])):
                half = line.interval.get(point)
                ys += [point[1] - (half or 0), point[1] + (half or 0)]
                row = rows.setdefault((g, point[0]), {"x": rounded(point[0]), "g": g})
                row |= {f"s{n}": rounded(point[1])} | ({} if half is None else {f"h{n}": rounded(half)})
                row |= {"t": x.places.get(point[0], plain(point[0]))} if x.places else {}
    if not rows:
        return None
    low, high = x.ends or (min(place for _, place in rows), max(place for _, place in rows))
    low, high = (low, high) if low < high else (low - 1, high + 1)
    log = loss and min(ys) > 0 and max(ys) / min(ys) > fold
    keys = [Key(f"s{n}", line.label, line.colour, line.dashed) for n, line in enumerate(series)]
    keys += [Key("level", level[1], "c1", True)] if level else []
    inside = [(max(a, low), min(b, high), name) for a, b, name in bands]
    inside = [band for band in inside if band[0] < band[1]]
    ticks = x.ticks and [(rounded(at), label) for at, label in x.ticks.items()]
    data = {
        "x": {"title": x.title, "point": x.point or x.title, "log": x.log, "ticks": ticks, "whole": x.whole}
        | {"domain": [rounded(low), rounded(high)]},
        "series": [
            # a segment of one point is no line
            {"label": line.label, "colour": line.colour, "dashed": line.dashed}
            | {"marks": line.marks or any(len(segment) == 1 for segment in line.segments)}
            for line in series
        ],
        "rows": list(rows.values()),
        "log": log,
        "zero": loss and not log and 0 < min(ys) < 0.5 * max(ys),
        "range": [rounded(min(ys)), rounded(max(ys))] if y_range else None,
        "level": level,
        "best": best,
        "bands": inside if len(inside) > 1 else [],
        "unit": unit,
        "height": height,
        "steps": steps,
    }
    looks = {(key.colour, key.dashed) for key in keys}  # lines that look alike need no legend
    return Chart("lines", title, data, note + (" Log scale." if log else ""), keys if len(looks) > 1 else ())


def rounded(value: float) -> float:
    """A number as short as its use allows."""
    return float(f"{value:.6g}")


@dataclass(frozen=True)
class Strip:
    """One setting of a dot strip: every run's (value, text), their mean and the ends of its interval."""

    label: str
    colour: str
    text: str
    mean: float
    low: float
    high: float
    dots: Sequence[tuple[float, str]]


def dot_strips(title: str, rows: Sequence[Strip], level: tuple[float, str] | None = None, unit: str = "") -> Chart:
    """A strip for each setting, all on one axis: a dot for each run, a tick for the mean, a bar for its interval."""
    values = [value for row in rows for value in (row.mean, row.low, row.high, *(value for value, _ in row.dots))]
    if level and not min(values) - (span := 0.6 * (max(values) - min(values))) <= level[0] <= max(values) + span:
        level = None  # a far one would squeeze the dots together
    data = {"rows": [asdict(row) for row in rows], "level": level, "unit": unit}
    return Chart("strips", title, data, legend=[Key("level", level[1], "c1", True)] if level else ())


@dataclass(frozen=True)
class Bar:
    """A row of a bar chart: the name before it, its bars as (value, colour), the first the widest, and what is written
    behind them: ``figure`` in the last bar's colour, then ``text``."""

    name: str
    bars: Sequence[tuple[float, str]]
    text: str
    figure: str = ""


def bar_chart(title: str, rows: Sequence[Bar], *, ends: tuple[float, float], note: str = "") -> Chart:
    """Rows of bars from zero, which is marked, and what they say; what is longer than the ``ends`` is cut off there."""
    return Chart("bars", title, {"rows": [asdict(row) for row in rows], "ends": ends}, note)


def heatmap(
    title: str,
    values: Sequence[Sequence[float | None]],
    names: Sequence[str],
    *,
    bounds: tuple[float, float],
    called: tuple[str, str, str],
    note: str = "",
    between: Sequence[int] = (),
    texts: Sequence[Sequence[str]] | None = None,
    truth: bool = False,
) -> Chart:
    """A square matrix in shades between the ``bounds``; None is left out.

    ``called`` are row, column and value under the pointer, ``between`` the rows before which a line is drawn, ``texts``
    what the cells say, and is written into them where there is room. With ``truth`` the diagonal, where it is right,
    has a colour of its own.
    """
    short = [[None if value is None or not math.isfinite(value) else rounded(value) for value in row] for row in values]
    data = {"values": short, "names": names, "bounds": bounds, "called": called, "between": between}
    return Chart("heatmap", title, data | {"texts": texts, "truth": truth}, note)
