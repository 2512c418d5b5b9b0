"""What solving did, layer by layer: how far the student's values are from the teacher's, before and after."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

from . import words
from .charts import Bar, Chart, bar_chart
from .read import Run, numbers


@dataclass(frozen=True)
class Solved:
    """The outputs and every solved layer of a run in order, in one chart or two beside each other."""

    charts: list[Chart]
    note: str


def solved(run: Run) -> Solved | None:
    """Bars of the ``block`` records that tell an error ``before`` and ``after``; None where there are none.

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
        return None
    layers = [(name, *pair) for (_, name), pair in errors.items()]
    typical = [median(pair[n] for pair in errors.values()) for n in (0, 1)]
    note = f"How far the student\u2019s values are from the teacher\u2019s at {words.plural(len(layers), 'layer')}, "
    note += "in order, as a share of the teacher\u2019s: just before and just after a layer is solved"
    note += f" (in {sweeps:g} sweeps: before the first, after the last)" if sweeps > 1 else ""
    note += f". The median goes from {share(typical[0])} to {share(typical[1])}."
    values = numbers(next((r.get("values") for r in reversed(run.solves) if r.get("values")), None))
    if "before" in values and "after" in values:
        layers.insert(0, ("the outputs", values["before"], values["after"]))
    starts = [before for _, before, _ in layers]
    ends = (0.0, min(max(starts), 3 * median(starts)) or 1.0)  # one bad layer hides no other
    bars = [
        Bar(name, [(before, "was"), (after, "bad" if after > before else "c0")], f"{share(before)} → {share(after)}")
        for name, before, after in layers
    ]
    parts = [bars] if len(bars) < 12 else [bars[: -(-len(bars) // 2)], bars[-(-len(bars) // 2) :]]
    titles = [f"Solved layers, {n} of {len(parts)}" for n in range(1, len(parts) + 1)]
    return Solved([bar_chart(title, part, ends=ends) for title, part in zip(titles, parts, strict=True)], note)


def share(value: float) -> str:
    """An error in per cent; what is left of it in float32 is none."""
    return words.rough_share(value) if value >= 5e-5 else f"0{words.NBSP}%"
