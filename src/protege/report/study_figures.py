"""A study's figures: every seed as a dot, the metric against numeric settings, gains by case, curves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from .. import words
from .charts import COLOURS, Axis, Chart, Series, Strip, dot_strips, line_chart
from .curves import MOST_PANELS, SMALL, Timeline, measured_on, teacher_level
from .read import is_number, read_run
from .table import Estimate, Setting, Study, common_teacher, metrics_of, say, setting_text

AMOUNTS = ("fraction", "samples")


def colours_of(study: Study) -> Callable[[str], str]:
    """The same colour for the same thing in every figure: grey for the baseline, then in order of rows."""
    alone = study.baseline and study.baseline.keys() <= set(numeric_columns(study))
    order = ("c0",) if alone else ("c0", "c2", "c3", "c5", "c6", "c7", "c1")
    taken = {say(study.baseline): "c4"}
    return lambda label: taken.setdefault(label, order[(len(taken) - 1) % len(order)])


def compared(study: Study, setting: Setting) -> Setting:
    """The part of a setting that is compared with the baseline; all of it where there is no baseline."""
    return {key: value for key, value in setting.items() if not study.baseline or key in study.baseline}


def strips(study: Study, colours: Callable[[str], str]) -> list[Chart]:
    """One panel for each setting of all but the baseline's keys; in it, what is compared."""
    metric, unit = study.metric, words.unit(study.metric)
    panels: dict[str, list[tuple[Strip, dict[str, Any]]]] = {}
    for row in study.rows:
        estimate, inner = row.estimate(metric), compared(study, row.setting)
        if not estimate:
            continue
        title = say({key: value for key, value in row.setting.items() if key not in inner})
        factor, mean, half = estimate.factor, estimate.mean, estimate.half or 0.0
        low, high = factor * (mean - half), factor * (mean + half)
        if unit:  # intervals of few runs may leave what a share can be
            low, high = max(0.0, low), min(100.0, high)
        dots = [(factor * value, words.metric_value(metric, value, 2)) for value in estimate.values]
        strip = Strip(say(inner), colours(say(inner)), estimate.text(), factor * mean, low, high, dots)
        panels.setdefault(title, []).append((strip, row.record))
    drawn = []
    for title, pairs in panels.items():
        level = teacher_level(metrics_of(common_teacher([record for _, record in pairs])), metric)
        drawn.append(dot_strips(words.capital(title), [strip for strip, _ in pairs], level, unit))
    return drawn


def numeric_columns(study: Study) -> list[str]:
    """Columns with two or more different numbers (and a word, like ``all``, perhaps), seeds excepted."""
    numeric = []
    for column in study.columns:
        values = [row.setting.get(column) for row in study.rows]
        figures = sum(map(is_number, values))
        if column != "seed" and len(set(map(setting_text, values))) > 1 and figures >= 2 and 2 * figures >= len(values):
            numeric.append(column)
    return numeric[:3]


def line(label: str, points: list[tuple[float, Estimate]], colour: str, join: bool = True) -> Series:
    """A line through estimates with their intervals, or the points alone."""
    drawn = {(x, estimate.factor * estimate.mean): estimate for x, estimate in points}
    intervals = {point: estimate.factor * estimate.half for point, estimate in drawn.items() if estimate.half}
    segments = [list(drawn)] if join else [[point] for point in drawn]
    return Series(label, segments, colour, marks=True, interval=intervals)


def against(study: Study, column: str, colours: Callable[[str], str]) -> Chart | None:
    """The metric against a numeric column, a line for every setting of the other columns."""
    metric = study.metric
    known = [(row.setting, estimate) for row in study.rows if (estimate := row.estimate(metric))]
    values = {setting_text(setting.get(column)): setting.get(column) for setting, _ in known}
    figures: list[float] = sorted(value for value in values.values() if is_number(value))
    if len(values) < 2 or len(figures) < 2:
        return None
    ranked: list[Any] = [*figures, *(value for value in values.values() if not is_number(value))]
    even = len(ranked) > len(figures)
    apart = 3 if column in AMOUNTS else 8  # of samples, the double counts, not one more
    wide = not even and figures[0] > 0 and figures[-1] / figures[0] >= apart
    place = {setting_text(value): float(n if even else value) for n, value in enumerate(ranked)}
    ticks = {at: text for text, at in place.items()}
    groups: dict[str, list[tuple[float, Estimate]]] = {}
    for setting, estimate in known:
        label = say({key: value for key, value in setting.items() if key != column}) or words.metric_name(metric)
        groups.setdefault(label, []).append((place[setting_text(setting.get(column))], estimate))
    shown = list(groups.items())[:COLOURS]
    series = [line(label, sorted(points, key=lambda point: point[0]), colours(label)) for label, points in shown]
    note = f"{len(groups) - COLOURS} more settings are in the table only." if len(groups) > COLOURS else ""
    level = teacher_level(metrics_of(study.record.get("teacher")), metric)
    heights = [estimate.factor * estimate.mean for _, estimate in known]
    span = max(heights) - min(heights)
    if level and not min(heights) - 1.5 * span <= level[0] <= max(heights) + 1.5 * span:
        note = f"{note} Off this scale: {level[1]}.".strip()
        level = None
    named = column.replace("_", " ")
    title = named + (" (evenly spaced)" if even else " (log scale)" if wide else "")
    return line_chart(
        f"{words.capital(words.metric_name(metric))} against {named}",
        series,
        note=note,
        x=Axis(title, (min(ticks), max(ticks)), log=wide, ticks=ticks, places=ticks),
        level=level,
        unit=words.unit(metric),
    )


def gains(study: Study, colours: Callable[[str], str]) -> Chart | None:
    """What each setting gains over the baseline of the same case, side by side for each case."""
    metric = study.metric
    known = [(row.setting, delta) for row in study.rows if (delta := row.estimate(metric, "difference"))]
    cases = list(dict.fromkeys(setting.get("case") for setting, _ in known))
    if len(cases) < 3 or None in cases:
        return None
    groups: dict[str, list[tuple[float, Estimate]]] = {}
    for setting, delta in known:
        label = say({key: value for key, value in setting.items() if key != "case"})
        groups.setdefault(label, []).append((float(cases.index(setting["case"])), delta))
    largest = {label: max(abs(delta.mean) for _, delta in points) for label, points in groups.items()}
    far = [label for label in groups if largest[label] > 3 * median(largest.values())]  # would flatten the others
    near = [label for label in groups if label not in far][:COLOURS]
    series, places = [], dict[float, str]()
    for n, label in enumerate(near):
        beside = 0.5 * (n - (len(near) - 1) / 2) / len(near)
        points = [(x + beside, delta) for x, delta in groups[label]]
        places |= {x: str(cases[round(x)]) for x, _ in points}
        series.append(line(label, points, colours(label), join=False))
    notes = []
    for label in far:
        means = [delta.mean for _, delta in groups[label]]
        ends = (Estimate(metric, mean, None).difference() for mean in (min(means), max(means)))
        notes.append(f"{label}, {' to '.join(dict.fromkeys(ends))}")
    what = ("points of " if words.is_fraction(metric) else "") + words.metric_name(metric)
    title = "Difference to" if words.lower_is_better(metric) else "Gain over"
    ticks = {float(n): str(case) for n, case in enumerate(cases)}
    return line_chart(
        f"{title} {say(study.baseline)}, {what}",
        series,
        note=f"Off this scale: {'; '.join(notes)}." if notes else "",
        x=Axis("case", (-0.5, len(cases) - 0.5), ticks=ticks, places=places),
        y_range=(0.0,),
    )


def curves(folder: Path, study: Study, colours: Callable[[str], str]) -> dict[str, list[Chart]]:
    """By the set that was measured on, a small chart for each setting with a line for every seed, all of a set on one
    vertical scale."""
    order, metric = [say(row.setting) for row in study.rows], study.metric
    sets: dict[str, dict[str, list[Series]]] = {}
    for run in study.runs:
        place, setting = folder / str(run.get("out", "")), run.get("setting") or {}
        epochs = read_run(place).epochs if (place / "metrics.jsonl").is_file() else []
        for where in dict.fromkeys(measured_on(record) for record in epochs if record.get("eval")):
            segments = Timeline(epochs).read("eval", metric, words.factor(metric), where)
            if any(segments):
                seed = Series(f"seed {run.get('seed')}", segments, colours(say(compared(study, setting))))
                sets.setdefault(where, {}).setdefault(say(setting), []).append(seed)
    shown = {}
    for where, panels in sets.items():
        segments = [segment for lines in panels.values() for series in lines for segment in series.segments]
        if not any(len(segment) > 1 for segment in segments):
            continue  # judged once, at the end
        ys = [y for segment in segments for _, y in segment]
        labels = sorted(panels, key=lambda label: order.index(label) if label in order else len(order))[:MOST_PANELS]
        look: dict[str, Any] = {"y_range": [min(ys), max(ys)], "height": SMALL, "unit": words.unit(metric)}
        shown[where] = [chart for label in labels if (chart := line_chart(label, panels[label], **look))]
    return shown
