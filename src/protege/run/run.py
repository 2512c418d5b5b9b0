"""One run from its settings to its folder: load and check everything, run the method's plan, write what it left."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import ProjectConfiguration

from ..data import (
    CLEAN,
    Augment,
    Data,
    batches,
    check_augment,
    choose,
    default_workers,
    hold_out,
    load_data,
)
from ..data.labels import BY_POSITION
from ..data.transforms import Transform
from ..errors import UserError
from ..files import recorded, write_json
from ..lookup import source_digest
from ..methods import METHODS, Setup, TransferSet, about_method, find_method, is_outside
from ..methods.targets import TARGETS, function_of
from ..methods.teaching import TargetSettings, on_task, resolved
from ..models import Model, held_out_by, known_ranges
from ..models.opening import open_networks
from ..models.placing import place
from ..models.precision import on_cpu, resolve_precision
from ..report import write_run_report
from ..signals.views import DEFAULT_VIEWS, settled
from ..tasks.task import Shown
from ..torch_utils import tensors_of
from ..training.agreement import judges_of
from ..training.checkpoint import load_checkpoint
from ..training.evaluate import refuse_unfit
from ..training.plan import Plan
from ..training.progress import Display
from ..training.runner import Runner
from ..training.state import CacheLimits, RunData
from ..words import guess_to_beat
from .checks import Measured, refuse_another_task, refuse_chance_level, task_of, warn_if_constant
from .folder import SPECS, check_out, clear, report
from .origin import VERSION, deciding, earlier_origin, origin_of, refuse_another
from .recipe import Recipe, read_toml, size_in_bytes, suited, write_toml
from .result import beginning_of, for_tracker, result_of, sizes

FRESH = 500  # test samples that a student is tried on before it is taught
MONITORED = 2000  # test samples behind the curve of a run that holds nothing out


class Run:
    """One run: load everything and check everything when it is made; train and write in `run`.

    ``objects`` holds what the caller gave in Python instead of a spec: networks and data by recipe key.
    """

    def __init__(self, settings: Recipe, objects: Mapping[str, Any], out: Path, resume: bool = False) -> None:
        self.settings, self.out = settings, out
        self.accelerator = self._accelerator()
        self.device = self.accelerator.device
        self.precision = resolve_precision(settings.precision, self.device)
        s = settings
        for key in ("teacher", "student", "data"):
            if str(getattr(s, key)).startswith("python:") and key not in objects:
                raise UserError(
                    f"the {key} of this run was given in Python ({getattr(s, key)}), which a recipe cannot hold; "
                    f"expected it again: pass {key}= to the function."
                )
        self.given_augment = Augment.of(objects["augment"]) if "augment" in objects else None
        given = {key: objects.get(key, getattr(s, key)) for key in ("teacher", "student")}
        way = held_out_by(*given.values())
        if resume and (begun := recorded(out)):
            way = begun.get("origin", {}).get("held_out", BY_POSITION)
        with self.accelerator.main_process_first():  # the first may have to extract what the others then read
            data = load_data(
                objects.get("data", s.data),
                image_size=s.image_size,
                memory_limit=size_in_bytes(s.memory_limit),
                ranges=known_ranges(*given.values()),
                held_out=way,
            )
        task = task_of(s.task, data, s.data)
        if s.teacher is None:
            task = task.taught_by(None)
        if not task.labelled:
            data = data.unlabelled()
        elif not data.labelled:
            self._check_without_labels(data)
        self.teacher, self.student, loaded = open_networks(
            given, s.teacher, s.student, data, s.seed, self.device, s.trust
        )
        val, test = (samples and samples.to(self.device) for samples in (loaded.val, loaded.test))
        data = replace(loaded, train=loaded.train.to(self.device), val=val, test=test)
        if self.teacher is not None:
            refuse_another_task(self.teacher, task, "teacher")
        self.data, self.task = data, task.taught_by(self.teacher)
        self.student.task = task.name
        s = self.settings = suited(s, self.task.defaults)
        if getattr(s, "class_weights", None) is not None:
            self.task = self.task.weighing_classes()
        self._remember: list[Callable[[], None]] = []  # what to write once everything has been checked
        for network in filter(None, (self.student, self.teacher)):
            place(network, self.device)
        self.student.check_savable()
        self.lasting = os.path.exists(os.path.expanduser(s.student))  # a fresh network is another one in every run
        self.origin = origin_of(loaded, self.teacher, self.student, self.lasting) | {"held_out": way}
        self._earlier_origin = partial(earlier_origin, loaded, self.teacher)
        run_data = self._corpus()
        if isinstance(run_data.augment.transform, Transform):
            self.origin |= {"transform": run_data.augment.transform.digest}
        method = find_method(s.method)
        own = method.settings.model_validate({k: getattr(s, k) for k in method.settings.model_fields})
        c = run_data
        transfer = TransferSet(c.train, c.positions, c.augment, c.views, self.device, c.workers)
        self.setup = Setup(self.student, self.teacher, self.task, own, transfer)
        with about_method(s.method):
            self.outline = method.preview(self.setup) if method.preview else []
            phases = method(self.setup)
        if is_outside(s.method):
            self.origin |= {"code of the method": source_digest(method.plan)}
        if (target := getattr(own, "target", "kd")) not in TARGETS:
            self.origin |= {"code of the target": source_digest(function_of(target))}
        unknown = set(s.phases) - {phase.name for phase in phases}
        if unknown:
            names = ", ".join(phase.name for phase in phases)
            raise UserError(f"the phase {min(unknown)!r} does not exist; expected one of {names}.")
        self.display = Display(self.accelerator.is_main_process)
        self.runner = Runner(
            self.student,
            self.task,
            Plan(phases, self.settings, s.phases, run_data),
            CacheLimits(size_in_bytes(s.cache_budget), Path(s.cache).expanduser() if s.cache else None),
            out,
            accelerator=self.accelerator,
            precision=self.precision,
            seed=s.seed,
            checkpoint_seconds=s.checkpoint_seconds,
            display=self.display,
        )

    def _check_without_labels(self, data: Data) -> None:
        s = self.settings
        if find_method(s.method).labels == "needed":
            able = " or ".join(repr(name) for name, method in METHODS.items() if method.labels != "needed")
            raise UserError(
                f"method {s.method!r} needs labels, which the data {s.data!r} does not have; expected a folder for "
                f"each class: sort the images so, or use method={able}."
            )
        if data.val is None and self._judged():
            raise UserError(
                f"select = best and patience need labels, which the data {s.data!r} does not have; expected select = "
                "last: leave them out, or give labelled images in val/."
            )
        if data.val is None and s.validation:
            raise UserError(
                f"validation = {s.validation:g} needs labels, which the data {s.data!r} does not have; expected 0: "
                "leave it out, or give labelled images in val/."
            )

    def _accelerator(self) -> Accelerator:
        """Processes, devices and trackers; Accelerate itself passes over a tracker that is not installed."""
        named = self.settings.log_with
        installed = [str(getattr(t, "value", t)) for t in get_available_trackers()]
        if named is not None and named not in [*installed, "all"]:
            raise UserError(
                f"log_with = {named!r} is no tracker that is installed here; expected one that Accelerate knows, such "
                f"as tensorboard (installed: {', '.join(installed) or 'none'}): install it or leave it out."
            )
        folders = ProjectConfiguration(project_dir=str(self.out), logging_dir=str(self.out / "logs"))
        # told so, as Accelerate otherwise takes torchrun's processes for one each
        return Accelerator(cpu=on_cpu(), mixed_precision="no", log_with=named, project_config=folders)

    def _corpus(self) -> RunData:
        s, data = self.settings, self.data
        reading = find_method(s.method).labels
        labels = None if reading == "unread" or not self.task.labelled else data.train.labels
        positions = choose(
            labels,
            fraction=s.fraction,
            samples=s.samples,
            seed=s.seed,
            count=len(data.train),
            each=reading == "needed",
        )
        _tell_missing(labels, positions, data)
        share = s.validation
        if share is None:
            share = 0.1 if self._judged() and data.val is None else 0.0
        held, self._share = None, share
        if share:
            count = len(positions)
            positions, kept_out = hold_out(positions, labels, share, s.seed)
            if len(kept_out):
                held = (data.train, kept_out)
            elif s.validation is None and find_method(s.method).defaults.get("select"):  # nobody asked for it
                logging.getLogger("protege").info(
                    "%d samples leave none to hold out: each phase keeps its last state rather than its best.", count
                )
                self.settings, self._share = s.model_copy(update={"select": "last", "patience": 0}), 0.0
            else:
                raise UserError(
                    f"validation = {share:g} holds out none of {count} samples, as each class keeps one to learn from; "
                    "expected at least one: give more samples, or leave out validation=…, select=… and patience=…."
                )
        elif data.val is not None:
            held = (data.val, torch.arange(len(data.val)))
        monitor = None
        if data.test is not None:
            count = len(data.test)
            some = choose(data.test.labels, samples=min(count, max(MONITORED, len(data.classes))), seed=0, count=count)
            monitor = (data.test, some)
        asked = s.views or (DEFAULT_VIEWS if s.teacher is not None else "all")
        augment, views = settled(self._augment(data), asked, positions, s.seed)
        return RunData(
            data.train,
            positions,
            held,
            monitor,
            augment,
            views=views,
            classes=len(data.classes),
            workers=default_workers() if s.workers is None else s.workers,
        )

    def _augment(self, data: Data) -> Augment:
        s = self.settings
        augment = data.augment
        if s.augment is not None:
            augment = self.given_augment or Augment.parse(s.augment)
        check_augment(augment, data.task, data.train.shape)
        if augment.mixes and self.task.labelled and find_method(s.method).labels == "needed":
            able = " or ".join(repr(name) for name, method in METHODS.items() if method.labels != "needed")
            raise UserError(
                f"augment = '{augment}' mixes images, which then have no single true class, and method {s.method!r} "
                f"needs it; expected one that learns from the teacher alone: use method={able}, or leave that out."
            )
        return augment

    def _judged(self) -> bool:
        """Whether a phase keeps its best state or stops early, and so must not be judged on the test set."""
        each = [self.settings.model_dump(include={"select", "patience"}), *self.settings.phases.values()]
        return any(one.get("select") == "best" or one.get("patience") for one in each)

    def run(self, hold: Callable[[], None], *, resume: bool = False, overwrite: bool = False) -> dict[str, Any]:
        """Train, and write the run folder, which is kept by ``hold``; returns what ``result.json`` holds."""
        with self.display:
            found = load_checkpoint(self.out / "checkpoint") if resume else None
            begun = recorded(self.out) if found else {}
            self._load_images()
            origin: dict[str, Any] = found[1]["state"].get("origin", {}) if found else {}
            if found:
                self.check_origin(origin)
                self._check_student(found[1]["student"])
            teacher, untaught = (begun["teacher"], begun["student"]) if begun else self._measured_before()
            before = untaught["before"]
            self.runner.check()
            if is_outside(self.settings.method):
                with about_method(self.settings.method):
                    self.runner.rehearse()
            s = self.settings
            student = {"spec": s.student, **sizes(self.student, self.data, self.device)}
            student |= {key: untaught[key] for key in ("before", "before_measured_on") if key in untaught}
            beginning = beginning_of(s, self.data, self.runner, teacher, student, self.outline)
            beginning["origin"] = origin or self.origin | {"settings": deciding(self._told())}
            self._open_folder(hold, resume, overwrite, beginning if not begun else None)
            if teacher and teacher["metrics"]:
                figures = "  ".join(f"{name} {value:.4f}" for name, value in teacher["metrics"].items())
                self.display.say(f"teacher: {figures}", always=True)
            state = self.runner.run(found, beginning["origin"])
            after = self._test(self.student, "student after")
            if held := self._held_out():
                after[1]["held_out"] = held
        self._check_finite(after[0])
        result = result_of(beginning, self.runner, state, *after)
        if self.accelerator.is_main_process:
            self.student.held_out = self.data.held_out or self.student.held_out
            self.student.save(self.out / "student", overwrite=True)
            self._draw()
            write_json(self.out / "result.json", result)
            report(write_run_report, self.out)
        if self.settings.log_with:
            self.accelerator.end_training()
        self.accelerator.wait_for_everyone()
        name = self.task.metric if self.task.metric in after[0] else "agreement"
        told = f"{name} {before[name]:.4f} → {after[0][name]:.4f}; " if name in after[0] and name in before else ""
        judged = result["student"]
        if told and (alone := guess_to_beat(name, judged.get("guess", {}), lambda _, value: f"{value:.4f}")):
            told = f"{told.rstrip('; ')} ({alone}); "
        if on := after[1].get("measured_on"):
            which = "that did not teach" if on["unseen"] else "that it learned from"
            told = f"{told.rstrip('; ')} with the teacher, on {on['samples']:,} images {which}; "
        self.display.say(f"{told}the student is in {self.out / 'student'}", always=True)
        if judged.get("remark"):
            self.display.say(judged["remark"], always=True)
        self.student.eval()
        return result

    def _load_images(self) -> None:
        """Have all images that this run uses decoded, so that a damaged one is named before anything is trained."""
        run_data = self.runner.run_data
        run_data.train.load(run_data.positions)
        for samples, positions in filter(None, (run_data.held, run_data.monitor)):
            samples.load(positions)
        if self.data.test is not None:
            self.data.test.load()

    def _measured_before(self) -> tuple[dict[str, Any] | None, dict[str, Any]]:
        """Figures of teacher and student before anything is trained. Raises where they cannot be what they should."""
        s, run_data = self.settings, self.runner.run_data
        how: Any = {"device": self.device, "autocast": self.runner.autocast}
        for who, network, spec in (("teacher", self.teacher, s.teacher), ("student", self.student, s.student)):
            if network is not None:
                refuse_unfit(network, f"{who} {spec!r}", run_data.train, run_data.positions, self.task, **how)
        teacher = self._teacher_before()
        untaught = self._untaught()
        if not all(map(math.isfinite, untaught["before"].values())):
            raise UserError(
                f"the student {s.student!r} gives values that are not finite; expected finite outputs: check its "
                "weights."
            )
        return teacher, untaught

    def _untaught(self) -> dict[str, Any]:
        """The student's figures before it is taught: on some of the test set where it shows there that it knows no more
        than chance, as fresh networks do."""
        test = self.data.test
        few = 0 if test is None or self.lasting else max(FRESH, len(self.data.classes))
        if test is not None and 0 < few < len(test):
            some = choose(test.labels, samples=few, seed=0, count=len(test))
            metrics, details = self.runner.evaluate(self.student, test, some, "student before")
            if metrics and all(map(math.isfinite, metrics.values())) and self.task.shortfall(metrics, details):
                return {"before": metrics, "before_measured_on": {"samples": few}}
        return {"before": self._figures(self.student, "student before", self.lasting)["metrics"]}

    def check_origin(self, before: Mapping[str, Any]) -> None:
        """Raise where a run that was begun with ``before`` (its origin) was begun with others than these."""
        now = self.origin if before.get("version") == VERSION else self.origin | self._earlier_origin(before)
        refuse_another(self.out, before, now, read_toml(self.out / "recipe.toml"))

    def _check_student(self, saved: Mapping[str, torch.Tensor]) -> None:
        own = self.student.state_dict()
        if own.keys() != saved.keys() or any(own[name].shape != value.shape for name, value in saved.items()):
            refuse_another(self.out, {"student": "saved"}, {"student": "own"}, {})

    def _told(self) -> dict[str, Any]:
        """The recipe as the folder keeps it: every default that depends on the samples filled in."""
        return {**self.runner.plan.resolved(), "validation": self._share}

    def preview(self) -> dict[str, Any]:
        """What `run` would do: the phases with their settings, and the method's own plan for these networks."""
        plan, own = self.runner.plan, self.setup.settings
        plan.check(self.accelerator.num_processes)
        idle = own.idle(self.teacher is not None)
        settings = own.model_dump(exclude=set(idle))
        if isinstance(own, TargetSettings) and "target" not in idle:
            settings |= resolved(on_task(own, self.task), self.task.temperature)
        return {
            "method": self.settings.method,
            "settings": {key: value for key, value in settings.items() if value is not None},
            "samples": len(plan.run_data.positions),
            "phases": plan.describe(),
            "plan": self.outline,
            "disk": self.runner.disk(),
        }

    def _draw(self) -> None:
        """Pictures for the report, where the task has something to look at."""
        test, count = self.data.test, self.task.drawn
        if not count or test is None:
            return
        positions = torch.linspace(0, len(test) - 1, min(count, len(test))).round().long()
        batch = next(batches(test, [positions], CLEAN, Augment(), device=self.device))
        pairs = (("teacher", self.teacher), ("student", self.student))
        networks = {role: network for role, network in pairs if network is not None}
        shown = Shown(batch.inputs, batch.labels, positions.tolist(), networks, self.data.classes, self.runner.autocast)
        self.task.pictures(shown, self.out)

    def _check_finite(self, metrics: Mapping[str, float]) -> None:
        """Refuse to hand out a student that the last updates spoiled: the loss is measured before each of them."""
        values = [v for v in tensors_of(self.student).values() if v.is_floating_point()]
        if not all(bool(v.isfinite().all()) for v in values) or not all(map(math.isfinite, metrics.values())):
            raise UserError(
                "the student's weights or outputs are not finite after training; expected finite numbers: lower lr=… "
                "or set clip=1, and start again with overwrite=True."
            )

    def _open_folder(
        self, hold: Callable[[], None], resume: bool, overwrite: bool, beginning: dict[str, Any] | None
    ) -> None:
        """The first thing written, after everything that can be wrong with the input has been checked; of a run that
        begins now, its ``beginning`` comes before all else."""
        if self.accelerator.is_main_process:
            self.out.mkdir(parents=True, exist_ok=True)
            hold()
            check_out(self.out, resume=resume, overwrite=overwrite)  # another may have been quicker
            if overwrite:
                clear(self.out, log=False)
        if beginning is not None:
            self.runner.begin(beginning)
        if self.accelerator.is_main_process:
            path, s = self.out / "recipe.toml", self.settings
            moved = {key: getattr(s, key) for key in (*SPECS, "trust")}
            write_toml(path, self._told() if beginning is not None else read_toml(path) | moved)
            for write in self._remember:
                write()
        self.accelerator.wait_for_everyone()
        if self.settings.log_with:
            self.accelerator.init_trackers("protege", config=for_tracker(self.settings))

    def _teacher_before(self) -> dict[str, Any] | None:
        """The teacher's size and test metrics, once it has shown that it knows the transfer set at all."""
        if self.teacher is None:
            return None
        listen = partial(refuse_chance_level, self.teacher, str(self.settings.teacher), self.runner)
        method, run_data = find_method(self.settings.method), self.runner.run_data
        judged = self.data.labelled or not self.task.labelled
        if judged and method.labels != "unread" and self.settings.method != "none":
            listen(self.data.train, run_data.positions)
        elif run_data.monitor is not None:  # it teaches nothing, or labels are missing or may be anything
            try:
                listen(*run_data.monitor, "test set")
            except UserError as error:
                logging.getLogger("protege").warning("%s", error)
        else:
            warn_if_constant(self.teacher, str(self.settings.teacher), self.runner)
        size = sizes(self.teacher, self.data, self.device)
        return {"spec": self.settings.teacher, **size, **self._figures(self.teacher, "teacher")}

    def _figures(self, network: Model, title: str, remember: bool = True) -> dict[str, Any]:
        """Test metrics of a network before the run, read where an earlier run has measured and remembered them."""
        if self.data.test is None:
            metrics, details = self._test(network, title)
            return {"metrics": metrics, **details}
        memo = Measured(network, self.data.test, self.runner)
        known = memo.read() if self.runner.world == 1 else None
        if known is None:
            metrics, details = self._test(network, title)
            known = {"metrics": metrics, **details}
            if remember:
                self._remember.append(partial(memo.write, known))
        return known

    def _test(self, network: Model, title: str) -> Any:
        """Test metrics and details; without a test set, how often a student agrees with its teacher."""
        if self.data.test is not None:
            return self.runner.evaluate(network, self.data.test, title=title)
        if self.teacher is None or network is self.teacher:
            return {}, {}
        run_data = self.runner.run_data
        judges, unseen = judges_of(run_data.positions, len(run_data.train))
        measured = self.task.unlabelled_metrics(run_data.classes, self.teacher, self.device)
        metrics, details = self.runner.evaluate(network, run_data.train, judges, title, measured)
        return metrics, {**details, "measured_on": {"samples": len(judges), "unseen": unseen}}

    def _held_out(self) -> dict[str, float]:
        """Metrics of the student on the samples held out of training, by which settings are to be chosen."""
        held = self.runner.run_data.held
        return {} if held is None else self.runner.evaluate(self.student, *held, title="held-out samples")[0]


def _tell_missing(labels: torch.Tensor | None, positions: torch.Tensor, data: Data) -> None:
    """Warn where the choice of samples has left none of some class."""
    if labels is None or labels.dim() != 1:
        return
    whole, chosen = (set(values[values >= 0].unique().tolist()) for values in (labels, labels[positions]))
    if missing := sorted(whole - chosen):
        logging.getLogger("protege").warning(
            "the %d samples show %d of the %d classes; there is none of %r to learn from.",
            len(positions),
            len(chosen),
            len(whole),
            data.classes[missing[0]],
        )
