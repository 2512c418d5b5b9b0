"""What solving did, layer by layer: how far the student's values are from the teacher's, before and after."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from protege.report import words
from protege.report.read import Run, is_number, numbers


@dataclass(frozen=True)
class Layer:
    """One layer's relative error; ``before`` and ``after`` in per cent of the room, ``off``: more than the room."""

    name: str
    before: str
    after: str
    text: tuple[str, str]
    title: str
    off: bool
    worse: bool


@dataclass(frozen=True)
class Solved:
    """Every solved layer of a run in order, and the errors of the outputs."""

    layers: list[Layer]
    total: Layer | None
    note: str


def solved(run: Run) -> Solved | None:
    """Bars of the ``block`` records that tell an error ``before`` and ``after``; None where there are none.

    Of several sweeps, a layer shows the error before the first and after the last.
    """
    found: dict[tuple[str, str], tuple[float, float, Any]] = {}
    sweeps = 1.0
    for record in run.blocks:
        known = numbers(record)
        if "before" in known and "after" in known:
            key = (record["phase"], str(record.get("name", "")))
            before = found[key][0] if key in found else known["before"]
            found[key] = (before, known["after"], record.get("ridge"))
            sweeps = max(sweeps, known.get("sweep", 1.0))
    if not found:
        return None
    values = numbers(next((r.get("values") for r in reversed(run.solves) if r.get("values")), None))
    errors = [before for before, _, _ in found.values()]
    if "before" in values and "after" in values:
        errors.append(values["before"])
    top = min(max(errors), 3 * median(errors)) or 1.0  # one bad layer hides no other
    layers = [layer(name, *pair, top) for (_, name), pair in found.items()]
    total = layer("the outputs", values["before"], values["after"], None, top) if "after" in values else None
    typical = [median([v[n] for v in found.values()]) for n in (0, 1)]
    note = f"How far the student\u2019s values are from the teacher\u2019s at {words.plural(len(layers), 'layer')}, "
    note += "in order, as a share of the teacher\u2019s: just before and just after a layer is solved"
    note += f" (in {sweeps:g} sweeps: before the first, after the last)" if sweeps > 1 else ""
    note += f". The median goes from {share(typical[0])} to {share(typical[1])}."
    return Solved(layers, total, note)


def layer(name: str, before: float, after: float, ridge: Any, top: float) -> Layer:
    ends = [100 * min(1.0, max(0.0, value) / top) for value in (before, after)]
    text = (share(before), share(after))
    title = f"{name}: {text[0]} before, {text[1]} after" + (f", ridge {ridge:.3g}" if is_number(ridge) else "")
    off = max(before, after) > top
    return Layer(name, f"{ends[0]:.2f}", f"{ends[1]:.2f}", text, title, off, after > before)


def share(value: float) -> str:
    """An error in per cent; what is left of it in float32 is none."""
    return words.rough_share(value) if value >= 5e-5 else f"0{words.NBSP}%"


def median(values: list[float]) -> float:
    ordered = sorted(values)
    return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
