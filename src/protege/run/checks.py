"""What teacher, student and data must show before a run begins."""

from __future__ import annotations

import logging
import math

import torch
from torch import Tensor

from ..data import Data, Samples, choose, forward_size
from ..errors import UserError
from ..models import Model
from ..signals.signals import PROBE
from ..tasks import TASKS, Task, find_task, shipped_task
from ..torch_utils import eval_mode
from ..training.loop import Loop

logger = logging.getLogger("protege")
MOST = 1024  # transfer samples that a teacher is tried on
GLANCE = 128  # of them, on which most teachers show already what they know
FEW = 10  # samples, of which one class is no wonder


def refuse_chance_level(
    teacher: Model, spec: str, loop: Loop, samples: Samples, positions: Tensor, where: str = "transfer set"
) -> None:
    """Raise `UserError` when the teacher shows no more on these samples than who does not look at them
    (`Task.shortfall`).

    That is what a wrong normalisation, channel order or class order looks like, and it is silent elsewhere.
    """
    task = loop.task
    tried = min(len(positions), task.tried)
    for count in sorted({min(GLANCE, tried), tried}):
        chosen = positions[choose(None, samples=count, seed=0, count=len(positions))]
        metrics, details = loop.evaluate(teacher, samples, chosen, f"teacher on the {where}")
        finite = all(map(math.isfinite, metrics.values()))
        short = task.shortfall(metrics, details) if metrics and finite else None
        if finite and not short:
            return
    if not finite:
        raise UserError(
            f"the teacher {spec!r} gives values that are not finite on the {where}; expected finite outputs: "
            "check its weights file."
        )
    if short:
        raise UserError(
            f"the teacher {spec!r} is at chance level on the {where} ({short.what} {short.reached:.3f}, chance "
            f"{short.chance:.3f}); expected a trained teacher: check that {task.suspects}."
        )


@torch.no_grad()
def warn_if_constant(teacher: Model, spec: str, loop: Loop) -> None:
    """Warn where a teacher chooses one class for all it is tried on: without labels, no more can be asked of it."""
    train, count = loop.train, len(loop.train)
    if count < FEW:
        return
    positions = train.positions[choose(None, samples=min(count, MOST), seed=0, count=count)]
    chosen = set()
    with eval_mode(teacher), loop.autocast():
        for batch in train.batches(forward_size(train.samples, PROBE), positions=positions):
            chosen |= set(teacher(batch.inputs).argmax(1).unique().tolist())
            if len(chosen) > 1:
                return
    logger.warning(
        "the teacher %r chooses one class for all of %d images, and a student that does the same agrees with it: check "
        "that its input normalisation and channel order are those it was trained with.",
        spec,
        len(positions),
    )


def refuse_another_task(network: Model, task: Task, who: str) -> None:
    """Raise `UserError` where a network has learned something else about the same kind of data."""
    learned = shipped_task(network.task)
    if learned is not None and learned.of == task.name:  # of one from outside its outputs must tell
        remedy = f", or set task={network.task!r}" if who == "teacher" else ""
        raise UserError(
            f"the {who} has learned the task {network.task!r}, whose outputs are no {task.name}; expected another: "
            f"name one that was trained for {task.name}{remedy}."
        )


def task_of(name: str | None, data: Data, spec: str) -> Task:
    """The task of that name, or the data's own. Raises `UserError` where the data is of another kind."""
    task = find_task(name or data.task)
    if data.task in task.kinds():
        return task
    fitting = [task for task in TASKS.values() if data.task in task.kinds()]
    others = " or ".join(task.name for task in fitting)
    raise UserError(
        f"task = {name!r} does not suit the data {spec!r}, which is for {data.task}; expected {others}: change task=…, "
        "or leave it out."
    )
