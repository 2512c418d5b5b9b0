"""The demo: a teacher of all digits, then students with ten labelled images a class, alone and taught.

Real data (scikit-learn's handwritten digits), real training, minutes on two processor cores.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from rich.table import Table

from .api import train
from .recipe import write_toml
from .runfolder import check_out
from .study import run_study
from .train.progress import console

STUDENT = "zoo:cnn_tiny"
MARK = "demo.toml"


def demo(out: str | Path = "runs/demo", *, resume: bool = False, overwrite: bool = False) -> dict[str, Any]:
    """Train the teacher and run the study into ``out``; returns what the study's ``study.json`` holds."""
    out = Path(out)
    check_out(out, resume=resume, overwrite=overwrite, mark=MARK, proof=MARK)
    out.mkdir(parents=True, exist_ok=True)
    write_toml(out / MARK, _study(out))
    console.print("[bold]1. A teacher[/bold]: resnet20 on all 1,437 training digits, with their labels")
    resumed = resume and (out / "teacher").exists()
    train("zoo:resnet20", "digits", out / "teacher", epochs=25, resume=resumed, overwrite=overwrite)
    console.print(
        "[bold]2. Students[/bold]: a tiny network, 10 labelled images a class, five seeds, without and with the teacher"
    )
    resumed, jobs = resume and (out / "study").exists(), min(2, os.cpu_count() or 1)
    found = run_study(out / MARK, out / "study", jobs=jobs, resume=resumed, overwrite=overwrite)
    _tell(found, out)
    return found


def _study(out: Path) -> dict[str, Any]:
    """Students alone against students taught."""
    return {
        "name": "Ten labelled digits a class, alone and with a teacher",
        "seeds": [0, 1, 2, 3, 4],
        "baseline": {"method": "none"},
        "recipe": {
            "teacher": str(out / "teacher" / "student"),
            "student": STUDENT,
            "data": "digits",
            "samples": 100,
            "epochs": 100,
        },
        "grid": {"method": ["none", "kd"]},
    }


def _tell(found: dict[str, Any], out: Path) -> None:
    rows = {row["setting"]["method"]: row for row in found["rows"]}
    student = rows["kd"]["metrics"]["accuracy"]
    table = Table("", "accuracy", "± (95 %)", title=found["name"])
    table.add_row("teacher", f"{found['teacher']['metrics']['accuracy']:.1%}", "")
    for method, told in (("none", "student alone"), ("kd", "student, taught")):
        accuracy = rows[method]["metrics"]["accuracy"]
        table.add_row(told, f"{accuracy['mean']:.1%}", f"{accuracy['interval95']:.1%}")
    gain = rows["kd"]["difference"]["accuracy"]
    console.print(table)
    best = next(run["out"] for run in found["runs"] if run["setting"]["method"] == "kd" and run["status"] == "done")
    console.print(
        f"The teacher is worth {100 * gain['mean']:+.1f} points (± {100 * gain['interval95']:.1f}, paired over "
        f"{len(student['values'])} seeds).\nReport:  {out / 'study' / 'report.html'}\n"
        f"Student: {out / 'study' / best / 'student'}",
        markup=False,
    )
