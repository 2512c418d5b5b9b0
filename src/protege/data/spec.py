"""Data by name: `load_data` turns a spec, or the user's own Dataset, into training, validation and test samples.

A new kind of data is one line in `SPECS`, the table below, and one function that opens it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from ..errors import UserError, shown
from ..files import usable
from ..settings import public
from .classes import ORDERS, check_labels
from .dataset import Data, Request
from .datasets import dataset_data, torchvision_data
from .folders import image_folders
from .given import splits_in
from .labels import BY_CONTENT
from .ranges import Ranges
from .samples import InMemory, Streamed
from .scenes import segmentation_folder
from .synthetic import digits, synthetic_data
from .text import text_data
from .views import MOST_PIXELS

GIB = 1 << 30
_LOG = logging.getLogger("protege")


def cache_root() -> Path:
    """Where caches lie: $PROTEGE_CACHE, or protege/ in $XDG_CACHE_HOME or ~/.cache."""
    if named := os.environ.get("PROTEGE_CACHE"):
        return Path(named).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "protege"


@dataclass(frozen=True)
class Spec:
    """How a kind of data is opened, what is written behind its name and a colon ("": nothing), the options that may
    follow a question mark, and whether images can be brought to a size (else why not)."""

    open: Callable[[Request], Data]
    rest: str
    options: tuple[str, ...] = ()
    one_size: str = ""


def _parquet(request: Request) -> Data:
    from .parquet import parquet_files  # and with it pyarrow, which no other kind of data needs

    return parquet_files(request)


def _hub(request: Request) -> Data:
    from .hub import hub_data  # as well

    return hub_data(request)


SPECS = {
    "digits": Spec(digits, "", one_size="which are 8×8"),
    "synthetic": Spec(synthetic_data, "KEY=VALUE,…", one_size="which has one pixel"),
    "images": Spec(image_folders, "PATH", ("order",)),
    "parquet": Spec(_parquet, "PATH", ("label", "order")),
    "segmentation": Spec(segmentation_folder, "PATH", ("classes", "ignore")),
    "text": Spec(text_data, "PATH", ("vocabulary", "length", "context", "tokenizer"), one_size="which is text"),
    "torchvision": Spec(torchvision_data, "NAME:PATH"),
    "hub": Spec(_hub, "NAME", ("label", "image", "mask", "config", "order")),
}


@public
def load_data(
    spec: Any,
    *,
    image_size: int | None = None,
    decoded_size: int | None = None,
    memory_limit: int = 4 * GIB,
    scratch: Path | None = None,
    whole: bool = False,
    ranges: Ranges = (),
    held_out: str = BY_CONTENT,
    skip_bad: int = 0,
) -> Data:
    """Open data.

    `spec` is "digits", "synthetic:KEY=VALUE,…" (see `protege.data.synthetic`), "parquet:PATH" (with
    "?label=COLUMN"), "images:PATH" (a folder for each class, or images without classes; with "?order=number" or
    "?order=text" for a teacher whose outputs have no names), "segmentation:PATH" (with
    "?classes=NAME,NAME" and "?ignore=VALUE", see `protege.data.scenes`), "text:PATH" (with "?vocabulary=N",
    "&length=N", "&context=N", see `protege.data.text`), "torchvision:NAME:PATH", "hub:NAME" or
    "hub:NAME@REVISION" (a set of the Hugging Face hub, or a folder that its library has saved; with "?label=COLUMN",
    "&image=COLUMN", "&mask=COLUMN", "&config=NAME"), a map-style Dataset of (image, label) or (image, mask), a pair of
    arrays (images, labels), a pair (train, test) or a dict ("train", "validation", "test") of either, or Data, which is
    returned as it is.

    Images of files are brought to `image_size` × `image_size` pixels (224 if not given), unless they all share one size
    up to 64 and none is given; those of a Dataset only if it is given. Images for
    segmentation keep their shape: `image_size` is their shorter side, without it that of the commonest training image.
    Random crops of training images of files that stay in memory are cut out of these as they are at `image_size`, or
    at a larger `decoded_size`; what is not cropped shows the same pixels with either.
    Decoded pixels up to `memory_limit` bytes are kept in memory; larger sets are decoded as they are
    fetched, Parquet after its images were extracted once to the folder `scratch`. Without a test split the
    validation split is taken, or about a fifth of training is held out, by what each sample holds (`held_out`
    "position": by their order, as before version 0.2), so that each class keeps a sample; if
    `whole`, all of data without splits is train and test. Splits may lack classes, which go by their names. In
    images of more than 8 bits a channel training decides what is black and white, unless `ranges`, those of a model, do
    (`protege.data.ranges`). Up to `skip_bad` files (items of a Dataset) that cannot be decoded are left out and named;
    with it all are decoded once here, at a reduced size.

    Raises UserError for input that cannot be used. Of encoded images that fit into memory each header is checked here,
    and that none is cut short; other damage is told when an image is decoded: by `Samples.load`, or when it is fetched.
    """
    if skip_bad < 0:
        raise UserError(f"skip_bad = {shown(skip_bad)} is negative; expected how many damaged files may be left out.")
    request = Request(
        *("dataset", "", Path(), {}, image_size, memory_limit, scratch or cache_root(), whole, ranges, held_out),
        decoded_size,
        skip_bad,
    )
    data = _opened(spec, request)
    if decoded_size is not None:
        _check_crops(data, decoded_size)
    return data


def _opened(spec: Any, request: Request) -> Data:
    image_size = request.image_size
    if isinstance(spec, Data):
        return _checked(spec, image_size)
    if spec is None:
        raise UserError("data is missing; give digits, parquet:PATH, images:PATH or a Dataset.")
    spec = str(spec) if isinstance(spec, Path) else spec
    if image_size is not None and not 1 <= image_size <= MOST_PIXELS:
        wrong = "not positive" if image_size < 1 else "too large"
        raise UserError(
            f"image size {shown(image_size)} is {wrong}; give a number of pixels, such as 224, up to {MOST_PIXELS:,}."
        )
    if not isinstance(spec, str):
        return dataset_data(splits_in(spec), request)
    scheme, colon, rest = spec.partition(":")
    if scheme not in SPECS or bool(colon) != bool(SPECS[scheme].rest):
        raise UserError(f"data '{spec}' is not known; {_hint(spec, scheme)}")
    kind, options = SPECS[scheme], {}
    before, mark, query = rest.rpartition("?")
    if mark and "=" in query and scheme != "synthetic":
        rest, options = before, dict(parse_qsl(query))
    for key in options:
        if key not in kind.options:
            known = ", ".join(kind.options) or "none"
            raise UserError(f"data '{spec}' has an unknown option '{key}'; known are {known}.")
    if options.get("order", "text") not in ORDERS:
        raise UserError(
            f"data '{spec}' has order={options['order']}; expected number (0, 1, 2 … 10) or text (0, 1, 10, 2 …)."
        )
    if kind.options and not rest:
        raise UserError(f"data '{spec}' names nothing behind the colon; write {scheme}:{kind.rest}.")
    if image_size is not None and kind.one_size and (scheme != "digits" or image_size != 8):
        raise UserError(f"image size {image_size} cannot be had of '{spec}', {kind.one_size}; leave it out.")
    path = usable(rest, "data") if kind.rest == "PATH" else Path()
    return kind.open(replace(request, spec=spec, rest=rest, path=path, options=options))


def _checked(data: Data, image_size: int | None) -> Data:
    if image_size is not None and image_size not in data.train.shape[1:]:
        raise UserError(
            f"image size {image_size} cannot be had of Data whose samples have the shape {data.train.shape}; leave it "
            "out, or give it where the Data is loaded."
        )
    if data.labelled:
        labels = {split: part.labels for split, part in data.sets.items() if part.labels is not None}
        check_labels(data.name, labels, data.classes)
    return data


def _check_crops(data: Data, side: int) -> None:
    """Raise `UserError` where random crops are not cut from images of this size, or from larger ones."""
    train = data.train
    least, larger = max(train.shape[1:], default=0), train.larger if isinstance(train, InMemory) else None
    if not least <= side <= MOST_PIXELS:
        raise UserError(
            f"decoded size {shown(side)} does not suit images of {least} pixels, which crops are brought to; expected "
            f"no less, and at most {MOST_PIXELS:,}: give one such as {least * 9 // 7}, or leave it out."
        )
    if isinstance(train, Streamed) and train.reader.crops:
        _LOG.info("'%s' is streamed: crops are cut from its images as they are in files, not at %d.", data.name, side)
    elif side != least and (larger is None or larger.pixels.shape[1] != side):
        raise UserError(
            f"decoded size {side} cannot be had of '{data.name}'; expected images of files that are brought to one "
            "size, without masks: leave it out."
        )


def _hint(spec: str, scheme: str) -> str:
    """What may be meant by a spec that is not known."""
    near = get_close_matches(scheme, SPECS, 1)
    if near:
        return f"did you mean '{near[0]}{':' * bool(SPECS[near[0]].rest)}{SPECS[near[0]].rest}'?"
    if os.path.isdir(Path(spec) / "trainannot"):
        return f"write 'segmentation:{spec}' for images with masks."
    if spec and os.path.exists(spec):
        return f"write 'images:{spec}' for a folder with one folder a class, or 'parquet:{spec}'."
    return "give digits, parquet:PATH or images:PATH."
