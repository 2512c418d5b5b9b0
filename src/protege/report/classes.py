"""What happened to single classes: largest changes, the confusion matrix, the pairs most often mixed up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .charts import Bar, Chart, bar_chart, heatmap
from .read import Run, is_number
from .words import MINUS, NBSP, share

MOST_BARS = 20


def class_names(run: Run, number: int) -> list[str]:
    names = run.result.get("classes")
    given = [str(name) for name in names] if isinstance(names, list) else []
    return [given[n] if n < len(given) else str(n) for n in range(number or len(given))]


def per_class(network: dict[str, Any]) -> list[Any]:
    value = network.get("per_class_iou", network.get("per_class"))
    return value if isinstance(value, list) else []


def class_change(run: Run) -> Chart | None:
    """Largest gains and losses against the teacher, else the classes by themselves."""
    after, reference = per_class(run.part("student")), per_class(run.part("teacher"))
    measure = "IoU" if "per_class_iou" in run.part("student") else "accuracy"
    names = class_names(run, len(after))
    if not reference or len(reference) != len(after):
        return absolute(names, after, measure)
    pairs = enumerate(zip(after, reference, strict=True))
    changes = [(100 * float(a - r), n) for n, (a, r) in pairs if is_number(a) and is_number(r)]
    if not changes:
        return None
    changes.sort(key=lambda pair: (-pair[0], pair[1]))
    better, worse = sum(change > 0 for change, _ in changes), sum(change < 0 for change, _ in changes)
    first = min(better, max(MOST_BARS // 2, MOST_BARS - worse))
    left = MOST_BARS - first
    note = (
        f"Of {len(changes)} classes {better or 'none'} {'is' if better == 1 else 'are'} better and {worse or 'none'} "
    )
    note += "worse than the teacher; changes in points."
    if len(changes) > MOST_BARS:
        changes = changes[:first] + changes[-left:] if left else changes[:first]
        gains = f"the {first} largest gains" if first < better else f"all {first} gains" if first else ""
        losses = f"the {left} largest losses" if left < worse else "all losses" if left else ""
        note += " Shown: " + " and ".join(filter(None, [gains, losses])) + "."
    bars = []
    for change, n in changes:
        colour, sign = ("good", "+") if change > 0 else ("bad", MINUS) if change < 0 else ("soft", "±")
        figure = f"{sign}{abs(change):.1f}"
        bars.append(Bar(names[n], [(change, colour)], f"{100 * reference[n]:.0f} → {share(after[n], 0)}", figure))
    ends = (min(0.0, changes[-1][0]), max(0.0, changes[0][0]))
    title = f"Class by class: student against teacher, {measure}"
    return bar_chart(title, bars, ends=ends if ends[0] < ends[1] else (0.0, 1.0), note=note)


def absolute(names: list[str], after: Sequence[Any], measure: str) -> Chart | None:
    values = sorted(((float(v), n) for n, v in enumerate(after) if is_number(v)), key=lambda pair: (-pair[0], pair[1]))
    if not values:
        return None
    half, note = MOST_BARS // 2, "All classes, best first."
    if len(values) > MOST_BARS:
        values, note = values[:half] + values[-half:], f"The {half} best and the {half} worst classes."
    bars = [Bar(names[n], [(value, "c0")], share(value)) for value, n in values]
    return bar_chart(f"Class by class: {measure} of the student", bars, ends=(0.0, 1.0), note=note)


def confusion(run: Run) -> tuple[Chart, list[str]] | None:
    """The row-normalised confusion matrix (rows: true class, columns: the student's), when the run has one, and the
    pairs that are most often mixed up."""
    matrix = run.part("student").get("confusion")
    if not isinstance(matrix, list) or not matrix:
        return None
    if any(not isinstance(row, list) or len(row) != len(matrix) or not all(map(is_number, row)) for row in matrix):
        return None
    names = class_names(run, len(matrix))
    shares = [[value / (sum(row) or 1) for value in row] for row in matrix]
    texts = [["" if not v else f"{100 * v:.0f}" if v >= 0.005 else "<1" for v in row] for row in shares]
    mixed = sorted(
        ((part, n, m) for n, row in enumerate(shares) for m, part in enumerate(row) if n != m and part),
        key=lambda pair: -pair[0],
    )
    pairs = [
        f"{names[n]} taken for {names[m]}, {share(part)} ({matrix[n][m]:g}{NBSP}of{NBSP}{sum(matrix[n]):g})"
        for part, n, m in mixed[:5]
    ]
    called = ("true class", "taken for", "of a hundred")
    chart = heatmap(
        "What the student takes for what", shares, names, bounds=(0.0, 1.0), called=called, texts=texts, truth=True
    )
    return chart, pairs
