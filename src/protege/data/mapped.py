"""A user's own map-style torch Dataset as samples."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset

from protege.data.batch import Batch
from protege.data.classes import renumbered
from protege.data.contents import READ, place_of_image, places_of_files
from protege.data.decode import centred
from protege.data.items import label_in, read_item
from protege.data.pixels import Deviation
from protege.data.progress import progress
from protege.data.raw import Kind, image_pixels
from protege.data.repeatable import COMPARED, Watch, refuse_random, spread
from protege.data.samples import Samples
from protege.data.views import Augment, render
from protege.errors import UserError
from protege.labels import UNLABELLED


def resized(pixels: Tensor, size: int) -> Tensor:
    """Pixels uint8 [H, W, C] brought to [size, size, C], as images of files are."""
    if tuple(pixels.shape[:2]) == (size, size):
        return pixels
    planes = [np.asarray(centred(Image.fromarray(plane.numpy()), size, size)) for plane in pixels.unbind(2)]
    return torch.from_numpy(np.stack(planes, 2))


class Items:
    """The items of a map-style Dataset as pixels, uint8 [H, W, C] of one shape and `kind` (see `image_pixels`), and
    labels (see `label_in`; -100 where an item is an image alone). `names` numbers the labels that are text,
    `transparent` names an item that was read and has transparent pixels.

    Items must be the same at every reading, because views are replayed: augmentation belongs to `Augment`, not to the
    Dataset.
    """

    def __init__(
        self, dataset: Any, name: str = "dataset", image_size: int | None = None, kind: Kind | None = None
    ) -> None:
        self.dataset, self.name, self.image_size = dataset, name, image_size
        self.kind = kind or Kind()
        self.transparent: str | None = None
        self.placed, self._places = False, dict[int, float]()  # whether an item that is read is given its place
        self.names: dict[str, int] = {}
        self.form: tuple[int, ...] | None = None
        self.form = tuple(self.read(0)[0].shape)

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        assert self.form is not None
        height, width, channels = self.form
        return channels, height, width

    def where(self, at: int) -> str:
        """What item `at` is called in a sentence."""
        return f"item {at} of {self.name}"

    def read(self, at: int) -> tuple[Tensor, int | str]:
        """Pixels and label of an item, the label by its number where names are numbered. Raises Deviation for an image
        that is not of the kind."""
        image, label = read_item(self.dataset, at, self.where(at))
        pixels, transparent = image_pixels(image, self.where(at), self.kind)
        found = label_in(label, self.where(at))
        if self.placed and at not in self._places:
            self._places[at] = place_of_image(image)
        self.transparent = self.transparent or (self.where(at) if transparent else None)
        pixels = resized(pixels, self.image_size) if self.image_size else pixels
        if self.form is not None and tuple(pixels.shape) != self.form:
            sizes_differ = tuple(pixels.shape[:2]) != self.form[:2]
            remedy = (
                "give an image size, or resize in the transforms" if sizes_differ else "convert them in the Dataset"
            )
            raise UserError(
                f"{self.where(at)} has shape {tuple(pixels.shape)} unlike item 0's {self.form} (height, width, "
                f"channels); {remedy} so that all are alike."
            )
        return pixels, self.names.get(found, found) if isinstance(found, str) else found

    def read_all(self, watch: Watch) -> tuple[Tensor, list[int | str]]:
        """Pixels [N, H, W, C] and labels of all items."""
        assert self.form is not None
        pixels = torch.empty((len(self), *self.form), dtype=torch.uint8)
        labels: list[int | str] = []
        with progress(f"reading {self.name}", len(self)) as advance:
            for at in range(len(self)):
                pixels[at], label = self.read(at)
                labels.append(label)
                advance(1)
        refuse_random(self.read, lambda at: (pixels[at], labels[at]), range(len(self)), self.where, watch)
        return pixels, labels

    def places(self) -> Tensor:
        """The place of each item, float64 [N], see `protege.data.contents`: by its file where the Dataset lists one for
        each, as decoding all of a large set takes hours; else by what its image holds."""
        files = _files_of(self.dataset)
        if len(files) == len(self) and all(map(os.path.isfile, files)):
            return places_of_files(list(map(Path, files)))
        with progress(f"reading {self.name}", len(self)) as advance:
            for at in range(len(self)):
                if at not in self._places:
                    self.read(at)
                advance(1)
        return torch.tensor([self._places[at] for at in range(len(self))], dtype=torch.float64)

    def read_labels(self, watch: Watch) -> Tensor | list[int | str]:
        """The labels of all items: those that the Dataset lists, where some items spread over it have these, else by
        reading every item once."""
        known = {at: self.read(at) for at in spread(len(self))}
        refuse_random(self.read, known.__getitem__, list(known), self.where, watch)
        listed = _listed(self.dataset)
        if listed is not None and all(int(listed[at]) == label for at, (_, label) in known.items()):
            return listed
        with progress(f"reading the labels of {self.name}", len(self)) as advance:
            labels = []
            for at in range(len(self)):
                labels.append(known[at][1] if at in known else self.read(at)[1])
                advance(1)
        return labels


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
            found = labels if isinstance(labels, Tensor) else torch.from_numpy(np.asarray(labels))
        except (TypeError, ValueError):  # words, or lists of several lengths
            continue
        fractions = found.dtype.is_floating_point or found.dtype.is_complex or found.dtype == torch.bool
        if not fractions and tuple(found.shape) == (len(dataset),):
            return found.to("cpu", torch.int64)
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


def numbered(
    labels: Mapping[str, Sequence[int | str]], names: Sequence[str], name: str
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Labels by split that are text as int64 [N], and the number of each of the `names`."""
    numbers = {text: number for number, text in enumerate(names)}
    for split, each in labels.items():
        for at, label in enumerate(each):
            if label not in numbers and label != UNLABELLED:
                known = ", ".join(map(repr, list(numbers)[:8])) + (", …" if len(numbers) > 8 else "")
                raise UserError(
                    f"item {at} of {split} {name} has the label {label!r}; one of the names {known} is expected, as "
                    "other labels are names: give labels that are all names, or all numbers."
                )
    found = {s: torch.tensor([numbers.get(str(label), UNLABELLED) for label in each]) for s, each in labels.items()}
    return found, numbers


class Mapped(Samples):
    """Items that are read one by one, in the workers of `batches`: those at `positions` (None: all), with their
    `labels`, int64 of the same length; class k of the items is called `place[k]` where that is given. A label that
    turns out to be another one when its item is fetched raises `UserError`."""

    in_memory = False

    def __init__(
        self, items: Items, labels: Tensor, positions: Tensor | None = None, place: Tensor | None = None
    ) -> None:
        self.items, self.shape, self.place = items, items.shape, place
        self.positions = torch.arange(len(items)) if positions is None else positions
        self.labels: Tensor = labels
        self._digest: str | None = None

    def __len__(self) -> int:
        return len(self.positions)

    def _pixels(self, at: int) -> Tensor:
        position, expected = int(self.positions[at]), int(self.labels[at])
        try:
            pixels, label = self.items.read(position)
        except Deviation as error:
            raise UserError(f"{error}, unlike the items looked at before; make all alike in the Dataset.") from error
        if self.place is not None and isinstance(label, int) and 0 <= label < len(self.place):
            label = int(self.place[label])
        if label != expected:
            raise UserError(
                f"{self.items.where(position)} has the label {label} but is listed with {expected}; the same is "
                "expected: mend the list (.targets or .labels of the Dataset), or delete it so that items are read."
            )
        return pixels

    def fetch(self, index: Tensor, view: int, augment: Augment) -> Batch:
        index = index.cpu()
        pixels = torch.stack([self._pixels(i) for i in index.tolist()])
        inputs = render(pixels, torch.arange(len(index)), index, view, augment)
        return Batch(inputs, self.labels[index], index, view)

    def part(self, index: Tensor) -> Mapped:
        """The items at positions `index` only."""
        return Mapped(self.items, self.labels[index], self.positions[index], self.place)

    def relabelled(self, place: Tensor) -> Mapped:
        whole = place if self.place is None else renumbered(self.place, place)
        return Mapped(self.items, renumbered(self.labels, place), self.positions, whole)

    def fingerprint(self) -> str:
        if self._digest is None:
            digest = hashlib.sha256(self.labels.numpy().tobytes())
            if len(self) * math.prod(self.shape) > READ:
                for path in _files_of(self.items.dataset):
                    with suppress(OSError):  # of another machine, say
                        stat = os.stat(path)
                        digest.update(repr((stat.st_size, stat.st_mtime_ns)).encode())
            for at in spread(len(self), max(COMPARED, READ // math.prod(self.shape))):
                digest.update(self._pixels(at).numpy().tobytes())
            self._digest = digest.hexdigest()
        return self._digest
