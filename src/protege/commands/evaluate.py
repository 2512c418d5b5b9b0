"""`protege evaluate`."""

from __future__ import annotations

import json
from typing import Annotated

from typer import Option

from .options import Classes, DataSpec, ImageSize, ModelSpec, Precision, SkipBad, Trust


def command(
    model: ModelSpec,
    data: DataSpec,
    split: Annotated[str | None, Option(help="train, val, test, or all of data without splits")] = None,
    classes: Classes = None,
    image_size: ImageSize = None,
    skip_bad: SkipBad = 0,
    precision: Precision = "auto",
    trust: Trust = False,
) -> None:
    options = dict(locals())
    from ..run.api import evaluate

    print(json.dumps(evaluate(**options), indent=1))
