"""What happened to single classes: largest changes, the confusion matrix, the pairs most often mixed up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from protege.report.read import Run, is_number
from protege.report.words import MINUS, NBSP, share

MOST_BARS = 20


@dataclass(frozen=True)
class Bar:
    """A bar from ``left`` of ``width`` (per cent of the room), with what it says."""

    name: str
    left: str
    width: str
    tone: str
    text: str
    detail: str


@dataclass(frozen=True)
class ClassChange:
    title: str
    note: str
    bars: list[Bar]
    zero: str


@dataclass(frozen=True)
class Cell:
    text: str
    weight: int
    strong: bool
    title: str


@dataclass(frozen=True)
class Confusion:
    names: list[str]
    rows: list[list[Cell]]
    pairs: list[str]


def class_names(run: Run, number: int) -> list[str]:
    names = run.result.get("classes")
    given = [str(name) for name in names] if isinstance(names, list) else []
    return [given[n] if n < len(given) else str(n) for n in range(number or len(given))]


def per_class(table: Any) -> list[Any]:
    value = table.get("per_class_iou", table.get("per_class")) if isinstance(table, dict) else None
    return value if isinstance(value, list) else []


def class_change(run: Run) -> ClassChange | None:
    """Largest gains and losses against the teacher, else the classes by themselves."""
    after, reference = per_class(run.part("student")), per_class(run.part("teacher"))
    measure = "IoU" if run.setting("task").startswith("segment") else "accuracy"
    names = class_names(run, len(after))
    if not reference or len(reference) != len(after):
        return absolute(names, after, measure)
    title = f"Class by class: student against teacher, {measure}"
    changes = [
        (float(a) - float(r), n)
        for n, (a, r) in enumerate(zip(after, reference, strict=True))
        if is_number(a) and is_number(r)
    ]
    if not changes:
        return None
    changes.sort(key=lambda pair: (-pair[0], pair[1]))
    better, worse = sum(change > 0 for change, _ in changes), sum(change < 0 for change, _ in changes)
    half = MOST_BARS // 2
    first = min(better, max(half, MOST_BARS - worse))
    shown = changes if len(changes) <= MOST_BARS else changes[:first] + changes[first - MOST_BARS :]
    low, high = min(0.0, shown[-1][0]), max(0.0, shown[0][0])
    span = (high - low) or 1.0
    bars = []
    for change, n in shown:
        start = min(0.0, change) - low
        bars.append(
            Bar(
                name=names[n],
                left=f"{100 * start / span:.2f}",
                width=f"{100 * abs(change) / span:.2f}",
                tone="better" if change > 0 else "worse" if change < 0 else "unclear",
                text=("+" if change > 0 else MINUS if change < 0 else "±") + f"{100 * abs(change):.1f}",
                detail=f"{100 * reference[n]:.0f} → {share(after[n], 0)}",
            )
        )
    verb = "is" if better == 1 else "are"
    note = f"Of {len(changes)} classes {better or 'none'} {verb} better and {worse or 'none'} worse than the teacher; "
    note += "changes in points."
    if len(shown) < len(changes):
        gains = f"the {first} largest gains" if first < better else f"all {first} gains" if first else ""
        left = MOST_BARS - first
        losses = f"the {left} largest losses" if left < worse else "all losses" if left else ""
        note += " Shown: " + " and ".join(filter(None, [gains, losses])) + "."
    return ClassChange(title, note, bars, f"{-100 * low / span:.2f}")


def absolute(names: list[str], after: Sequence[Any], measure: str) -> ClassChange | None:
    values = sorted(((float(v), n) for n, v in enumerate(after) if is_number(v)), key=lambda pair: (-pair[0], pair[1]))
    if not values:
        return None
    half = MOST_BARS // 2
    shown = values if len(values) <= MOST_BARS else values[:half] + values[-half:]
    bars = [Bar(names[n], "0", f"{100 * min(1, max(0, v)):.2f}", "neutral", share(v), "") for v, n in shown]
    note = "All classes, best first." if len(shown) == len(values) else f"The {half} best and the {half} worst classes."
    return ClassChange(f"Class by class: {measure} of the student", note, bars, "0")


def confusion(run: Run) -> Confusion | None:
    """Row-normalised confusion matrix (rows: true class, columns: the student's), when the run has one."""
    matrix = run.part("student").get("confusion")
    if (
        not isinstance(matrix, list)
        or not matrix
        or any(
            not isinstance(row, list) or len(row) != len(matrix) or not all(is_number(v) for v in row) for row in matrix
        )
    ):
        return None
    names = class_names(run, len(matrix))
    rows, pairs = [], []
    for n, row in enumerate(matrix):
        total = sum(row) or 1
        cells = []
        for m, value in enumerate(row):
            part = value / total
            title = (
                f"{names[n]} taken for {names[m]}: {value:g} of {total:g}"
                if n != m
                else f"{value:g} of {total:g} right"
            )
            text = "" if not value else f"{100 * part:.0f}" if part >= 0.005 else "<1"
            cells.append(Cell(text, round(100 * part), part > 0.55, title))
            if n != m and value:
                pairs.append(
                    (
                        part,
                        f"{names[n]} taken for {names[m]}, {share(part)} ({value:g}{NBSP}of{NBSP}{total:g})",
                    )
                )
        rows.append(cells)
    pairs.sort(key=lambda pair: -pair[0])
    return Confusion(names, rows, [text for _, text in pairs[:5]])
