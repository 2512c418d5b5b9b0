"""Whether a student is a shrunken copy of its teacher, by what both make of the same samples.

Layers of one name and shape say nothing: a fresh network of the teacher's family has them too. In a copy, whatever was
cut off, trained or rounded since, many a channel is more like the channel that it was than like the others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ...errors import UserError
from ..tracing import Live, Walk, input_name, output_name
from .alignment import Point

SAMPLES = 64
ROWS = 2048  # pixels or tokens of a layer that are compared
EQUAL = 1e-3  # of a correlation: channels that say the same are each other's counterparts
COPIED = 0.75  # the share of a copy's channels that are most like their counterparts


@torch.no_grad()
def refuse_unrelated(student: Walk, teacher: Walk, points: Sequence[Point], x: Tensor, y: Tensor) -> None:
    """Raise `UserError` where no more channels than by chance, and by three deviations fewer than of a copy, are like
    their counterparts, of all points but that of the outputs (which separately trained networks share); ``x`` and ``y``
    are the same samples, as each takes them."""
    needed = {name for point in points for name in (point.value, point.shortcut) if name}
    theirs = {point.target for point in points}
    inside = [point for point in points if point.inside]
    kept: list[Live] = []
    for walk, names, inputs, calls in (
        (student, needed, x, [(point.stop, point.call) for point in inside]),
        (teacher, theirs, y, [(point.their_stop, point.their_call) for point in inside]),
    ):
        live: Live = {}
        kept.append({})
        for i in range(len(walk.nodes)):
            seen: Live = {}
            for call in (call for at, call in calls if at == i):
                walk.look(live, i, call)
                seen = {output_name(call.layer): live.pop(output_name(call.layer)), **seen}
                live.pop(input_name(call.layer))
            walk.advance(live, i, i + 1, inputs[:SAMPLES].clone() if i == 0 else None)
            seen |= {name: live[name].clone() for name in names & live.keys()}
            kept[-1] = seen | kept[-1]
    student_values, teacher_values = kept
    hits, total, mean, variance = 0, 0, 0.0, 0.0
    for point in points[:-1] or points:
        missing, _ = point.missing(student_values, teacher_values)
        rows = student_values[point.value].movedim(point.dim, -1).flatten(0, -2)
        chosen = torch.linspace(0, len(rows) - 1, min(ROWS, len(rows))).long()
        a, b = (values[chosen].double() for values in (rows, rows + missing))
        a, b = a - a.mean(0), b - b.mean(0)
        lengths = a.norm(dim=0), b.norm(dim=0)
        alive = (lengths[0] > 1e-9) & (lengths[1] > 1e-9)
        count = int(alive.sum())
        if count < 2:
            continue
        alike = (a[:, alive] / lengths[0][alive]).T @ (b[:, alive] / lengths[1][alive])
        hits += int((alike.diagonal() >= alike.amax(1) - EQUAL).sum())
        total, mean, variance = total + count, mean + 1, variance + 1 - 1 / count
    of_copy = COPIED * total - 3 * math.sqrt(COPIED * (1 - COPIED) * total)
    if total and hits < of_copy and hits <= mean + 3 * math.sqrt(variance):
        raise UserError(
            f"the student's layers have the teacher's names but give other values ({hits} of {total} channels are most "
            "like their counterparts, as by chance); expected a student made by shrinking this teacher: shrink the "
            "teacher, or teach this student with method='kd' or 'skd'."
        )
