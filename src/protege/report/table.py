"""A study as a Markdown table, for a README, an issue or a terminal."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from . import words
from .guess import told_guess
from .read import is_number, numbers

Setting = dict[str, Any]
EVEN = ("accuracy", "balanced_accuracy", "macro_f1")


def study_rows(study: dict[str, Any]) -> list[dict[str, Any]]:
    rows = study.get("rows")
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def common_teacher(rows: list[dict[str, Any]]) -> Any:
    """The teacher of all rows that have one; None where they differ by more than the rounding of their metrics."""
    teachers = [row["teacher"] for row in rows if isinstance(row.get("teacher"), dict)]
    if not teachers:
        return None
    first, *others = teachers

    def same(other: dict[str, Any]) -> bool:
        mine, theirs = numbers(first.get("metrics")), numbers(other.get("metrics"))
        alike = (math.isclose(mine[key], theirs.get(key, math.nan), rel_tol=1e-3, abs_tol=1e-3) for key in mine)
        one, two = ((each.get("spec"), each.get("params"), set(each.get("metrics") or ())) for each in (first, other))
        return one == two and all(alike)

    return first if all(map(same, others)) else None


def study_columns(study: dict[str, Any]) -> list[str]:
    """The grid's keys: as listed, else every key of the rows' settings."""
    columns = study.get("columns")
    if isinstance(columns, list) and columns:
        return [str(column) for column in columns]
    return list(dict.fromkeys(str(key) for row in study_rows(study) for key in row.get("setting") or {}))


def study_metrics(study: dict[str, Any]) -> list[str]:
    """The measured metrics, the one that decides first. Where all classes have as many test samples, the mean over
    classes is the accuracy, and is left out."""
    names = list(dict.fromkeys(str(key) for row in study_rows(study) for key in row.get("metrics") or {}))
    first = words.primary_metric(names, str(study.get("task", "")))
    pairs = [[estimate(row.get("metrics"), key)[0] for key in EVEN[:2]] for row in study_rows(study)]
    if all(one is not None and other is not None and math.isclose(one, other) for one, other in pairs):
        names = [name for name in names if name not in EVEN[1:]]
    return sorted(names, key=lambda name: name != first)


def study_guess(study: dict[str, Any], metric: str, say: Any = words.metric_value) -> str:
    """The guess that all rows have to beat, as `told_guess` has it; "" where it is not one for all."""
    told = {told_guess(metric, row, say) for row in study_rows(study)}
    return told.pop() if len(told) == 1 else ""


def estimate(table: Any, metric: str) -> tuple[float | None, float | None]:
    """(mean, half width of the 95 % interval) of a metric in ``row["metrics"]`` or ``row["difference"]``."""
    found = numbers((table or {}).get(metric) if isinstance(table, dict) else None)
    return found.get("mean"), found.get("interval95")


def with_interval(metric: str, mean: float | None, half: float | None, unit: bool = True) -> str:
    """``57.31 % ± 0.42``, without the sign where a heading has it; without interval where one run gives none."""
    if mean is None:
        return "—"
    text = words.metric_value(metric, mean, 2)
    if not unit:
        text = text.removesuffix(f"{words.NBSP}%")
    return text if half is None else text + interval_text(metric, half)


def interval_text(metric: str, half: float) -> str:
    figure = f"{100 * half:.2f}" if words.is_fraction(metric) else words.figure(metric, half)
    return f"{words.NBSP}±{words.NBSP}{figure}"


def difference_text(metric: str, mean: float | None, half: float | None, unit: bool = True) -> str:
    """``+3.20 ± 0.41 points``; without the last word where a heading says it."""
    if mean is None:
        return "—"
    fraction = words.is_fraction(metric)
    text = words.difference(metric, mean, 2).removesuffix(f"{words.NBSP}points")
    if half is not None:
        text += interval_text(metric, half)
    return text + (f"{words.NBSP}points" if fraction and unit else "")


def is_baseline(study: dict[str, Any], row: dict[str, Any]) -> bool:
    baseline, setting = study.get("baseline"), row.get("setting") or {}
    return bool(isinstance(baseline, dict) and baseline and all(setting.get(k) == v for k, v in baseline.items()))


def setting_text(value: Any) -> str:
    return "—" if value is None else f"{value:g}" if is_number(value) and abs(value) < 1e6 else str(value)


def study_markdown(study: dict[str, Any]) -> str:
    """The table of a study: settings, the deciding metric before (where students begin trained), on samples held out of
    training (where there are some) and on the test set as mean ± half the 95 % interval, its paired difference to the
    baseline, the other metrics, runs, wall time, student samples seen and teacher samples forwarded."""
    columns, metrics = study_columns(study), study_metrics(study)
    first = metrics[0] if metrics else "accuracy"
    extra = [key for key in ("before", "held_out") if any(row.get(key) for row in study_rows(study))]
    head = [*columns, *(key.replace("_", " ") for key in extra)]
    head += [*(words.metric_name(m) for m in metrics[:1]), "difference", *(words.metric_name(m) for m in metrics[1:])]
    head += ["runs", "time a run", "samples seen", "teacher samples"]
    lines = [head, ["---"] * len(columns) + ["---:"] * (len(head) - len(columns))]
    for row in study_rows(study):
        setting = row.get("setting") or {}
        cells = [setting_text(setting.get(column)) for column in columns]
        cells += [with_interval(first, *estimate(row.get(key), first)) for key in extra]
        cells += [with_interval(m, *estimate(row.get("metrics"), m)) for m in metrics[:1]]
        delta = difference_text(first, *estimate(row.get("difference"), first))
        cells.append("baseline" if is_baseline(study, row) else delta)
        cells += [with_interval(m, *estimate(row.get("metrics"), m)) for m in metrics[1:]]
        cells.append(words.count(numbers(row).get("runs")))
        cells.append(words.duration(numbers(row).get("seconds")))
        cells += [words.count(numbers(row).get("student_samples_seen")), teacher_samples(row, words.count)]
        lines.append(cells)
    guess = study_guess(study, first).replace(words.NBSP, " ")
    table = "\n".join("| " + " | ".join(markdown_cell(cell) for cell in line) + " |" for line in lines) + "\n"
    return table + (f"\n{words.capital(guess)}.\n" if guess else "")


def teacher_samples(row: dict[str, Any], said: Callable[[float | None], str]) -> str:
    """How many samples the teacher was asked for, and how many of its answers were there from earlier runs."""
    forwarded, remembered = (numbers(row).get(f"teacher_samples_{key}") for key in ("forwarded", "remembered"))
    return f"{said(forwarded)} ({said(remembered)} remembered)" if remembered else said(forwarded)


def markdown_cell(text: str) -> str:
    text = text.replace("\\", "\\\\").replace("|", "\\|").replace(words.NBSP, " ")
    return " ".join(text.replace("<", "&lt;").split())


def say(setting: Setting) -> str:
    """``kd (fraction 0.1, views 8)``: a method or variant by its name, everything else with its key."""
    name = next((key for key in ("variant", "method") if key in setting), None)
    others = ", ".join(f"{k.replace('_', ' ')} {setting_text(v)}" for k, v in setting.items() if k != name)
    if name is None:
        return others
    return setting_text(setting[name]) + (f" ({others})" if others else "")
