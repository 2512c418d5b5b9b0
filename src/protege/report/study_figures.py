"""A study's figures: every seed as a dot, the metric against numeric settings, gains by case, curves."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

from . import words
from .charts import COLOURS, Axis, Chart, Series, Strip, dot_strips, line_chart
from .curves import SMALL, Timeline, factor_of, measured_on, per_cent, read_from
from .read import is_number, numbers, read_run
from .table import (
    Setting,
    common_teacher,
    difference_text,
    estimate,
    say,
    setting_text,
    study_columns,
    study_rows,
    with_interval,
)

MOST_PANELS = 24
AMOUNTS = ("fraction", "samples")


class Colours:
    """The same colour for the same thing in every figure: grey for the baseline, then in order of rows."""

    def __init__(self, study: dict[str, Any]) -> None:
        self.taken: dict[str, str] = {}
        baseline = study.get("baseline")
        self.baseline = say(baseline) if isinstance(baseline, dict) else ""
        alone = isinstance(baseline, dict) and set(baseline) <= set(numeric_columns(study))
        self.order = ("c0",) if alone and baseline else ("c0", "c2", "c3", "c5", "c6", "c7", "c1")

    def __call__(self, label: str) -> str:
        if label == self.baseline:
            return "c4"
        return self.taken.setdefault(label, self.order[len(self.taken) % len(self.order)])


def comparison(study: dict[str, Any], setting: Setting) -> str:
    """The part of a setting that is compared with the baseline; all of it where there is no baseline."""
    baseline = study.get("baseline")
    return say({k: v for k, v in setting.items() if not baseline or k in baseline})


def teacher_level(teacher: Any, metric: str) -> tuple[float, str] | None:
    value = numbers(teacher.get("metrics")).get(metric) if isinstance(teacher, dict) else None
    if value is None:
        return None
    return value * (100 if words.is_fraction(metric) else 1), f"teacher {words.metric_value(metric, value)}"


def values_of(row: dict[str, Any], metric: str) -> list[float]:
    table = (row.get("metrics") or {}).get(metric)
    values = table.get("values") if isinstance(table, dict) else None
    return [float(value) for value in values if is_number(value)] if isinstance(values, list) else []


def strips(study: dict[str, Any], metric: str, colours: Colours) -> list[Chart]:
    """One panel for each setting of all but the baseline's keys; in it, what is compared."""
    factor = factor_of(metric)
    baseline = study.get("baseline") if isinstance(study.get("baseline"), dict) else {}
    groups: dict[str, list[Strip]] = {}
    panels: dict[str, list[dict[str, Any]]] = {}
    for row in study_rows(study):
        mean, half = estimate(row.get("metrics"), metric)
        if mean is None:
            continue
        setting = row.get("setting") or {}
        inner = {k: v for k, v in setting.items() if not baseline or k in baseline}
        outer = {k: v for k, v in setting.items() if k not in inner}
        dots = [(factor * v, words.metric_value(metric, v, 2)) for v in values_of(row, metric)]
        ends = [factor * (mean + side * (half or 0.0)) for side in (-1, 1)]
        if factor == 100:  # intervals of few runs may leave what a share can be
            ends = [min(100.0, max(0.0, end)) for end in ends]
        item = Strip(
            say(inner), colours(say(inner)), with_interval(metric, mean, half), factor * mean, ends[0], ends[1], dots
        )
        groups.setdefault(say(outer), []).append(item)
        panels.setdefault(say(outer), []).append(row)
    level = {title: teacher_level(common_teacher(rows), metric) for title, rows in panels.items()}
    return [
        dot_strips(words.capital(title), items, level[title], **per_cent(metric)) for title, items in groups.items()
    ]


def numeric_columns(study: dict[str, Any]) -> list[str]:
    """Columns with two or more different numbers (and a word, like ``all``, perhaps), seeds excepted."""
    found = []
    for column in study_columns(study):
        values = {setting_text((row.get("setting") or {}).get(column)) for row in study_rows(study)}
        kinds = [is_number((row.get("setting") or {}).get(column)) for row in study_rows(study)]
        if column != "seed" and len(values) > 1 and sum(kinds) >= 2 and 2 * sum(kinds) >= len(kinds):
            found.append(column)
    return found[:3]


def against(study: dict[str, Any], metric: str, column: str, colours: Colours) -> Chart | None:
    """The metric against a numeric column, a line for every setting of the other columns."""
    factor = factor_of(metric)
    rows = [row for row in study_rows(study) if estimate(row.get("metrics"), metric)[0] is not None]
    values = {
        setting_text((row.get("setting") or {}).get(column)): (row.get("setting") or {}).get(column) for row in rows
    }
    figures: list[float] = sorted(value for value in values.values() if is_number(value))
    if len(values) < 2 or len(figures) < 2:
        return None
    ranked: list[Any] = [*figures, *(value for value in values.values() if not is_number(value))]
    even = len(ranked) > len(figures)
    apart = 3 if column in AMOUNTS else 8  # of samples, the double counts, not one more
    wide = not even and figures[0] > 0 and figures[-1] / figures[0] >= apart
    place = {setting_text(v): float(n) if even else float(v) for n, v in enumerate(ranked)}
    ticks = {place[setting_text(v)]: setting_text(v) for v in ranked}
    groups: dict[str, list[tuple[float, float, float | None]]] = {}
    for row in rows:
        setting = row.get("setting") or {}
        mean, half = estimate(row.get("metrics"), metric)
        label = say({k: v for k, v in setting.items() if k != column}) or words.metric_name(metric)
        x = place[setting_text(setting.get(column))]
        groups.setdefault(label, []).append((x, factor * (mean or 0.0), None if half is None else factor * half))
    series = []
    for label, points in list(groups.items())[:COLOURS]:
        points.sort(key=lambda point: point[0])
        intervals = {(x, y): half for x, y, half in points if half is not None}
        segment = [(x, y) for x, y, _ in points]
        series.append(Series(label, [segment], colours(label), marks=True, interval=intervals))
    note = f"{len(groups) - COLOURS} more settings are in the table only." if len(groups) > COLOURS else ""
    level = teacher_level(study.get("teacher"), metric)
    heights = [y for points in groups.values() for _, y, _ in points]
    span = max(heights) - min(heights)
    if level and not min(heights) - 1.5 * span <= level[0] <= max(heights) + 1.5 * span:
        note = f"{note} Off this scale: {level[1]}.".strip()
        level = None
    name = words.capital(words.metric_name(metric))
    axis = Axis(
        column.replace("_", " ") + (" (evenly spaced)" if even else " (log scale)" if wide else ""),
        (0.0, len(ranked) - 1.0) if even else (figures[0], figures[-1]),
        log=wide,
        ticks=ticks,
        places=ticks,
    )
    return line_chart(
        f"{name} against {column.replace('_', ' ')}",
        series,
        note=note,
        x=axis,
        level=level,
        **per_cent(metric),
    )


def gains(study: dict[str, Any], metric: str, colours: Colours) -> Chart | None:
    """What each setting gains over the baseline of the same case, side by side for each case."""
    rows = [row for row in study_rows(study) if estimate(row.get("difference"), metric)[0] is not None]
    cases = list(dict.fromkeys((row.get("setting") or {}).get("case") for row in rows))
    if len(cases) < 3 or None in cases:
        return None
    factor = factor_of(metric)
    groups: dict[str, list[tuple[float, float, float]]] = {}
    for row in rows:
        setting, (mean, half) = dict(row["setting"]), estimate(row["difference"], metric)
        place = float(cases.index(setting.pop("case")))
        groups.setdefault(say(setting), []).append((place, factor * (mean or 0.0), factor * (half or 0.0)))
    largest = {label: max(abs(mean) for _, mean, _ in points) for label, points in groups.items()}
    far = [label for label in groups if largest[label] > 3 * median(largest.values())]  # would flatten the others
    near = [label for label in groups if label not in far][:COLOURS]
    series, places = [], dict[float, str]()
    for n, label in enumerate(near):
        beside = 0.5 * (n - (len(near) - 1) / 2) / len(near)
        points = [(x + beside, mean, half) for x, mean, half in groups[label]]
        intervals = {(x, mean): half for x, mean, half in points if half}
        places |= {x: str(cases[round(x)]) for x, _, _ in points}
        series.append(Series(label, [[(x, mean)] for x, mean, _ in points], colours(label), interval=intervals))
    notes = []
    for label in far:
        means = [mean / factor for _, mean, _ in groups[label]]
        ends = (difference_text(metric, end, None) for end in (min(means), max(means)))
        notes.append(f"{label}, {' to '.join(dict.fromkeys(ends))}")
    ticks = {float(n): str(case) for n, case in enumerate(cases)}
    what = words.metric_name(metric)
    title = "Difference to" if words.lower_is_better(metric) else "Gain over"
    return line_chart(
        f"{title} {say(study.get('baseline') or {})}, {'points of ' if factor == 100 else ''}{what}",
        series,
        note=f"Off this scale: {'; '.join(notes)}." if notes else "",
        x=Axis("case", (-0.5, len(cases) - 0.5), ticks=ticks, places=places),
        y_range=(0.0,),
    )


def curves(
    folder: Path, study: dict[str, Any], runs: list[dict[str, Any]], metric: str, colours: Colours
) -> dict[str, list[Chart]]:
    """By the set that was measured on, a small chart for each setting with a line for every seed, all of a set on one
    vertical scale."""
    order = [say(row.get("setting") or {}) for row in study_rows(study)]
    found: dict[str, dict[str, list[Series]]] = {}
    for run in runs:
        place, setting = folder / str(run.get("out", "")), run.get("setting") or {}
        epochs = read_run(place).epochs if (place / "metrics.jsonl").is_file() else []
        for where in dict.fromkeys(measured_on(record) for record in epochs if record.get("eval")):
            segments = Timeline(epochs).segments(read_from("eval", metric, where), factor_of(metric))
            if any(segments):
                line = Series(f"seed {run.get('seed')}", segments, colours(comparison(study, setting)))
                found.setdefault(where, {}).setdefault(say(setting), []).append(line)
    shown = {}
    for where, panels in found.items():
        drawn = [segment for lines in panels.values() for line in lines for segment in line.segments]
        if not any(len(segment) > 1 for segment in drawn):
            continue  # judged once, at the end
        ys = [y for segment in drawn for _, y in segment]
        labels = sorted(panels, key=lambda label: order.index(label) if label in order else len(order))[:MOST_PANELS]
        charts = [
            line_chart(label, panels[label], y_range=[min(ys), max(ys)], height=SMALL, **per_cent(metric))
            for label in labels
        ]
        shown[where] = [chart for chart in charts if chart]
    return shown
