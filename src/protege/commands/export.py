"""`protege export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Option

from .options import ImageSize, ModelSpec, Overwrite, SkipBad, Trust


def command(
    model: ModelSpec,
    to: Annotated[str, Option(help="onnx, onnx-int8, int8 or litert")],
    out: Annotated[Path, Option(help="folder of the exported file")],
    data: Annotated[str | None, Option(help="data spec: calibrates int8, and compares the file with the model")] = None,
    image_size: ImageSize = None,
    skip_bad: SkipBad = 0,
    samples: Annotated[int, Option(help="int8: images to calibrate on")] = 200,
    seed: Annotated[int, Option(help="which images these are")] = 0,
    compiled: Annotated[bool, Option("--compiled", help="int8: also compile and time it")] = False,
    trust: Trust = False,
    overwrite: Overwrite = False,
) -> None:
    options = dict(locals())
    from ..run.exporting import export

    export(**options)
