"""The picture of two networks with their cuts: a block for each stage, and between paired cuts what is compared.

Drawn from the rows of ``plan`` in a run's result (`stage`, `teacher`, `student_shape`, `teacher_shape`, `parameters`,
`adapter`; the head last).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .. import words
from .read import Run, is_number, records

WIDE, HIGH, LEAST = 46.0, 44.0, 4.0  # of the largest and the smallest block, in pixels
MOST_BESIDE = 10  # more stages are always laid below each other

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
    """A stage of one network: its name, what is said below it, and the pixels of its block."""

    name: str
    facts: list[str]
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
    rows = records(plan := run.result.get("plan"))
    if len(rows) < 2 or len(rows) != len(plan or []) or not all("stage" in row for row in rows):
        return None
    method, classes = run.setting("method"), run.part("data").get("classes")
    compare, last, order = METHODS.get(method, ("paired", "", ""))
    middle = (len(rows) - 2) // 2 if method == "fitnets" else None
    finetuned = method == "skd" and any(phase.get("name") == "finetune" for phase in run.phases)
    extents = [extent(row.get(key)) for row in rows for key in ("teacher_shape", "student_shape")]
    most = tuple(max((size[n] for size in extents if size), default=1.0) for n in (0, 1))
    cuts = []
    for n, row in enumerate(rows):
        size, shapes = row.get("parameters"), (row.get("teacher_shape"), row.get("student_shape"))
        learned = [f"{words.size(size)} parameters"] if is_number(size) else []
        if row.get("teacher") is None:
            outputs = [f"{words.count(classes)} classes"] if is_number(classes) else []
            says = [text for text in (last, "then logits" if finetuned else "") if text]
            compared, name = finetuned or last == "logits", "head"
        else:
            compared, name, outputs = middle in (None, n), str(row["teacher"]), []
            says = [compare] if compared else ["not compared"]
            says += ["1×1 adapter"] if compared and row.get("adapter") and method in ADAPTED else []
        teacher = block(name, shapes[0], outputs, most)
        cuts.append(Cut(teacher, block(str(row["stage"]), shapes[1], outputs + learned, most), says, compared))
    order = order.format(middle=rows[middle]["stage"] if middle is not None else "")
    note = "A stage ends with the module that it is named after. Higher blocks: larger maps; wider ones: more channels."
    return Networks(
        teacher=str(run.part("teacher").get("spec") or run.setting("teacher")),
        student=str(run.part("student").get("spec") or run.setting("student")),
        cuts=cuts,
        note=f"{order} {note}".strip(),
        tall=len(rows) > MOST_BESIDE,
    )


def extent(shape: Any) -> tuple[float, float] | None:
    """(√channels, √side) of features ``[C, H, W]``, ``[L, C]`` or ``[C]``: equal steps to the eye."""
    if not isinstance(shape, list | tuple) or not shape or not all(is_number(size) and size > 0 for size in shape):
        return None
    channels, places = (shape[0], shape[1:]) if len(shape) >= 3 else (shape[-1], shape[:-1])
    side = math.prod(places) ** (1 / len(places)) if places else 1.0
    return channels**0.5, side**0.5


def block(name: str, shape: Any, facts: list[str], most: Sequence[float]) -> Block:
    size = extent(shape)
    wide, high = size or (0.0, most[1] / 2)
    text = ["×".join(f"{side:g}" for side in shape)] if size else []
    width, height = max(LEAST, WIDE * wide / most[0]), max(LEAST, HIGH * high / most[1])
    return Block(name, text + facts, f"{width:.1f}", f"{height:.1f}")
