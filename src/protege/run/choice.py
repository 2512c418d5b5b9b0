"""Which method and settings a run has: those of the one that goes on; for ``auto`` what does best in short trials.

A short list comes from what is known before (`diagnosis.recommend`). Each of it that takes the two networks is then
taught briefly, by a run like any other whose rate has fallen to nothing at its end, and judged on samples held out of
those to learn from; the test set is not there. The better half is taught for longer (successive halving: Jamieson &
Talwalkar 2016, arXiv 1502.07943), and the best of them is what the run goes on with. Trials and run share the cache of
the teacher's signals, as they learn from the same samples in the same views.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from ..data import Data, choose
from ..diagnosis import Candidate, Facts, Recommendation, at_chance, facts_about, recommend
from ..diagnosis.recommend import FEW
from ..errors import UserError
from ..files import CHOICE, is_run, write_json
from ..methods.teaching import TARGET_KEYS, beside
from ..models import held_out_by
from ..numerics import deterministic
from ..tasks import TASKS, Task, find_task
from ..training.progress import in_words
from .diagnose import diagnose
from .folder import clear, resumed_settings
from .prepare import open_data, prepare
from .recipe import Recipe, make_recipe

BUDGET = 0.4  # of the epochs of a run, and of its time: those of all trials together
HELD_OUT = 0.2  # of the samples to learn from: those that a trial is judged on
MOST = 4  # that are tried
TELLING = 3  # epochs, so that a first round of halving says something
COST = {"gpd": 3}  # an epoch of it, where that of others is 1 or so
LOOKED_AT = 2000  # samples that teacher and student are read on
LENGTHS = ("finetune_epochs", "finetune_steps")  # of phases that have one of their own

_say = logging.getLogger("protege").info


@dataclass(frozen=True)
class Trials:
    """Where trials lie, and what makes one: ``perform(given, out, resume=…)``, as for any run. ``hold`` keeps others
    out of the folder ``out``."""

    perform: Callable[..., Any]
    out: Path
    hold: Callable[[], None]
    overwrite: bool = False


@dataclass(frozen=True)
class _Entrant:
    """A candidate that takes the two networks, with its whole ``settings`` and what they come to."""

    candidate: Candidate
    settings: dict[str, Any]
    recipe: Recipe

    @property
    def epochs(self) -> int:
        """Of a phase, in full; 0 where nothing but `LENGTHS` says how long it takes."""
        return 0 if self.candidate.method == "fskd" else self.recipe.epochs or 0


@dataclass(frozen=True)
class _Known:
    """What is known before any trial: the ``data`` without its test set, which is not looked at, and the advice."""

    data: Data
    task: Task
    samples: int
    labelled: bool
    advice: Recommendation


def chosen(
    given: dict[str, Any], objects: Mapping[str, Any], trials: Trials | None = None, solved: bool = False
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The settings, with method ``auto`` replaced by the best, and what was seen for that (``choice`` of
    ``result.json``); what is given stays as it is. Without ``trials`` the likeliest method is the best. ``solved``:
    the student has been solved for by `fskd` already."""
    if given.get("method") != "auto":
        if given.get("time") is not None:
            raise UserError(
                f"time = {given['time']!r} is for method 'auto', which makes its run so long; expected epochs of "
                f"method {given.get('method') or 'kd'!r}: use epochs=…, or method='auto'."
            )
        return given, None
    for key in ("teacher", "student", "data"):
        if given.get(key) is None:
            raise UserError(f"method 'auto' has no {key}; expected one to look at: add {key}=….")
    asked = {key: value for key, value in given.items() if value is not None and key != "method"}
    common = make_recipe({k: v for k, v in asked.items() if k in Recipe.model_fields} | {"method": "kd"})
    known = _look(common, objects, solved)
    entrants, left_out = _entrants(known, asked, objects)
    record: dict[str, Any] = {"left_out": left_out, "tried": []}
    best, why = entrants[0], "it is the only one that suits."
    if best.candidate.method == "fskd" and not known.labelled and known.samples <= FEW:
        entrants, why = entrants[:1], "nothing does better from so few samples without labels."
    if len(entrants) > 1:
        why = "it is the likeliest, and there are too few epochs to try several."
    timed = common.time is not None and any(entrant.epochs > 1 for entrant in entrants)
    if trials is not None and (timed or len(_field(entrants)) > 1):
        _open_folder(trials)
        if common.time is not None:
            entrants, record["tried"] = _fitting(entrants, known, objects, trials, common.time)
        best, field = entrants[0], _field(entrants)
        if len(field) > 1:
            best, why, tried = _best(field, known, objects, trials, common.time)
            record["tried"] += tried
    settings = {**best.settings, **_length(best, record["tried"], common.time)}
    record = {"method": best.candidate.name, "why": why, **record}
    for line in (f"auto: {best.candidate.name}, as {why}", best.candidate.reason, *_target_reasons(best, known, asked)):
        _say(line)
    if trials is not None and PartialState().is_main_process and record["tried"]:
        write_json(trials.out / CHOICE, {"version": 1, **record})
    return settings, record


def begun_settings(
    out: Path, given: dict[str, Any], objects: Mapping[str, Any], trials: Trials, solved: bool = False
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The settings of the run that is to go on, or of one that was stopped before it began, and its choice if it is
    made only now."""
    if (out / "recipe.toml").exists():
        kept = {"method": None} if given.get("method") == "auto" else {}  # when the run began
        return resumed_settings(out, {**given, **kept}), None
    given, choice = chosen(given, objects, trials, solved)
    if given.get("student") is None:
        raise UserError(f"resume=True found no run in {str(out)!r}; expected a run's folder: name another with out=….")
    if any(out.glob("checkpoint/*.json")):
        raise UserError(
            f"resume=True found no recipe.toml in {str(out)!r}; expected the one that the run was begun with: put it "
            "back, or start anew with overwrite=True."
        )
    return resumed_settings(out, given), choice


# ---- what is known before any trial --------------------------------------------------------------------------------


def _look(common: Recipe, objects: Mapping[str, Any], solved: bool) -> _Known:
    if common.task and not find_task(common.task).labelled:
        raise UserError(
            f"method 'auto' goes by what a teacher says about classes, which the task {common.task!r} does not have; "
            "expected a method by name: choose kd or skd."
        )
    specs = {key: objects.get(key, getattr(common, key)) for key in ("teacher", "student")}
    data = replace(open_data(common, objects, held_out_by(*specs.values())), val=None, test=None)
    with deterministic(common.deterministic):
        if not data.labelled:
            run = prepare(common, {**_copies(objects), "data": data}, Path())
            positions = run.loop.train.positions
            facts = facts_about(run.data, positions, run.student, run.teacher)
            return _Known(data, run.task, len(positions), False, recommend(replace(facts, solved=solved)))
        chosen_by = {key: getattr(common, key) for key in ("fraction", "samples", "seed")}
        count = len(choose(data.train.labels, count=len(data.train), each=False, **chosen_by))
        how = {key: getattr(common, key) for key in ("classes", "seed", "precision", "trust")}
        found = diagnose(data=data, samples=min(count, max(LOOKED_AT, len(data.classes))), **specs, **how)
    if at_chance(found.result["teacher"]["transfer"]):
        raise UserError(
            f"method auto: the teacher {common.teacher!r} is at chance level on the transfer set; expected a trained "
            f"teacher: check that {TASKS[found.result['task']].suspects}, or train on the labels with "
            "method='none'."
        )
    facts = replace(Facts(**found.result["facts"]), samples=count, solved=solved)
    (advice,) = broadcast_object_list([recommend(facts, found.result)])  # so that all processes do the same
    return _Known(data, find_task(common.task or data.task), count, facts.labelled, advice)


def _entrants(
    known: _Known, asked: dict[str, Any], objects: Mapping[str, Any]
) -> tuple[list[_Entrant], list[dict[str, str]]]:
    """The candidates that take these networks and settings; the others, and why not. Raises `UserError` where none
    does."""
    entrants, left_out, refusal = [], [], None
    for candidate in known.advice.candidates:
        settings = {**beside(candidate.settings, asked), **asked, "method": candidate.method}
        try:
            run = prepare(make_recipe(settings), {**_copies(objects), "data": known.data}, Path())
        except UserError as error:
            refusal = refusal or error
            left_out.append({"name": candidate.name, "why": str(error)})
        else:
            entrants.append(_Entrant(candidate, settings, run.settings))
    if not entrants:
        assert refusal is not None
        raise refusal
    return entrants, left_out


def _target_reasons(best: _Entrant, known: _Known, asked: Mapping[str, Any]) -> list[str]:
    """Why its target is what it is."""
    lines = known.advice.reasons[1:] if best.candidate == known.advice.candidates[0] else []
    lines += [f"{key} = {asked[key]} as you set it." for key in TARGET_KEYS if key in asked]
    if dropped := sorted(set(best.candidate.settings) - set(best.settings)):
        lines.append(f"The advice on {', '.join(dropped)} does not suit that and is left out.")
    return lines


def _copies(objects: Mapping[str, Any]) -> dict[str, Any]:
    """What is given in Python, with a student that may be taught."""
    return {key: copy.deepcopy(value) if key == "student" else value for key, value in objects.items()}


# ---- trials --------------------------------------------------------------------------------------------------------


def _field(entrants: Sequence[_Entrant]) -> list[_Entrant]:
    """Those that can be tried for an epoch at least, the likelier first."""
    field: list[_Entrant] = []
    for entrant in entrants:
        larger = [*field, entrant]
        if len(larger) <= MOST and _share(larger) * _epochs(larger) >= 1:
            field = larger
    return field


def _epochs(field: Sequence[_Entrant]) -> int:
    return min((entrant.epochs for entrant in field if entrant.epochs), default=100)


def _share(field: Sequence[_Entrant]) -> float:
    """For which share of its length each can be taught, so that all are within the budget."""
    return BUDGET / sum(COST.get(entrant.candidate.method, 1) for entrant in field)


def _fitting(
    entrants: list[_Entrant], known: _Known, objects: Mapping[str, Any], trials: Trials, seconds: float
) -> tuple[list[_Entrant], list[dict[str, Any]]]:
    """The same with no more epochs than there is time for, by how long one of the likeliest takes, and that trial."""
    first = next((entrant for entrant in entrants if entrant.epochs > 1), None)
    if first is None:
        return entrants, []
    (seen,) = broadcast_object_list([_tried(first, 1 / first.epochs, known, objects, trials)])
    if not seen["seconds"]:
        return entrants, [seen]
    most = max(1, math.floor(seconds * (1 - HELD_OUT) / seen["seconds"]))
    shortened = []
    for entrant in entrants:
        if entrant.epochs > most:
            settings = {**entrant.settings, "epochs": most}
            entrant = replace(entrant, settings=settings, recipe=make_recipe(settings))
        shortened.append(entrant)
    return shortened, [seen]


def _open_folder(trials: Trials) -> None:
    if PartialState().is_main_process:
        trials.out.mkdir(parents=True, exist_ok=True)
        trials.hold()
        if trials.overwrite:
            clear(trials.out, log=False, parts=["choice"])
        (trials.out / CHOICE).parent.mkdir(exist_ok=True)
        write_json(trials.out / CHOICE, {"version": 1, "method": None, "tried": []})
    PartialState().wait_for_everyone()


def _best(
    field: list[_Entrant], known: _Known, objects: Mapping[str, Any], trials: Trials, seconds: float | None
) -> tuple[_Entrant, str, list[dict[str, Any]]]:
    """The best of the field, why, and all that was tried."""
    _say(f"auto: tries {', '.join(e.candidate.name for e in field)} on samples held out of those to learn from")
    tried: list[dict[str, Any]] = []
    halved = len(field) > 2 and _share(field) / 2 * _epochs(field) >= TELLING
    for last in (False, True) if halved else (True,):
        share, results = _share(field) / (2 if halved else 1), []
        for entrant in field:
            if tried and seconds is not None and sum(seen["took"] for seen in tried) > BUDGET * seconds:
                _say(f"auto: no time is left to try {entrant.candidate.name}")
                continue
            (seen,) = broadcast_object_list([_tried(entrant, share, known, objects, trials)])
            tried.append(seen)
            results.append((entrant, seen["held_out"]))
        if not results:
            break
        done = [(entrant, value) for entrant, value in results if value is not None]
        if not done:
            return field[0], "it is the likeliest, and no trial came to an end.", tried
        sign = -1 if known.task.higher_is_better else 1
        done.sort(key=lambda pair: sign * pair[1])  # of equal ones the likelier stays first
        field = [entrant for entrant, _ in done]
        if not last:
            field = field[: math.ceil(len(field) / 2)]
    metric = next(seen["metric"] for seen in reversed(tried) if seen["held_out"] is not None)
    (_, value), *rest = done
    others = f", {rest[0][0].candidate.name} at {rest[0][1]:.4f}" if rest else ""
    return field[0], f"its {metric} on held-out samples was best: {value:.4f}{others}.", tried


def _tried(
    entrant: _Entrant, share: float, known: _Known, objects: Mapping[str, Any], trials: Trials
) -> dict[str, Any]:
    """What a candidate comes to when taught for a ``share`` of its length; a trial that is there already is read."""
    name, settings = entrant.candidate.name, _short(entrant, share, known)
    epochs = settings.get("epochs", 0)
    folder = trials.out / "choice" / f"{name.replace(', ', '-').replace('_', '-')}-{max(1, epochs)}"
    given = {**settings, **_copies(objects), "data": known.data}
    seen: dict[str, Any] = {"name": name, "method": entrant.candidate.method, "reason": entrant.candidate.reason}
    seen |= {"epochs": epochs, "share": share, "folder": str(folder.relative_to(trials.out))}
    begun = time.monotonic()
    try:
        result = trials.perform(given, folder, resume=is_run(folder)).result
    except UserError as error:
        _say(f"auto: {name} failed: {error}")
        return seen | {"held_out": None, "metric": "", "seconds": 0.0, "took": 0.0, "why": str(error)}
    student = result["student"]
    metric, value = known.task.metric, student.get("held_out", {}).get(known.task.metric)
    if value is None:
        metric, value = "agreement", student["metrics"].get("agreement")
    shown = "" if value is None else f" {metric} {value:.4f}"
    _say(f"auto: {name}:{shown} after {epochs or 'no'} epochs of {entrant.epochs} ({in_words(result['seconds'])})")
    took = max(time.monotonic() - begun, result["seconds"])  # of one that is only read, what it took once
    return seen | {"held_out": value, "metric": metric, "seconds": result["seconds"], "took": took}


def _short(entrant: _Entrant, share: float, known: _Known) -> dict[str, Any]:
    """A trial's settings: a schedule of its own for a ``share`` of the length, and other samples to be judged on.

    The last state is kept, as one that is picked by the samples that judge it would look better than it is.
    """
    recipe = entrant.recipe

    def part(whole: Any) -> int:
        return max(1, math.floor(share * whole + 1e-9))

    settings = {k: v for k, v in entrant.settings.items() if k not in ("time", "log_with")}
    phases = {
        name: {key: part(value) if key == "epochs" else value for key, value in changes.items()}
        for name, changes in entrant.settings.get("phases", {}).items()
    }
    settings |= {key: part(whole) for key in LENGTHS if (whole := getattr(recipe, key, 0))}
    settings |= {"select": "last", "patience": 0}
    if entrant.epochs:
        epochs = part(entrant.epochs)
        settings |= {"epochs": epochs, "eval_every": epochs, "batch_size": recipe.batch_size}
    if phases:
        free = ("select", "patience", "eval_every")
        settings["phases"] = {n: {k: v for k, v in c.items() if k not in free} for n, c in phases.items()}
    if known.labelled:
        return settings | {"validation": HELD_OUT}
    settings.pop("fraction", None)  # without labels nothing can be held out: a trial learns from fewer
    return settings | {"samples": max(1, math.ceil((1 - HELD_OUT) * known.samples))}


def _length(best: _Entrant, tried: Sequence[Mapping[str, Any]], seconds: float | None) -> dict[str, Any]:
    """The epochs that fit into what is left of the time, by what the trials have taken."""
    mine = [seen for seen in tried if seen["name"] == best.candidate.name and seen["epochs"] and seen["seconds"]]
    if seconds is None or not mine:
        return {}
    left = seconds - sum(seen["took"] for seen in tried)
    an_epoch = max(seen["seconds"] / seen["epochs"] for seen in mine) / (1 - HELD_OUT)
    fitting = max(1, min(best.epochs, math.floor(left / an_epoch)))
    return {"epochs": fitting} if fitting < best.epochs else {}
