"""`protege shrink`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Option

from ..errors import UserError
from .options import ImageSize, ModelSpec, Overwrite, SkipBad, Trust


def command(
    model: ModelSpec,
    how: Annotated[str, Option(help="l1, slim (both prune channels) or decouple")] = "l1",
    ratio: Annotated[str | None, Option(help="share of channels to remove, or LAYER=SHARE,…")] = None,
    macs: Annotated[float | None, Option(help="share of multiply-adds to be left")] = None,
    layers: Annotated[str | None, Option(help="only these: names or patterns, separated by commas")] = None,
    parts: Annotated[str | None, Option(help="only these: some of heads,stream,hidden")] = None,
    rank: Annotated[int | None, Option(help="decouple: pairs in the place of a convolution")] = None,
    data: Annotated[str | None, Option(help="data spec, for the image size and the accuracy")] = None,
    image_size: ImageSize = None,
    skip_bad: SkipBad = 0,
    out: Annotated[Path | None, Option(help="folder of the shrunk model")] = None,
    trust: Trust = False,
    overwrite: Overwrite = False,
    dry_run: Annotated[bool, Option("--dry-run", help="print the sizes and write nothing")] = False,
) -> None:
    options = dict(locals())
    options["ratio"] = parse_ratio(ratio)
    for key, names in (("layers", layers), ("parts", parts)):
        options[key] = None if names is None else [name.strip() for name in names.split(",")]
    from ..run.shrinking import shrink

    shrink(**options)


def parse_ratio(text: str | None) -> float | dict[str, float] | None:
    """ "0.5", or "layer1.*=0.5,conv1=0.25" for layers of their own."""
    if text is None:
        return None
    try:
        if "=" not in text:
            return float(text)
        pairs = [item.split("=") for item in text.split(",")]
        return {name.strip(): float(value) for name, value in pairs}
    except ValueError:
        raise UserError(
            f"the ratio {text!r} cannot be read; expected a share such as 0.5, or layer=share pairs such as "
            "conv1=0.5,layer3.*=0.25: correct --ratio."
        ) from None
