"""`protege report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument


def command(folder: Annotated[Path, Argument(help="a run's or a study's folder")]) -> None:
    from ..report import write_report

    print(write_report(folder))
