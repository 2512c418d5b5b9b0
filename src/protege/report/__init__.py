"""Reports: a run or a study told in words and pictures, as one HTML file that needs nothing else.

This room reads the folders of runs (``recipe.toml``, ``metrics.jsonl``, ``result.json``), studies, diagnoses and
exports; it imports nothing of the rest of the house but its error, so a report can be made again long after the run,
on another machine, without the data or the weights.
"""

from __future__ import annotations

from pathlib import Path

from ..errors import UserError
from ..files import usable
from .compress import write_compress_report
from .diagnosis import write_diagnosis_report
from .export import write_export_report
from .run import write_run_report
from .study import write_study_report
from .table import common_teacher, study_markdown

__all__ = [
    "common_teacher",
    "study_markdown",
    "write_compress_report",
    "write_diagnosis_report",
    "write_export_report",
    "write_report",
    "write_run_report",
    "write_study_report",
]


def write_report(folder: str | Path) -> Path:
    """Write ``folder/report.html`` for what the folder holds and return its path.

    Raises UserError when that is no study, diagnosis, export or run.
    """
    folder = usable(folder, "the folder")
    if (folder / "study.json").is_file():
        return write_study_report(folder)
    if (folder / "diagnosis.json").is_file():
        return write_diagnosis_report(folder)
    if (folder / "compress.json").is_file():
        return write_compress_report(folder)
    if (folder / "export.json").is_file():
        return write_export_report(folder)
    if any((folder / name).is_file() for name in ("result.json", "metrics.jsonl", "recipe.toml")):
        return write_run_report(folder)
    raise UserError(
        f"{folder} holds no run (recipe.toml, metrics.jsonl, result.json), study, diagnosis or export: name the folder "
        "of a run, study, diagnosis or export"
    )
