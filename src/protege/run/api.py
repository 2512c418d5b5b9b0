"""The front door in Python: `distill`, `train` and `evaluate`. The commands call these and nothing else."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import nn

from ..classes import in_order_of
from ..data import Augment, Data, default_workers, load_data
from ..data.classes import SORTED
from ..data.given import has_splits
from ..data.spec import GIB, cache_root
from ..diagnosis import at_chance
from ..errors import UserError
from ..files import is_finished, is_run, usable
from ..methods import Method, Setup, name_of
from ..methods.teaching import TARGET_KEYS, beside
from ..models import Model, held_out_by, known_ranges, load_model
from ..models.description import read_description
from ..models.placing import place
from ..models.precision import autocast_for, on_cpu, resolve_precision
from ..models.trust import is_typed
from ..report import write_run_report
from ..settings import public
from ..tasks import TASKS, Chance
from ..tasks.guess import judged
from ..torch_utils import same_numbers, unwrapped
from ..training.checkpoint import load_checkpoint
from ..training.evaluate import evaluate as run_evaluation
from ..training.evaluate import refuse_unfit
from ..training.phase import Phase
from ..training.progress import Display
from ..words import guess_to_beat
from .checks import refuse_another_task
from .diagnose import diagnose
from .folder import NAMES, SPECS, check_out, holding, report, resumed_settings, told_how_to_go_on
from .recipe import Recipe, labels_only, make_recipe, merge, read_toml, size_in_bytes
from .run import Run


@dataclass(frozen=True)
class Result:
    """What a run leaves: the student, its test metrics, and everything in ``result.json``."""

    student: Model = field(repr=False)
    metrics: dict[str, float]
    result: dict[str, Any] = field(repr=False)
    out: Path


@public
def distill(
    teacher: str | nn.Module | None = None,
    student: str | nn.Module | None = None,
    data: Any = None,
    method: str | Method | Callable[[Setup], Sequence[Phase]] | None = None,
    out: str | Path | None = None,
    *,
    recipe: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    **settings: Any,
) -> Result:
    """Teach ``student`` to take over ``teacher``'s role, and leave a run folder.

    ``teacher`` and ``student`` are model specs (``zoo:resnet20``, a folder with ``config.json``,
    ``package.module:factory``), a `Model`, or any ``nn.Module``; ``data`` is a data spec (``digits``,
    ``parquet:PATH``, ``images:PATH``) or a map-style ``Dataset`` (or a pair of train and test,
    or a dict of splits). ``recipe`` is a TOML file with any of the keys; arguments win over it. All other settings are
    those of `protege.run.recipe.Recipe` and of the method.

        import protege
        result = protege.distill("runs/teacher/student", "zoo:resnet20", "images:photos", out="runs/small")
        result.student.save("small")

    A student given as a module is trained in place. Raises `UserError` for bad input, before anything is trained or
    written.
    """
    given = {"teacher": teacher, "student": student, "data": data, "method": method, **settings}
    return _run(given, out, recipe, resume, overwrite)


@public
@same_numbers()
def preview(
    teacher: str | nn.Module | None = None,
    student: str | nn.Module | None = None,
    data: Any = None,
    method: str | Method | Callable[[Setup], Sequence[Phase]] | None = None,
    *,
    recipe: str | Path | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """What `distill` would do with the same arguments, checked like it; nothing is trained or written.

    ``phases`` lists name, kind and settings of each phase; ``plan`` is how the method will treat the two networks (the
    stages it paired, say), a list of dicts with the same keys; ``disk`` how many bytes it takes at most.
    """
    given = {"teacher": teacher, "student": student, "data": data, "method": method, **settings}
    read, objects = _read(given, recipe)
    return Run(make_recipe(_chosen(read, objects)), objects, Path()).preview()


@public
def train(
    student: str | nn.Module | None = None,
    data: Any = None,
    out: str | Path | None = None,
    *,
    recipe: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    **settings: Any,
) -> Result:
    """Train ``student`` on labels only: how teachers are made. Like `distill` with method ``none``."""
    given, objects = _read({"student": student, "data": data, **settings}, recipe)
    return _run(labels_only(given | objects), out, None, resume, overwrite)


@public
def evaluate(
    model: str | nn.Module,
    data: Any,
    *,
    split: str | None = None,
    image_size: int | None = None,
    memory_limit: int = 4 * GIB,
    precision: str = "auto",
    trust: bool = False,
) -> dict[str, float]:
    """Metrics of a model on a split (``train``, ``val`` or ``test``) of data, without augmentation.

    ``all`` are all samples of data that has no splits, and is the default of a single Dataset; else it is ``test``,
    which of data without such a split is the fifth that a run holds out, or all where that leaves a class without
    samples. The number of classes, their order and names are the model's, where it knows them. ``image_size`` and
    ``memory_limit`` (bytes) are those of `protege.data.load_data`, ``trust`` is that of
    `load_model`. Raises `UserError` for bad input and for outputs that are not finite.
    """
    single = data is not None and not isinstance(data, str | Path | Data) and not has_splits(data)
    chosen = split or ("all" if single else "test")
    if chosen not in ("train", "val", "test", "all"):
        raise UserError(f"the split {split!r} is unknown; expected train, val, test or all: change split=….")
    if precision not in ("auto", "bf16", "fp32"):
        raise UserError(f"the precision {precision!r} is unknown; expected auto, bf16 or fp32: change precision=….")
    whole = chosen == "all"
    ranges, way = known_ranges(model), held_out_by(model)
    loaded = load_data(data, image_size=image_size, memory_limit=memory_limit, whole=whole, ranges=ranges, held_out=way)
    if whole and loaded.test is not loaded.train:
        raise UserError(f"the data {loaded.name!r} has splits; expected train, val or test: change split=….")
    if split is None and loaded.test is None and loaded.labelled:  # too few to hold some out
        loaded = replace(loaded, test=loaded.train)
    network = load_model(model, data=loaded, trained=True, trust=trust)
    guessed = loaded.numbering == SORTED and not network.named
    loaded = in_order_of(network, loaded)
    samples = loaded.test if whole else getattr(loaded, chosen)
    if samples is None or (not loaded.labelled and (whole or chosen == "train")):
        what = "labels to measure by" if not loaded.labelled else f"{chosen} split"
        raise UserError(f"the data {loaded.name!r} has no {what}; expected some of its own: name other data.")
    device = Accelerator(cpu=on_cpu()).device
    place(network, device)
    samples, task = samples.to(device), TASKS[loaded.task]
    autocast = autocast_for(resolve_precision(precision, device), device)
    everything = torch.arange(len(samples))
    refuse_another_task(network, task, "model")
    refuse_unfit(network, "model", samples, everything, task, device=device, autocast=autocast)
    with Display(True) as display:
        display.say(f"{len(samples):,} samples", always=True)
        metrics, details = run_evaluation(
            network,
            samples,
            task.metrics(len(loaded.classes), device),
            device=device,
            autocast=autocast,
            workers=default_workers(),
            progress=display.reporter("evaluate"),
        )
    if not all(map(math.isfinite, metrics.values())):
        raise UserError(
            f"the model gives values that are not finite on the {chosen} split; expected finite outputs: check its "
            "weights."
        )
    seen = judged({"metrics": metrics, **details}, task.metric, loaded.classes, "the model")
    guess = guess_to_beat(task.metric, seen.get("guess", {}), lambda _, value: f"{value:.4f}")
    for line in (guess and f"{task.metric} {guess}", seen.get("remark")):
        if line:
            display.say(line, always=True)
    chance = Chance.of(samples.labels) if guessed and samples.labels is not None else None
    if metrics and chance is not None and chance.explains(metrics["accuracy"], metrics["nll"]):
        logging.getLogger("protege").warning(
            "the model is at chance level with the classes in order of their names, and does not name its outputs: if "
            "they are in another order, give it its class names (protege.Model(…, classes=…))."
        )
    return metrics


@same_numbers()  # a run draws its own: what the caller draws next depends on no seed of ours
def _run(
    given: dict[str, Any], out: str | Path | None, recipe: str | Path | None, resume: bool, overwrite: bool
) -> Result:
    if out is None:
        raise UserError("'out' is missing; expected the folder for this run as out=….")
    out = Path(out)
    with holding(out) as hold, told_how_to_go_on(out):
        check_out(out, resume=resume, overwrite=overwrite)
        if is_run(out):
            hold()  # before its checkpoint is read; a new folder is made after all has been checked
        return _perform(given, out, recipe, resume, overwrite, hold)


def _read(given: dict[str, Any], recipe: str | Path | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Recipe and arguments as settings of text and numbers, and the objects among them by key."""
    if recipe is not None:
        given = merge(read_toml(recipe), {key: value for key, value in given.items() if value is not None})
    given = {key: str(value) if isinstance(value, Path) else value for key, value in given.items()}
    objects = {key: given[key] for key in ("teacher", "student", "data") if not isinstance(given.get(key), str | None)}
    objects = {key: unwrapped(value) if isinstance(value, nn.Module) else value for key, value in objects.items()}
    given |= {key: f"python:{type(getattr(value, 'network', value)).__qualname__}" for key, value in objects.items()}
    if not isinstance(given.get("method"), str | None):
        given["method"] = name_of(given["method"])
    if not isinstance(given.get("augment"), str | None):
        objects["augment"] = Augment.of(given["augment"])
        given["augment"] = str(objects["augment"])
    return given, objects


def _chosen(given: dict[str, Any], objects: dict[str, Any]) -> dict[str, Any]:
    """The settings, with method ``auto`` replaced by what a diagnosis recommends; what is given stays as it is."""
    if given.get("method") != "auto":
        return given
    if (task := given.get("task")) in TASKS and not TASKS[task].labelled:
        raise UserError(
            f"method 'auto' goes by what a teacher says about classes, which the task {task!r} does not have; expected "
            "a method by name: choose kd or skd."
        )
    for key in ("teacher", "student", "data"):
        if given.get(key) is None:
            raise UserError(f"method 'auto' has no {key}; expected one to look at: add --{key}.")
    options = {key: given[key] for key in ("fraction", "samples", "seed", "precision") if given.get(key) is not None}
    typed = make_recipe({k: v for k, v in given.items() if k in Recipe.model_fields} | {"method": "kd"})
    options = {key: getattr(typed, key) for key in options} | {"trust": typed.trust}
    specs = {key: objects.get(key, given[key]) for key in ("teacher", "student", "data")}
    found = diagnose(**specs, **options, image_size=typed.image_size, memory_limit=size_in_bytes(typed.memory_limit))
    if at_chance(found.result["teacher"]["transfer"]):
        raise UserError(
            f"method auto: the teacher {given['teacher']!r} is at chance level on the transfer set; expected a trained "
            f"teacher: check that {TASKS[found.result['task']].suspects}, or train on the labels with method='none'."
        )
    (advice,) = broadcast_object_list([found.recommendation])  # so that all processes do the same
    own = {key: value for key, value in given.items() if value is not None and key != "method"}
    settings = beside(advice.settings, own)
    lines = [f"auto: method {advice.method}", *advice.reasons]
    lines += [f"{key} = {own[key]} as you set it." for key in TARGET_KEYS if key in own]
    if dropped := sorted(set(advice.settings) - set(settings) - set(own)):
        lines.append(f"The advice on {', '.join(dropped)} does not suit that and is left out.")
    for line in lines:
        logging.getLogger("protege").info(line)
    return {**settings, **own, "method": advice.method}


def _refuse_among_images(out: Path, spec: str) -> None:
    """Raise where a run's folder would be read as a class of the images that it learns from."""
    kind, _, rest = spec.partition(":")
    folder = usable(rest.split("?")[0], "data").resolve()
    splits = [folder / split for split in ("train", "val", "test") if (folder / split).is_dir()]
    around = {out.resolve(), *out.resolve().parents}
    if kind == "images" and (out.resolve() == folder or around & {*(splits or [folder])}):
        raise UserError(
            f"out={str(out)!r} lies among the images of {str(folder)!r} and would be read as a class of them; "
            "expected another place: change out=…."
        )


def _refuse_cache_in(out: Path, cache: Path, resume: bool) -> None:
    """Raise where a run's folder and a cache would hold each other's files."""
    own, folder = out.resolve(), cache.resolve()
    inside = [own / name for name in NAMES] if resume else [own]  # older versions let it be beside those
    if own.is_relative_to(folder) or is_run(folder) or any(map(folder.is_relative_to, inside)):
        raise UserError(
            f"cache={str(cache)!r} and out={str(out)!r} lie in each other; expected a folder for each: change cache=…."
        )


def _perform(
    given: dict[str, Any],
    out: Path,
    recipe: str | Path | None,
    resume: bool,
    overwrite: bool,
    hold: Callable[[], None],
) -> Result:
    given, objects = _read(given, recipe)
    begun = resume and (out / "recipe.toml").exists()
    if begun and given.get("method") == "auto":
        del given["method"]  # was chosen when the run began
    given = given if begun else _chosen(given, objects)
    if resume and not begun and given.get("student") is None:
        raise UserError(f"resume=True found no run in {str(out)!r}; expected a run's folder: name another with out=….")
    if resume and not begun and any(out.glob("checkpoint/*.json")):
        raise UserError(
            f"resume=True found no recipe.toml in {str(out)!r}; expected the one that the run was begun with: put it "
            "back, or start anew with overwrite=True."
        )
    settings = make_recipe(resumed_settings(out, given) if resume else given)
    for role in ("teacher", "student"):
        spec = getattr(settings, role)
        if role in objects or not spec or not os.path.exists(path := os.path.expanduser(spec)):
            continue
        if overwrite and Path(path).resolve().is_relative_to(out.resolve()):
            raise UserError(
                f"overwrite=True would replace the {role} {path!r}, which lies in out={str(out)!r}; expected "
                "another folder for what learns from it: change out=…."
            )
    if "data" not in objects:
        _refuse_among_images(out, settings.data)
    if settings.cache is not None:
        _refuse_cache_in(out, usable(settings.cache, "cache"), resume)
    elif is_run(cache_root()) or cache_root().resolve() == out.resolve():
        raise UserError(
            f"PROTEGE_CACHE={str(cache_root())!r} is the folder of a run; expected one for caches alone: name another."
        )
    if resume and is_finished(out):
        return _finished(settings, given, objects, out)
    production = Run(settings, objects, out, resume)
    result = production.run(hold, resume=resume, overwrite=overwrite)
    return Result(production.student, result["student"]["metrics"], result, out)


def _origin(result: dict[str, Any], out: Path) -> dict[str, Any]:
    """What a finished run was made with, as far as it tells: version 0.1 kept it in checkpoints only."""
    if "origin" in result:
        return result["origin"]
    with suppress(UserError):  # they are damaged
        if found := load_checkpoint(out / "checkpoint"):
            return found[1]["state"].get("origin", {})
    return {}


def _gone(settings: Recipe, objects: dict[str, Any]) -> bool:
    """Whether something that a recipe names is not there any more, or not again: an object, a folder or a file."""

    def missing(key: str) -> bool:
        spec = str(getattr(settings, key) or "")
        if key in objects or not spec:
            return False
        path = spec.partition(":")[2].partition("?")[0] if key == "data" else "" if ":" in spec else spec
        return spec.startswith("python:") or (bool(path) and not Path(path).expanduser().exists())

    return any(map(missing, SPECS))


def _finished(settings: Recipe, given: dict[str, Any], objects: dict[str, Any], out: Path) -> Result:
    """What a finished run has left. Raises where it was made with others than are given, or than its recipe names."""
    result = json.loads((out / "result.json").read_text(encoding="utf-8"))
    try:
        found = Run(settings, objects, out, resume=True)
    except UserError:
        if given.get("teacher") is not None or given.get("data") is not None or not _gone(settings, objects):
            raise
    else:  # else what the recipe names may be gone by now, and the student's folder is enough
        found.check_origin(_origin(result, out))
    logging.getLogger("protege").info("the run in %s is finished already; nothing is left to do", out)
    if not (out / "report.html").exists():  # killed between the two
        report(write_run_report, out)
    own = objects.get("student")
    network = None if own is None else getattr(own, "network", own)
    place = out / "student"
    trust = settings.trust or is_typed(read_description(place), settings.student)  # the run made it
    student = load_model(place, network=network, trust=trust)
    return Result(student, result["student"]["metrics"], result, out)
