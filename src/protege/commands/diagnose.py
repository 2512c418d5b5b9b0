"""`protege diagnose`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Option

from .options import Classes, DataSpec, ImageSize, ModelSpec, Precision, SkipBad, Trust


def command(
    teacher: ModelSpec,
    data: DataSpec,
    out: Annotated[Path, Option(help="folder of the diagnosis")],
    student: Annotated[str | None, Option(help="model spec of the student to teach")] = None,
    fraction: Annotated[float | None, Option(help="share of the training samples to teach with")] = None,
    samples: Annotated[int | None, Option(help="number of training samples to teach with")] = None,
    temperature: Annotated[
        float | None, Option(help="T of the distillation that is meant; default: 4 (text: 1)")
    ] = None,
    weight: Annotated[float, Option(help="λ of the distillation that is meant")] = 0.9,
    classes: Classes = None,
    image_size: ImageSize = None,
    skip_bad: SkipBad = 0,
    seed: Annotated[int, Option(help="of the choice of samples and a fresh student's weights")] = 0,
    precision: Precision = "auto",
    trust: Trust = False,
    overwrite: Annotated[bool, Option("--overwrite", help="replace the diagnosis in --out")] = False,
) -> None:
    options = dict(locals())
    from ..run.diagnose import diagnose

    print(f"{diagnose(**options)}\n\nReport: {out / 'report.html'}")
