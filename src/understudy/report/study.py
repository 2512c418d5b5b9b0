"""A study's report: headline, table, every seed as a dot, the metric against numeric settings, curves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from understudy.report import words
from understudy.report.charts import COLOURS, Chart, Scale, Series, Strips, dot_strips, line_chart
from understudy.report.curves import Timeline, percent_points, read_from
from understudy.report.page import render, write_page
from understudy.report.read import is_number, numbers, read_json, run_epochs
from understudy.report.table import (
    difference_text,
    estimate,
    is_baseline,
    setting_text,
    study_columns,
    study_markdown,
    study_metrics,
    study_rows,
    with_interval,
)

MOST_PANELS = 24
AMOUNTS = ("fraction", "samples")
Setting = dict[str, Any]


def write_study_report(folder: Path) -> Path:
    """Write ``folder/report.html`` from study.json (and the runs' metrics.jsonl if present); return its path.

    Raises UserError when study.json is missing or damaged, or the report cannot be written.
    """
    folder = Path(folder)
    study = read_json(folder / "study.json")
    metrics = study_metrics(study)
    metric = metrics[0] if metrics else "accuracy"
    rows = study_rows(study)
    colours = Colours(study)
    runs = [run for run in study.get("runs") or [] if isinstance(run, dict)]
    text = render(
        "study.html",
        title=f"{study.get('name') or folder.name} · understudy study",
        name=str(study.get("name") or folder.name),
        headline=headline(study, metric),
        marks=[
            words.plural(len(rows), "setting"),
            done_of(study, sum(int(numbers(row).get("runs", 0)) for row in rows)),
            f"baseline {say(study['baseline'])}"
            if isinstance(study.get("baseline"), dict) and study["baseline"]
            else "",
        ],
        teacher=teacher_text(study, metric),
        columns=study_columns(study),
        metric=words.metric_name(metric),
        points=words.is_fraction(metric),
        heads=[words.metric_name(m) + (", %" if words.is_fraction(m) else "") for m in metrics] or ["accuracy"],
        begun=any(row.get("before") for row in rows),
        rows=[table_row(study, row, metrics) for row in rows],
        strips=strips(study, metric, colours),
        lines=[chart for column in numeric_columns(study) if (chart := against(study, metric, column, colours))],
        curves=curves(folder, study, runs, metric, colours),
        waiting=[f"{say(r.get('setting') or {})}, seed {r.get('seed')}: {r['status']}" for r in runs if not_done(r)],
        markdown=study_markdown(study),
    )
    return write_page(folder / "report.html", text)


def done_of(study: dict[str, Any], done: int) -> str:
    """How many runs are done, and of how many where some are not."""
    planned = int(study.get("planned") or done)
    return words.plural(done, "run") if done >= planned else f"{done} of {words.plural(planned, 'run')}"


def not_done(run: dict[str, Any]) -> bool:
    return str(run.get("status", "done")) not in ("done", "finished", "complete", "ok")


def say(setting: Setting) -> str:
    """``kd (fraction 0.1, views 8)``: a method or variant by its name, everything else with its key."""
    name = next((key for key in ("variant", "method") if key in setting), None)
    others = ", ".join(f"{k.replace('_', ' ')} {setting_text(v)}" for k, v in setting.items() if k != name)
    if name is None:
        return others
    return setting_text(setting[name]) + (f" ({others})" if others else "")


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


def headline(study: dict[str, Any], metric: str) -> str:
    """The best setting, and what the largest clear gain over the baseline is."""
    rows = [row for row in study_rows(study) if estimate(row.get("metrics"), metric)[0] is not None]
    if not rows:
        return "Unfinished: no setting of this study has been measured yet."
    sign = -1 if words.lower_is_better(metric) else 1
    best = max(rows, key=lambda row: sign * (estimate(row.get("metrics"), metric)[0] or 0.0))
    number = numbers(best).get("runs", 1)
    over = f"over {words.plural(number, 'run')}" if number > 1 else "in one run"
    value = with_interval(metric, *estimate(best.get("metrics"), metric))
    text = f"The best {words.metric_name(metric)}, {value} {over}, comes from {say(best.get('setting') or {})}"
    text += ", the baseline" if is_baseline(study, best) else ""
    compared = [row for row in rows if estimate(row.get("difference"), metric)[0] is not None]
    compared = [row for row in compared if not is_baseline(study, row)]
    if not compared:
        return text + "."
    deltas = [(estimate(row.get("difference"), metric), row) for row in compared]
    (mean, half), row = max(deltas, key=lambda pair: sign * (pair[0][0] or 0.0))
    judged = words.verdict(metric, mean or 0.0, half)
    baseline = say(study.get("baseline") or {}) or "the baseline"
    if judged == "better" and half is not None:
        gain = difference_text(metric, mean, half)
        return f"{text}; the largest gain over {baseline} is {gain}, by {say(row.get('setting') or {})}."
    if half is None:
        return f"{text}; one run of each setting cannot tell a gain over {baseline} from chance."
    than = "" if is_baseline(study, best) else f" than {baseline}"
    return f"{text}; no setting is better{than} by more than its 95\u00a0% interval."


def teacher_text(study: dict[str, Any], metric: str) -> str:
    teacher = study.get("teacher")
    if not isinstance(teacher, dict):
        return ""
    value = numbers(teacher.get("metrics")).get(metric)
    parts = [str(teacher.get("spec") or "")]
    parts += [f"{words.metric_value(metric, value)} {words.metric_name(metric)}"] if value is not None else []
    parts += [f"{words.size(teacher['params'])} parameters"] if is_number(teacher.get("params")) else []
    return ", ".join(part for part in parts if part)


def table_row(study: dict[str, Any], row: dict[str, Any], metrics: list[str]) -> dict[str, Any]:
    setting, known = row.get("setting") or {}, numbers(row)
    metric = metrics[0] if metrics else "accuracy"
    mean, half = estimate(row.get("difference"), metric)
    baseline = is_baseline(study, row)
    values = [with_interval(m, *estimate(row.get("metrics"), m), unit=False) for m in metrics] or ["—"]
    return {
        "setting": [setting_text(setting.get(column)) for column in study_columns(study)],
        "baseline": baseline,
        "before": with_interval(metric, *estimate(row.get("before"), metric), unit=False),
        "value": values[0],
        "others": values[1:],
        "difference": "baseline" if baseline else difference_text(metric, mean, half, unit=False),
        "verdict": words.verdict(metric, mean, half) if mean is not None and not baseline else "",
        "runs": words.count(known.get("runs")),
        "seconds": words.duration(known.get("seconds")),
        "seen": words.size(known.get("student_samples_seen")),
        "forwarded": words.size(known.get("teacher_samples_forwarded")),
    }


def teacher_level(study: dict[str, Any], metric: str) -> tuple[float, str] | None:
    teacher = study.get("teacher")
    value = numbers(teacher.get("metrics")).get(metric) if isinstance(teacher, dict) else None
    if value is None:
        return None
    return value * (100 if words.is_fraction(metric) else 1), f"teacher {words.metric_value(metric, value)}"


def values_of(row: dict[str, Any], metric: str) -> list[float]:
    table = (row.get("metrics") or {}).get(metric)
    values = table.get("values") if isinstance(table, dict) else None
    return [float(value) for value in values if is_number(value)] if isinstance(values, list) else []


def strips(study: dict[str, Any], metric: str, colours: Colours) -> list[Strips]:
    """One panel for each setting of all but the baseline's keys; in it, what is compared."""
    factor = 100 if words.is_fraction(metric) else 1
    baseline = study.get("baseline") if isinstance(study.get("baseline"), dict) else {}
    groups: dict[str, list[Any]] = {}
    for row in study_rows(study):
        mean, half = estimate(row.get("metrics"), metric)
        if mean is None:
            continue
        setting = row.get("setting") or {}
        inner = {k: v for k, v in setting.items() if not baseline or k in baseline}
        outer = {k: v for k, v in setting.items() if k not in inner}
        dots = [(factor * v, words.metric_value(metric, v, 2)) for v in values_of(row, metric)]
        width = None if half is None else factor * half
        item = (
            say(inner),
            colours(say(inner)),
            with_interval(metric, mean, half),
            factor * mean,
            width,
            dots,
        )
        groups.setdefault(say(outer), []).append(item)
    level, unit = teacher_level(study, metric), " %" if factor == 100 else ""
    return [dot_strips(words.capital(title), items, level, unit) for title, items in groups.items()]


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
    factor = 100 if words.is_fraction(metric) else 1
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
    scale = Scale(0, len(ranked) - 1) if even else Scale(figures[0], figures[-1], log=wide)
    ticks = [(place[setting_text(v)], setting_text(v)) for v in ranked]
    if len(ticks) > 8:
        ticks = [*ticks[: -1 : len(ticks) // 6], ticks[-1]]
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
    level = teacher_level(study, metric)
    heights = [y for points in groups.values() for _, y, _ in points]
    span = max(heights) - min(heights)
    if level and not min(heights) - 1.5 * span <= level[0] <= max(heights) + 1.5 * span:
        note = f"{note} Off this scale: {level[1]}.".strip()
        level = None
    name = words.capital(words.metric_name(metric))
    axis = column.replace("_", " ") + (" (evenly spaced)" if even else " (log scale)" if wide else "")
    return line_chart(
        f"{name} against {column.replace('_', ' ')}",
        series,
        note=note,
        x_label=axis,
        x_axis=(scale, ticks),
        level=level,
        unit=" %" if factor == 100 else "",
    )


def curves(
    folder: Path, study: dict[str, Any], runs: list[dict[str, Any]], metric: str, colours: Colours
) -> list[Chart]:
    """A small chart for each setting with a line for every seed, all on one vertical scale."""
    groups: dict[str, list[Any]] = {}
    settings: dict[str, Setting] = {}
    for run in runs:
        segments = Timeline(run_epochs(folder, str(run.get("out", "")))).segments(read_from("eval", metric))
        segments = percent_points(metric, [segment for segment in segments if segment])
        if segments:
            label = say(run.get("setting") or {})
            settings[label] = run.get("setting") or {}
            groups.setdefault(label, []).append((run.get("seed"), segments))
    values = [y for items in groups.values() for _, segments in items for segment in segments for _, y in segment]
    if not values:
        return []
    shown = []
    for label, items in list(groups.items())[:MOST_PANELS]:
        colour = colours(comparison(study, settings[label]))
        series = [Series(f"seed {seed}", segments, colour) for seed, segments in items]
        unit = " %" if words.is_fraction(metric) else ""
        chart = line_chart(label, series, y_range=[min(values), max(values)], unit=unit, keyed=False)
        shown += [chart] if chart else []
    return shown
