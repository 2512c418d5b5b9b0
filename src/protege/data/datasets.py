"""A user's own map-style torch Datasets of (image, label) or (image, mask) as samples."""

from __future__ import annotations

import hashlib
import logging
import math
import os
from collections import ChainMap
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset

from ..errors import UserError
from .augment import Augment
from .classes import RawLabels, common_classes, naming_of, renumbered
from .contents import READ, place_of_image, places_of_files
from .damaged import sound
from .dataset import Data, Request
from .decode import Remarks
from .encoded import tell_remarks
from .extras import torchvision_datasets
from .framing import Frame
from .given import ImageKind, image_pixels, is_image, kind_of, label_in, mask_of, read_item
from .labels import BY_CONTENT
from .masks import MaskForm, MaskSet, present
from .pixels import Deviation, readable
from .progress import progress
from .repeatable import COMPARED, Watch, refuse_random, spread
from .samples import Images, InMemory, Samples, Streamed
from .views import CLEAN

_LOG = logging.getLogger("protege")


class Items:
    """Reads the items of a map-style Dataset as pixels, uint8 [H, W, C] of one shape and `kind`, and a label (see
    `label_in`; -100 where an item is an image alone) or a mask. Those at `positions` (None: all).

    Items must be the same at every reading, because views are replayed: augmentation belongs to `Augment`, not to the
    Dataset. A label that is another than the Dataset lists raises `UserError` when its item is read.
    """

    crops = False

    def __init__(
        self,
        dataset: Any,
        name: str = "dataset",
        image_size: int | None = None,
        kind: ImageKind | None = None,
        masked: bool = False,
    ) -> None:
        self.dataset, self.name, self.image_size, self.masked = dataset, name, image_size, masked
        self.kind, self.frame = kind or ImageKind(), Frame()
        self.positions = np.arange(len(dataset))
        self.mask_form = MaskForm()
        self.labels: Tensor | None = None  # by position in the Dataset, under the classes that `place` leads to
        self.place: Tensor | None = None
        self.numbers: dict[str, int] = {}  # of labels that are text
        self.remarks: Remarks = {}  # what items that were read show
        self.placed, self._places = False, dict[int, float]()  # whether an item that is read is given its place
        self.form: tuple[int, ...] | None = None
        self.form = tuple(self.item(0)[0].shape)

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        assert self.form is not None
        height, width, channels = self.form
        return channels, height, width

    def where(self, at: int) -> str:
        """What item `at` is called in a sentence."""
        return f"item {at} of {self.name}"

    def item(self, at: int) -> tuple[Tensor, int | str | Tensor]:
        """Pixels of an item, and its label (by its number where names are numbered) or the values of its mask, int16
        [H, W]. Raises Deviation for an image that is not of the kind."""
        where = self.where(at)
        image, label = read_item(self.dataset, at, where)
        pixels, remarks = image_pixels(image, where, self.kind)
        if self.placed and at not in self._places:
            self._places[at] = place_of_image(pixels if self.masked else image)
        self.remarks = dict.fromkeys(remarks, where) | self.remarks
        pixels = _resized(pixels, self.image_size, self.frame) if self.image_size else pixels
        if self.form is not None and tuple(pixels.shape) != self.form:
            sizes_differ = tuple(pixels.shape[:2]) != self.form[:2]
            remedy = "convert them in the Dataset"
            if sizes_differ:
                remedy = f"{'' if self.masked else 'give an image size, or '}resize in the transforms"
            raise UserError(
                f"{where} has shape {tuple(pixels.shape)} unlike item 0's {self.form} (height, width, channels); "
                f"{remedy} so that all are alike."
            )
        if self.masked:
            return pixels, mask_of(label, where, tuple(pixels.shape[:2]))
        value = label_in(label, where)
        return pixels, self.numbers.get(value, value) if isinstance(value, str) else value

    def read(self, position: int, augment: Augment, view: int) -> tuple[np.ndarray, np.ndarray | None]:
        at = int(self.positions[position])
        try:
            pixels, label = self.item(at)
        except Deviation as error:
            raise UserError(f"{error}, unlike the items looked at before; make all alike in the Dataset.") from error
        if isinstance(label, Tensor):
            return pixels.numpy(), self.mask_form.classes_of(label.numpy())
        if self.place is not None and isinstance(label, int) and 0 <= label < len(self.place):
            label = int(self.place[label])
        if self.labels is not None and label != (expected := int(self.labels[at])):
            raise UserError(
                f"{self.where(at)} has the label {label} but is listed with {expected}; the same is expected: mend the "
                "list (.targets or .labels of the Dataset), or delete it so that items are read."
            )
        return pixels.numpy(), None

    def framed(self, frame: Frame, size: tuple[int, int] | None) -> Items | None:
        """`size`: not used, as images have the one that was asked for, or their own."""
        if not self.image_size or frame == self.frame:
            return None
        other = self._copy()
        other.frame = frame
        return other

    def images(self, frame: Frame, size: tuple[int, int] | None) -> tuple[Images, Images | None] | None:
        made = self.framed(frame, size)
        plain = self.framed(Frame(), size) or self
        return None if made is None else (made._late(), None if frame == Frame() else plain._late())

    def _late(self) -> Images:
        """The pixels of all items, read when they are first asked for."""

        def read(rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
            for row in rows.split(1):
                yield row, torch.from_numpy(self.read(int(row), Augment(), CLEAN)[0])[None]

        assert self.form is not None
        return Images(torch.from_numpy(np.zeros((len(self), *self.form), np.uint8)), read, photos=self)

    def part(self, index: Tensor) -> Items:
        other = self._copy()
        other.positions = self.positions[index.numpy()]
        return other

    def relabelled(self, place: Tensor) -> Items:
        other = self._copy()
        other.mask_form = self.mask_form.relabelled(place)
        if not self.masked:
            other.place = place if self.place is None else renumbered(self.place, place)
            other.labels = None if self.labels is None else renumbered(self.labels, place)
        return other

    def _copy(self) -> Items:
        other = Items.__new__(Items)
        other.__dict__.update(self.__dict__)
        return other

    def content(self, labels: Tensor | None) -> str:
        digest = hashlib.sha256(repr(self.mask_form).encode() if labels is None else labels.numpy().tobytes())
        if len(self) * math.prod(self.shape) > READ:
            for path in _files_of(self.dataset):
                with suppress(OSError):  # of another machine, say
                    stat = os.stat(path)
                    digest.update(repr((stat.st_size, stat.st_mtime_ns)).encode())
        for at in spread(len(self), max(COMPARED, READ // math.prod(self.shape))):
            for array in self.read(at, Augment(), 0):
                digest.update(b"" if array is None else array.tobytes())
        return digest.hexdigest()

    # ---- before there are samples: everything is read once ----

    def read_all(self, watch: Watch, keep: bool) -> tuple[Tensor | None, list[int | str] | Tensor, np.ndarray | None]:
        """Pixels [N, H, W, C] of all items if they are to be kept; their labels, or the values of their masks, int16
        [N, H, W]; and which values each mask has. Where pixels are not kept, labels that the Dataset lists are
        believed if some items spread over it have these, and masks are empty."""
        assert self.form is not None
        count, remembered = len(self), {}
        if not keep:
            remembered = {at: self.item(at) for at in spread(count)}
            refuse_random(self.item, remembered.__getitem__, list(remembered), self.where, watch)
            listed = None if self.masked else _listed(self.dataset)
            if listed is not None and all(int(listed[at]) == label for at, (_, label) in remembered.items()):
                return None, listed, None
        pixels = torch.empty((count if keep else 0, *self.form), dtype=torch.uint8)
        masks = torch.empty((count if keep and self.masked else 0, *self.form[:2]), dtype=torch.int16)
        seen = np.zeros((count, len(present(np.zeros(1, np.int16)))), bool) if self.masked else None
        labels: list[Any] = []
        with progress(f"reading {'' if keep or self.masked else 'the labels of '}{self.name}", count) as advance:
            for at in range(count):
                advance(1)
                image, label = remembered[at] if at in remembered else self.item(at)
                if keep:
                    pixels[at] = image
                if seen is None or not isinstance(label, Tensor):
                    labels.append(label)
                    continue
                seen[at] = present(label.numpy())
                if keep:
                    masks[at] = label
        if keep:
            known = masks if self.masked else labels
            refuse_random(self.item, lambda at: (pixels[at], known[at]), range(count), self.where, watch)
        return pixels if keep else None, masks if self.masked else labels, seen

    def places(self) -> Tensor:
        """The place of each item, float64 [N], see `protege.data.contents`: by its file where the Dataset lists one for
        each, as decoding all of a large set takes hours; else by what its image holds."""
        files = _files_of(self.dataset)
        if len(files) == len(self) and all(map(os.path.isfile, files)) and not self.masked:
            return places_of_files(list(map(Path, files)))
        with progress(f"reading {self.name}", len(self)) as advance:
            for at in range(len(self)):
                if at not in self._places:
                    self.item(at)
                advance(1)
        return torch.tensor([self._places[at] for at in range(len(self))], dtype=torch.float64)


def torchvision_data(request: Request) -> Data:
    """A class of torchvision.datasets that lies in a folder: "NAME:PATH"."""
    return dataset_data(torchvision_datasets(request.rest), replace(request, whole=False))


def dataset_data(datasets: dict[str, Any], request: Request) -> Data:
    """Data of map-style Datasets by split ("train", and "val" and "test" if there); if `whole`, a training Dataset
    alone is its own test split."""
    name = request.spec
    if request.skip_bad:
        datasets = _sound(datasets, name, request.skip_bad)
    if datasets["train"] is datasets.get("test"):
        _LOG.warning("train and test %s are one and the same: what is measured on it has been learned by heart.", name)
    try:
        return _opened(datasets, request, kind_of(datasets, name, request.ranges))
    except Deviation:  # some image is unlike those looked at: look at all
        kind = kind_of(datasets, name, request.ranges, everything=True)
    try:
        return _opened(datasets, request, kind)
    except Deviation as error:
        raise UserError(f"{error}, which it was not before; remove random transforms from the Dataset.") from error


def _sound(datasets: dict[str, Any], name: str, allowed: int) -> dict[str, Any]:
    """The items that can be read, as Datasets."""

    def read(split: str, at: int) -> None:
        where = f"item {at} of {split} {name}"
        for part in read_item(datasets[split], at, where):
            if isinstance(part, Image.Image):
                with readable(where):
                    part.load()

    attempts = {split: [[partial(read, split, at) for at in range(len(d))]] for split, d in datasets.items()}
    kept = sound(
        attempts, sum(map(len, datasets.values())), allowed, map
    )  # one after the other, as users' code may ask
    return {
        split: d if len(kept[split]) == len(d) else Subset(d, kept[split].tolist()) for split, d in datasets.items()
    }


def _opened(datasets: dict[str, Any], request: Request, kind: ImageKind) -> Data:
    name, image_size, masked = request.spec, request.image_size, _has_mask(datasets["train"])
    if masked and image_size is not None:
        raise UserError(f"image size {image_size} cannot be had of a Dataset with masks; resize both in the Dataset.")
    items = {split: Items(dataset, f"{split} {name}", image_size, kind, masked) for split, dataset in datasets.items()}
    train = items["train"]
    for split, reader in items.items():
        if reader.shape != train.shape:
            raise UserError(
                f"{split} {name} has images of shape {reader.shape} and train {name} of {train.shape} "
                "(channels, height, width); make them alike."
            )
    channels, height, width = train.shape
    decoded = sum(map(len, items.values())) * height * width * (channels + masked)
    keep = decoded <= request.memory_limit
    if not keep and kind.channels == 1 and not kind.everything:
        raise Deviation(f"{name} may have colour where it was not looked at")
    train.placed = set(datasets) == {"train"} and not request.whole and request.held_out == BY_CONTENT
    watch = Watch()
    read = {split: reader.read_all(watch, keep) for split, reader in items.items()}
    numbering = ""
    if masked:
        classes, splits = _with_masks(items, read, name)
    else:
        classes, numbering, splits = _with_labels(items, read, name)
    tell_remarks(dict(ChainMap(kind.remarks, *(reader.remarks for reader in items.values()))))
    return request.data(splits, classes, train.places, numbering=numbering, ranges=kind.ranges)


def _with_masks(items: dict[str, Items], read: dict[str, Any], name: str) -> tuple[tuple[str, ...], dict[str, Samples]]:
    naming = naming_of(items["train"].dataset, f"train {name}")
    seen = {split: values for split, (_, _, values) in read.items()}
    names = naming.names if naming else None
    masks = MaskSet(name, seen, lambda split, at: f"the mask of {items[split].where(at)}")
    classes, form = masks.classes(names)
    splits: dict[str, Samples] = {}
    for split, (pixels, masks, _) in read.items():
        items[split].mask_form = form
        if pixels is None:
            splits[split] = Streamed(items[split], None)
        else:
            splits[split] = InMemory(pixels, torch.from_numpy(form.classes_of(masks.numpy())))
    return classes, splits


def _with_labels(
    items: dict[str, Items], read: dict[str, Any], name: str
) -> tuple[tuple[str, ...], str, dict[str, Samples]]:
    raw = {}
    for split, (_, labels, _) in read.items():
        naming = naming_of(items[split].dataset, f"{split} {name}")
        raw[split] = [RawLabels(labels, partial("of {0} sample {1} in '{name}'".format, split, name=name), naming)]
    common = common_classes(raw)
    splits: dict[str, Samples] = {}
    for split, reader in items.items():
        pixels, labels = read[split][0], common.labels[split]
        reader.numbers, reader.place, reader.labels = common.numbers[split], common.place.get(split), labels
        if pixels is None:
            splits[split] = Streamed(reader, labels)
        else:
            splits[split] = InMemory(Images(pixels, photos=reader if reader.image_size else None), labels)
    return common.classes, common.numbering, splits


def _has_mask(dataset: Any) -> bool:
    """Whether the labels of a Dataset are images: a PIL image, or an array or tensor of two dimensions or more."""
    try:
        return is_image(read_item(dataset, 0, "")[1])
    except UserError:  # reading it as an image with a label says what is wrong
        return False


def _resized(pixels: Tensor, size: int, frame: Frame) -> Tensor:
    """Pixels uint8 [H, W, C] brought to [size, size, C], as images of files are."""
    if tuple(pixels.shape[:2]) == (size, size) and frame == Frame():
        return pixels
    planes = [
        np.asarray(replace(frame, fill=(fill,)).applied(Image.fromarray(plane.numpy()), size, size))
        for plane, fill in zip(pixels.unbind(2), frame.fill_of(pixels.shape[2]), strict=True)
    ]
    return torch.from_numpy(np.stack(planes, 2))


def _listed(dataset: Any) -> Tensor | None:
    """The labels that a Dataset lists without being read, int64 [N]; they may be others than its items'."""
    if isinstance(dataset, Subset):
        whole = _listed(dataset.dataset)
        return None if whole is None else whole[torch.as_tensor(dataset.indices, dtype=torch.int64)]
    if isinstance(dataset, ConcatDataset):
        parts = [_listed(part) for part in dataset.datasets]
        return None if any(part is None for part in parts) else torch.cat([p for p in parts if p is not None])
    if getattr(dataset, "target_transform", None) is not None:  # the list tells what stands before it
        return None
    for attribute in ("targets", "labels"):
        labels = getattr(dataset, attribute, None)
        try:
            values = labels if isinstance(labels, Tensor) else torch.from_numpy(np.asarray(labels))
        except (TypeError, ValueError):  # words, or lists of several lengths
            continue
        fractions = values.dtype.is_floating_point or values.dtype.is_complex or values.dtype == torch.bool
        if not fractions and tuple(values.shape) == (len(dataset),):
            return values.to("cpu", torch.int64)
    return None


def _files_of(dataset: Any) -> list[str]:
    """The files that a Dataset lists as torchvision's do, in (file, label) pairs."""
    if isinstance(dataset, Subset):
        whole: Any = dataset.dataset
        files = _files_of(whole)
        return [files[at] for at in dataset.indices] if len(files) == len(whole) else files
    if isinstance(dataset, ConcatDataset):
        return [path for part in dataset.datasets for path in _files_of(part)]
    pairs = getattr(dataset, "samples", None)
    pairs = pairs if isinstance(pairs, list) else []
    return [pair[0] for pair in pairs if isinstance(pair, tuple) and pair and isinstance(pair[0], str)]
