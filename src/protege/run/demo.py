"""The demo: a teacher of all digits, then students with ten labelled images a class, alone and taught.

Real data (scikit-learn's handwritten digits), real training, minutes on two processor cores.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

from rich.table import Table

from ..errors import UserError
from ..files import is_run, is_study
from ..settings import public
from ..training.progress import console
from .api import train
from .folder import check_out
from .study import run_study
from .toml import read_toml, write_toml

STUDENT = "zoo:cnn_tiny"
MARK = "demo.toml"


@public
def demo(out: str | Path = "runs/demo", *, resume: bool = False, overwrite: bool = False) -> dict[str, Any]:
    """Train the teacher and run the study into ``out``; returns what the study's ``study.json`` holds."""
    out = Path(out)
    made = (MARK, "teacher", "study")
    check_out(out, resume=resume, overwrite=overwrite, owned=is_demo, proof=f"{MARK} of the demo", replaced=made)
    out.mkdir(parents=True, exist_ok=True)
    write_toml(out / MARK, _study(out))
    console.print("[bold]1. A teacher[/bold]: resnet20 on all 1,437 training digits, with their labels")
    resumed = resume and is_run(out / "teacher")
    train("zoo:resnet20", "digits", out / "teacher", epochs=25, resume=resumed, overwrite=overwrite)
    console.print(
        "[bold]2. Students[/bold]: a tiny network, 10 labelled images a class, five seeds, without and with the teacher"
    )
    resumed, jobs = resume and is_study(out / "study"), min(2, os.cpu_count() or 1)
    study = run_study(out / MARK, out / "study", jobs=jobs, resume=resumed, overwrite=overwrite)
    _tell(study, out)
    return study


def is_demo(folder: Path) -> bool:
    """Whether the demo has written here."""
    with suppress(UserError):
        return read_toml(folder / MARK).get("name") == _study(folder)["name"]
    return False


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


def _tell(study: dict[str, Any], out: Path) -> None:
    rows = {row["setting"]["method"]: row for row in study["rows"]}
    student = rows["kd"]["metrics"]["accuracy"]
    table = Table("", "accuracy", "± (95 %)", title=study["name"])
    table.add_row("teacher", f"{study['teacher']['metrics']['accuracy']:.1%}", "")
    for method, title in (("none", "student alone"), ("kd", "student, taught")):
        accuracy = rows[method]["metrics"]["accuracy"]
        table.add_row(title, f"{accuracy['mean']:.1%}", f"{accuracy['interval95']:.1%}")
    gain = rows["kd"]["difference"]["accuracy"]
    console.print(table)
    console.print(
        f"The teacher is worth {100 * gain['mean']:+.1f} points (± {100 * gain['interval95']:.1f}, paired over "
        f"{len(student['values'])} seeds).\n\nOpen the report: {out / 'study' / 'report.html'}\n\n"
        "Next, from this folder: a student of your own, taught by the same teacher",
        markup=False,
        soft_wrap=True,
    )
    console.print("\n".join(f"  {line}" for line in next_commands(out)), markup=False, soft_wrap=True)
    console.print("and then your own network and images: README.md, 'Your own model, your own data'", markup=False)


def next_commands(out: Path) -> list[str]:
    """What to type after the demo, word for word: the environment, where it is not active, and a run."""
    scripts = Path(sys.executable).parent
    here = Path.cwd()
    shown = scripts.relative_to(here) if scripts.is_relative_to(here) else scripts
    command, lines = "protege", []
    if shutil.which("protege") != str(scripts / "protege"):  # else it is found as it is
        if (scripts / "activate").exists():
            lines = [f"source {shlex.quote(str(shown / 'activate'))}"]
        else:
            command = f"{shlex.quote(str(shown / Path(sys.executable).name))} -m protege"
    free = next(path for n in count(1) if not (path := out.parent / f"mine{n}").exists())
    teacher, mine = (shlex.quote(str(path)) for path in (out / "teacher" / "student", free))
    given = f"--teacher {teacher} --student {STUDENT} --data digits --samples 100 --epochs 100"
    return [*lines, f"{command} distill {given} --out {mine}"]
