"""Charts as Vega-Lite specifications, which the script in ``vega/`` draws: lines, strips of dots, heatmaps.

Colours are those of the style sheet (``c0`` … ``c7``), so that charts follow the reader's light or dark mode and the
printer's. What comes from outside, such as names of classes, is data or a
string in quotes, never part of an expression.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from protege.report.words import plain

Point = tuple[float, float]
Spec = dict[str, Any]
COLOURS = 8
MOST_WRITTEN = 20  # rows of a heatmap whose cells have room for a text
SHOWN = {"filter": "indexof(hidden, datum.s) < 0"}  # the page's legend says which lines are hidden
TEXT = {"fontSize": 12, "color": "var(--soft)"}


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
    places of points are called (else by their number), by the name ``said``."""

    title: str = "epoch"
    ends: tuple[float, float] | None = None
    log: bool = False
    ticks: Mapping[float, str] | None = None
    places: Mapping[float, str] | None = None
    whole: bool = True
    said: str = ""


@dataclass(frozen=True)
class Key:
    """An entry of a legend; ``name`` is what the lines that it switches are called in the data."""

    name: str
    label: str
    colour: str
    dashed: bool


@dataclass(frozen=True)
class Chart:
    """A chart, ready to draw."""

    title: str
    note: str
    spec: Spec
    legend: list[Key] = field(default_factory=list)
    kind: str = ""


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
    series, x = [one for one in series if any(one.segments)], x or Axis()
    if not series:
        return None
    rows = table(series, x)
    ys = [
        y + side * one.interval.get((a, y), 0) for one in series for s in one.segments for a, y in s for side in (-1, 1)
    ]
    ys += [*y_range, *([level[0]] if level else [])]
    log = loss and min(ys) > 0 and max(ys) / min(ys) > fold
    encoding = {
        "x": x_encoding(x, [row["x"] for row in rows]),
        "y": y_encoding(ys, log, loss, bool(y_range), unit, height // 50),
    }
    names = [f"s{n}" for n in range(len(series))]
    colour = {"field": "s", "type": "nominal", "legend": None}
    encoding["color"] = {**colour, "scale": scale(names, [f"var(--{one.colour})" for one in series])}
    dash = {**colour, "scale": scale(names, [[5, 4] if one.dashed else [1, 0] for one in series])}
    folded = [{"fold": names, "as": ["s", "y"]}, {"filter": "isValid(datum.y)"}, SHOWN]
    line = {"type": "line", "strokeWidth": 2, "strokeJoin": "round", "clip": True}
    layers = [*band_layers(clipped(bands, x)), *level_layers(level)]
    layers.append({
        "transform": folded,
        "mark": {**line, "interpolate": "step-after"} if steps else line,
        "encoding": {**encoding, "strokeDash": dash, "detail": {"field": "g"}},
    })  # fmt: skip
    if any(one.interval for one in series):
        ends = [
            {"calculate": f"datum.y {sign} datum['h' + datum.s]", "as": end} for sign, end in (("-", "a"), ("+", "b"))
        ]
        stem = {
            "x": encoding["x"],
            "y": {**encoding["y"], "field": "a"},
            "y2": {"field": "b"},
            "color": encoding["color"],
        }
        layers.append({"transform": [*folded, *ends], "mark": {"type": "rule", "strokeWidth": 2}, "encoding": stem})
    dots = marked(series, x, unit)
    if dots:
        tip = {"tooltip": {"field": "t"}}
        layers.append(
            {
                "data": {"values": dots},
                "transform": [SHOWN],
                "mark": {"type": "point", "filled": True, "opacity": 1, "size": 50},
                "encoding": {**encoding, **tip},
            }
        )
    if len(series) == 1 or any(sum(name in row for name in names) > 1 for row in rows):
        layers += hover_layers(series, encoding["x"], x, unit)
    if best:
        ring = {
            "type": "point",
            "size": 90,
            "strokeWidth": 2.5,
            "fill": "var(--panel)",
            "stroke": "var(--c0)",
            "opacity": 1,
        }
        found = [{"x": a, "y": rounded(b), "t": text, "s": "s0"} for a, b, text in best]
        shown = {"x": encoding["x"], "y": encoding["y"], "tooltip": {"field": "t"}}
        layers.append({"data": {"values": found}, "transform": [SHOWN], "mark": ring, "encoding": shown})
    columns = {("t" if x.places else "x"): x.said or x.title} | {
        name: one.label for name, one in zip(names, series, strict=True)
    }
    legend = [Key(n, one.label, one.colour, one.dashed) for n, one in zip(names, series, strict=True) if one.label]
    legend += [Key("level", level[1], "c1", True)] if level else []
    spec = {"height": height, "data": {"values": rows}, "params": [{"name": "hidden", "value": []}], "layer": layers}
    return Chart(
        title,
        note + (" Log scale." if log else ""),
        of_page(title, spec, columns),
        legend if len({(key.colour, key.dashed) for key in legend}) > 1 else [],
    )


def of_page(title: str, spec: Spec, columns: Mapping[str, str]) -> Spec:
    """A specification as wide as its place on the page; ``columns`` name the values of a page that cannot draw it."""
    fit = {"type": "fit" if spec["height"] == "container" else "fit-x", "contains": "padding"}
    return {"description": title, "width": "container", "autosize": fit, "usermeta": {"columns": columns}, **spec}


def scale(names: Sequence[str], values: Sequence[Any]) -> Spec:
    return {"domain": list(names), "range": list(values)}


def table(series: Sequence[Series], x: Axis) -> list[Spec]:
    """A row for each place: ``s0``, ``s1`` … the series' values, ``hs0`` … half widths, ``g`` the segment."""
    rows: dict[tuple[int, float], Spec] = {}
    for n, one in enumerate(series):
        for g, segment in enumerate(one.segments):
            for point in segment:
                row = rows.setdefault((g, point[0]), {"x": rounded(point[0]), "g": g})
                row[f"s{n}"] = rounded(point[1])
                if point in one.interval:
                    row[f"hs{n}"] = rounded(one.interval[point])
                if x.places:
                    row["t"] = x.places.get(point[0], plain(point[0]))
    return list(rows.values())


def rounded(value: float) -> float | None:
    """A number as short as its use allows; JSON has no other than finite ones."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def x_encoding(x: Axis, values: Sequence[float]) -> Spec:
    low, high = x.ends or (min(values), max(values))
    if low == high:
        low, high = low - 1, high + 1
    kind = {"type": "log"} if x.log else {"zero": False, "nice": False}
    axis: Spec = {"title": x.title, "titleAnchor": "end", "grid": False, "labelOverlap": True, "labelFlush": False}
    if x.ticks is not None:
        places, labels = json.dumps([rounded(tick) for tick in x.ticks]), json.dumps(list(x.ticks.values()))
        axis |= {
            "values": [rounded(tick) for tick in x.ticks],
            "labelExpr": f"{labels}[indexof({places}, datum.value)]",
        }
    elif x.whole and high - low < 10:
        axis |= {"values": list(range(math.ceil(low), math.floor(high) + 1)), "format": "d"}
    return {
        "field": "x",
        "type": "quantitative",
        "scale": {**kind, "domain": [rounded(low), rounded(high)]},
        "axis": axis,
    }


def y_encoding(ys: Sequence[float], log: bool, loss: bool, fixed: bool, unit: str, ticks: int) -> Spec:
    low, high = min(ys), max(ys)
    kind: Spec = {"type": "log"} if log else {"zero": loss and 0 < low < 0.5 * high}
    if fixed:
        kind |= {"domainMin": rounded(low), "domainMax": rounded(high)}
    axis = {"title": None, "tickCount": ticks} | ({"labelExpr": f"datum.label + '{unit}'"} if unit else {})
    return {"field": "y", "type": "quantitative", "scale": {**kind, "nice": True}, "axis": axis}


def clipped(bands: Sequence[tuple[float, float, str]], x: Axis) -> list[tuple[float, float, str]]:
    """The bands as far as they lie on the axis; none where a single one would be left."""
    low, high = x.ends or (-float("inf"), float("inf"))
    inside = [(max(a, low), min(b, high), name) for a, b, name in bands]
    inside = [(a, b, name) for a, b, name in inside if b > a]
    return inside if len(inside) > 1 else []


def band_layers(bands: Sequence[tuple[float, float, str]]) -> list[Spec]:
    if not bands:
        return []
    rows = [{"x": a, "b": b, "n": name, "odd": n % 2} for n, (a, b, name) in enumerate(bands)]
    place = {"x": {"field": "x", "type": "quantitative"}, "x2": {"field": "b"}}
    shade = {
        "opacity": {
            "field": "odd",
            "type": "quantitative",
            "scale": {"domain": [0, 1], "range": [0, 0.8]},
            "legend": None,
        }
    }
    room = {"expr": "scale('x', datum.b) - scale('x', datum.x) - 6"}
    name = {"type": "text", "align": "left", "baseline": "bottom", "dx": 4, "limit": room, **TEXT}
    text = {"x": place["x"], "y": {"value": -5}, "text": {"field": "n"}, "tooltip": {"field": "n"}}
    return [
        {"data": {"values": rows}, "mark": {"type": "rect", "fill": "var(--sunk)"}, "encoding": {**place, **shade}},
        {"data": {"values": rows[1:]}, "mark": {"type": "rule", "color": "var(--line)"}, "encoding": {"x": place["x"]}},
        {"data": {"values": rows}, "mark": name, "encoding": text},
    ]


def level_layers(level: tuple[float, str] | None, channel: str = "y") -> list[Spec]:
    if level is None:
        return []
    rule = {"type": "rule", "color": "var(--c1)", "strokeWidth": 1.5, "strokeDash": [6, 4]}
    place = {channel: {"field": channel, "type": "quantitative"}, "tooltip": {"field": "t"}}
    row = {channel: rounded(level[0]), "s": "level", "t": level[1]}
    return [{"data": {"values": [row]}, "transform": [SHOWN], "mark": rule, "encoding": place}]


def marked(series: Sequence[Series], x: Axis, unit: str) -> list[Spec]:
    """The points that are drawn as dots, and what they say."""
    dots = []
    for n, one in enumerate(series):
        for a, y in (point for segment in one.segments if one.marks or len(segment) == 1 for point in segment):
            half = f" ± {plain(one.interval[a, y])}" if (a, y) in one.interval else ""
            where = f", {x.places[a]}" if x.places and a in x.places else ""
            dots.append(
                {"x": rounded(a), "y": rounded(y), "s": f"s{n}", "t": f"{one.label}{where}: {plain(y)}{half}{unit}"}
            )
    return dots


def hover_layers(series: Sequence[Series], place: Spec, x: Axis, unit: str) -> list[Spec]:
    """The place nearest to the pointer, and the values of all lines there."""
    digits = ".2f" if unit else ",.5~r"
    texts = []
    for n in range(len(series)):
        half = f"(isValid(datum.hs{n}) ? ' ± ' + format(datum.hs{n}, '{digits}') : '')"
        text = f"format(datum.s{n}, '{digits}') + {half} + '{unit}'"
        texts.append({"calculate": f"isValid(datum.s{n}) ? {text} : '—'", "as": f"t{n}"})
    tips = [{"field": "t" if x.places else "x", "title": x.said or x.title}]
    tips += [{"field": f"t{n}", "title": one.label} for n, one in enumerate(series) if one.label]
    beside = [{"op": op, "field": "x", "as": op} for op in ("lag", "lead")]
    middle = "sqrt(datum.{0} * datum.x)" if x.log else "(datum.{0} + datum.x) / 2"
    ends = zip(("lag", "lead"), place["scale"]["domain"], ("a", "b"), strict=True)
    reach = [{"calculate": f"isValid(datum.{k}) ? {middle.format(k)} : {end}", "as": to} for k, end, to in ends]
    pointed = {"condition": {"param": "pointer", "value": 0.6, "empty": False}, "value": 0}
    return [
        {
            "mark": {"type": "rule", "color": "var(--soft)"},
            "encoding": {"x": place, "opacity": pointed},
        },
        {
            "transform": [{"window": beside, "sort": [{"field": "x"}]}, *reach, *texts],
            "params": [{"name": "pointer", "select": {"type": "point", "fields": ["x"], "on": "pointerover"}}],
            "mark": {"type": "rect", "opacity": 0},
            "encoding": {"x": {**place, "field": "a"}, "x2": {"field": "b"}, "tooltip": tips},
        },
    ]


@dataclass(frozen=True)
class Strip:
    """One setting of a dot strip: every run's (value, text), their mean and the half width of its interval."""

    label: str
    colour: str
    text: str
    mean: float
    half: float | None
    dots: Sequence[tuple[float, str]]


def dot_strips(title: str, strips: Sequence[Strip], level: tuple[float, str] | None = None, unit: str = "") -> Chart:
    """A strip for each setting, all on one axis: a dot for each run, a tick for the mean, a bar for its interval."""
    rows: list[Spec] = [
        {"l": one.label, "c": f"var(--{one.colour})", "m": rounded(one.mean), "v": one.text}
        | {"a": within(one.mean - (one.half or 0), unit), "b": within(one.mean + (one.half or 0), unit)}
        for one in strips
    ]
    dots: list[Spec] = [
        {"l": one.label, "c": f"var(--{one.colour})", "x": rounded(v), "t": t} for one in strips for v, t in one.dots
    ]
    values = [row[key] for row in rows for key in "mab"] + [dot["x"] for dot in dots]
    if level and not min(values) - (span := 0.6 * (max(values) - min(values))) <= level[0] <= max(values) + span:
        level = None  # a far one would squeeze the dots together
    axis = {"title": None, "tickCount": 4} | ({"labelExpr": f"datum.label + '{unit}'"} if unit else {})
    y = {"field": "l", "type": "nominal", "sort": None, "axis": None, "scale": {"paddingInner": 0, "paddingOuter": 0}}
    encoding = {
        "y": y,
        "x": {"field": "x", "type": "quantitative", "axis": axis, "scale": {"zero": False, "nice": True, "padding": 8}},
        "color": {"field": "c", "scale": None},
    }
    mean = {**encoding, "x": {**encoding["x"], "field": "m"}}
    told = {"tooltip": [{"field": "l", "title": "setting"}, {"field": "v", "title": "mean"}]}
    text = {"type": "text", "baseline": "top", "dy": -22, "fontSize": 13}
    layers = [
        {"mark": {"type": "rule", "color": "var(--line)"}, "encoding": {"y": y}},
        *level_layers(level, "x"),
        {
            "mark": {"type": "rule", "strokeWidth": 8, "opacity": 0.28},
            "encoding": {**encoding, "x": {**encoding["x"], "field": "a"}, "x2": {"field": "b"}, **told},
        },
        {
            "data": {"values": dots},
            "mark": {"type": "circle", "size": 70, "opacity": 0.75},
            "encoding": {**encoding, "tooltip": [{"field": "l", "title": "setting"}, {"field": "t", "title": "run"}]},
        },
        {"mark": {"type": "tick", "thickness": 2.5, "size": 20}, "encoding": {**mean, **told}},
        {
            "mark": {
                **text,
                "align": "left",
                "fontWeight": 600,
                "color": "var(--text)",
                "limit": {"expr": "width - 120"},
            },
            "encoding": {"y": y, "x": {"value": 0}, "text": {"field": "l"}, "tooltip": {"field": "l"}},
        },
        {
            "mark": {**text, "align": "right", "color": "var(--soft)"},
            "encoding": {"y": y, "x": {"value": "width"}, "text": {"field": "v"}},
        },
    ]
    spec = {
        "height": {"step": 48},
        "data": {"values": rows},
        "params": [{"name": "hidden", "value": []}],
        "layer": layers,
    }
    legend = [Key("level", level[1], "c1", True)] if level else []
    return Chart(title, "", of_page(title, spec, {"l": "setting", "v": "mean"}), legend, "strips")


def within(value: float, unit: str) -> float:
    """A value as it is, or what a share can be: intervals of few runs may leave that."""
    return rounded(min(100.0, max(0.0, value)) if unit == " %" else value)


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
    values = [
        {"n": n, "name": row.name, "t": row.text, "f": row.figure}
        | {f"v{k}": rounded(value) for k, (value, _) in enumerate(row.bars)}
        | {f"c{k}": f"var(--{colour})" for k, (_, colour) in enumerate(row.bars)}
        for n, row in enumerate(rows)
    ]
    last, figures = max(len(row.bars) for row in rows) - 1, any(row.figure for row in rows)
    said = 7 * max(len(row.text) for row in rows) + 8
    room = said + (52 if figures else 0)
    labels = json.dumps([row.name for row in rows])
    axis = {"title": None, "ticks": False, "domain": False, "labelLimit": 140, "labelExpr": f"{labels}[datum.value]"}
    y = {"field": "n", "type": "ordinal", "axis": axis}
    place = {"domain": [rounded(end) for end in ends], "clamp": True, "range": [0, {"expr": f"width - {room}"}]}
    x = {"type": "quantitative", "axis": None, "scale": {**place, "nice": False, "zero": False}}
    tips = [{"field": "name", "title": "name"}, *([{"field": "f", "title": "change"}] if figures else [])]
    tips.append({"field": "t", "title": "value"})
    layers: list[Spec] = [
        {
            "mark": {"type": "bar", "height": 14 - 7 * k, "cornerRadius": 1, "minBandSize": 1},
            "encoding": {
                "y": y,
                "x": {**x, "field": f"v{k}"},
                "x2": {"datum": 0},
                "color": {"field": f"c{k}", "scale": None},
                "tooltip": tips,
            },
        }
        for k in range(last + 1)
    ]
    zero = {"mark": {"type": "rule", "color": "var(--soft)"}, "encoding": {"x": {**x, "datum": 0}}}
    text = {"type": "text", "align": "right", **TEXT}
    colour = {"color": {"field": f"c{last}", "scale": None}}
    layers += [
        {**zero, "data": {"values": [{}]}},
        {"mark": text, "encoding": {"y": y, "x": {"value": "width"}, "text": {"field": "t"}}},
        {
            "mark": {**text, "fontWeight": 600, "dx": -said},
            "encoding": {"y": y, "x": {"value": "width"}, "text": {"field": "f"}, **colour},
        },
    ]
    spec = {"height": {"step": 20}, "data": {"values": values}, "layer": layers}
    columns = {"name": "name"} | ({"f": "change"} if figures else {}) | {"t": "value"}
    return Chart(title, note, of_page(title, spec, columns), [], "bars")


def heatmap(
    title: str,
    values: Sequence[Sequence[float | None]],
    names: Sequence[str],
    *,
    bounds: tuple[float, float],
    called: tuple[str, str, str],
    note: str = "",
    between: Sequence[int] = (),
    texts: Sequence[Sequence[str]] = (),
    truth: bool = False,
) -> Chart:
    """A square matrix in shades between the ``bounds``; None is left out.

    ``called`` are row, column and value under the pointer, ``between`` the rows before which a line is drawn, ``texts``
    what the cells say, and is written into them where there is room. With ``truth`` the diagonal, where it is right,
    has a colour of its own.
    """
    size = len(names)
    written = bool(texts) and size <= MOST_WRITTEN
    rows: list[Spec] = [
        {"i": i, "row": name, "v": [v if v is None else rounded(v) for v in row]}
        for i, (name, row) in enumerate(zip(names, values, strict=True))
    ]
    for row, text in zip(rows, texts, strict=False):
        row["t"] = list(text)
    named = {
        "data": {"values": [{"n": n, "name": name} for n, name in enumerate(names)]},
        "key": "n",
        "fields": ["name"],
    }
    cells: list[Spec] = [
        {"flatten": ["v", "t"] if texts else ["v"]},
        {"window": [{"op": "row_number", "as": "j"}], "groupby": ["i"]},
        {"calculate": "datum.j - 1", "as": "j"},
        {"filter": "isValid(datum.v)"},
        {"lookup": "j", "from": named, "as": ["column"]},
        *(
            {"calculate": f"datum.{key} + {part}", "as": to}
            for key in "ij"
            for part, to in ((1, f"{key}2"), (0.5, f"{key}m"))
        ),
        {"calculate": "datum.i == datum.j ? 'var(--c0)' : 'var(--c1)'" if truth else "'var(--c0)'", "as": "c"},
    ]
    axis = {"title": None, "ticks": False, "domain": False, "grid": False, "labelOverlap": True, "labelLimit": 90}
    axis |= {"values": [n + 0.5 for n in range(size)], "labelExpr": f"{json.dumps(list(names))}[floor(datum.value)]"}
    ends = {"domain": [0, size], "nice": False, "zero": False}
    turned = -90 if max(map(len, names)) > 3 else 0
    place: Spec = {
        "x": {
            "field": "j",
            "type": "quantitative",
            "scale": ends,
            "axis": {**axis, "orient": "top", "labelAngle": turned},
        },
        "y": {"field": "i", "type": "quantitative", "scale": {**ends, "reverse": True}, "axis": axis},
    }
    if not written:
        place["x"]["axis"] = None
    shades = {"domain": list(bounds), "range": [0, 1], "clamp": True}
    keys = ("row", "column", "t" if texts else "v")
    tips = [{"field": key, "title": label} for key, label in zip(keys, called, strict=True)]
    tips[2] |= {} if texts else {"format": ".2f"}
    layers: list[Spec] = [
        {
            "mark": {"type": "rect", "stroke": "var(--panel)", "strokeWidth": 2 if written else 0},
            "encoding": {
                **place,
                "x2": {"field": "j2"},
                "y2": {"field": "i2"},
                "fill": {"field": "c", "scale": None},
                "fillOpacity": {"field": "v", "type": "quantitative", "scale": shades, "legend": None},
                "tooltip": tips,
            },
        }
    ]
    if between:
        lines = {"values": [{"i": n, "j": n} for n in between]}
        rule = {"type": "rule", "color": "var(--panel)", "strokeWidth": 1.5}
        layers += [{"data": lines, "mark": rule, "encoding": {channel: place[channel]}} for channel in "xy"]
    if written:
        fits = f"width / {size} / {0.62 * max(2, *(len(text) for row in texts for text in row))}"  # pixels of a letter
        strong = {"test": f"datum.v > {sum(bounds) / 2 + 0.05}", "value": "var(--on-strong)"}
        layers.append(
            {
                "mark": {
                    "type": "text",
                    "fontSize": {"expr": f"min(12, {fits})"},
                    "opacity": {"expr": f"{fits} < 7 ? 0 : 1"},
                },
                "encoding": {
                    "x": {**place["x"], "field": "jm"},
                    "y": {**place["y"], "field": "im"},
                    "text": {"field": "t"},
                    "color": {"condition": strong, "value": "var(--text)"},
                    "tooltip": tips,
                },
            }
        )
    for one in layers:
        if "data" not in one:
            one["transform"] = cells
    spec = {"height": "container", "data": {"values": rows}, "view": {"fill": "var(--sunk)"}, "layer": layers}
    return Chart(title, note, of_page(title, spec, {"row": called[0], "t" if texts else "v": called[2]}), [], "square")
