"""One run from what is given to its folder: prepare and check everything, train, write what it left."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data import CLEAN, Augment, Samples, batches, lasting_decoders
from ..data.loader import refuse_damaged
from ..errors import UserError
from ..files import is_finished, is_run, recorded, write_json
from ..lookup import blaming
from ..methods import is_outside
from ..models import Model
from ..numerics import deterministic, exact
from ..report import write_run_report
from ..tasks import is_own
from ..tasks.task import Shown
from ..torch_utils import forget, same_numbers
from ..training.checkpoint import load_checkpoint
from ..training.processes import in_turn
from ..training.state import State
from ..words import guess_to_beat
from .arguments import separate
from .choice import Trials, begun_settings, chosen
from .finished import finished
from .folder import OURS, SPEC_KEYS, check_out, clear, holding, refuse_in_the_way, report, told_how_to_go_on
from .measure import Baseline, measure_after, measure_baseline, measure_speed, with_metrics
from .origin import deciding, refuse_another
from .prepare import Run, prepare_alike
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
def perform(
    given: Mapping[str, Any],
    out: str | Path | None,
    *,
    recipe: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    trial: bool = False,
    solved: bool = False,
) -> Result:
    """Teach a student as the settings ``given`` say, and leave a run folder ``out``. A ``trial`` is part of another
    run, which tells how it goes on. ``solved`` tells method ``auto`` that `fskd` has made the student."""
    if out is None:
        raise UserError("'out' is missing; expected the folder for this run as out=….")
    out = Path(out)
    telling = nullcontext() if trial else told_how_to_go_on(out)
    with holding(out) as hold, telling, lasting_decoders(), ExitStack() as numbers:
        check_out(out, resume=resume, overwrite=overwrite)
        if is_run(out):
            hold()  # before its checkpoint is read; a new folder is made after all has been checked
        values, objects = separate(given, recipe)
        trials = Trials(partial(perform, trial=True), out, hold, overwrite)
        choose = partial(begun_settings, out) if resume else chosen
        complete, choice = choose(values, objects, trials, solved)
        settings = make_recipe(complete)
        refuse_in_the_way(settings, objects, out, resume, overwrite)
        numbers.enter_context(deterministic(settings.deterministic))  # before anything runs on a GPU
        if resume and is_finished(out):
            student, result = finished(settings, values, objects, out)
            return Result(student, result["student"]["metrics"], result, out)
        run = prepare_alike(settings, objects, out, resume)
        if run.loop.precision == "fp32":
            numbers.enter_context(exact())
        _load_images(run)  # first, as it shows a bar of its own
        with run.loop.display:
            checkpoint = load_checkpoint(out / "checkpoint") if resume else None
            start = check(run, checkpoint, choice)
            open_folder(run, start, hold, resume, overwrite)
            with blaming(f"the task {settings.task!r}", bool(settings.task and is_own(settings.task))):
                short_of: Exception | None = None
                try:
                    state = run.loop.run(checkpoint, start.record["origin"])
                except torch.OutOfMemoryError as error:  # of an accelerator
                    short_of = error.with_traceback(None)  # whose frames hold what did not fit
                if short_of is not None:
                    run.loop.refuse_too_large()
                    raise short_of
                result = end(run, start.record, state, trial)
        return Result(run.student, result["student"]["metrics"], result, out)


@dataclass(frozen=True)
class Start:
    """What is known before anything is trained: the ``record`` with which the log and ``result.json`` begin, and what
    is to be remembered once there is a folder. ``fresh``: the run begins now, rather than goes on."""

    record: dict[str, Any]
    fresh: bool
    remember: Sequence[Callable[[], None]] = ()


def check(run: Run, checkpoint: tuple[int, dict[str, Any]] | None, choice: dict[str, Any] | None = None) -> Start:
    """Try everything that can be wrong, while nothing has been written. Raises `UserError` for the first of it.

    ``choice``: how the method was chosen, of a run that begins with that.
    """
    loop, s = run.loop, run.settings
    begun, origin = {}, {}
    if checkpoint is not None:
        begun, origin = recorded(run.out), checkpoint[1]["state"].get("origin", {})
        run.check_origin(origin)
        _check_student(run, checkpoint[1]["student"])
    own_task, own_method = bool(s.task and is_own(s.task)), is_outside(s.method)
    with blaming(f"the task {s.task!r}", own_task):
        baseline = Baseline(begun["teacher"], begun["student"]) if begun else measure_baseline(run)
    loop.check()
    if own_task or own_method or s.deterministic:
        with blaming(f"the method {s.method!r}" if own_method else f"the task {s.task!r}", own_task or own_method):
            loop.rehearse()
    student = {"spec": s.student, **sizes(run.student, run.data, loop.device)}
    student |= {key: baseline.student[key] for key in ("before", "before_measured_on") if key in baseline.student}
    record = beginning_of(run, baseline.teacher, student)
    if choice := choice or begun.get("choice"):
        record["choice"] = choice
    record["origin"] = origin or {**run.origin, "settings": deciding(s.model_dump())}
    return Start(record, not begun, baseline.remember)


def open_folder(run: Run, start: Start, hold: Callable[[], None], resume: bool, overwrite: bool) -> None:
    """Make the folder and keep it by ``hold``, which may be called again; of a run that begins now its record is the
    first thing written, by which the folder is known."""
    loop, s, main = run.loop, run.settings, run.loop.accelerator.is_main_process
    tried = "choice" in start.record  # and so the folder is there, and is this run's
    if main:
        run.out.mkdir(parents=True, exist_ok=True)
        hold()
        check_out(run.out, resume=resume or (tried and not overwrite), overwrite=overwrite)  # another may be quicker
        if overwrite:
            clear(run.out, log=False, parts=[part for part in OURS if part != "choice" or not tried])
    if start.fresh:
        loop.begin(start.record)
    if main:
        recipe = run.out / "recipe.toml"
        if start.fresh:
            write_toml(recipe, s.model_dump())
        else:  # a run that goes on keeps its recipe; where things lie may have changed
            write_toml(recipe, {**read_toml(recipe), **{key: getattr(s, key) for key in (*SPEC_KEYS, "trust")}})
        for write in start.remember:
            write()
    loop.accelerator.wait_for_everyone()
    if s.log_with:
        loop.accelerator.init_trackers("protege", config=for_tracker(s))
    teacher = start.record["teacher"]
    if teacher and teacher["metrics"]:
        loop.display.say(_figures("teacher", teacher), always=True)


def _load_images(run: Run) -> None:
    """Have all images that the run uses decoded, so that a damaged one is named before anything is trained; of a
    stream those that networks are judged on, which may be looked at only after hours."""
    loop, test = run.loop, run.data.test
    parts: list[tuple[Samples, Tensor]] = [] if loop.held is None else [(loop.held.samples, loop.held.positions)]
    parts += [] if test is None else [(test, torch.arange(len(test)))]  # which the monitor shows some of
    with in_turn(loop.accelerator):  # the others find what it has decoded
        loop.train.samples.load(loop.train.positions, loop.train.augment)
        for samples, positions in parts:
            samples.load(positions)
    for samples, positions in parts:
        if not samples.in_memory:
            refuse_damaged(samples, positions.tensor_split(loop.world)[loop.rank], loop.train.workers)
            loop.accelerator.wait_for_everyone()


def end(run: Run, record: dict[str, Any], state: State, trial: bool = False) -> dict[str, Any]:
    """Measure the student, save it and write ``result.json``, which is returned, and the report. A ``trial`` is not
    timed."""
    loop, student = run.loop, run.student
    metrics, details = measure_after(run)
    if (teacher := record["teacher"]) and (measured := with_metrics(run, teacher)) is not teacher:
        record = {**record, "teacher": measured}
        loop.display.say(_figures("teacher", measured), always=True)
    result = result_of(record, loop, state, metrics, details)
    if loop.accelerator.is_main_process:
        student.held_out = run.data.held_out or student.held_out
        student.save(run.out / "student", overwrite=True)
        result["speed"] = {} if trial else measure_speed(run)
        _draw(run)
        write_json(run.out / "result.json", result)
        report(write_run_report, run.out)
    if run.settings.log_with:
        loop.accelerator.end_training()
    loop.accelerator.wait_for_everyone()
    for line in _summary(run, result):
        loop.display.say(line, always=True)
    forget(student.eval())
    return result


def _figures(role: str, network: Mapping[str, Any]) -> str:
    return f"{role}: " + "  ".join(f"{name} {value:.4f}" for name, value in network["metrics"].items())


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
    shapes, now = ({name: v.shape for name, v in state.items()} for state in (saved, run.student.state_dict()))
    refuse_another(run.out, {"student": shapes}, {"student": now}, {})


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
