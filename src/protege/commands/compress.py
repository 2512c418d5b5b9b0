"""`protege compress`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Option

from .options import ImageSize, ModelSpec, Overwrite, SkipBad, Trust


def command(
    model: ModelSpec,
    data: Annotated[str, Option(help="data spec of images, with labels or without")],
    out: Annotated[Path, Option(help="folder of what is made")],
    macs: Annotated[str | None, Option(help="share of multiply-adds to be left at most, such as 0.4")] = None,
    params: Annotated[str | None, Option(help="share of parameters to be left at most")] = None,
    size: Annotated[str | None, Option(help="of the file at most: 5MB, or 25% of the model's")] = None,
    latency: Annotated[
        str | None, Option(help="of a batch at most, on this machine: 8ms, or 40% of the model's")
    ] = None,
    accuracy_drop: Annotated[float | None, Option(help="loss that is allowed: 0.01 is a point")] = None,
    to: Annotated[
        str | None, Option(help="format of the file, as for export, or folder; default: onnx if installed")
    ] = None,
    int8: Annotated[bool, Option("--int8", help="a file of int8 weights")] = False,
    batch: Annotated[int, Option(help="images at once, for the latency")] = 1,
    threads: Annotated[int | None, Option(help="of the processor, for the latency")] = None,
    time: Annotated[str | None, Option(help="of the whole, such as 10m: two fifths are for the search")] = None,
    epochs: Annotated[int | None, Option(help="of teaching; default: by the data")] = None,
    image_size: ImageSize = None,
    skip_bad: SkipBad = 0,
    seed: Annotated[int, Option(help="of the choice of images and of teaching")] = 0,
    trust: Trust = False,
    resume: Annotated[bool, Option("--resume", help="go on with one that was stopped")] = False,
    overwrite: Overwrite = False,
) -> None:
    options = dict(locals())
    from ..compression import compress

    compress(**options)
