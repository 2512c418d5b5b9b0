"""What a study says: its settings, each with its metrics over runs; and its table in Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from .. import words
from .read import is_number, numbers, records, table

Setting = dict[str, Any]
EVEN = ("accuracy", "balanced_accuracy", "macro_f1")


@dataclass(frozen=True)
class Estimate:
    """A metric's mean over runs, half the width of its 95 % interval (None of a single run), and each run's value."""

    metric: str
    mean: float
    half: float | None
    values: tuple[float, ...] = ()

    @property
    def factor(self) -> int:
        return words.factor(self.metric)

    def text(self, unit: bool = True) -> str:
        """``57.31 % ± 0.42``; without the sign where a heading has it."""
        text = words.metric_value(self.metric, self.mean, 2)
        return (text if unit else text.removesuffix(f"{words.NBSP}%")) + self.interval

    def difference(self, unit: bool = True) -> str:
        """``+3.20 ± 0.41 points``; without the last word where a heading says it."""
        points = f"{words.NBSP}points"
        text = words.difference(self.metric, self.mean, 2).removesuffix(points) + self.interval
        return text + (points if self.factor == 100 and unit else "")

    @property
    def interval(self) -> str:
        if self.half is None:
            return ""
        figure = f"{100 * self.half:.2f}" if self.factor == 100 else words.figure(self.metric, self.half)
        return f"{words.NBSP}±{words.NBSP}{figure}"

    @property
    def verdict(self) -> str:
        return words.verdict(self.metric, self.mean, self.half)


@dataclass(frozen=True)
class Row:
    """All runs of a setting."""

    record: dict[str, Any]

    @property
    def setting(self) -> Setting:
        return table(self.record.get("setting"))

    def estimate(self, metric: str, part: str = "metrics") -> Estimate | None:
        """A metric of ``metrics``, ``difference`` (to the baseline), ``before`` or ``held_out``."""
        entry = table(table(self.record.get(part)).get(metric))
        known = numbers(entry)
        if "mean" not in known:
            return None
        values = entry.get("values")
        listed = [float(v) for v in values if is_number(v)] if isinstance(values, list) else []
        return Estimate(metric, known["mean"], known.get("interval95"), tuple(listed))

    def number(self, key: str) -> float | None:
        return numbers(self.record).get(key)


@dataclass(frozen=True)
class Study:
    """A study.json, read as far as it can be."""

    record: dict[str, Any]

    @cached_property
    def rows(self) -> list[Row]:
        return [Row(row) for row in records(self.record.get("rows"))]

    @cached_property
    def runs(self) -> list[dict[str, Any]]:
        return records(self.record.get("runs"))

    @cached_property
    def baseline(self) -> Setting:
        return table(self.record.get("baseline"))

    @cached_property
    def columns(self) -> list[str]:
        """The grid's keys: as listed, else every key of the rows' settings."""
        columns = self.record.get("columns")
        listed = columns if isinstance(columns, list) else []
        return list(dict.fromkeys(map(str, listed or (key for row in self.rows for key in row.setting))))

    @cached_property
    def metrics(self) -> list[str]:
        """The measured metrics, the one that decides first. Where all classes have as many test samples, the mean over
        classes is the accuracy, and is left out."""
        names = list(dict.fromkeys(str(key) for row in self.rows for key in row.record.get("metrics") or {}))
        first = words.primary_metric(names)
        pairs = [[row.estimate(key) for key in EVEN[:2]] for row in self.rows]
        if all(plain and mean and math.isclose(plain.mean, mean.mean) for plain, mean in pairs):
            names = [name for name in names if name not in EVEN[1:]]
        return sorted(names, key=lambda name: name != first)

    @property
    def metric(self) -> str:
        return self.metrics[0] if self.metrics else "accuracy"

    def is_baseline(self, row: Row) -> bool:
        return bool(self.baseline) and all(row.setting.get(key) == value for key, value in self.baseline.items())

    def guess(self) -> str:
        """The guess that all rows have to beat; "" where it is not one for all."""
        guesses = {words.guess_to_beat(self.metric, numbers(row.record.get("guess"))) for row in self.rows}
        return guesses.pop() if len(guesses) == 1 else ""


def common_teacher(rows: Sequence[dict[str, Any]]) -> Any:
    """The teacher of all rows that have one; None where they differ by more than the rounding of their metrics."""
    teachers = records([row.get("teacher") for row in rows])
    if not teachers:
        return None
    first = teachers[0]
    mine = metrics_of(first)

    def same(other: dict[str, Any]) -> bool:
        theirs = metrics_of(other)
        if any(first.get(key) != other.get(key) for key in ("spec", "params")) or mine.keys() != theirs.keys():
            return False
        return all(math.isclose(mine[key], theirs[key], rel_tol=1e-3, abs_tol=1e-3) for key in mine)

    return first if all(map(same, teachers)) else None


def metrics_of(teacher: Any) -> dict[str, float]:
    return numbers(table(teacher).get("metrics"))


def say(setting: Setting) -> str:
    """``kd (fraction 0.1, views 8)``: a method or variant by its name, everything else with its key."""
    name = next((key for key in ("variant", "method") if key in setting), None)
    others = ", ".join(f"{k.replace('_', ' ')} {setting_text(v)}" for k, v in setting.items() if k != name)
    if name is None:
        return others
    return setting_text(setting[name]) + (f" ({others})" if others else "")


def setting_text(value: Any) -> str:
    return "—" if value is None else words.short(value)


@dataclass(frozen=True)
class Cell:
    """What stands in a table; ``tone`` is the verdict on a difference."""

    text: str
    tone: str = ""


def grid(study: Study, in_full: bool) -> tuple[list[str], list[list[Cell]]]:
    """The table of a study, its head and its rows: settings, the deciding metric before (where students begin trained),
    on samples held out of training (where there are some) and on the test set as mean ± half the 95 % interval, its
    paired difference to the baseline, the other metrics, runs, wall time, student samples seen and teacher samples
    forwarded. ``in_full``: units stand in the cells and not in the head, and counts are exact."""
    first, *others = study.metrics or [study.metric]
    parts = [part for part in ("before", "held_out") if any(row.record.get(part) for row in study.rows)]
    count = words.count if in_full else words.size

    def titled(metric: str, name: str = "", unit: str = "%") -> str:
        return (name or words.metric_name(metric)) + (f", {unit}" if words.is_fraction(metric) and not in_full else "")

    def cells(row: Row) -> Iterator[Cell]:
        yield from (Cell(setting_text(row.setting.get(column))) for column in study.columns)
        yield from map(value, [row.estimate(first, part) for part in (*parts, "metrics")])
        delta = row.estimate(first, "difference")
        if study.is_baseline(row) or not delta:
            yield Cell("baseline" if study.is_baseline(row) else "—")
        else:
            yield Cell(delta.difference(in_full), delta.verdict)
        yield from map(value, [row.estimate(metric) for metric in others])
        forwarded, remembered = (row.number(f"teacher_samples_{key}") for key in ("forwarded", "remembered"))
        yield from map(Cell, (words.count(row.number("runs")), words.duration(row.number("seconds"))))
        yield Cell(count(row.number("student_samples_seen")))
        yield Cell(count(forwarded) + (f" ({count(remembered)} remembered)" if remembered else ""))

    def value(estimate: Estimate | None) -> Cell:
        return Cell(estimate.text(in_full) if estimate else "—")

    head = [*(column if in_full else column.replace("_", " ") for column in study.columns)]
    head += [titled(first, part.replace("_", " ")) for part in parts]
    head += [titled(first), titled(first, "difference", "points"), *map(titled, others)]
    return [*head, "runs", "time a run", "samples seen", "teacher samples"], [list(cells(row)) for row in study.rows]


def study_markdown(record: dict[str, Any]) -> str:
    """The table of a study as Markdown."""
    study = Study(record)
    head, rows = grid(study, in_full=True)
    settings = len(study.columns)
    lines = [
        head,
        ["---"] * settings + ["---:"] * (len(head) - settings),
        *([cell.text for cell in row] for row in rows),
    ]
    text = "\n".join("| " + " | ".join(map(markdown_cell, line)) + " |" for line in lines) + "\n"
    guess = words.capital(study.guess().replace(words.NBSP, " "))
    return text + (f"\n{guess}.\n" if guess else "")


def markdown_cell(text: str) -> str:
    text = text.replace("\\", "\\\\").replace("|", "\\|").replace(words.NBSP, " ")
    return " ".join(text.replace("<", "&lt;").split())
