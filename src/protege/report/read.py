"""Reading a run folder as it lies on disk: finished, still running, or cut off in the middle of a line."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from ..errors import UserError


@dataclass(frozen=True)
class Run:
    """What a run folder says.

    ``result`` is result.json; of an unfinished run, what ``start`` events of metrics.jsonl already tell of
    it (the same keys), else empty. ``epochs`` holds the last record of each (phase, epoch), ``fills`` of each
    (source, view), ``solves`` of each solved phase, ``blocks`` of each (phase, name, sweep) that was solved in it; all
    in the order in which they were first written.
    """

    folder: Path
    result: dict[str, Any]
    finished: bool
    recipe: dict[str, Any] = field(default_factory=dict)
    recipe_text: str = ""
    epochs: list[dict[str, Any]] = field(default_factory=list)
    fills: list[dict[str, Any]] = field(default_factory=list)
    solves: list[dict[str, Any]] = field(default_factory=list)
    blocks: list[dict[str, Any]] = field(default_factory=list)
    planned: list[dict[str, Any]] = field(default_factory=list)  # the phases as they were laid out

    def part(self, name: str) -> dict[str, Any]:
        """A table of the result (``"teacher"``, ``"student"``, ``"data"``, …); empty when absent or null."""
        return table(self.result.get(name))

    def metrics(self, name: str, key: str = "metrics") -> dict[str, float]:
        """The metrics of the ``"student"`` or the ``"teacher"``."""
        return numbers(self.part(name).get(key))

    @property
    def measured(self) -> list[str]:
        """The metrics of the student, of its teacher, and of the epochs."""
        parts = [self.metrics("student"), self.metrics("teacher"), *(numbers(r.get("eval")) for r in self.epochs)]
        return list(dict.fromkeys(name for part in parts for name in part))

    @property
    def latest(self) -> dict[str, float]:
        """What the student of an unfinished run was last measured at."""
        return next((values for r in reversed(self.epochs) if (values := numbers(r.get("eval")))), {})

    @property
    def phases(self) -> list[dict[str, Any]]:
        """The phases as the result tells them, or the start: ``name``, ``kind``, ``epochs``, ``seconds``, …"""
        return records(self.result.get("phases"))

    @property
    def noun(self) -> str:
        """What its samples are called."""
        return "sample" if "perplexity" in self.measured else "image"

    def setting(self, name: str) -> str:
        """A name from the result, else the recipe (a string, or a table's ``spec`` or ``name``), else ``""``."""
        for source in (self.result, self.recipe):
            value = source.get(name)
            if isinstance(value, dict):
                value = value.get("spec") or value.get("name")
            if value is not None and not isinstance(value, list):
                return str(value)
        return ""


def table(value: Any) -> dict[str, Any]:
    """A JSON object; empty for anything else."""
    return value if isinstance(value, dict) else {}


def records(value: Any) -> list[dict[str, Any]]:
    """The JSON objects of a list; none of anything else."""
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def numbers(values: Any) -> dict[str, float]:
    """The finite numbers of a mapping, as floats; everything else is left out."""
    return {str(key): float(value) for key, value in table(values).items() if is_number(value)}


def seconds_of(values: Iterable[dict[str, Any]]) -> float:
    """What records took together."""
    return sum(numbers(record).get("seconds", 0.0) for record in values)


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value is a finite number, truth values excepted."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises UserError when it is not one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}): run again, or restore the file") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds a JSON {type(value).__name__}, expected an object: restore the file")
    return value


def read_events(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a metrics.jsonl, without lines a kill left half written; none without a file."""
    events = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        with suppress(ValueError, RecursionError):
            events.append(json.loads(line))
    return records(events)


def read_run(folder: Path) -> Run:
    """Read a run folder. Raises UserError when it holds none of a run's files, or a damaged result.json."""
    result_file, recipe_file = folder / "result.json", folder / "recipe.toml"
    if not any(path.is_file() for path in (result_file, recipe_file, folder / "metrics.jsonl")):
        raise UserError(
            f"{folder} holds no run (none of recipe.toml, metrics.jsonl, result.json): name the folder of a run"
        )
    recipe_text = recipe_file.read_text(encoding="utf-8", errors="replace") if recipe_file.is_file() else ""
    recipe: dict[str, Any] = {}  # a damaged one is still shown as text
    with suppress(tomllib.TOMLDecodeError):
        recipe = tomllib.loads(recipe_text)
    events = read_events(folder / "metrics.jsonl")

    def last(kind: str, *keys: str) -> list[dict[str, Any]]:
        """The last event of a kind for each value of its keys."""
        latest = {tuple(str(event.get(key)) for key in keys): event for event in events if event.get("event") == kind}
        return [{**event, "phase": str(event.get("phase", ""))} for event in latest.values()]

    start: dict[str, Any] = {}
    for event in events:
        start |= event if event.get("event") == "start" else {}
    return Run(
        folder=folder,
        result=read_json(result_file) if result_file.is_file() else start,
        finished=result_file.is_file(),
        recipe=recipe,
        recipe_text=recipe_text,
        epochs=[record for record in last("epoch", "phase", "epoch") if is_number(record.get("epoch"))],
        fills=last("fill", "source", "view"),
        solves=last("solve", "phase"),
        blocks=last("block", "phase", "name", "sweep"),
        planned=records(start.get("phases")),
    )
