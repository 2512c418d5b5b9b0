"""The audition: what a teacher must show before it may teach, and its figures, measured once."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from ..data import CLEAN, Augment, Data, Samples, batches, cache_root, choose, forward_size
from ..errors import UserError
from ..files import write_json
from ..models import Model
from ..signals.identity import behaviour, fingerprint
from ..signals.signals import PROBE
from ..tasks import TASKS, Task
from ..torch_utils import eval_mode
from ..training.runner import Runner

logger = logging.getLogger("protege")
AUDITION = 1024  # transfer samples that a teacher is tried on
GLANCE = 128  # of them, on which most teachers show already what they know
FEW = 10  # samples, of which one class is no wonder
VERSION = 3  # of what is remembered; another one is measured anew


def refuse_chance_level(
    teacher: Model, spec: str, runner: Runner, samples: Samples, positions: Tensor, where: str = "transfer set"
) -> None:
    """Raise `UserError` when the teacher shows no more on these samples than who does not look at them
    (`Task.shortfall`).

    That is what a wrong normalisation, channel order or class order looks like, and it is silent elsewhere.
    """
    task = runner.task
    tried = min(len(positions), task.tried)
    for count in sorted({min(GLANCE, tried), tried}):
        chosen = positions[choose(None, samples=count, seed=0, count=len(positions))]
        metrics, details = runner.evaluate(teacher, samples, chosen, f"teacher on the {where}")
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
def warn_if_constant(teacher: Model, spec: str, runner: Runner) -> None:
    """Warn where a teacher chooses one class for all of its audition: without labels, more cannot be asked of it."""
    run_data, count = runner.run_data, len(runner.run_data.positions)
    if count < FEW:
        return
    some = run_data.positions[choose(None, samples=min(count, AUDITION), seed=0, count=count)]
    chosen = set()
    with eval_mode(teacher), runner.autocast():
        order = list(some.split(forward_size(run_data.train, PROBE)))
        for batch in batches(run_data.train, order, CLEAN, Augment(), workers=run_data.workers, device=runner.device):
            chosen |= set(teacher(batch.inputs).argmax(1).unique().tolist())
            if len(chosen) > 1:
                return
    logger.warning(
        "the teacher %r chooses one class for all of %d images, and a student that does the same agrees with it: check "
        "that its input normalisation and channel order are those it was trained with.",
        spec,
        len(some),
    )


def refuse_another_task(network: Model, task: Task, who: str) -> None:
    """Raise `UserError` where a network has learned something else about the same kind of data."""
    if TASKS[network.task].of == task.name:
        remedy = f", or set task={network.task!r}" if who == "teacher" else ""
        raise UserError(
            f"the {who} has learned the task {network.task!r}, whose outputs are no {task.name}; expected another: "
            f"name one that was trained for {task.name}{remedy}."
        )


def task_of(name: str | None, data: Data, spec: str) -> Task:
    """The task of that name, or the data's own. Raises `UserError` where the data is of another kind."""
    fitting = [task for task in TASKS.values() if data.task in (task.name, task.of)]
    for task in fitting:
        if task.name == (name or data.task):
            return task
    others = " or ".join(task.name for task in fitting)
    raise UserError(
        f"task = {name!r} does not suit the data {spec!r}, which is for {data.task}; expected {others}: change task=…, "
        "or leave it out."
    )


class Measured:
    """A network's test metrics, remembered by the fingerprints of network and data, so that a study pays once."""

    def __init__(self, network: Model, test: Samples, runner: Runner) -> None:
        how = f"{runner.precision} {runner.device.type}"
        some = torch.arange(min(forward_size(test, PROBE), len(test)))
        first = next(batches(test, [some], CLEAN, Augment(), device=runner.device))
        with eval_mode(network), torch.no_grad(), runner.autocast():
            shown = behaviour({"logits": network(first.inputs)})
        judges = [fingerprint(judge) for judge in runner.task.judges]
        parts = [VERSION, fingerprint(network), shown, test.fingerprint(), how, *judges]
        self.path = cache_root() / "evaluations" / f"{_digest(parts)}.json"

    def read(self) -> dict[str, Any] | None:
        """What was measured before; None where nothing sound is there."""
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
            return found["figures"] if found["digest"] == _digest(found["figures"]) else None
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None

    def write(self, known: dict[str, Any]) -> None:
        """Remember."""
        known = json.loads(json.dumps(known))
        with suppress(OSError):  # without it the next run measures again
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.path, {"digest": _digest(known), "figures": known})


def _digest(values: Any) -> str:
    return hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=8).hexdigest()
