"""`protege demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Option

from .options import OverwriteRun, Resume


def command(
    out: Annotated[Path, Option(help="folder of the demo")] = Path("runs/demo"),
    resume: Resume = False,
    overwrite: OverwriteRun = False,
) -> None:
    from ..run.demo import demo

    demo(out, resume=resume, overwrite=overwrite)
