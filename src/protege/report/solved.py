"""What solving did, layer by layer: how far the student's values are from the teacher's, before and after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from .. import words
from .charts import Bar, Chart, bar_chart
from .read import Run, is_number, numbers, table


@dataclass(frozen=True)
class Solved:
    """The outputs and every solved layer of a run in order, in one chart or two beside each other; or, where they tell
    no error, a table: its head, and a row for each."""

    charts: list[Chart]
    note: str
    rows: list[list[str]]


def solved(run: Run) -> Solved | None:
    """What the ``block`` records of a run say: bars where they tell an error ``before`` and ``after``.

    Of several sweeps, a layer shows the error before the first and after the last.
    """
    errors: dict[tuple[str, str], tuple[float, float]] = {}
    sweeps = 1.0
    for record in run.blocks:
        known = numbers(record)
        if "before" in known and "after" in known:
            key = (record["phase"], str(record.get("name", "")))
            errors[key] = (errors.get(key, (known["before"],))[0], known["after"])
            sweeps = max(sweeps, known.get("sweep", 1.0))
    if not errors:
        return Solved([], "", list_of(run.blocks)) if run.blocks else None
    layers = [(name, *pair) for (_, name), pair in errors.items()]
    typical = [error(median(pair[n] for pair in errors.values())) for n in (0, 1)]
    note = f"How far the student\u2019s values are from the teacher\u2019s at {words.plural(len(layers), 'layer')}, "
    note += "in order, as a share of the teacher\u2019s: just before and just after a layer is solved"
    note += f" (in {sweeps:g} sweeps: before the first, after the last)" if sweeps > 1 else ""
    note += f". The median goes from {typical[0]} to {typical[1]}."
    last = table(next((r.get("values") for r in reversed(run.solves) if r.get("values")), None))
    values = numbers(last)
    if left := table(last.get("left")):
        note += f" Left as they are: {'; '.join(f'{name} ({reason})' for name, reason in left.items())}."
    if "before" in values and "after" in values:
        layers.insert(0, ("the outputs", values["before"], values["after"]))
    starts = [before for _, before, _ in layers]
    ends = (0.0, min(max(starts), 3 * median(starts)) or 1.0)  # one bad layer hides no other
    bars = [
        Bar(name, [(before, "was"), (after, "bad" if after > before else "c0")], f"{error(before)} → {error(after)}")
        for name, before, after in layers
    ]
    half = len(bars) if len(bars) < 12 else -(-len(bars) // 2)
    parts = list(filter(None, [bars[:half], bars[half:]]))
    charts = [bar_chart(f"Solved layers, {n} of {len(parts)}", part, ends=ends) for n, part in enumerate(parts, 1)]
    return Solved(charts, note, [])


def error(value: float) -> str:
    """An error in per cent; what is left of it in float32 is none."""
    return words.rough_share(value) if value >= 5e-5 else f"0{words.NBSP}%"


def list_of(blocks: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Records as a table, its head first."""
    keys = [key for key, value in blocks[0].items() if key != "event" and not isinstance(value, dict | list)]
    cells = [[block.get(key) for key in keys] for block in blocks]
    return [keys, *([words.plain(v) if is_number(v) else str(v) for v in row] for row in cells)]
