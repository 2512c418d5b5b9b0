"""`protege study`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Exit, Option

from .options import OverwriteRun, Resume, Sets, Trust, parse_sets


def command(
    file: Annotated[Path, Argument(help="a study file (TOML)")],
    out: Annotated[Path, Option(help="folder of the study")],
    jobs: Annotated[
        int, Option(min=1, help="runs side by side, each a process that sees one GPU, if any, in turn")
    ] = 1,
    resume: Resume = False,
    overwrite: OverwriteRun = False,
    trust: Trust = False,
    sets: Sets = None,
) -> None:
    changes = parse_sets(sets)
    from ..run.study import run_study

    study = run_study(file, out, jobs=jobs, resume=resume, overwrite=overwrite, trust=trust, changes=changes)
    print((out / "study.md").read_text(encoding="utf-8"))
    if any(run["status"] != "done" for run in study["runs"]):
        raise Exit(1)
