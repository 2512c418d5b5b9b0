"""Studies: a grid of runs, resumable, told in one table with means, intervals and paired differences.

What is run stands in a file, see `study_file`.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext, suppress
from itertools import cycle, islice
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from pydantic import ValidationError

from ..errors import UserError, told
from ..files import clear_drafts, is_finished, is_run, is_shrunk, is_study, recorded
from ..models.description import read_description
from ..models.storage import locate
from ..models.trust import is_typed, names_code
from ..settings import public
from ..training.progress import Display
from ..training.stop import Stops
from .api import distill
from .folder import MODEL_FILES, SPEC_KEYS, check_out, clear, holding, present, remove_empty, wait_until_free
from .study_file import Study, load_study, options_of, prepared_in, slug, texts_in
from .summary import summarise
from .toml import read_toml, write_toml
from .workers import Worker, gpus

FILES = ("study.json", "study.toml", "study.md", "report.html")  # the first is what only a study writes
WORK = ("result.json", "config.json", "checkpoint")  # of these, a folder holds something that took time


@public
def run_study(
    path: str | Path,
    out: str | Path,
    *,
    jobs: int = 1,
    resume: bool = False,
    overwrite: bool = False,
    trust: bool = False,
    changes: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Run a study file's grid into ``out`` and return what ``study.json`` holds.

    ``jobs`` processes perform the runs, each with its share of the processor and, in turn, one of the GPUs: where there
    are fewer, several runs share one. A run that fails is named in the table
    and does not stop the others. ``trust`` is that of `protege.load_model` for all models that
    the file names, where it does not say it of some itself.
    """
    study, out = load_study(path, changes), Path(out)

    def check() -> None:
        replaced = [*FILES, *_made(study.made())]
        proof = "study.json of a study"
        check_out(out, resume=resume, overwrite=overwrite, owned=is_study, proof=proof, replaced=replaced)

    check()
    with holding(out) as hold:
        out.mkdir(parents=True, exist_ok=True)
        hold()
        check()  # another may have been quicker
        if resume and (out / "study.toml").exists():
            _check_same(study, out)
        if overwrite:
            _clear(out)
        if not is_study(out):
            summarise(study, [], out)  # first: the folder is known by it
        write_toml(out / "study.toml", study.model_dump(exclude_none=True))
        return _perform(study, out, jobs, trust)


def _made(plan: Mapping[str, Any]) -> list[str]:
    """What a study makes of the folders of its plan: these, and their logs."""
    logs = [name.replace("prepared/", "prepare-").replace("runs/", "") for name in plan]
    return [*plan, *(f"logs/{name}.{kind}" for name in logs for kind in ("log", "toml"))]


def _clear(out: Path) -> None:
    """Remove what the study in ``out`` made, and nothing else: the folders that its plan names and their logs, in the
    folders of its runs and models what is theirs."""
    made = _made(_begun(out).made()) if (out / "study.toml").exists() else []
    for path in present(out, made) if is_study(out) else []:
        if path.is_dir():
            clear(path)
            if is_shrunk(path):
                for name in (*MODEL_FILES, "shrink.json"):
                    (path / name).unlink(missing_ok=True)
            clear_drafts(path)
            remove_empty(path)
        else:
            path.unlink()
    for name in ("logs", "runs", "prepared"):
        remove_empty(out / name)
    for path in reversed(present(out, FILES)):
        path.unlink()


def _begun(out: Path) -> Study:
    """The study as it was begun in ``out``."""
    path = out / "study.toml"
    try:
        return Study.model_validate(read_toml(path))
    except ValidationError as error:
        raise UserError(f"{str(path)!r} is of another version ({told(error)}); name another folder.") from None


def _perform(study: Study, out: Path, jobs: int, trust: bool) -> dict[str, Any]:
    todo = study.planned()

    def allowed(settings: dict[str, Any]) -> dict[str, Any]:
        return {"trust": True, **settings} if trust or _is_trusted(settings, study, out) else settings

    _check_finished([out / "runs" / slug(*work) for work in todo], trust)
    runs: list[dict[str, Any]] = []
    telling = threading.Lock()
    cores = os.cpu_count() or 1
    with Display(True) as display, Stops(display, True), ExitStack() as started:
        bar = display.reporter(study.name)
        devices: list[str | None] = [*gpus()] or [None]
        slots = list(islice(cycle(devices), jobs))
        made = [*study.prepare.values(), *(study.recipe_of(*work) for work in todo)]
        repeatable = any(settings.get("deterministic") for settings in made)
        workers = [started.enter_context(Worker(max(1, cores // jobs), gpu, repeatable)) for gpu in slots]
        with Worker(cores, slots[0], repeatable) if jobs > 1 else nullcontext(workers[0]) as worker:  # of all threads
            for name, step in study.prepare.items():
                display.say(f"prepared {name}: {_prepare(name, allowed(step), out, worker)}", always=True)

        idle: SimpleQueue[Worker] = SimpleQueue()
        for worker in workers:
            idle.put(worker)

        def perform(work: tuple[dict[str, Any], int]) -> None:
            setting, seed = work
            folder = out / "runs" / slug(setting, seed)
            worker = idle.get()
            try:
                status = _run(_resolved(allowed(study.recipe_of(setting, seed)), out), folder, worker)
            finally:
                idle.put(worker)
            run = {"setting": setting, "seed": seed, "out": str(folder.relative_to(out)), "status": status}
            with telling:
                runs.append(run)
                summarise(study, runs, out)
                bar(len(runs), len(todo))
                display.say(f"{len(runs)}/{len(todo)} {folder.name}: {_outcome(folder, status)}", always=True)

        bar(0, len(todo))
        with ThreadPoolExecutor(jobs) as pool:
            try:
                list(pool.map(perform, todo))
            finally:  # interrupted, perhaps
                for worker in workers:
                    worker.stop()
    return summarise(study, runs, out)


def _check_same(study: Study, out: Path) -> None:
    """Raise unless everything made in ``out`` is in the study as it was begun; rows and seeds may come on top.

    A run that failed before it had anything to go on from does not count: where it is to be another, it is cleared.
    """
    begun, now, failed = _begun(out).made(), study.made(), []
    for name, then in begun.items():
        given = now.get(name, {})
        if not (out / name).exists() or then == given:
            continue
        if not any((out / name / mark).exists() for mark in WORK):
            failed += [out / name] if given else []
            continue
        other = next(key for key in {**then, **given} if then.get(key) != given.get(key))
        what = f"which was begun with another {other!r}" if given else "which the study no longer names"
        raise UserError(
            f"resume=True in {str(out)!r}, where {name} lies, {what}; expected the same and perhaps more: "
            "change it back, remove that folder to make it anew, or name another out=…."
        )
    for folder in failed:
        clear(folder)


def _check_finished(folders: Sequence[Path], trust: bool) -> None:
    """Raise unless finished runs were made with what their recipes name now; of runs that were made with the same, one
    is opened."""
    opened: dict[str, Path] = {}
    for folder in folders:
        if (folder / "result.json").exists() and (folder / "recipe.toml").exists():
            origin = {key: value for key, value in recorded(folder).get("origin", {}).items() if key != "settings"}
            recipe = read_toml(folder / "recipe.toml")
            opened.setdefault(json.dumps([origin, *(recipe.get(key) for key in SPEC_KEYS)], sort_keys=True), folder)
    for folder in opened.values():
        distill(out=folder, resume=True, trust=trust or None)


def _prepare(name: str, step: Mapping[str, Any], out: Path, worker: Worker) -> Path:
    """The model of a ``prepare`` table, made unless it is there. Raises `UserError` where that fails."""
    made = out / "prepared" / name
    model = made if step["command"] == "shrink" else made / "student"
    if not (model / "config.json").exists():
        options = _resolved(options_of(step), out)
        logs = out / "logs"
        if step["command"] == "shrink":
            given = ["--trust"] if options.get("trust") else []
            given += [f"--{key.replace('_', '-')}={_word(options[key])}" for key in options if key != "trust"]
        else:
            recipe = logs / f"prepare-{name}.toml"
            recipe.parent.mkdir(parents=True, exist_ok=True)
            write_toml(recipe, options)
            given = [str(recipe)]
        command = [step["command"], *given, "--out", str(made), *_again(made)]
        status = worker.call(command, logs / f"prepare-{name}.log")
        if status:
            raise UserError(f"prepare.{name} could not be made ({status}); mend it and go on with resume=True.")
    return model


def _word(value: Any) -> str:
    """A value as an option of `shrink` takes it: lists and tables with commas between."""
    if isinstance(value, Mapping):
        return ",".join(f"{key}={part}" for key, part in value.items())
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _resolved(settings: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Settings with ``prepared:NAME`` as the folder of that model."""

    def folder(value: Any) -> Any:
        made = out / "prepared" / prepared_in(value)[0] if isinstance(value, str) and prepared_in(value) else None
        return value if made is None else str(made / "student" if (made / "recipe.toml").exists() else made)

    return {key: folder(value) for key, value in settings.items()}


def _is_trusted(settings: Mapping[str, Any], study: Study, out: Path) -> bool:
    """Whether code that the folders of these settings' models name is what the study's file names: they made it."""
    named, typed = [], list(texts_in(study.model_dump()))
    for value, place in zip(settings.values(), _resolved(settings, out).values(), strict=True):
        with suppress(UserError, OSError):  # no folder, or one that nothing can be built of
            if isinstance(place, str) and names_code((description := read_description(locate(Path(place)))).model):
                named.append(value != place and any(is_typed(description, text) for text in typed))
    return bool(named) and all(named)


def _run(recipe: dict[str, Any], folder: Path, worker: Worker) -> str:
    """One run, resumed where it stopped; ``done`` or the error's sentence."""
    if is_finished(folder):
        return "done"
    logs = folder.parent.parent / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    recipe_file = logs / f"{folder.name}.toml"
    write_toml(recipe_file, recipe)
    arguments = ["distill", str(recipe_file), "--out", str(folder)]
    status = worker.call([*arguments, *_again(folder)], logs / f"{folder.name}.log")
    return status or ("done" if is_finished(folder) else "it left no result")


def _again(folder: Path) -> list[str]:
    """How to go on in a folder of this study: with the run begun there, else beside what is not a run's."""
    wait_until_free(folder)  # of a study that was killed
    return ["--resume"] if is_run(folder) else ["--overwrite"] if folder.exists() else []


def _outcome(folder: Path, status: str) -> str:
    if status != "done":
        return status
    metrics = json.loads((folder / "result.json").read_text(encoding="utf-8"))["student"]["metrics"]
    return "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
