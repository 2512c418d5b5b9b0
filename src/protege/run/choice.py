"""Which method and settings a run has: those of the one that goes on; for method ``auto`` what a diagnosis advises."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list

from ..diagnosis import at_chance
from ..errors import UserError
from ..methods.teaching import TARGET_KEYS, beside
from ..numerics import deterministic
from ..tasks import TASKS, find_task
from .diagnose import diagnose
from .folder import resumed_settings
from .recipe import MEMORY, Recipe, make_recipe, size_in_bytes


def with_method(given: dict[str, Any], objects: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, with method ``auto`` replaced by what a diagnosis recommends; what is given stays as it is."""
    if given.get("method") != "auto":
        return given
    for key in ("teacher", "student", "data"):
        if given.get(key) is None:
            raise UserError(f"method 'auto' has no {key}; expected one to look at: add {key}=….")
    options = {key: given[key] for key in ("fraction", "samples", "seed", "precision") if given.get(key) is not None}
    typed = make_recipe({k: v for k, v in given.items() if k in Recipe.model_fields} | {"method": "kd"})
    if typed.task and not find_task(typed.task).labelled:
        raise UserError(
            f"method 'auto' goes by what a teacher says about classes, which the task {typed.task!r} does not have; "
            "expected a method by name: choose kd or skd."
        )
    options = {key: getattr(typed, key) for key in options} | {"trust": typed.trust}
    specs = {key: objects.get(key, given[key]) for key in ("teacher", "student", "data")}
    with deterministic(typed.deterministic):
        diagnosis = diagnose(
            **specs,
            **options,
            classes=typed.classes,
            image_size=typed.image_size,
            memory_limit=size_in_bytes(typed.memory_limit or MEMORY),
            skip_bad=typed.skip_bad,
        )
    if at_chance(diagnosis.result["teacher"]["transfer"]):
        raise UserError(
            f"method auto: the teacher {given['teacher']!r} is at chance level on the transfer set; expected a trained "
            f"teacher: check that {TASKS[diagnosis.result['task']].suspects}, or train on the labels with "
            "method='none'."
        )
    (advice,) = broadcast_object_list([diagnosis.recommendation])  # so that all processes do the same
    chosen = {key: value for key, value in given.items() if value is not None and key != "method"}
    settings = beside(advice.settings, chosen)
    lines = [f"auto: method {advice.method}", *advice.reasons]
    lines += [f"{key} = {chosen[key]} as you set it." for key in TARGET_KEYS if key in chosen]
    if dropped := sorted(set(advice.settings) - set(settings) - set(chosen)):
        lines.append(f"The advice on {', '.join(dropped)} does not suit that and is left out.")
    for line in lines:
        logging.getLogger("protege").info(line)
    return {**settings, **chosen, "method": advice.method}


def begun_settings(out: Path, given: dict[str, Any], objects: Mapping[str, Any]) -> dict[str, Any]:
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
