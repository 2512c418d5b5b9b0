"""`diagnose`: read a teacher on the data it is to teach, and say what to expect."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..data import CLEAN, Augment, Data, Samples, batches, choose, default_workers, load_data
from ..data.classes import read_classes
from ..diagnosis.measure import reading, rescaling
from ..diagnosis.recommend import Recommendation, facts_about, recommend
from ..diagnosis.relations import (
    agreement,
    class_order,
    cosines,
    off_diagonal,
    prediction_similarity,
    within_minus_between,
)
from ..diagnosis.rows import TEMPERATURES, Rows, read_rows
from ..diagnosis.verdict import UNKNOWN, Finding, judge, primary, temperature_range
from ..errors import UserError, nearest
from ..files import is_diagnosis, write_json
from ..methods import METHODS, Setup
from ..methods.relations import logit_layer
from ..models import (
    Model,
    check_classes,
    count_macs,
    count_parameters,
    framed_for,
    held_out_by,
    known_ranges,
    load_model,
    seen_by,
)
from ..models.classes import in_order_of, with_names
from ..models.opening import about
from ..models.placing import place
from ..models.precision import autocast_for, resolve_precision
from ..numerics import exact
from ..report.diagnosis import write_diagnosis_report
from ..settings import public
from ..signals import Views
from ..tasks import TASKS
from ..torch_utils import same_numbers
from ..training.evaluate import refuse_unfit
from ..training.processes import make_accelerator
from ..training.progress import Display
from .folder import check_out
from .recipe import checked

MARK = "diagnosis.json"
DATA_OPTIONS = set(inspect.signature(load_data).parameters) - {"spec", "ranges"}
LOOK = 10_000  # samples of each set that are looked at


@dataclass(frozen=True)
class Diagnosis:
    """What was found: ``findings`` (one for each failure), the one to act on first, what to do, and all numbers (what
    ``diagnosis.json`` holds). ``out`` is the folder, None where nothing was written."""

    findings: list[Finding]
    primary: Finding | None
    recommendation: Recommendation
    result: dict[str, Any] = field(repr=False)
    out: Path | None = None

    def __str__(self) -> str:
        lines = [
            f"{f.status:>11}  {f.title}: {f.evidence}" + (f" {f.advice}" if f.advice else "") for f in self.findings
        ]
        return "\n".join([*lines, "", *self.recommendation.reasons])


@public
@same_numbers()
@exact()
def diagnose(
    teacher: str | nn.Module,
    data: Any,
    *,
    student: str | nn.Module | None = None,
    out: str | Path | None = None,
    fraction: float | None = None,
    samples: int | None = None,
    temperature: float | None = None,
    weight: float = 0.9,
    classes: Any = None,
    seed: int = 0,
    precision: str = "auto",
    overwrite: bool = False,
    trust: bool = False,
    **options: Any,
) -> Diagnosis:
    """Read a teacher before using it: measures, a verdict for each way distillation fails, and what to do.

    ``fraction``, ``samples`` and ``seed`` choose the transfer set as `distill` does; at most 10,000 samples of it and
    of the test set are looked at, the transfer set augmented once as the student will see it. ``temperature`` and
    ``weight`` are T and λ of the distillation that is meant (T by default 4, for text 1). ``classes`` (names, or a file
    with one a line) are those of a teacher that does not name its outputs. ``options`` are those of
    `protege.data.load_data`, ``trust`` is that of `protege.load_model`.
    Writes ``diagnosis.json`` and ``report.html`` into ``out`` where given.

    Raises `UserError` for bad input, before anything is written.
    """
    if out is not None:
        out = Path(out)
        replaced = MARK, "report.html"
        check_out(
            out, resume=None, overwrite=overwrite, owned=is_diagnosis, proof=f"{MARK} of a diagnosis", replaced=replaced
        )
        diagnosis = diagnose(
            teacher,
            data,
            student=student,
            fraction=fraction,
            samples=samples,
            temperature=temperature,
            weight=weight,
            classes=classes,
            seed=seed,
            precision=precision,
            trust=trust,
            **options,
        )
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / MARK, diagnosis.result)
        write_diagnosis_report(out)
        return Diagnosis(diagnosis.findings, diagnosis.primary, diagnosis.recommendation, diagnosis.result, out)
    checked(fraction=fraction, samples=samples, temperature=temperature, weight=weight, seed=seed, precision=precision)
    names = read_classes(classes)
    if teacher is None:
        raise UserError("no teacher was given; expected a model to diagnose: add teacher=….")
    if unknown := set(options) - DATA_OPTIONS:
        raise UserError(f"diagnose has no option {min(unknown)!r}; {nearest(min(unknown), DATA_OPTIONS)}.")
    loaded = load_data(data, ranges=known_ranges(teacher, student), held_out=held_out_by(teacher, student), **options)
    temperature = temperature or TASKS[loaded.task].temperature
    if not loaded.labelled:
        raise UserError(
            f"the data {loaded.name!r} has no labels; expected some to judge a teacher by: sort the images into a "
            "folder for each class, or distil without a diagnosis (method='fskd' or 'kd')."
        )
    specs = {"student": student, "teacher": teacher}
    models, loaded = _opened(specs, loaded, seed, trust, names)
    positions = choose(
        loaded.train.labels, fraction=fraction, samples=samples, seed=seed, count=len(loaded.train), each=False
    )
    accelerator = make_accelerator()
    stage = _Stage(loaded, accelerator.device, resolve_precision(precision, accelerator.device), temperature)
    with Display(accelerator.is_main_process) as display:
        read = {role: stage.read(role, model, positions, display) for role, model in models.items()}
    settings = {"temperature": temperature, "weight": weight, "image_size": options.get("image_size")}
    settings |= {"fraction": fraction, "samples": samples, "seed": seed}
    measured = _measured(read, models, loaded, settings, stage)
    for role, spec in specs.items():
        if isinstance(spec, str | Path):  # as the user named it, rather than what it was built of
            measured[role]["spec"] = str(spec)
    findings = judge(measured)
    first = primary(findings)
    trained = measured["student"] is not None and measured["student"]["trained"]
    facts = facts_about(loaded, positions, models.get("student"), models.get("teacher"), trained)
    advised = recommend(facts, measured)
    while student is not None and (why := _refusal(advised.method, models, positions, stage)):
        facts = replace(facts, refused={**facts.refused, advised.method: why})
        advised = recommend(facts, measured)
    result = {
        "version": 1,
        "data": {"name": loaded.name, "transfer_samples": len(positions), "available_samples": len(loaded.train)},
        **measured,
        "temperature_range": temperature_range(measured["teacher"]["transfer"]),
        "facts": asdict(facts),
        "verdicts": [asdict(finding) for finding in findings],
        "primary": first.name if first else None,
        "cannot_tell": [finding.name for finding in findings if finding.status == UNKNOWN],
        "recommendation": asdict(advised),
    }
    return Diagnosis(findings, first, advised, result)


def _refusal(name: str, models: dict[str, Model], positions: Tensor, stage: _Stage) -> str | None:
    """Why a method does not take these two networks; None where it does, as kd and none do with any."""
    method, data = METHODS[name], stage.data
    if name in ("kd", "none"):
        return None
    transfer = Views(data.train, positions, data.augment, 1, stage.device)
    setup = Setup(models["student"], models["teacher"], TASKS[data.task], method.settings.model_validate({}), transfer)
    try:
        if method.preview:
            method.preview(setup)
        method.plan(setup)
    except UserError as error:
        return str(error).split(";")[0]
    return None


def _opened(
    specs: dict[str, Any], data: Data, seed: int, trust: bool, names: tuple[str, ...]
) -> tuple[dict[str, Model], Data]:
    """The networks, and the data in the order of the teacher's classes."""
    with about("teacher", specs["teacher"]):
        teacher = with_names(load_model(specs["teacher"], data=data, trained=True, trust=trust), names)
        data = framed_for(teacher, in_order_of(teacher, data), sized=False)
    if specs["student"] is None:
        return {"teacher": teacher}, data
    torch.manual_seed(seed)  # a fresh student is the one that a run with this seed begins with
    with about("student", specs["student"]):
        student = load_model(specs["student"], data=data, trust=trust)
        check_classes(student, data)
    return {"student": student, "teacher": teacher}, framed_for(student, data)


@dataclass(frozen=True)
class _Reading:
    """A network's rows on both sets, and the weights of its logit layer."""

    transfer: Rows
    test: Rows | None
    weights: Tensor | None
    sizes: dict[str, int]


@dataclass(frozen=True)
class _Stage:
    """Where networks are read: data, device, precision."""

    data: Data
    device: torch.device
    precision: str
    temperature: float

    def read(self, role: str, model: Model, positions: Tensor, display: Display) -> _Reading:
        place(model, self.device)
        data, task = self.data, TASKS[self.data.task]
        autocast = autocast_for(self.precision, self.device)
        refuse_unfit(model, role, data.train, positions, task, device=self.device, autocast=autocast)
        look: Callable[..., Rows] = partial(
            read_rows,
            model,
            task=task,
            classes=len(data.classes),
            who=role,
            temperatures=sorted({*TEMPERATURES, float(self.temperature)}),
            device=self.device,
            autocast=autocast,
            workers=default_workers(),
        )
        seen = _some(data.train, positions)
        transfer = look(
            data.train, seen, view=0, augment=data.augment, report=display.reporter(f"{role} on the transfer set")
        )
        test = None
        if data.test is not None:
            shown = seen_by(model, data.test)
            unseen = _some(shown, torch.arange(len(shown)))
            report = display.reporter(f"{role} on the test set")
            test = look(shown, unseen, view=CLEAN, augment=Augment(), report=report)
        raw = next(batches(data.train, [torch.tensor([0, 1])], CLEAN, Augment(), device=self.device)).inputs
        layer = logit_layer(model, len(data.classes), raw, task)
        sizes = {"params": count_parameters(model.network), "macs": count_macs(model, raw)}
        return _Reading(transfer, test, None if layer is None else layer.weight.detach().float().cpu(), sizes)


def _some(samples: Samples, positions: Tensor) -> Tensor:
    if len(positions) <= LOOK:
        return positions
    labels = None if samples.labels is None else samples.labels[positions]
    classes = 1 if labels is None else len(labels.unique())
    return positions[choose(labels, samples=max(LOOK, classes), seed=0, count=len(positions))]


def _measured(
    read: dict[str, _Reading], models: dict[str, Model], data: Data, settings: dict[str, Any], stage: _Stage
) -> dict[str, Any]:
    """Everything that the verdict and the report read, as JSON values."""
    measured: dict[str, Any] = {"task": data.task, "classes": len(data.classes), "settings": settings}
    measured["precision"] = stage.precision
    for role in ("teacher", "student"):
        if role not in read:
            measured[role] = None
            continue
        part = read[role]
        source = models[role].source["model"]
        measured[role] = {"spec": source or type(models[role].network).__name__, **part.sizes}
        measured[role]["transfer"] = reading(part.transfer)
        measured[role]["test"] = None if part.test is None else reading(part.test)
    if measured["student"]:
        measured["student"]["trained"] = _trained(measured["student"], measured["teacher"], data.task)
    student = read["student"].transfer if "student" in read else None
    measured["relations"] = _related(read, data)
    measured["rescaling"] = rescaling(read["teacher"].transfer, student, settings["weight"])
    return measured


def _trained(student: dict[str, Any], teacher: dict[str, Any], task: str) -> bool:
    """Whether a student has come at least half the way from chance to the teacher: a fresh one may beat chance.

    Of images that is the accuracy averaged over classes, as one that has learned nothing may say the commonest.
    """
    ours, theirs = (part["test" if student["test"] else "transfer"] for part in (student, teacher))
    if ours["accuracy"] is None or theirs["accuracy"] is None:
        return False
    key, level = TASKS[task].level(ours["chance"])
    return ours[key] - level > max(0.02, (theirs[key] - level) / 2)


def _related(read: dict[str, _Reading], data: Data) -> dict[str, Any]:
    """Class similarity by three ways, in the order that shows it, and what the matrices have in common."""
    teacher = read["teacher"].transfer
    shown = teacher.shown
    matrices: dict[str, Tensor] = {}
    for role, part in read.items():
        if part.weights is not None:
            matrices["weights" if role == "teacher" else "student"] = cosines(part.weights[shown])
    predictions = prediction_similarity(teacher)
    if predictions is not None:
        matrices["predictions"] = predictions
    groups = None if data.superclasses is None else [data.superclasses[int(k)] for k in shown]
    base = next((matrices[name] for name in ("weights", "predictions") if name in matrices), None)
    order = list(range(len(shown))) if base is None else class_order(base, groups)
    names = [data.classes[int(k)] for k in shown]
    return {
        "names": [names[n] for n in order],
        "superclasses": None if groups is None else [groups[n] for n in order],
        **{name: _matrix(matrices.get(name), order, groups) for name in ("weights", "predictions", "student")},
        "agreement": {
            f"{a} and {b}": agreement(matrices[a], matrices[b])
            for a, b in (("weights", "predictions"), ("weights", "student"), ("predictions", "student"))
            if a in matrices and b in matrices
        },
    }


def _matrix(matrix: Tensor | None, order: list[int], groups: list[int] | None) -> dict[str, Any] | None:
    if matrix is None:
        return None
    return {
        "spread": float(off_diagonal(matrix).std()) if len(matrix) > 2 else 0.0,
        "within_minus_between": None if groups is None else within_minus_between(matrix, groups),
        "values": [[round(value, 3) for value in row] for row in matrix[order][:, order].tolist()],
    }
