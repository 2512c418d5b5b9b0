"""`protege compress`: a budget and a model in, a file for a device out.

1. Each way of making the network smaller (`ways`) has a place where the budget is met. There the network is cut, solved
   for on a few images (`fskd`) and judged on others.
2. The best way is followed to larger networks and a smaller one: the frontier.
3. The best candidate that meets the budget is taught on by the teacher, and kept so where that made it better.
4. It is exported, and timed beside the teacher.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import PartialState
from torch import nn

from .. import words
from ..errors import UserError
from ..files import is_compressed
from ..models import Model, seen_by
from ..numerics import exact
from ..report import write_compress_report
from ..run.folder import check_out, holding, refuse_among_images, remove, remove_empty, report
from ..run.formats import FORMATS
from ..run.origin import origin_of
from ..run.recipe import checked
from ..settings import public
from ..tasks import TASKS, Task, shipped_task
from ..torch_utils import same_numbers
from ..training.progress import Display
from .budget import budget_of, quantity, written
from .files import FOLDER, Files, format_of
from .frontier import chosen, frontier
from .given import begun, counted, opened_for, with_judges
from .judge import Judge
from .mistakes import draw_mistakes
from .search import COUNTED, Measure, Search, Unmet, load_again
from .teach import taught
from .work import RECORD, Clock, Work, said

QUARTER = 0.3  # of the file's size, below which int8, which takes a little over a quarter, costs less than cutting
FEW = 50  # images that judge
GLANCE = 0.5  # seconds in which a candidate is timed
logger = logging.getLogger(__name__)
CANDIDATES = "candidates"
OURS = (CANDIDATES, "teach", "student", "file", "mistakes", "pictures", "report.html")


@dataclass(frozen=True)
class Compressed:
    """What `compress` leaves: the student, its metrics on the test set (or, without labels, on the images held out),
    the frontier (a dict for each candidate, see `compress.json`), the file, and everything in ``compress.json``."""

    student: Model = field(repr=False)
    metrics: dict[str, float]
    frontier: list[dict[str, Any]] = field(repr=False)
    file: Path
    result: dict[str, Any] = field(repr=False)
    out: Path


@public
@same_numbers()
@exact()
def compress(
    model: str | Path | nn.Module,
    data: Any = None,
    *,
    macs: float | str | None = None,
    params: float | str | None = None,
    size: float | str | None = None,
    latency: float | str | None = None,
    accuracy_drop: float | None = None,
    to: str | None = None,
    int8: bool = False,
    batch: int = 1,
    threads: int | None = None,
    time: float | str | None = None,
    epochs: int | None = None,
    image_size: int | None = None,
    skip_bad: int = 0,
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    trust: bool = False,
) -> Compressed:
    """Make a model small enough, teach it on, and leave it as a file for a device in the folder ``out``.

    The budget, of which at least one is given: ``macs`` and ``params``, shares of the model's; ``size`` of the file
    ("5MB", or bytes); ``latency`` of one batch ("8ms", or seconds), measured on this machine for ``batch`` images on
    ``threads``; both also as a share ("40%"); ``accuracy_drop``, how much of the quality may be lost (0.01 is a
    point), for the smallest network within it. ``to`` is a format of `protege.export`, or "folder" for the model's
    folder alone; by default ONNX where its extra is installed. With ``int8`` the file holds int8 weights.
    ``time`` ("10m", or seconds) bounds the whole: two fifths are for the search, then teaching has as many of its
    ``epochs`` as there is time for. The first candidate and the file are always made.

    ``data`` are images, with labels or without. The training images are learned from; those of the val split, or a
    fifth of the training images, judge candidates: by the labels where there are any, else by how often they agree with
    the teacher. The test split judges the student that comes out, and nothing is chosen by it.

    ``out`` holds ``candidates/`` (a model folder each), ``teach/`` (a run), ``student/``, ``file/`` (an export),
    ``compress.json`` and ``report.html``. One that was stopped goes on with ``resume``. Raises `UserError` for bad
    input, and for a budget that cannot be met, with the nearest that can.
    """
    if PartialState().num_processes > 1:
        raise UserError(
            "compress was started as several processes; expected one: start it without torchrun or accelerate."
        )
    budget = budget_of(macs, params, size, latency, accuracy_drop)
    limit = None if time is None else quantity("time", time)
    if out is None:
        raise UserError("'out' is missing; expected the folder for what is made as out=….")
    if data is None:
        raise UserError("'data' is missing; expected images to solve for and to judge by as data=….")
    counted(batch=batch, threads=1 if threads is None else threads)
    counted(0, epochs=0 if epochs is None else epochs)
    checked(seed=seed)
    kind = format_of(to, int8)
    out = Path(out)
    if isinstance(data, str):
        refuse_among_images(out, data)
    if overwrite and isinstance(model, str | Path) and Path(model).resolve().is_relative_to(out.resolve()):
        raise UserError(
            f"overwrite=True would replace the model {str(model)!r}, which lies in out={str(out)!r}; expected another "
            "folder: change out=…."
        )
    settings = {
        "model": str(model) if isinstance(model, str | Path) else type(getattr(model, "network", model)).__name__,
        "budget": budget.told(),
        "to": kind,
        "batch": batch,
        "threads": threads,
        "seed": seed,
        "image_size": image_size,
        "epochs": epochs,
    }
    with gone_if_empty(out), holding(out) as hold, Display(True) as display:
        check_out(
            out,
            resume=resume,
            overwrite=overwrite,
            owned=is_compressed,
            proof=f"{RECORD} of compress",
            replaced=(RECORD, *OURS),
        )
        before = begun(out, settings) if resume and (out / RECORD).exists() else {}
        teacher, opened = opened_for(model, data, image_size, skip_bad, trust)
        origin = origin_of(opened, None, teacher, True)
        if before and before.get("origin") != origin:
            raise UserError(
                f"resume=True found another model or other images than {str(out)!r} was begun with; expected the same: "
                "bring them back, or start anew with overwrite=True."
            )
        if before.get("finished"):
            display.say(f"{str(out)!r} is finished already; nothing is left to do", always=True)
            return _finished(out, before, teacher)
        opened = with_judges(opened)
        out.mkdir(parents=True, exist_ok=True)
        hold()
        if overwrite:
            for name in OURS:
                remove(out / name)
        clock = Clock(float(before.get("seconds", 0.0)), limit)
        record = {**before, "version": 1, **settings, "origin": origin, "seconds": 0.0, "finished": False}
        work = Work(teacher, opened, budget, record, out, seed, clock, display)
        with Files(teacher, opened, kind, batch, threads) as files:
            try:
                return perform(work, files, epochs)
            except UserError:
                if not (out / CANDIDATES).exists():
                    remove(out / RECORD)  # nothing was made
                raise


@contextmanager
def gone_if_empty(out: Path) -> Iterator[None]:
    """A folder that is made meanwhile goes again where nothing is left in it."""
    there = out.exists()
    try:
        yield
    finally:
        if not there:
            remove_empty(out)


def _finished(out: Path, record: dict[str, Any], teacher: Model) -> Compressed:
    """What a finished call has left."""
    student, kept = load_again(out / "student", teacher), record["student"]
    file = out / "file" / record["file"]["file"] if record["file"]["to"] != FOLDER else out / "student"
    return Compressed(student, kept["test"] or kept["metrics"], record["frontier"], file, record, out)


# ---- the steps -------------------------------------------------------------------------------------------------------


def perform(work: Work, files: Files, epochs: int | None) -> Compressed:
    """Search, teach, export; what lies in the folder is not made again."""
    task = shipped_task(work.teacher.task) or TASKS[work.data.task]
    labelled = work.data.labelled and task.labelled and bool(work.data.classes)
    assert work.data.val is not None
    judge = Judge(work.teacher, work.data.val, task, len(work.data.classes), labelled)
    measure = partial(files.figures, seconds=0.0 if work.budget.latency is None else GLANCE)
    folder = work.out / CANDIDATES
    files.figures(work.teacher, seconds=0)  # so that one that no file can be made of is told at once
    measured: Measure = measure if work.budget.measured else lambda _: {}
    given = work.teacher, work.data, files.raw, judge, work.budget, measured, folder, work.seed
    search = Search(*given, work.display.reporter)
    whole = search.whole
    samples = {"solved": len(search.positions), "judged": len(work.data.val), "labelled": labelled}
    work.keep(frontier=[], teacher={"figures": whole, "metrics": judge.figures}, samples=samples, metric=judge.metric)
    if short := judge.shortfall:
        raise UserError(
            f"the model is at chance level on the images held out ({short.what} {short.reached:.3f}, chance "
            f"{short.chance:.3f}); expected a trained one: check that {task.suspects}."
        )
    work.say(f"the teacher: {said(whole, whole, judge.figures, judge.metric)}")
    work.say(f"solves for {samples['solved']} images, judges by {words.plural(samples['judged'], 'other')}")
    if samples["judged"] < FEW:
        logger.warning("%d images are few to judge by; expected %d: add images", samples["judged"], FEW)
    if (work.budget.shares(whole).get("size", 1) < QUARTER or work.record.get("in_int8")) and files.in_int8():
        work.say("the file holds int8, which is a quarter of the size")
    try:
        candidates = frontier(work, search)
    except Unmet as error:
        if error.name not in COUNTED or not files.in_int8():
            raise
        work.say("no network in floating point meets the budget: the file holds int8")
        work.keep(in_int8=True)
        candidates = frontier(work, search)
    before = work.record.get("chosen", {})
    best, why = chosen(work, search, candidates)
    for each in candidates:
        if each.name == before.get("name"):
            best, why = each, before["why"]  # which may have been taught on already
    work.keep(chosen={"name": best.name, "why": why})
    work.say(f"{best.name} goes on: {why}")

    student, lesson = taught(work, search, best, labelled, epochs)
    student.save(work.out / "student", overwrite=True)
    work.keep(taught=lesson)

    file, record, costs, network = files.export(work.out / "student", work.out / "file", student)
    rounded = files.to != FOLDER and FORMATS[files.to].int8
    metrics = judge(network, seen_by(student, work.data.val)) if rounded else lesson["metrics"]
    judged: list[tuple[nn.Module, Model]] = [(work.teacher, work.teacher), (student, student)]
    judged += [(network, student)] if rounded else []
    tests = _tested(work, task, labelled, judged)
    figures, costs_of_teacher = search.sizes(student) | costs, whole | files.figures(work.teacher)
    met = work.budget.met(figures, costs_of_teacher)
    if work.budget.drop is not None:
        met["accuracy_drop"] = judge.drop(metrics) <= work.budget.drop
    work.keep(
        teacher={"figures": costs_of_teacher, "metrics": judge.figures, "test": tests[0]},
        student={"figures": figures, "metrics": metrics, "test": tests[-1]},
        in_float={"metrics": lesson["metrics"], "test": tests[1]} if rounded else {},
        met=met,
        file=record,
        mistakes=draw_mistakes(work.teacher, student, work.data, task, labelled, work.out),
        finished=True,
    )
    for name in [name for name, kept in met.items() if not kept]:
        if name == "accuracy_drop":
            what = f"{words.metric_value(judge.metric, judge.drop(metrics))} lower on the images held out"
        else:
            what = written(name, figures[name])
        more = "; layers of it stay in floating point" if record.get("float_layers") else ""
        logger.warning("what is left does not keep the limit of %s: it is %s%s", name, what, more)
    report(write_compress_report, work.out)
    metrics = work.record["student"]["test"] or metrics
    work.say(f"{file}: {said(figures, whole, metrics, judge.metric)}")
    return Compressed(student, metrics, work.record["frontier"], file, work.record, work.out)


def _tested(
    work: Work, task: Task, labelled: bool, networks: Sequence[tuple[nn.Module, Model]]
) -> list[dict[str, float]]:
    """What networks, shown what these models see, are worth on the test set, if there is one."""
    test = work.data.test
    if test is None:
        return [{} for _ in networks]
    tester = Judge(work.teacher, test, task, len(work.data.classes), labelled)
    return [tester(network, seen_by(model, test)) for network, model in networks]
