"""Geometry of the pictures: scales, ticks, line charts and dot strips, as values that the templates draw.

Lines are drawn in an SVG of 100 × 100 units that stretches with the page (strokes do not); text and marks are
placed in per cent of the same box, so that they keep their size on a phone and on a wide screen.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

Point = tuple[float, float]
COLOURS = 8  # classes c0 … c7 in style.css
LABEL = (36, 10)  # width and height that the label of a level takes of a chart, in per cent


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
class Tick:
    at: str  # per cent along the axis
    label: str


@dataclass(frozen=True)
class Mark:
    left: str
    bottom: str
    colour: str
    title: str
    best: bool = False


@dataclass(frozen=True)
class Band:
    left: str
    width: str
    label: str
    shaded: bool


@dataclass(frozen=True)
class Line:
    colour: str
    dashed: bool
    path: str


@dataclass(frozen=True)
class Chart:
    """A line chart, ready to draw."""

    title: str
    note: str
    describe: str
    gutter: int
    x_label: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    lines: list[Line]
    marks: list[Mark]
    bands: list[Band]
    legend: list[tuple[str, bool, str]]
    level: Tick | None = None
    level_place: str = ""  # of its label: left or right, above or below
    tick_room: str = ""  # per cent of the width that each label of the x axis may take, if they are more than figures


@dataclass(frozen=True)
class Scale:
    low: float
    high: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Where a value lies, in per cent of the axis."""
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log10(low), math.log10(high), math.log10(max(value, 1e-300))
        return 50.0 if high == low else 100 * (value - low) / (high - low)


def per_cent(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def nice_step(span: float, parts: int) -> float:
    """The smallest of 1, 2, 5 × 10ⁿ that cuts a span into at most ``parts`` parts."""
    raw = span / parts
    power = 10.0 ** math.floor(math.log10(raw))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))


def tick_text(value: float, step: float) -> str:
    """A figure with as many digits as tell it from its neighbours, a ``step`` away."""
    place = math.floor(math.log10(step) + 1e-9)  # of the last digit
    if abs(value) < step / 2:
        return "0"
    if abs(value) < 1e-3 or abs(value) >= 1e5:
        digits = max(0, math.floor(math.log10(abs(value)) + 1e-9) - place)
        return f"{value:.{digits}e}".replace("e-0", "e-").replace("e+0", "e").replace("-", "\u2212")
    digits = max(0, -place)
    return f"{value:.{digits}f}".replace("-", "\u2212")


def linear_axis(values: Sequence[float], parts: int = 4, floor: bool = False) -> tuple[Scale, list[tuple[float, str]]]:
    """A scale around values with round ends; ``floor`` starts at zero where that costs little room."""
    low, high = min(values), max(values)
    if floor and 0 < low < 0.5 * high:
        low = 0.0
    if high - low < 1e-12 * max(1.0, abs(high)):
        margin = 0.1 * abs(high) or 1.0
        low, high = low - margin, high + margin
    step = nice_step(high - low, parts)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = [(n * step, tick_text(n * step, step)) for n in range(first, last + 1)]
    return Scale(first * step, last * step), ticks


def log_axis(values: Sequence[float]) -> tuple[Scale, list[tuple[float, str]]]:
    """A log scale around values: its ends and ticks are powers of ten, or 1, 2, 5 × 10ⁿ where that is not too many."""
    low, high = min(values), max(values)
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
    fine = [factor * 10.0**n for n in powers for factor in (1, 2, 5)]
    start = max(value for value in fine if value <= low * (1 + 1e-9))
    end = min(value for value in fine if value >= high * (1 - 1e-9) and value > start)
    fine = [value for value in fine if start <= value <= end]
    if len(fine) <= 7:
        return Scale(start, end, log=True), [(value, tick_text(value, value)) for value in fine]
    first = math.floor(math.log10(min(values)) + 1e-9)
    last = max(first + 1, math.ceil(math.log10(max(values)) - 1e-9))
    every = max(1, math.ceil((last - first) / 5))
    ticks = [(10.0**n, tick_text(10.0**n, 10.0**n)) for n in range(first, last + 1, every)]
    return Scale(10.0**first, 10.0**last, log=True), ticks


def step_axis(first: float, last: float) -> tuple[Scale, list[tuple[float, str]]]:
    """An axis of whole numbers (epochs): its ends are the data's, its ticks are round."""
    if last <= first:
        return Scale(first - 1, first + 1), [(first, tick_text(first, 1))]
    step = max(1.0, nice_step(last - first, 5))
    inner = [n * step for n in range(math.ceil(first / step), math.floor(last / step) + 1)]
    ticks = sorted({first, *(x for x in inner if x - first > 0.35 * step)})
    return Scale(first, last), [(x, tick_text(x, 1)) for x in ticks]


def smooth_path(points: Iterable[Point], x: Callable[[float], float], y: Callable[[float], float]) -> str:
    return "M" + "L".join(f"{x(a):.2f} {100 - y(b):.2f}" for a, b in points)


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    note: str = "",
    x_label: str = "epoch",
    x_axis: tuple[Scale, list[tuple[float, str]]] | None = None,
    y_range: Sequence[float] = (),
    level: tuple[float, str] | None = None,
    best: Sequence[tuple[float, float, str]] = (),
    bands: Sequence[tuple[float, float, str]] = (),
    loss: bool = False,
    fold: float = 50,
    tick_room: str = "",
    unit: str = "",
    keyed: bool = True,
) -> Chart | None:
    """A chart of lines; None when there is not one point.

    ``level`` is a horizontal reference (value, label), ``best`` are marked points (x, y, label), ``bands``
    the phases (from, to, name) behind the lines. A ``loss`` starts at zero, or is drawn on a log axis where it
    ranges over more than ``fold``.
    """
    series = [one for one in series if any(one.segments)]
    points = [point for one in series for segment in one.segments for point in segment]
    if not points:
        return None
    xs, ys = [point[0] for point in points], [point[1] for point in points]
    ys += [y + side * half for one in series for (_, y), half in one.interval.items() for side in (-1, 1)]
    ys += list(y_range) + ([level[0]] if level else [])
    use_log = loss and min(ys) > 0 and max(ys) / min(ys) > fold
    y_scale, y_ticks = log_axis(ys) if use_log else linear_axis(ys, floor=loss)
    x_scale, x_ticks = x_axis or step_axis(min(xs), max(xs))
    lines, marks = [], []
    for one in series:
        for segment in one.segments:
            if len(segment) > 1:
                lines.append(Line(one.colour, one.dashed, smooth_path(segment, x_scale, y_scale)))
            if len(segment) == 1 or one.marks:
                for x, y in segment:
                    at = (per_cent(x_scale(x)), per_cent(y_scale(y)))
                    marks.append(Mark(*at, one.colour, f"{one.label}: {y:.4g}"))
        for (x, y), half in one.interval.items():
            stem = smooth_path([(x, y - half), (x, y + half)], x_scale, y_scale)
            lines.append(Line(one.colour, False, stem))
    marks += [Mark(per_cent(x_scale(x)), per_cent(y_scale(y)), "c0", text, best=True) for x, y, text in best]
    shown = [
        Band(per_cent(x_scale(a)), per_cent(x_scale(b) - x_scale(a)), name, n % 2 == 1)
        for n, (a, b, name) in enumerate(clipped(bands, x_scale))
    ]
    height = y_scale(level[0]) if level else 0.0
    drawn = [[(x_scale(x), y_scale(y)) for x, y in segment] for one in series for segment in one.segments]
    labels = [Tick(per_cent(y_scale(value)), text + unit) for value, text in y_ticks]
    return Chart(
        title=title,
        note=note + (" Log scale." if use_log else ""),
        describe=f"{title}: " + ", ".join(one.label for one in series),
        gutter=max(len(tick.label) for tick in labels),
        x_label=x_label,
        x_ticks=[Tick(per_cent(x_scale(value)), text) for value, text in x_ticks],
        y_ticks=labels,
        lines=lines,
        marks=marks,
        bands=shown,
        legend=[(one.colour, one.dashed, one.label) for one in series] if keyed else [],
        level=Tick(per_cent(height), level[1]) if level else None,
        level_place=label_place(height, drawn) if level else "",
        tick_room=tick_room,
    )


def label_place(height: float, lines: Sequence[Sequence[Point]]) -> str:
    """Beside which end of a level, above or below it, a label keeps clear of the lines; all in per cent."""

    def clearance(place: str) -> float:
        low, reach = height - LABEL[1] * ("below" in place), range(0, LABEL[0], 2)
        if not 0 <= low <= 100 - LABEL[1] / 2:
            return -1.0
        strip = [100 - x for x in reach] if "right" in place else list(reach)
        ys = [y for line in lines for x in strip for y in between(line, x)]
        return min((max(low - y, y - low - LABEL[1], 0.0) for y in ys), default=100.0)

    return max(("left", "right", "left below", "right below"), key=lambda place: min(clearance(place), LABEL[1] / 2))


def between(line: Sequence[Point], x: float) -> list[float]:
    """The heights of a line at x: none where it does not reach."""
    if len(line) == 1:
        return [line[0][1]] if abs(line[0][0] - x) < 2 else []
    ends = [(a, b) for a, b in itertools.pairwise(line) if min(a[0], b[0]) <= x <= max(a[0], b[0])]
    return [a[1] + (b[1] - a[1]) * (x - a[0]) / (b[0] - a[0]) if b[0] != a[0] else b[1] for a, b in ends]


def clipped(bands: Sequence[tuple[float, float, str]], scale: Scale) -> list[tuple[float, float, str]]:
    """The bands as far as they lie on the axis; none where a single one would be left."""
    inside = [(max(a, scale.low), min(b, scale.high), name) for a, b, name in bands]
    inside = [(a, b, name) for a, b, name in inside if b > a]
    return inside if len(inside) > 1 else []


@dataclass(frozen=True)
class Strip:
    """One setting of a dot strip: every run's value, the mean and its interval, in per cent of the width."""

    label: str
    colour: str
    text: str
    mean: str
    low: str
    high: str
    dots: list[tuple[str, str]]


@dataclass(frozen=True)
class Strips:
    title: str
    rows: list[Strip]
    ticks: list[Tick]
    level: Tick | None


def dot_strips(
    title: str,
    rows: Sequence[tuple[str, str, str, float, float | None, Sequence[tuple[float, str]]]],
    level: tuple[float, str] | None = None,
    unit: str = "",
) -> Strips:
    """Strips on one axis, from rows of (label, colour, text, mean, half width, (value, title) of each run)."""
    values = [value for row in rows for value in (row[3] - (row[4] or 0), row[3] + (row[4] or 0))]
    values += [value for row in rows for value, _ in row[5]]
    if level:
        span = max(values) - min(values)  # a far level would squeeze the dots together
        if not (min(values) - 0.6 * span <= level[0] <= max(values) + 0.6 * span):
            level = None
        else:
            values.append(level[0])
    if unit == " %":  # intervals of few runs may leave what a share can be
        values = [min(100.0, max(0.0, value)) for value in values]
    scale, ticks = linear_axis(values, parts=3)

    def at(value: float) -> str:
        return per_cent(4 + 0.92 * scale(value))

    strips = [
        Strip(
            label=label,
            colour=colour,
            text=text,
            mean=at(mean),
            low=at(max(scale.low, mean - (half or 0))),
            high=at(min(scale.high, mean + (half or 0))),
            dots=[(at(value), name) for value, name in runs],
        )
        for label, colour, text, mean, half, runs in rows
    ]
    return Strips(
        title=title,
        rows=strips,
        ticks=[Tick(at(value), text + unit) for value, text in ticks],
        level=Tick(at(level[0]), level[1]) if level else None,
    )
