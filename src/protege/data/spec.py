"""Data by name: `load_data` turns a spec, or the user's own Dataset, into training, validation and test
samples."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
import torch
from torch import Tensor

from protege.data.classes import BARE, GIVEN, check_labels, check_order
from protege.data.common import common_classes
from protege.data.dataset import Data
from protege.data.decode import SMALL
from protege.data.extras import hub_datasets, torchvision_datasets
from protege.data.folders import Listing, image_folders, parquet_files
from protege.data.items import splits_in
from protege.data.listed import listed_samples, tell_transparent
from protege.data.mapped import Items, Mapped
from protege.data.pixels import Deviation
from protege.data.ranges import Ranges
from protege.data.raw import Kind, kind_of
from protege.data.repeatable import Watch
from protege.data.samples import InMemory, Samples
from protege.data.scene_sets import has_masks, places_of_scenes, scene_sets
from protege.data.scenes import Scenes
from protege.data.segmentation import segmentation_folder, training_places
from protege.data.split import hold_out, hold_out_by_content
from protege.data.streams import Encoded
from protege.data.synthetic import class_names, read_dials, synthetic
from protege.data.text import open_text
from protege.data.views import MOST_PIXELS, Augment
from protege.errors import UserError, shown
from protege.labels import BY_CONTENT, BY_POSITION, UNLABELLED
from protege.naming import numbers
from protege.paths import usable
from protege.public import public

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
    if own := os.environ.get("PROTEGE_CACHE"):
        return Path(own).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "protege"


Places = Callable[[], Tensor]
"""Finds the place of each training sample, see `protege.data.contents`."""


def _with_test(data: Data, whole: bool, places: Places | None) -> Data:
    """The data with something to judge on where no test split is given: the validation split, all of it if ``whole``,
    or a fifth of training, held out by what samples hold or, without ``places``, as before version 0.2."""
    name, train, count = data.name, data.train, len(data.train)
    if data.test is not None:
        return data
    if data.val is not None:
        _LOG.info("'%s' has no test split; its validation split is used as test.", name)
        return replace(data, val=None, test=data.val)
    if whole:
        return replace(data, test=train)
    labels = torch.zeros(count, dtype=torch.int64) if train.labels is None else train.labels  # nothing to stratify by
    if bool((labels == UNLABELLED).all()):
        _LOG.info(
            "'%s' has no labels: its %d images can teach; students are judged by agreement with the teacher.",
            name,
            count,
        )
        return data
    if places:
        kept, held = hold_out_by_content(places(), labels, _HELD_OUT)
    else:
        kept, held = hold_out(torch.arange(count), labels, _HELD_OUT, seed=0)
    if not len(held):
        _LOG.info("'%s' has no test split, and too few samples (%d) to hold one out.", name, count)
        return data
    _LOG.info("'%s' has no test split; %d of %d samples, some of each class, are held out.", name, len(held), count)
    data = replace(data, train=_part(train, kept), test=_part(train, held))
    if places:
        return replace(data, held_out=BY_CONTENT, places=hashlib.sha256(held.numpy().tobytes()).hexdigest())
    _LOG.warning(
        "a network given was made before held-out samples of '%s' were chosen by what they hold, and so they are "
        "chosen by their order, as they were then: once samples are added or renamed, some may be among them that "
        "it has learned from. Give a test split to be sure.",
        name,
    )
    return replace(data, held_out=BY_POSITION)


def _part(samples: Samples, index: Tensor) -> Samples:
    if isinstance(samples, Scenes):
        return samples.part(index)
    if isinstance(samples, InMemory):
        return InMemory(samples.pixels[index], samples.labels[index])
    if isinstance(samples, Encoded):
        return Encoded(samples.source.part(index), samples.labels[index], samples.form)
    assert isinstance(samples, Mapped)
    return samples.part(index)


def _classification(
    name: str,
    splits: Mapping[str, Samples],
    classes: tuple[str, ...],
    augment: Augment | None = None,
    numbering: str = GIVEN,
    ranges: Ranges = (),
) -> Data:
    train = splits["train"]
    augment = augment or default_augment(*train.shape[1:])
    parts = (train, splits.get("val"), splits.get("test"))
    return Data(name, "classification", *parts, classes, augment, numbering=numbering, ranges=ranges)


def _segmentation(name: str, splits: Mapping[str, Samples], classes: tuple[str, ...], ranges: Ranges) -> Data:
    augment = Augment(crop=0.5, flip=True)  # half the area and more: what is small stays seen, as in CamVid's poles
    numbering = BARE if classes == numbers(len(classes)) else GIVEN
    parts = (splits["train"], splits.get("val"), splits.get("test"))
    return Data(name, "segmentation", *parts, classes, augment, numbering=numbering, ranges=ranges)


def _listed(
    name: str,
    listing: Listing,
    image_size: int | None,
    memory_limit: int,
    scratch: Path | None,
    whole: bool,
    ranges: Ranges,
    held_out: str,
) -> Data:
    check_labels(name, {split: labels for split, (_, labels) in listing.splits.items()}, listing.classes)
    splits, ranges = listed_samples(name, listing, image_size, memory_limit, scratch or cache_root(), ranges)
    places = listing.splits["train"][0].places if held_out == BY_CONTENT else None
    found = _classification(name, splits, listing.classes, None, listing.numbering, ranges)
    return replace(_with_test(found, whole, places), superclasses=listing.superclasses)


def _digits(name: str) -> Data:
    """scikit-learn's handwritten digits (Alpaydin & Kaynak 1998): 1,797 grey images of 8×8, 360 held out as
    test."""
    from sklearn.datasets import load_digits

    found = load_digits()
    pixels = torch.from_numpy((found.images * (255 / 16)).round().astype(np.uint8))[..., None]
    labels = torch.from_numpy(found.target)
    parts = zip(("train", "test"), hold_out(torch.arange(len(labels)), labels, 360 / len(labels), seed=0), strict=True)
    splits: dict[str, Samples] = {split: InMemory(pixels[index], labels[index]) for split, index in parts}
    return _classification(name, splits, tuple("0123456789"), Augment(shift=1))


def _synthetic(name: str, text: str) -> Data:
    dials = read_dials(text, name)
    found = _classification(name, synthetic(dials), class_names(dials), Augment())
    return replace(found, superclasses=dials.superclass)


def from_datasets(
    datasets: dict[str, Any],
    memory_limit: int,
    image_size: int | None = None,
    name: str = "dataset",
    whole: bool = False,
    ranges: Ranges = (),
    held_out: str = BY_CONTENT,
) -> Data:
    """Data of map-style Datasets by split ("train", and "val" and "test" if there), see `Mapped` and `scene_sets`.

    If ``whole``, a training Dataset alone is its own test split.
    """
    if datasets["train"] is datasets.get("test"):
        _LOG.warning("train and test %s are one and the same: what is measured on it has been learned by heart.", name)
    try:
        kind = kind_of(datasets, name, ranges)
        return _from_datasets(datasets, memory_limit, image_size, name, whole, kind, held_out)
    except Deviation:  # some image is unlike those looked at: look at all
        kind = kind_of(datasets, name, ranges, everything=True)
        try:
            return _from_datasets(datasets, memory_limit, image_size, name, whole, kind, held_out)
        except Deviation as error:
            raise UserError(f"{error}, which it was not before; remove random transforms from the Dataset.") from error


def _from_datasets(
    datasets: dict[str, Any],
    memory_limit: int,
    image_size: int | None,
    name: str,
    whole: bool,
    kind: Kind,
    held_out: str,
) -> Data:
    if has_masks(datasets["train"]):
        if image_size is not None:
            raise UserError(
                f"image size {image_size} cannot be had of a Dataset with masks; resize both in the Dataset."
            )
        scenes, names = scene_sets(datasets, memory_limit, name, kind)
        tell_transparent(kind.transparent)
        by_content = partial(places_of_scenes, scenes["train"]) if held_out == BY_CONTENT else None
        return _with_test(_segmentation(name, scenes, names, kind.ranges), whole, by_content)
    items = {split: Items(dataset, f"{split} {name}", image_size, kind) for split, dataset in datasets.items()}
    shapes = {split: found.shape for split, found in items.items()}
    for split, shape in shapes.items():
        if shape != shapes["train"]:
            raise UserError(
                f"{split} {name} has images of shape {shape} and train {name} of {shapes['train']} "
                "(channels, height, width); make them alike."
            )
    decoded = sum(map(len, items.values())) * int(np.prod(shapes["train"]))
    if decoded > memory_limit and kind.channels == 1 and not kind.everything:
        raise Deviation(f"{name} may have colour where it was not looked at")
    items["train"].placed = set(items) == {"train"} and not whole and held_out == BY_CONTENT
    watch = Watch()
    read = {split: found.read_all(watch) for split, found in items.items()} if decoded <= memory_limit else {}
    raw = {split: read[split][1] if read else found.read_labels(watch) for split, found in items.items()}
    found = common_classes(datasets, raw, name)
    splits: dict[str, Samples] = {}
    for split, each in items.items():
        each.names, labels = found.names, found.labels[split]
        splits[split] = InMemory(read[split][0], labels) if read else Mapped(each, labels)
        if split in found.place:
            splits[split] = splits[split].relabelled(found.place[split])
    tell_transparent(next(filter(None, (kind.transparent, *(each.transparent for each in items.values()))), None))
    places = items["train"].places if items["train"].placed else None
    data = _classification(name, splits, found.classes, None, found.numbering, kind.ranges)
    return _with_test(data, whole, places)


def _options(spec: str, known: tuple[str, ...]) -> tuple[str, dict[str, str]]:
    """Split "PATH?key=value" into the path and its options."""
    path, mark, query = spec.rpartition("?")
    if not mark or "=" not in query:
        return spec, {}
    options = dict(parse_qsl(query))
    for key in options:
        if key not in known:
            raise UserError(f"data '{spec}' has an unknown option '{key}'; known are {', '.join(known) or 'none'}.")
    return path, options


_OPTIONS = {
    "parquet": ("label", "order"),
    "images": ("order",),
    "segmentation": ("classes", "ignore"),
    "text": ("vocabulary", "length", "context", "tokenizer"),
    "torchvision": (),
    "hub": ("label",),
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
    "?classes=NAME,NAME" and "?ignore=VALUE", see `protege.data.segmentation`), "text:PATH" (with "?vocabulary=N",
    "&length=N", "&context=N", see `protege.data.text`), "torchvision:NAME:PATH", "hub:NAME" (with
    "?label=COLUMN"), a map-style Dataset of (image, label) or (image, mask), a pair of arrays (images, labels), a pair
    (train, test) or a dict ("train", "validation", "test") of either, or Data, which is returned as it is.

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

    Raises UserError for input that cannot be used. Images that stay encoded are not all decoded here, so
    one of them that is damaged is reported when it is fetched.
    """
    if isinstance(spec, Data):
        if image_size is not None and image_size not in spec.train.shape[1:]:
            raise UserError(
                f"image size {image_size} cannot be had of Data whose samples have the shape {spec.train.shape}; leave "
                "it out, or give it where the Data is loaded."
            )
        if spec.labelled:
            given = {split: part.labels for split, part in spec.sets.items() if part.labels is not None}
            check_labels(spec.name, given, spec.classes)
        return spec
    if spec is None:
        raise UserError("data is missing; give digits, parquet:PATH, images:PATH or a Dataset.")
    spec = str(spec) if isinstance(spec, Path) else spec
    if image_size is not None and not 1 <= image_size <= MOST_PIXELS:
        wrong = "not positive" if image_size < 1 else "too large"
        raise UserError(
            f"image size {shown(image_size)} is {wrong}; give a number of pixels, such as 224, up to {MOST_PIXELS:,}."
        )
    if not isinstance(spec, str):
        return from_datasets(splits_in(spec), memory_limit, image_size, whole=whole, ranges=ranges, held_out=held_out)
    if spec == "digits":
        if image_size not in (None, 8):
            raise UserError(f"image size {image_size} cannot be had of 'digits', which are 8×8; leave it out.")
        return _digits(spec)
    scheme, colon, rest = spec.partition(":")
    if scheme == "synthetic":
        if image_size is not None:
            raise UserError(f"image size {image_size} cannot be had of '{spec}', which has one pixel; leave it out.")
        return _synthetic(spec, rest)
    if scheme not in _OPTIONS or not colon:
        near = get_close_matches(scheme, ["digits", "synthetic", *_OPTIONS], 1)
        if near:
            hint = f"did you mean '{near[0]}{'' if near[0] == 'digits' else ':PATH'}'?"
        elif os.path.isdir(Path(spec) / "trainannot"):
            hint = f"write 'segmentation:{spec}' for images with masks."
        elif spec and os.path.exists(spec):
            hint = f"write 'images:{spec}' for a folder with one folder a class, or 'parquet:{spec}'."
        else:
            hint = "give digits, parquet:PATH or images:PATH."
        raise UserError(f"data '{spec}' is not known; {hint}")
    path, options = _options(rest, _OPTIONS[scheme])
    if not path:
        raise UserError(f"data '{spec}' names nothing behind the colon; write {scheme}:PATH.")
    if scheme == "torchvision":
        return from_datasets(
            torchvision_datasets(path), memory_limit, image_size, spec, ranges=ranges, held_out=held_out
        )
    if scheme == "hub":
        return from_datasets(hub_datasets(path, **options), memory_limit, image_size, spec, whole, ranges, held_out)
    if scheme == "segmentation":
        where = usable(path, "data")
        scenes, names, ranges = segmentation_folder(where, image_size, memory_limit, ranges, **options)
        places = partial(training_places, where) if held_out == BY_CONTENT else None
        return _with_test(_segmentation(spec, scenes, names, ranges), whole, places)
    if scheme == "text":
        if image_size is not None:
            raise UserError(f"image size {image_size} cannot be had of '{spec}', which is text; leave it out.")
        parts, words = open_text(usable(path, "data"), **options)
        return Data(spec, "language", parts["train"], parts["val"], parts["test"], words, Augment())
    check_order(options.get("order"), spec)
    opener = parquet_files if scheme == "parquet" else image_folders
    listing = opener(usable(path, "data"), **options)
    return _listed(spec, listing, image_size, memory_limit, scratch, whole, ranges, held_out)
