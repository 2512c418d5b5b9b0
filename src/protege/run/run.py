"""One run from what is given to its folder: prepare and check everything, train, write what it left."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data import CLEAN, Augment, batches
from ..errors import UserError
from ..files import is_finished, is_run, recorded, write_json
from ..lookup import blaming
from ..methods import is_outside
from ..models import Model
from ..report import write_run_report
from ..tasks import is_own
from ..tasks.task import Shown
from ..torch_utils import same_numbers
from ..training.checkpoint import load_checkpoint
from ..training.state import State
from ..words import guess_to_beat
from .arguments import separate
from .auto import with_method
from .finished import finished
from .folder import SPECS, check_out, clear, holding, refuse_in_the_way, report, resumed_settings, told_how_to_go_on
from .measure import Before, measure_after, measure_before
from .origin import deciding, refuse_another
from .prepare import Run, prepare
from .recipe import make_recipe
from .result import beginning_of, for_tracker, result_of, sizes
from .toml import read_toml, write_toml


@dataclass(frozen=True)
class Result:
    """What a run leaves: the student, its test metrics, and everything in ``result.json``."""

    student: Model = field(repr=False)
    metrics: dict[str, float]
    result: dict[str, Any] = field(repr=False)
    out: Path


@same_numbers()  # a run draws its own: what the caller draws next depends on no seed of ours
def run(
    given: Mapping[str, Any],
    out: str | Path | None,
    *,
    recipe: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> Result:
    """Teach a student as the settings ``given`` say, and leave a run folder ``out``."""
    if out is None:
        raise UserError("'out' is missing; expected the folder for this run as out=….")
    out = Path(out)
    with holding(out) as hold, told_how_to_go_on(out):
        check_out(out, resume=resume, overwrite=overwrite)
        if is_run(out):
            hold()  # before its checkpoint is read; a new folder is made after all has been checked
        values, objects = separate(given, recipe)
        settings = make_recipe(_of_begun_run(out, values, objects) if resume else with_method(values, objects))
        refuse_in_the_way(settings, objects, out, resume, overwrite)
        if resume and is_finished(out):
            student, result = finished(settings, values, objects, out)
            return Result(student, result["student"]["metrics"], result, out)
        prepared = prepare(settings, objects, out, resume)
        _load_images(prepared)  # first, as it shows a bar of its own
        with prepared.loop.display:
            beginning, checkpoint = begin(prepared, hold, resume, overwrite)
            state = prepared.loop.run(checkpoint, beginning["origin"])
            result = end(prepared, beginning, state)
        return Result(prepared.student, result["student"]["metrics"], result, out)


def begin(
    run: Run, hold: Callable[[], None], resume: bool, overwrite: bool
) -> tuple[dict[str, Any], tuple[int, dict[str, Any]] | None]:
    """What is known before anything is trained (the beginning of ``result.json``), and the checkpoint to go on from.

    Checks all that can be wrong, and then opens the folder, which is kept by ``hold``: of a run that begins now, its
    beginning is the first thing written.
    """
    loop, s, main = run.loop, run.settings, run.loop.accelerator.is_main_process
    checkpoint = load_checkpoint(run.out / "checkpoint") if resume else None
    begun = recorded(run.out) if checkpoint else {}
    origin: dict[str, Any] = {}
    if checkpoint:
        origin = checkpoint[1]["state"].get("origin", {})
        run.check_origin(origin)
        _check_student(run, checkpoint[1]["student"])
    own_task, own_method = bool(s.task and is_own(s.task)), is_outside(s.method)
    with blaming(f"the task {s.task!r}", own_task):
        before = Before(begun["teacher"], begun["student"]) if begun else measure_before(run)
    loop.check()
    if own_task or own_method:
        with blaming(f"the method {s.method!r}" if own_method else f"the task {s.task!r}", True):
            loop.rehearse()
    student = {"spec": s.student, **sizes(run.student, run.data, loop.device)}
    student |= {key: before.student[key] for key in ("before", "before_measured_on") if key in before.student}
    beginning = beginning_of(run, before.teacher, student)
    beginning["origin"] = origin or run.origin | {"settings": deciding(s.model_dump())}

    if main:
        run.out.mkdir(parents=True, exist_ok=True)
        hold()
        check_out(run.out, resume=resume, overwrite=overwrite)  # another may have been quicker
        if overwrite:
            clear(run.out, log=False)
    if not begun:
        loop.begin(beginning)
    if main:
        path = run.out / "recipe.toml"
        moved = {key: getattr(s, key) for key in (*SPECS, "trust")}
        write_toml(path, read_toml(path) | moved if begun else s.model_dump())
        for write in before.remember:
            write()
    loop.accelerator.wait_for_everyone()
    if s.log_with:
        loop.accelerator.init_trackers("protege", config=for_tracker(s))
    if before.teacher and before.teacher["metrics"]:
        figures = "  ".join(f"{name} {value:.4f}" for name, value in before.teacher["metrics"].items())
        loop.display.say(f"teacher: {figures}", always=True)
    return beginning, checkpoint


def _load_images(run: Run) -> None:
    """Have all images that the run uses decoded, so that a damaged one is named before anything is trained."""
    for views in filter(None, (run.loop.train, run.loop.held, run.loop.monitor)):
        views.samples.load(views.positions)
    if run.data.test is not None:
        run.data.test.load()


def end(run: Run, beginning: dict[str, Any], state: State) -> dict[str, Any]:
    """Measure the student, save it and write ``result.json``, which is returned, and the report."""
    loop, student = run.loop, run.student
    metrics, details = measure_after(run)
    result = result_of(beginning, loop, state, metrics, details)
    if loop.accelerator.is_main_process:
        student.held_out = run.data.held_out or student.held_out
        student.save(run.out / "student", overwrite=True)
        _draw(run)
        write_json(run.out / "result.json", result)
        report(write_run_report, run.out)
    if run.settings.log_with:
        loop.accelerator.end_training()
    loop.accelerator.wait_for_everyone()
    for line in _summary(run, result):
        loop.display.say(line, always=True)
    student.eval()
    return result


def _summary(run: Run, result: dict[str, Any]) -> list[str]:
    """What came of it, in a sentence, and a warning where that is no more than a guess."""
    student, metric = result["student"], run.task.metric
    name = metric if metric in student["metrics"] else "agreement"
    parts = []
    if name in student["metrics"] and name in student["before"]:
        guess = guess_to_beat(name, student.get("guess", {}), lambda _, value: f"{value:.4f}")
        change = f"{name} {student['before'][name]:.4f} → {student['metrics'][name]:.4f}"
        parts.append(f"{change} ({guess})" if guess else change)
    if measured := student.get("measured_on"):
        which = "that did not teach" if measured["unseen"] else "that it learned from"
        parts = [f"{'; '.join(parts)} with the teacher, on {measured['samples']:,} images {which}"]
    parts.append(f"the student is in {run.out / 'student'}")
    return [line for line in ("; ".join(parts), student.get("remark")) if line]


def _check_student(run: Run, saved: Mapping[str, Tensor]) -> None:
    now = run.student.state_dict()
    if now.keys() != saved.keys() or any(now[name].shape != value.shape for name, value in saved.items()):
        refuse_another(run.out, {"student": "saved"}, {"student": "own"}, {})


def _draw(run: Run) -> None:
    """Pictures for the report, where the task has something to look at."""
    test, count = run.data.test, run.task.drawn
    if not count or test is None:
        return
    positions = torch.linspace(0, len(test) - 1, min(count, len(test))).round().long()
    batch = next(batches(test, [positions], CLEAN, Augment(), device=run.loop.device))
    networks = {role: network for role, network in (("teacher", run.teacher), ("student", run.student)) if network}
    shown = Shown(batch.inputs, batch.labels, positions.tolist(), networks, run.data.classes, run.loop.autocast)
    run.task.pictures(shown, run.out)


def _of_begun_run(out: Path, given: dict[str, Any], objects: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the run that is to go on, or of one that was stopped before it began."""
    if (out / "recipe.toml").exists():
        chosen = {"method": None} if given.get("method") == "auto" else {}  # when the run began
        return resumed_settings(out, {**given, **chosen})
    given = with_method(given, objects)
    if given.get("student") is None:
        raise UserError(f"resume=True found no run in {str(out)!r}; expected a run's folder: name another with out=….")
    if any(out.glob("checkpoint/*.json")):
        raise UserError(
            f"resume=True found no recipe.toml in {str(out)!r}; expected the one that the run was begun with: put it "
            "back, or start anew with overwrite=True."
        )
    return resumed_settings(out, given)
