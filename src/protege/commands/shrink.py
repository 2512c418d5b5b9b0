"""The commands `shrink` and `export`, which parse, call the Python function and print."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import UserError

Trust = Annotated[bool, typer.Option("--trust", help="run the Python that the folder of a model names to build it")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="replace what is in --out")]


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


def shrink_command(
    model: Annotated[str, typer.Option(help="model spec or folder")],
    how: Annotated[str, typer.Option(help="l1, slim (both prune channels) or decouple")] = "l1",
    ratio: Annotated[str | None, typer.Option(help="share of channels to remove, or LAYER=SHARE,…")] = None,
    macs: Annotated[float | None, typer.Option(help="share of multiply-adds to be left")] = None,
    layers: Annotated[str | None, typer.Option(help="only these: names or patterns, separated by commas")] = None,
    rank: Annotated[int | None, typer.Option(help="decouple: pairs in the place of a convolution")] = None,
    data: Annotated[str | None, typer.Option(help="data spec, for the image size and the accuracy")] = None,
    image_size: Annotated[int | None, typer.Option(help="side its images are brought to, as in distill")] = None,
    out: Annotated[Path | None, typer.Option(help="folder of the shrunk model")] = None,
    trust: Trust = False,
    overwrite: Overwrite = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the sizes and write nothing")] = False,
) -> None:
    """Make a smaller copy of a network, which remembers what it kept."""
    from ..run.shrinking import shrink

    chosen = None if layers is None else [name.strip() for name in layers.split(",")]
    options = {"ratio": parse_ratio(ratio), "macs": macs, "layers": chosen, "rank": rank, "image_size": image_size}
    options["trust"] = trust
    shrink(model, how=how, **options, data=data, out=out, overwrite=overwrite, dry_run=dry_run)  # type: ignore[arg-type]


def export_command(
    model: Annotated[str, typer.Option(help="model spec or folder")],
    to: Annotated[str, typer.Option(help="onnx or int8")],
    out: Annotated[Path, typer.Option(help="folder of the exported file")],
    data: Annotated[str | None, typer.Option(help="data spec: calibrates int8, and tells the accuracy")] = None,
    image_size: Annotated[int | None, typer.Option(help="side its images are brought to, as in distill")] = None,
    samples: Annotated[int, typer.Option(help="int8: images to calibrate on")] = 200,
    seed: Annotated[int, typer.Option(help="which images these are")] = 0,
    compiled: Annotated[bool, typer.Option("--compiled", help="int8: also compile and time it")] = False,
    trust: Trust = False,
    overwrite: Overwrite = False,
) -> None:
    """Write a model as ONNX or int8, checked against the model itself."""
    from ..run.exporting import export

    options = {"image_size": image_size, "samples": samples, "seed": seed, "compiled": compiled, "trust": trust}
    export(model, to=to, out=out, data=data, overwrite=overwrite, **options)  # type: ignore[arg-type]
