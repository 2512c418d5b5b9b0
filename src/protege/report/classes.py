"""What happened to single classes: largest changes, the confusion matrix, the pairs most often mixed up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..words import MINUS, NBSP, share
from .charts import Bar, Chart, bar_chart, heatmap
from .read import Run, is_number

MOST_BARS = 20


def class_names(run: Run, number: int) -> list[str]:
    """What ``number`` classes are called, by their numbers where the run does not say."""
    names = run.result.get("classes")
    return [str(names[n]) if isinstance(names, list) and n < len(names) else str(n) for n in range(number)]


def per_class(network: dict[str, Any]) -> list[Any]:
    value = network.get("per_class_iou", network.get("per_class"))
    return value if isinstance(value, list) else []


def class_change(run: Run) -> Chart | None:
    """Largest gains and losses against the teacher, else the classes by themselves."""
    after, reference = per_class(run.part("student")), per_class(run.part("teacher"))
    measure = "IoU" if "per_class_iou" in run.part("student") else "accuracy"
    names = class_names(run, len(after))
    if len(reference) != len(after):
        return absolute(names, after, measure)
    pairs = enumerate(zip(after, reference, strict=True))
    changes = [(100 * float(a - r), n) for n, (a, r) in pairs if is_number(a) and is_number(r)]
    if not changes:
        return None
    better, worse = (sum(sign * change > 0 for change, _ in changes) for sign in (1, -1))
    note = f"Of {len(changes)} classes {better or 'none'} {'is' if better == 1 else 'are'} better and "
    note += f"{worse or 'none'} worse than the teacher; changes in points."
    if len(changes) > MOST_BARS:
        changes = sorted(changes, key=lambda pair: -abs(pair[0]))[:MOST_BARS]
        note += f" Shown: the {MOST_BARS} largest."
    bars = []
    for change, n in sorted(changes, key=lambda pair: (-pair[0], pair[1])):
        colour, sign = ("good", "+") if change > 0 else ("bad", MINUS) if change < 0 else ("soft", "±")
        text = f"{100 * reference[n]:.0f} → {share(after[n], 0)}"
        bars.append(Bar(names[n], [(change, colour)], text, f"{sign}{abs(change):.1f}"))
    low, high = min(0.0, *(change for change, _ in changes)), max(0.0, *(change for change, _ in changes))
    title = f"Class by class: student against teacher, {measure}"
    return bar_chart(title, bars, ends=(low, high) if low < high else (0.0, 1.0), note=note)


def absolute(names: list[str], after: Sequence[Any], measure: str) -> Chart | None:
    values = sorted(((float(v), n) for n, v in enumerate(after) if is_number(v)), key=lambda pair: (-pair[0], pair[1]))
    if not values:
        return None
    half, note = MOST_BARS // 2, "All classes, best first."
    if len(values) > MOST_BARS:
        values, note = values[:half] + values[-half:], f"The {half} best and the {half} worst classes."
    bars = [Bar(names[n], [(value, "c0")], share(value)) for value, n in values]
    return bar_chart(f"Class by class: {measure} of the student", bars, ends=(0.0, 1.0), note=note)


def confusion_matrix(run: Run) -> list[list[float]]:
    """How often the student calls a pixel, word or image of a class (row) which class; empty where it is not known."""
    matrix = run.part("student").get("confusion")
    rows = matrix if isinstance(matrix, list) else []
    square = all(isinstance(row, list) and len(row) == len(rows) and all(map(is_number, row)) for row in rows)
    return rows if square else []


def confusion(run: Run) -> tuple[Chart, list[str]] | None:
    """The confusion matrix as shares of the rows, when the run has one, and the pairs that are most often mixed up."""
    matrix = confusion_matrix(run)
    if not matrix:
        return None
    names = class_names(run, len(matrix))
    shares = [[value / (sum(row) or 1) for value in row] for row in matrix]
    texts = [["" if not v else f"{100 * v:.0f}" if v >= 0.005 else "<1" for v in row] for row in shares]
    mixed = ((part, n, m) for n, row in enumerate(shares) for m, part in enumerate(row) if n != m and part)
    pairs = [
        f"{names[n]} taken for {names[m]}, {share(part)} ({matrix[n][m]:g}{NBSP}of{NBSP}{sum(matrix[n]):g})"
        for part, n, m in sorted(mixed, key=lambda pair: -pair[0])[:5]
    ]
    title, called = "What the student takes for what", ("true class", "taken for", "of a hundred")
    return heatmap(title, shares, names, bounds=(0.0, 1.0), called=called, texts=texts, truth=True), pairs
