"""Whose a folder is: known by what only this program writes. Recipes and studies are the user's to write, too."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

LOG, CHECKPOINT = "metrics.jsonl", r"\d{8}\.(json|pt)"
_FOOTER = re.compile(rb"<footer>Made by (protege|understudy) from the files in this folder\.")


def recorded(folder: Path) -> dict[str, Any]:
    """What the run in ``folder`` says of its beginning: the ``start`` event of its log; empty where there is none."""
    try:
        with open(folder / LOG, "rb") as file:
            event = json.loads(file.readline())
    except (OSError, ValueError, RecursionError):
        return {}
    ours = isinstance(event, dict) and event.get("event") == "start" and {"method", "task", "student"} <= event.keys()
    return event if ours else {}


def is_run(folder: Path) -> bool:
    """Whether a run has written here: the beginning of its log or, where that was lost, a checkpoint or its result."""
    if recorded(folder) or json_has(folder / "result.json", "version", "method", "student", "phases"):
        return True
    records = [path for path in folder.glob("checkpoint/*.json") if re.fullmatch(CHECKPOINT, path.name)]
    return any(json_has(path, "sha256") and path.with_suffix(".pt").is_file() for path in records)


def is_finished(folder: Path) -> bool:
    """Whether a run's result and its student are there: what was lost of them is made again from the checkpoint."""
    student = folder / "student"
    whole = json_has(folder / "result.json", "student") and json_has(student / "config.json", "format")
    return whole and (student / "model.safetensors").is_file()


def is_study(folder: Path) -> bool:
    """Whether a study has written here."""
    return json_has(folder / "study.json", "version", "name", "columns", "rows", "runs")


def is_diagnosis(folder: Path) -> bool:
    """Whether a diagnosis has been written here."""
    return json_has(folder / "diagnosis.json", "version", "teacher", "verdicts", "recommendation")


def is_export(folder: Path) -> bool:
    """Whether a model was exported to this folder."""
    return json_has(folder / "export.json", "version", "to", "file", "difference")


def is_shrunk(folder: Path) -> bool:
    """Whether a model was shrunk into this folder."""
    return json_has(folder / "shrink.json", "version", "model", "how", "before", "after")


def is_report(path: Path) -> bool:
    """Whether a page is one of this program's reports."""
    try:
        return _FOOTER.search(path.read_bytes()) is not None
    except OSError:
        return False


def json_has(path: Path, *keys: str) -> bool:
    """Whether a file holds a JSON object that has these keys."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and found.keys() >= set(keys)
