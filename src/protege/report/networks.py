"""The picture of two networks with their cuts: a block for each stage, and between paired cuts what is compared.

Drawn from the rows of ``plan`` in a run's result (`stage`, `teacher`, `student_shape`, `teacher_shape`, `parameters`,
`adapter`; the head last). Blocks are small SVGs; names and shapes are text beside them, so that they keep their size
when the page lays the stages below each other on a phone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from . import words
from .read import Run, is_number, phases

WIDE, HIGH, DEPTH = 46.0, 44.0, 0.3  # of the largest block, in the units of its SVG; DEPTH per unit of height
LEAST = 4.0
MOST_BESIDE = 7  # more stages are always laid below each other

# method → what is compared at a cut, what the head learns from, and the order of things
METHODS = {
    "skd": (
        "MSE",
        "labels",
        "The stages learn one after the other, each from the teacher\u2019s features where it ends; then the head.",
    ),
    "simultaneous": ("MSE", "labels", "All stages and the head learn at once."),
    "fitnets": (
        "MSE",
        "logits",
        "First the student up to {middle} learns the teacher\u2019s features there, then the whole its logits.",
    ),
    "at": ("attention", "labels", "The whole student learns at once, at every cut from where the teacher looks."),
    "fsp": (
        "flow",
        "labels",
        "First the student learns how features change from one cut to the next, then the labels.",
    ),
}
ADAPTED = {"skd", "simultaneous", "fitnets", "fsp"}


@dataclass(frozen=True)
class Block:
    """A stage of one network: its name, what is said below it, and the three faces of its block as SVG points."""

    name: str
    facts: list[str]
    faces: tuple[str, str, str]
    width: str
    height: str


@dataclass(frozen=True)
class Cut:
    """Where both networks are cut, and what the student learns from there; ``compared``: whether from the teacher."""

    teacher: Block
    student: Block
    says: list[str]
    compared: bool


@dataclass(frozen=True)
class Networks:
    teacher: str
    student: str
    cuts: list[Cut]
    note: str
    tall: bool


def networks(run: Run) -> Networks | None:
    """The picture of a run's stages; None where its method has none."""
    plan = run.result.get("plan")
    rows = [row for row in plan if isinstance(row, dict) and "stage" in row] if isinstance(plan, list) else []
    if len(rows) < 2 or len(rows) != len(plan or []):
        return None
    method = run.setting("method")
    compare, last, order = METHODS.get(method, ("paired", "", ""))
    middle = (len(rows) - 2) // 2 if method == "fitnets" else None
    shapes = [shape for row in rows for key in ("teacher_shape", "student_shape") if (shape := extent(row.get(key)))]
    most = (max((s[0] for s in shapes), default=1.0), max((s[1] for s in shapes), default=1.0))
    cuts = []
    for n, row in enumerate(rows):
        head = row.get("teacher") is None
        size = row.get("parameters")
        facts = [f"{words.size(size)} parameters"] if is_number(size) else []
        says, compared, outputs = [compare], middle in (None, n), []
        if head:
            classes = run.part("data").get("classes")
            outputs = [f"{words.count(classes)} classes"] if is_number(classes) else []
            finetuned = method == "skd" and any(phase.get("name") == "finetune" for phase in phases(run))
            says = [text for text in (last, "then logits" if finetuned else "") if text]
            compared = finetuned or last == "logits"
        elif not compared:
            says = ["not compared"]
        elif row.get("adapter") and method in ADAPTED:
            says = [compare, "1×1 adapter"]
        cuts.append(
            Cut(
                teacher=block("head" if head else str(row["teacher"]), row.get("teacher_shape"), outputs, most),
                student=block(str(row["stage"]), row.get("student_shape"), outputs + facts, most),
                says=says,
                compared=compared,
            )
        )
    named = str(rows[middle]["stage"]) if middle is not None else ""
    note = "A stage ends with the module that it is named after. Higher blocks: larger maps; wider ones: more channels."
    return Networks(
        teacher=str(run.part("teacher").get("spec") or run.setting("teacher")),
        student=str(run.part("student").get("spec") or run.setting("student")),
        cuts=cuts,
        note=f"{order.format(middle=named)} {note}".strip(),
        tall=len(rows) > MOST_BESIDE,
    )


def extent(shape: Any) -> tuple[float, float] | None:
    """(√channels, √side) of features ``[C, H, W]``, ``[L, C]`` or ``[C]``: equal steps to the eye."""
    if not isinstance(shape, list | tuple) or not shape or not all(is_number(size) and size > 0 for size in shape):
        return None
    channels, places = (shape[0], shape[1:]) if len(shape) >= 3 else (shape[-1], shape[:-1])
    side = 1.0
    for size in places:
        side *= size ** (1 / len(places))
    return channels**0.5, side**0.5


def block(name: str, shape: Any, facts: list[str], most: tuple[float, float]) -> Block:
    size = extent(shape)
    wide, high = size if size else (0.0, most[1] / 2)
    w, h = max(LEAST, WIDE * wide / most[0]), max(LEAST, HIGH * high / most[1])
    d = DEPTH * h
    faces = (
        [(0, d), (w, d), (w, d + h), (0, d + h)],
        [(0, d), (d, 0), (w + d, 0), (w, d)],
        [(w, d), (w + d, 0), (w + d, h), (w, d + h)],
    )
    text = ["×".join(f"{size:g}" for size in shape)] if size else []
    points = tuple(" ".join(f"{x:.1f},{y:.1f}" for x, y in face) for face in faces)
    return Block(name, text + facts, points, f"{w + d:.1f}", f"{h + d:.1f}")  # type: ignore[arg-type]
