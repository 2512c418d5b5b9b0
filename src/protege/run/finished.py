"""A run that is finished already: what it has left, and that it is the one which is asked for."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..models import Model, load_model
from ..models.description import read_description
from ..models.trust import is_typed
from ..report import write_run_report
from ..training.checkpoint import load_checkpoint
from .folder import SPEC_KEYS, report
from .prepare import prepare
from .recipe import Recipe


def finished(
    settings: Recipe, given: Mapping[str, Any], objects: Mapping[str, Any], out: Path
) -> tuple[Model, dict[str, Any]]:
    """The student and the result that a finished run has left. Raises where it was made with others than are ``given``,
    or than its recipe names."""
    result = json.loads((out / "result.json").read_text(encoding="utf-8"))
    try:
        run = prepare(settings, objects, out, resume=True)
    except UserError:
        if given.get("teacher") is not None or given.get("data") is not None or not _gone(settings, objects):
            raise
    else:  # else what the recipe names may be gone by now, and the student's folder is enough
        run.check_origin(_origin(result, out))
    logging.getLogger("protege").info("the run in %s is finished already; nothing is left to do", out)
    if not (out / "report.html").exists():  # killed between the two
        report(write_run_report, out)
    student = objects.get("student")
    network = None if student is None else getattr(student, "network", student)
    folder = out / "student"
    trust = settings.trust or is_typed(read_description(folder), settings.student)  # the run made it
    return load_model(folder, network=network, trust=trust), result


def _origin(result: dict[str, Any], out: Path) -> dict[str, Any]:
    """What a finished run was made with, as far as it tells: version 0.1 kept it in checkpoints only."""
    if "origin" in result:
        return result["origin"]
    with suppress(UserError):  # they are damaged
        if checkpoint := load_checkpoint(out / "checkpoint"):
            return checkpoint[1]["state"].get("origin", {})
    return {}


def _gone(settings: Recipe, objects: Mapping[str, Any]) -> bool:
    """Whether something that a recipe names is not there any more, or not again: an object, a folder or a file."""

    def missing(key: str) -> bool:
        spec = str(getattr(settings, key) or "")
        if key in objects or not spec:
            return False
        path = spec.partition(":")[2].partition("?")[0] if key == "data" else "" if ":" in spec else spec
        return spec.startswith("python:") or (bool(path) and not Path(path).expanduser().exists())

    return any(map(missing, SPEC_KEYS))
