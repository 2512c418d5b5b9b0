"""Data by name: `load_data` turns a spec, or the user's own Dataset, into training, validation and test samples.

A new kind of data is one line in `SPECS`, the table below, and one function that opens it.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError, shown
from ..files import usable
from ..settings import public
from .augment import Augment
from .classes import BARE, GIVEN, check_labels, check_order
from .dataset import Data
from .datasets import open_datasets
from .decode import SMALL
from .encoded import Listing, open_images
from .extras import torchvision_datasets
from .folders import image_folders, segmentation_folder, training_images
from .given import splits_in
from .hub import hub_set
from .labels import BY_CONTENT, BY_POSITION, UNLABELLED
from .naming import numbers
from .parquet import parquet_files
from .ranges import Ranges
from .samples import InMemory, Samples
from .split import hold_out, hold_out_by_content
from .synthetic import class_names, read_dials, synthetic
from .text import open_text
from .views import MOST_PIXELS

GIB = 1 << 30
_LOG = logging.getLogger("protege")
_HELD_OUT = 0.2


def default_augment(height: int, width: int) -> Augment:
    """Pad-and-crop by an eighth and flip for images up to 64 pixels; random resized crop and flip for
    larger ones."""
    if max(height, width) <= SMALL:
        return Augment(shift=min(height, width) // 8, flip=True)
    return Augment(crop=0.35, flip=True)


def cache_root() -> Path:
    """Where caches lie: $PROTEGE_CACHE, or protege/ in $XDG_CACHE_HOME or ~/.cache."""
    if named := os.environ.get("PROTEGE_CACHE"):
        return Path(named).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "protege"


@dataclass(frozen=True)
class Wanted:
    """What `load_data` was asked for: a spec, what stands behind its colon, its options, and the arguments."""

    spec: str
    rest: str
    options: dict[str, str] = field(default_factory=dict)
    image_size: int | None = None
    memory_limit: int = 4 * GIB
    scratch: Path | None = None
    whole: bool = False
    ranges: Ranges = ()
    held_out: str = BY_CONTENT

    @property
    def path(self) -> Path:
        return usable(self.rest, "data")


# ---- one function for each kind of data -----------------------------------------------------------------------------


def _digits(wanted: Wanted) -> Data:
    """scikit-learn's handwritten digits (Alpaydin & Kaynak 1998): 1,797 grey images of 8×8, 360 held out as
    test."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = torch.from_numpy((digits.images * (255 / 16)).round().astype(np.uint8))[..., None]
    labels = torch.from_numpy(digits.target)
    parts = zip(("train", "test"), hold_out(torch.arange(len(labels)), labels, 360 / len(labels), seed=0), strict=True)
    splits: dict[str, Samples] = {split: InMemory(pixels[index], labels[index]) for split, index in parts}
    return _images_as_data(wanted.spec, splits, tuple("0123456789"), Augment(shift=1), GIVEN)


def _synthetic(wanted: Wanted) -> Data:
    dials = read_dials(wanted.rest, wanted.spec)
    data = _images_as_data(wanted.spec, synthetic(dials), class_names(dials), Augment(), GIVEN)
    return replace(data, superclasses=dials.superclass)


def _images(wanted: Wanted) -> Data:
    check_order(wanted.options.get("order"), wanted.spec)
    return _listed(wanted, image_folders(wanted.path, **wanted.options))


def _parquet(wanted: Wanted) -> Data:
    check_order(wanted.options.get("order"), wanted.spec)
    return _listed(wanted, parquet_files(wanted.path, **wanted.options))


def _segmentation(wanted: Wanted) -> Data:
    size, limit, path = wanted.image_size, wanted.memory_limit, wanted.path
    splits, classes, ranges = segmentation_folder(path, size, limit, wanted.ranges, **wanted.options)
    data = _images_as_data(wanted.spec, splits, classes, ranges=ranges)
    return _with_test(data, wanted, lambda: training_images(path).places())


def _text(wanted: Wanted) -> Data:
    parts, words = open_text(wanted.path, **wanted.options)
    return Data(wanted.spec, "language", parts["train"], parts["val"], parts["test"], words, Augment())


def _torchvision(wanted: Wanted) -> Data:
    return _datasets(torchvision_datasets(wanted.rest), replace(wanted, whole=False))


def _hub(wanted: Wanted) -> Data:
    check_order(wanted.options.get("order"), wanted.spec)
    opened = hub_set(wanted.rest, **wanted.options)
    return _listed(wanted, opened) if isinstance(opened, Listing) else _datasets(opened, wanted)


def _datasets(datasets: dict[str, Any], wanted: Wanted) -> Data:
    """Data of map-style Datasets by split; if `whole`, a training Dataset alone is its own test split."""
    if datasets["train"] is datasets.get("test"):
        _LOG.warning(
            "train and test %s are one and the same: what is measured on it has been learned by heart.", wanted.spec
        )
    alone = set(datasets) == {"train"} and not wanted.whole
    opened = open_datasets(
        datasets,
        wanted.spec,
        wanted.image_size,
        wanted.memory_limit,
        wanted.ranges,
        alone and wanted.held_out == BY_CONTENT,
    )
    data = _images_as_data(wanted.spec, opened.splits, opened.classes, None, opened.numbering, opened.ranges)
    return _with_test(data, wanted, opened.places)


# ---- the table ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spec:
    """How a kind of data is opened, what is written behind its name and a colon ("": nothing), the options that may
    follow a question mark, and whether images can be brought to a size (else why not)."""

    open: Callable[[Wanted], Data]
    rest: str
    options: tuple[str, ...] = ()
    one_size: str = ""


SPECS = {
    "digits": Spec(_digits, "", one_size="which are 8×8"),
    "synthetic": Spec(_synthetic, "KEY=VALUE,…", one_size="which has one pixel"),
    "images": Spec(_images, "PATH", ("order",)),
    "parquet": Spec(_parquet, "PATH", ("label", "order")),
    "segmentation": Spec(_segmentation, "PATH", ("classes", "ignore")),
    "text": Spec(_text, "PATH", ("vocabulary", "length", "context", "tokenizer"), one_size="which is text"),
    "torchvision": Spec(_torchvision, "NAME:PATH"),
    "hub": Spec(_hub, "NAME", ("label", "image", "mask", "config", "order")),
}


@public
def load_data(
    spec: Any,
    *,
    image_size: int | None = None,
    memory_limit: int = 4 * GIB,
    scratch: Path | None = None,
    whole: bool = False,
    ranges: Ranges = (),
    held_out: str = BY_CONTENT,
) -> Data:
    """Open data.

    `spec` is "digits", "synthetic:KEY=VALUE,…" (see `protege.data.synthetic`), "parquet:PATH" (with
    "?label=COLUMN"), "images:PATH" (a folder for each class, or images without classes; with "?order=number" or
    "?order=text" for a teacher whose outputs have no names), "segmentation:PATH" (with
    "?classes=NAME,NAME" and "?ignore=VALUE", see `protege.data.folders`), "text:PATH" (with "?vocabulary=N",
    "&length=N", "&context=N", see `protege.data.text`), "torchvision:NAME:PATH", "hub:NAME" or
    "hub:NAME@REVISION" (a set of the Hugging Face hub, or a folder that its library has saved; with "?label=COLUMN",
    "&image=COLUMN", "&mask=COLUMN", "&config=NAME"), a map-style Dataset of (image, label) or (image, mask), a pair of
    arrays (images, labels), a pair (train, test) or a dict ("train", "validation", "test") of either, or Data, which is
    returned as it is.

    Images of files are brought to `image_size` × `image_size` pixels (224 if not given), unless they all share one size
    up to 64 and none is given; those of a Dataset only if it is given. Images for
    segmentation keep their shape: `image_size` is their shorter side, without it that of the commonest training image.
    Decoded pixels up to `memory_limit` bytes are kept in memory; larger sets are decoded as they are
    fetched, Parquet after its images were extracted once to the folder `scratch`. Without a test split the
    validation split is taken, or about a fifth of training is held out, by what each sample holds (`held_out`
    "position": by their order, as before version 0.2), so that each class keeps a sample; if
    `whole`, all of data without splits is train and test. Splits may lack classes, which go by their names. In
    images of more than 8 bits a channel training decides what is black and white, unless `ranges`, those of a model, do
    (`protege.data.ranges`).

    Raises UserError for input that cannot be used. Of encoded images that fit into memory each header is checked here,
    and that none is cut short; other damage is told when an image is decoded: by `Samples.load`, or when it is fetched.
    """
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
    wanted = Wanted("dataset", "", {}, image_size, memory_limit, scratch, whole, ranges, held_out)
    if not isinstance(spec, str):
        return _datasets(splits_in(spec), wanted)
    scheme, colon, rest = spec.partition(":")
    if scheme not in SPECS or bool(colon) != bool(SPECS[scheme].rest):
        raise UserError(f"data '{spec}' is not known; {_hint(spec, scheme)}")
    kind = SPECS[scheme]
    rest, options = (rest, {}) if scheme == "synthetic" else _options(spec, rest, kind.options)
    if kind.options and not rest:
        raise UserError(f"data '{spec}' names nothing behind the colon; write {scheme}:{kind.rest}.")
    if image_size is not None and kind.one_size and (scheme != "digits" or image_size != 8):
        raise UserError(f"image size {image_size} cannot be had of '{spec}', {kind.one_size}; leave it out.")
    return kind.open(replace(wanted, spec=spec, rest=rest, options=options))


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


def _options(spec: str, rest: str, known: tuple[str, ...]) -> tuple[str, dict[str, str]]:
    """Split "PATH?key=value" into the path and its options."""
    path, mark, query = rest.rpartition("?")
    if not mark or "=" not in query:
        return rest, {}
    options = dict(parse_qsl(query))
    for key in options:
        if key not in known:
            raise UserError(f"data '{spec}' has an unknown option '{key}'; known are {', '.join(known) or 'none'}.")
    return path, options


# ---- from samples to Data -------------------------------------------------------------------------------------------


def _images_as_data(
    name: str,
    splits: Mapping[str, Samples],
    classes: tuple[str, ...],
    augment: Augment | None = None,
    numbering: str = "",
    ranges: Ranges = (),
) -> Data:
    """Data of images with labels or, where samples have none, with masks."""
    train = splits["train"]
    masked = train.labels is None
    if augment is None:
        half = Augment(crop=0.5, flip=True)  # of the area and more: what is small stays seen, as in CamVid's poles
        augment = half if masked else default_augment(*train.shape[1:])
    numbering = numbering or (BARE if classes == numbers(len(classes)) else GIVEN)
    parts = (train, splits.get("val"), splits.get("test"))
    task = "segmentation" if masked else "classification"
    return Data(name, task, *parts, classes, augment, numbering=numbering, ranges=ranges)


def _listed(wanted: Wanted, listing: Listing) -> Data:
    scratch = wanted.scratch or cache_root()
    splits, ranges = open_images(wanted.spec, listing, wanted.image_size, wanted.memory_limit, scratch, wanted.ranges)
    data = _images_as_data(wanted.spec, splits, listing.classes, None, listing.numbering, ranges)
    data = _with_test(data, wanted, listing.splits["train"][0].places)
    return replace(data, superclasses=listing.superclasses)


def _with_test(data: Data, wanted: Wanted, places: Callable[[], Tensor]) -> Data:
    """The data with something to judge on where no test split is given: the validation split, all of it if `whole`,
    or a fifth of training, held out by what samples hold (`places` tells the place of each, see `contents`) or by
    position, as before version 0.2."""
    name, train, count = data.name, data.train, len(data.train)
    if data.test is not None:
        return data
    if data.val is not None:
        _LOG.info("'%s' has no test split; its validation split is used as test.", name)
        return replace(data, val=None, test=data.val)
    if wanted.whole:
        return replace(data, test=train)
    labels = torch.zeros(count, dtype=torch.int64) if train.labels is None else train.labels  # nothing to stratify by
    if bool((labels == UNLABELLED).all()):
        _LOG.info(
            "'%s' has no labels: its %d images can teach; students are judged by agreement with the teacher.",
            name,
            count,
        )
        return data
    by_content = wanted.held_out == BY_CONTENT
    if by_content:
        kept, held = hold_out_by_content(places(), labels, _HELD_OUT)
    else:
        kept, held = hold_out(torch.arange(count), labels, _HELD_OUT, seed=0)
    if not len(held):
        _LOG.info("'%s' has no test split, and too few samples (%d) to hold one out.", name, count)
        return data
    _LOG.info("'%s' has no test split; %d of %d samples, some of each class, are held out.", name, len(held), count)
    data = replace(data, train=train.part(kept), test=train.part(held))
    if by_content:
        return replace(data, held_out=BY_CONTENT, places=hashlib.sha256(held.numpy().tobytes()).hexdigest())
    _LOG.warning(
        "a network given was made before held-out samples of '%s' were chosen by what they hold, and so they are "
        "chosen by their order, as they were then: once samples are added or renamed, some may be among them that "
        "it has learned from. Give a test split to be sure.",
        name,
    )
    return replace(data, held_out=BY_POSITION)
