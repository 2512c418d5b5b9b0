"""From settings to everything that a run works with: loaded, checked and fitted to each other, nothing trained yet."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import ProjectConfiguration, gather_object

from ..data import Data, load_data
from ..data.classes import read_classes
from ..data.labels import BY_POSITION
from ..data.samples import default_memory_limit
from ..data.transforms import Transform
from ..errors import UserError, shown
from ..files import recorded
from ..lookup import GivenInPython, blaming, source_digest
from ..methods import Method, MethodSettings, Setup, find_method, is_outside
from ..methods.targets import TARGETS, function_of
from ..methods.teaching import TargetSettings, on_task, resolved
from ..models import Model, held_out_by, known_ranges
from ..models.opening import open_networks
from ..models.placing import place
from ..models.precision import autocast_for, resolve_precision
from ..numerics import exact
from ..signals.exchange import by_each
from ..tasks import Task, is_own, name_in_folders, task_digest
from ..training.batch_size import with_batch_size
from ..training.loop import Loop
from ..training.plan import defaults
from ..training.processes import in_turn, make_accelerator
from ..training.progress import Display
from .checks import refuse_another_task, task_of
from .origin import VERSION, deciding, earlier_origin, origin_of, refuse_another
from .recipe import MEMORY, Recipe, size_in_bytes, with_task_defaults
from .samples import choose_samples
from .toml import read_toml


@dataclass(frozen=True)
class Run:
    """A run before it begins. Its ``settings`` are complete: what a recipe leaves to the method, the task or the number
    of samples is filled in, so that they are what the folder keeps and what the loop reads.

    ``outline`` says how the method will treat the two networks, ``origin`` what a resumed run must find again;
    ``lasting``: the student is one on disk, so the same in every run.
    """

    settings: Recipe
    method: Method
    method_settings: MethodSettings
    out: Path
    data: Data
    task: Task
    teacher: Model | None
    student: Model
    loop: Loop
    outline: list[dict[str, Any]]
    origin: dict[str, Any]
    lasting: bool

    def check_origin(self, before: Mapping[str, Any]) -> None:
        """Raise where a run that was begun with ``before`` (its origin) was begun with others than these."""
        now = self.origin
        if before.get("version") != VERSION:
            now = now | earlier_origin(self.data, self.teacher, before)
        refuse_another(self.out, before, now, read_toml(self.out / "recipe.toml"))


@exact()
def prepare(settings: Recipe, objects: Mapping[str, Any], out: Path, resume: bool = False) -> Run:
    """Load and check everything that ``settings`` name. Raises `UserError` for the first thing wrong.

    ``objects`` holds what the caller gave in Python instead of a spec: networks and data by recipe key.
    """
    s = settings
    for key in ("teacher", "student", "data"):
        if str(getattr(s, key)).startswith(GivenInPython.begins) and key not in objects:
            raise UserError(
                f"the {key} of this run was given in Python ({getattr(s, key)}), which a recipe cannot hold; "
                f"expected it again: pass {key}= to the function."
            )
    classes = read_classes(s.classes)
    accelerator = _accelerator(s.log_with, out)
    device, method = accelerator.device, find_method(s.method)
    precision = resolve_precision(s.precision, device)

    specs = {key: objects.get(key, getattr(s, key)) for key in ("teacher", "student")}
    way = held_out_by(*specs.values())
    if resume and (begun := recorded(out)):
        way = begun.get("origin", {}).get("held_out", BY_POSITION)
    s = _with_memory_limit(s, device)
    with in_turn(accelerator):  # the first may have to extract what the others then read
        data = open_data(s, objects, way)
    task = task_of(s.task, data, s.data)
    if s.teacher is None:
        task = task.taught_by(None)
    if not task.labelled:
        data = data.unlabelled()
    teacher, student, data = open_networks(specs, s.teacher, s.student, data, s.seed, device, s.trust, classes)
    if teacher is not None:
        refuse_another_task(teacher, task, "teacher")
        place(teacher, device)
    student.task = name_in_folders(task, s.task)
    task, code = task.taught_by(teacher), task_digest(task)
    place(student, device)
    student.check_savable()
    lasting = os.path.exists(os.path.expanduser(s.student))  # a fresh network is another one in every run
    origin = origin_of(data, teacher, student, lasting) | {"held_out": way}
    data = _on_device(data, device)

    s = with_task_defaults(s, task.defaults)
    train, held, monitor, s = choose_samples(s, method, task, data, objects.get("augment"), device)
    if isinstance(train.augment.transform, Transform):
        origin |= {"transform": train.augment.transform.digest}
    if getattr(s, "class_weights", None) is not None:
        task = task.weighing_classes()

    method_settings = method.settings.model_validate({key: getattr(s, key) for key in method.settings.model_fields})
    setup = Setup(student, teacher, task, method_settings, train)
    with blaming(f"the method {s.method!r}", is_outside(s.method)):
        outline = method.preview(setup) if method.preview else []
        phases = method(setup)
    if s.task and is_own(s.task):
        origin |= {"code of the task": code}
    if is_outside(s.method):
        origin |= {"code of the method": source_digest(method.plan)}
    if (target := getattr(method_settings, "target", "kd")) not in TARGETS:
        origin |= {"code of the target": source_digest(function_of(target))}
    if unknown := set(s.phases) - {phase.name for phase in phases}:
        names = ", ".join(phase.name for phase in phases)
        raise UserError(f"the phase {min(unknown)!r} does not exist; expected one of {names}.")
    display = Display(accelerator.is_main_process)
    s = with_batch_size(
        s, phases, train, autocast_for(precision, device), accelerator, partial(display.say, always=True)
    )
    s = s.model_copy(update=defaults(phases, s, s.phases, len(train)))
    loop = Loop(
        student,
        task,
        phases,
        s,
        train,
        held,
        monitor,
        out,
        classes=len(data.classes),
        overrides=s.phases,
        cache=Path(s.cache).expanduser() if s.cache else None,
        budget=size_in_bytes(s.cache_budget),
        accelerator=accelerator,
        precision=precision,
        seed=s.seed,
        checkpoint_seconds=s.checkpoint_seconds,
        compile=s.compile,
        display=display,
    )
    loop.plan.check(loop.world)
    return Run(s, method, method_settings, out, data, task, teacher, student, loop, outline, origin, lasting)


def open_data(settings: Recipe, objects: Mapping[str, Any], held_out: str) -> Data:
    """The data that ``settings`` name, or that is among the ``objects``."""
    s = settings
    return load_data(
        objects.get("data", s.data),
        image_size=s.image_size,
        decoded_size=s.decoded_size,
        memory_limit=size_in_bytes(s.memory_limit or MEMORY),
        ranges=known_ranges(*(objects.get(key, getattr(s, key)) for key in ("teacher", "student"))),
        held_out=held_out,
        skip_bad=s.skip_bad,
    )


def prepare_alike(settings: Recipe, objects: Mapping[str, Any], out: Path, resume: bool = False) -> Run:
    """`prepare`, in each of the processes that learn together: what one of them raises all do, and `UserError` where
    they would not perform the same run."""
    failed: Exception | None = None
    try:
        run = prepare(settings, objects, out, resume)
    except Exception as error:
        failed = error

    def identity() -> tuple[dict[str, Any], dict[str, Any]]:
        if failed is not None:
            raise failed
        return run.origin, deciding(run.settings.model_dump())

    every = by_each(identity)
    for number, (origin, chosen) in enumerate(every):
        for what, digest in every[0][0].items():
            if origin.get(what) != digest:
                raise UserError(
                    f"process {number} has another {what} than the first; expected the same in all: give each machine "
                    "the same data and networks."
                )
        for key in sorted({*every[0][1], *chosen}):
            if (there := chosen.get(key)) != (here := every[0][1].get(key)):
                raise UserError(
                    f"process {number} has {key} = {shown(there)} where the first has {shown(here)}; expected the same "
                    "in all: start them with the same settings."
                )
    return run


def preview_of(run: Run) -> dict[str, Any]:
    """What a run would do: the phases with their settings, and the method's own plan for these networks."""
    settings_read, plan = run.method_settings, run.loop.plan
    idle = settings_read.idle(run.teacher is not None)
    settings = settings_read.model_dump(exclude=set(idle))
    if isinstance(settings_read, TargetSettings) and "target" not in idle:
        settings |= resolved(on_task(settings_read, run.task), run.task.temperature)
    return {
        "method": run.settings.method,
        "settings": {key: value for key, value in settings.items() if value is not None},
        "samples": len(run.loop.train),
        "phases": plan.describe(),
        "plan": run.outline,
        "disk": run.loop.disk(),
    }


def _accelerator(tracker: str | None, out: Path) -> Accelerator:
    """Processes, devices and trackers; Accelerate itself passes over a tracker that is not installed."""
    installed = [str(getattr(t, "value", t)) for t in get_available_trackers()]
    if tracker is not None and tracker not in [*installed, "all"]:
        raise UserError(
            f"log_with = {tracker!r} is no tracker that is installed here; expected one that Accelerate knows, such "
            f"as tensorboard (installed: {', '.join(installed) or 'none'}): install it or leave it out."
        )
    folders = ProjectConfiguration(project_dir=str(out), logging_dir=str(out / "logs"))
    return make_accelerator(log_with=tracker, project_config=folders)


def _with_memory_limit(settings: Recipe, device: Any) -> Recipe:
    """What a GPU has room for now is kept with the settings, and is the same in all processes: it decides whether crops
    are cut out of images as they are in files."""
    if settings.memory_limit is not None or device.type != "cuda":
        return settings
    least = min(gather_object([default_memory_limit(device)]))
    return settings.model_copy(update={"memory_limit": f"{least >> 20}MiB"})


def _on_device(data: Data, device: Any) -> Data:
    parts = {name: getattr(data, name) for name in ("train", "val", "test")}
    return replace(data, **{name: samples and samples.to(device) for name, samples in parts.items()})
