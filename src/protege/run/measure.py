"""What networks come to on the test set, before a run and after it."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..data import CLEAN, Augment, batches, cache_root, choose, forward_size
from ..errors import UserError, told
from ..files import write_json
from ..models import Model, seen_by
from ..signals.identity import behaviour, fingerprint
from ..signals.signals import PROBE
from ..tasks import task_digest
from ..torch_utils import eval_mode, tensors_of
from ..training.agreement import judges_of
from ..training.evaluate import refuse_unfit
from .checks import refuse_chance_level, warn_if_constant
from .latency import speeds
from .prepare import Run
from .result import first_of, sizes

FRESH = 500  # test samples that a student is tried on before it is taught
VERSION = 4  # of what is remembered; another one is measured anew


@dataclass(frozen=True)
class Baseline:
    """Figures of teacher and student before anything is trained; each of ``remember`` writes down what other runs will
    want to know, and is to be called once this one has its folder."""

    teacher: dict[str, Any] | None
    student: dict[str, Any]
    remember: list[Callable[[], None]] = field(default_factory=list)


def measure_baseline(run: Run) -> Baseline:
    """Raises `UserError` where a network cannot be what it should: a teacher at chance level, numbers not finite."""
    s, loop = run.settings, run.loop
    for role, network, spec in (("teacher", run.teacher, s.teacher), ("student", run.student, s.student)):
        if network is not None:
            who, train = f"{role} {spec!r}", loop.train
            how: Any = {"device": loop.device, "autocast": loop.autocast}
            refuse_unfit(network, who, train.samples, train.positions, run.task, **how)
    remember: list[Callable[[], None]] = []
    teacher = None
    if run.teacher is not None:
        _try_teacher(run, run.teacher)
        size = sizes(run.teacher, run.data, loop.device)
        known = _remembered(run, _memory(run, run.teacher)) or {"metrics": {}}  # which `with_metrics` then adds
        teacher = {"spec": s.teacher, **size, **known}
    student = _untaught(run, remember)
    if run.data.test is not None and student["before"] and run.task.metric not in student["before"]:
        raise UserError(
            f"task {s.task or run.task.name!r} is judged by {run.task.metric!r}, which its metrics do not give; "
            f"expected one of {', '.join(student['before'])}: give its class that as metric = …."
        )
    if not all(map(math.isfinite, student["before"].values())):
        raise UserError(
            f"the student {s.student!r} gives values that are not finite; expected finite outputs: check its weights."
        )
    return Baseline(teacher, student, remember)


def with_metrics(run: Run, teacher: dict[str, Any]) -> dict[str, Any]:
    """The teacher's figures with its test metrics, which are measured after a run, so that it begins at once, unless an
    earlier one has remembered them."""
    if run.teacher is None or teacher["metrics"] or run.data.test is None:
        return teacher
    path = _memory(run, run.teacher)
    if (known := _remembered(run, path)) is None:
        metrics, details = _measured(run, run.teacher, "teacher")
        known = {"metrics": metrics, **details}
        if run.loop.accelerator.is_main_process:
            _remember(path, known)
    return {**teacher, **known}


def measure_after(run: Run) -> tuple[dict[str, float], dict[str, Any]]:
    """Test metrics and details of the student that was taught. Raises `UserError` for one that the last updates
    spoiled: the loss is measured before each of them."""
    metrics, details = _measured(run, run.student, "student after")
    if held := run.loop.held:  # by which settings are to be chosen
        chosen_by, _ = run.loop.evaluate(run.student, held.samples, held.positions, "held-out samples")
        details |= {"held_out": chosen_by} if chosen_by else {}
    values = [v for v in tensors_of(run.student).values() if v.is_floating_point()]
    if not all(bool(v.isfinite().all()) for v in values) or not all(map(math.isfinite, metrics.values())):
        raise UserError(
            "the student's weights or outputs are not finite after training; expected finite numbers: lower lr=… "
            "or set clip=1, and start again with overwrite=True."
        )
    return metrics, details


def measure_speed(run: Run) -> dict[str, list[dict[str, Any]]]:
    """How long teacher and student take for one sample and for many, by role, in turns, where the run took place; {}
    where they cannot be timed, which is no reason to lose a run."""
    networks = {"teacher": run.teacher, "student": run.student} if run.teacher else {"student": run.student}
    try:
        times = speeds([*networks.values()], first_of(run.data, run.loop.device))
    except Exception as error:
        logging.getLogger("protege").warning("the networks cannot be timed (%s)", told(error))
        return {}
    return {role: [time.record() for time in each] for role, each in zip(networks, times, strict=True)}


def _try_teacher(run: Run, teacher: Model) -> None:
    """Let the teacher show that it knows the transfer set at all."""
    spec, loop = str(run.settings.teacher), run.loop
    refuse = partial(refuse_chance_level, teacher, spec, loop)
    judged = run.data.labelled or not run.task.labelled
    if judged and run.method.labels != "unread" and run.settings.method != "none":
        refuse(seen_by(teacher, loop.train.samples), loop.train.positions)
    elif loop.monitor is not None:  # it teaches nothing, or labels are missing or may be anything
        try:
            refuse(seen_by(teacher, loop.monitor.samples), loop.monitor.positions, "test set")
        except UserError as error:
            logging.getLogger("protege").warning("%s", error)
    else:
        warn_if_constant(teacher, spec, loop)


def _untaught(run: Run, remember: list[Callable[[], None]]) -> dict[str, Any]:
    """The student's figures before it is taught: on some of the test set where it shows there that it knows no more
    than chance, as fresh networks do."""
    test = run.data.test
    few = 0 if test is None or run.lasting else max(FRESH, len(run.data.classes))
    if test is not None and 0 < few < len(test):
        positions = choose(test.labels, samples=few, seed=0, count=len(test))
        metrics, details = run.loop.evaluate(run.student, test, positions, "student before")
        if metrics and all(map(math.isfinite, metrics.values())) and run.task.shortfall(metrics, details):
            return {"before": metrics, "before_measured_on": {"samples": few}}
    known = _known_or_measured(run, run.student, "student before", remember if run.lasting else [])
    return {"before": known["metrics"]}


def _known_or_measured(run: Run, network: Model, title: str, remember: list[Callable[[], None]]) -> dict[str, Any]:
    """Test metrics of a network before the run, read where an earlier run has measured and remembered them."""
    path = _memory(run, network)
    known = _remembered(run, path)
    if known is None:
        metrics, details = _measured(run, network, title)
        known = {"metrics": metrics, **details}
        remember.append(partial(_remember, path, known))
    return known


def _measured(run: Run, network: Model, title: str) -> tuple[dict[str, float], dict[str, Any]]:
    """Test metrics and details; without a test set, how often a student agrees with its teacher."""
    loop = run.loop
    if run.data.test is not None:
        return loop.evaluate(network, seen_by(network, run.data.test), title=title)
    if run.teacher is None or network is run.teacher:
        return {}, {}
    samples = loop.train.samples
    chosen, unseen = judges_of(loop.train.positions, len(samples))
    measured = run.task.unlabelled_metrics(loop.classes, run.teacher, loop.device)
    metrics, details = loop.evaluate(network, samples, chosen, title, measured)
    return metrics, {**details, "measured_on": {"samples": len(chosen), "unseen": unseen}}


# ---- figures that are remembered: a study pays once ----------------------------------------------------------------


def _memory(run: Run, network: Model) -> Path | None:
    """Where a network's test metrics are remembered, by what network and data hold; None without a test set."""
    loop, test = run.loop, run.data.test
    if test is None:
        return None
    test = seen_by(network, test)
    how = f"{loop.precision} {loop.device.type}"
    positions = torch.arange(min(forward_size(test, PROBE), len(test)))
    first = next(batches(test, [positions], CLEAN, Augment(), device=loop.device))
    with eval_mode(network), torch.no_grad(), loop.autocast():
        shown = behaviour({"logits": network(first.inputs)})
    references = [fingerprint(other) for other in loop.task.references]
    parts = [VERSION, fingerprint(network), shown, test.fingerprint(), how, task_digest(loop.task), *references]
    return cache_root() / "evaluations" / f"{_digest(parts)}.json"


def _remembered(run: Run, path: Path | None) -> dict[str, Any] | None:
    """What was measured before; None where nothing sound is there, and in several processes, which might differ."""
    if path is None or run.loop.world > 1:
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return content["figures"] if content["digest"] == _digest(content["figures"]) else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _remember(path: Path | None, figures: Mapping[str, Any]) -> None:
    if path is None:
        return
    figures = json.loads(json.dumps(figures))
    with suppress(OSError):  # without it the next run measures again
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"digest": _digest(figures), "figures": figures})


def _digest(values: Any) -> str:
    return hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=8).hexdigest()
