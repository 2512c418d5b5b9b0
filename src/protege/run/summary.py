"""What a study's runs have measured, as one table: means, 95 % intervals, and differences paired by seed."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..files import write_json, write_text
from ..report import common_teacher, study_markdown, write_study_report
from ..tasks.guess import guesses, learned
from .folder import report
from .study_file import Study

AVERAGED = ("seconds", "student_samples_seen", "teacher_samples_forwarded", "teacher_samples_remembered")

Result = dict[str, Any]  # what a run's result.json holds


def summarise(study: Study, runs: Sequence[Mapping[str, Any]], out: Path) -> dict[str, Any]:
    """Write study.json, study.md and report.html from the runs that are done; returns what the first of them holds."""
    settings = study.settings()
    results: list[dict[int, Result]] = [{} for _ in settings]  # of each setting, by seed
    for run in sorted(runs, key=lambda run: run["seed"]):
        if run["status"] == "done":
            result = json.loads((out / run["out"] / "result.json").read_text(encoding="utf-8"))
            results[settings.index(run["setting"])][run["seed"]] = result
    done = [result for by_seed in results for result in by_seed.values()]
    rows = []
    for setting, by_seed in zip(settings, results, strict=True):
        baseline = {**setting, **study.baseline}  # 4 is 4.0
        compared = results[settings.index(baseline)] if study.baseline and baseline in settings else {}
        if by_seed:
            rows.append(_row(setting, by_seed, {} if baseline == setting else compared, done))
    summary = {
        "version": 1,
        "name": study.name,
        "columns": list(settings[0]),
        "baseline": study.baseline,
        "plan": study.model_dump(exclude_none=True),
        "planned": len(study.planned()),
        "rows": rows,
        "runs": sorted(runs, key=lambda run: run["out"]),
        "teacher": common_teacher(rows),  # of the whole study
        "environment": done[0]["environment"] if done else None,
    }
    write_json(out / "study.json", summary)
    failed = "".join(f"- {Path(run['out']).name}: {run['status']}\n" for run in runs if run["status"] != "done")
    write_text(out / "study.md", study_markdown(summary) + (f"\nNot done:\n\n{failed}" if failed else ""))
    report(write_study_report, out)
    return summary


def _row(
    setting: dict[str, Any], results: dict[int, Result], compared: dict[int, Result], done: list[Result]
) -> dict[str, Any]:
    """What is told of a setting: its results by seed, beside those of the baseline that it is compared with."""
    students = {seed: result["student"] for seed, result in results.items()}
    first = next(iter(results.values()))

    def values(key: str, tables: Sequence[Result]) -> dict[str, list[float]]:
        """By metric, those that all the tables have: runs of other versions measured less."""
        names = [name for name in tables[0] if all(name in table for table in tables)]
        return {name: [student[key][name] for student in students.values()] for name in names}

    measured = values("metrics", [result["student"]["metrics"] for result in done])
    seeds = [seed for seed in results if seed in compared]
    difference = {
        name: _spread([students[seed]["metrics"][name] - compared[seed]["student"]["metrics"][name] for seed in seeds])
        for name in measured
        if seeds
    }
    row: dict[str, Any] = {
        "setting": setting,
        "runs": len(results),
        "metrics": {name: {**_spread(numbers), "values": numbers} for name, numbers in measured.items()},
        "difference": difference or None,
        **{key: float(np.mean([result.get(key, 0) for result in results.values()])) for key in AVERAGED},
    }
    if teacher := first.get("teacher"):
        row["teacher"] = {key: teacher[key] for key in ("spec", "params", "metrics")}
    trained = all(os.path.exists(os.path.expanduser(student["spec"])) for student in students.values())
    for key, known in (("before", trained), ("held_out", all("held_out" in s for s in students.values()))):
        if known:
            tables = [measured, *(student[key] for student in students.values())]
            row[key] = {name: _spread(numbers) for name, numbers in values(key, tables).items()}
    if chance := first["student"].get("chance"):
        part = {"metrics": {name: spread["mean"] for name, spread in row["metrics"].items()}, "chance": chance}
        row |= {"chance": chance, "guess": guesses(part), "learned": learned(part)}
    return row


def _spread(values: list[float]) -> dict[str, Any]:
    return {"mean": float(np.mean(values)), "interval95": interval95(values)}


def interval95(values: list[float]) -> float | None:
    """Half width of the 95 % t-interval of the mean; None for fewer than two values."""
    if len(values) < 2:
        return None
    from scipy.special import stdtrit  # slow to import

    spread = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return float(stdtrit(len(values) - 1, 0.975)) * spread
