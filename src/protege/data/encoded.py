"""Encoded images: where their bytes lie, and how those become samples.

A `Source` knows the images of a split in order; `open_images` decodes the sources of a set into memory where that fits
and streams them otherwise. `FromSource` is the stream: it reads and decodes one image, with its mask if it has one.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from .augment import Augment
from .contents import content_of, place_of_bytes, places_of_files
from .decode import SMALL, Form, Named, Survey, decode, decode_all, extent, in_threads, survey
from .kept import keep_pixels, load_pixels
from .masks import MaskForm, fitted_mask, read_mask
from .pixels import Deviation, readable
from .progress import progress
from .ranges import Extent, Ranges, settle
from .samples import InMemory, Samples, Streamed

VERSION = 3  # of what decoding makes of an image
MANY = 5000  # small images from which on decoding takes longer than a moment
_SAMPLE = 256
_CHUNK = 256
_LOG = logging.getLogger("protege")


class Source:
    """Encoded images that can be read in any order. `MANY` small ones that are decoded are kept for later runs."""

    def __len__(self) -> int:
        raise NotImplementedError

    def read(self, position: int) -> Named:
        """An encoded image, and what it is called in a sentence."""
        raise NotImplementedError

    def part(self, index: Tensor) -> Source:
        """The images at positions `index` only."""
        raise NotImplementedError

    def chunks(self) -> Iterator[list[Named]]:
        """All images in order."""
        for start in range(0, len(self), _CHUNK):
            yield [self.read(i) for i in range(start, min(start + _CHUNK, len(self)))]

    def sample(self) -> Iterator[Named]:
        """A few images from all over."""
        return (self.read(i) for i in range(0, len(self), max(1, len(self) // _SAMPLE)))

    def random_access(self, scratch: Path) -> Source:
        """The same images, fast to read in any order; what that takes lies in the folder `scratch`."""
        return self

    def places(self) -> Tensor:
        """The place of each image, float64 [N], see `contents`."""
        return torch.tensor([place_of_bytes(data) for chunk in self.chunks() for data, _ in chunk], dtype=torch.float64)

    def fingerprint(self) -> str:
        """Hex digest of what the images hold: all of them up to `READ` bytes together."""
        raise NotImplementedError


class Files(Source):
    """Images in files of their own."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, position: int) -> Named:
        path = self.paths[position]
        with readable(f"image {path}"):
            return path.read_bytes(), f"image {path}"

    def part(self, index: Tensor) -> Files:
        return Files([self.paths[i] for i in index.tolist()])

    def fingerprint(self) -> str:
        return content_of(self.paths)

    def places(self) -> Tensor:
        return places_of_files(self.paths)


class FromSource:
    """Reads an image of a source, and its mask where there are files of `masks`."""

    def __init__(
        self, source: Source, form: Form, masks: Sequence[Path] = (), mask_form: MaskForm | None = None
    ) -> None:
        self.source, self.form, self.masks, self.mask_form = source, form, list(masks), mask_form
        self.shape = (form.channels, form.height, form.width)
        self.crops = mask_form is None

    def __len__(self) -> int:
        return len(self.source)

    def read(self, position: int, augment: Augment, view: int) -> tuple[np.ndarray, np.ndarray | None]:
        data, name = self.source.read(position)
        try:
            pixels, _ = decode(data, name, self.form, (augment, position, view) if self.crops else None)
        except Deviation as error:
            raise UserError(
                f"{error}, unlike the images read before; convert it to the others' form, or remove it."
            ) from error
        if self.mask_form is None:
            return pixels, None
        values = fitted_mask(read_mask(self.masks[position]), self.form.height, self.form.width)
        return pixels, self.mask_form.classes_of(values)

    def content(self, labels: Tensor | None) -> str:
        form = self.form
        if self.mask_form is None:
            text = f"{self.source.fingerprint()} {form}"
            return hashlib.sha256(text.encode() + (b"" if labels is None else labels.numpy().tobytes())).hexdigest()
        assert isinstance(self.source, Files)
        files = content_of([path for pair in zip(self.source.paths, self.masks, strict=True) for path in pair])
        sides = f"height={form.height}, width={form.width}, channels={form.channels}, ranges={form.ranges}"
        meaning = f"table={self.mask_form.table!r}, white={self.mask_form.white}"
        return hashlib.sha256(
            f"{files} SceneForm({sides}, {meaning})".encode()
        ).hexdigest()  # as runs begun before have

    def part(self, index: Tensor) -> FromSource:
        masks = [self.masks[i] for i in index.tolist()] if self.masks else []
        return FromSource(self.source.part(index), self.form, masks, self.mask_form)

    def relabelled(self, place: Tensor) -> FromSource:
        mask_form = None if self.mask_form is None else self.mask_form.relabelled(place)
        return FromSource(self.source, self.form, self.masks, mask_form)


@dataclass(frozen=True)
class Listing:
    """Encoded images with labels (int64 [N]) for each split there is, the class names and how they are numbered, and
    each class's superclass."""

    splits: dict[str, tuple[Source, Tensor]]
    classes: tuple[str, ...]
    numbering: str
    superclasses: tuple[int, ...] | None = None


def open_images(
    name: str, listing: Listing, image_size: int | None, memory_limit: int, scratch: Path, ranges: Ranges = ()
) -> tuple[dict[str, Samples], Ranges]:
    """The samples of each split, and the ranges of those of more than 8 bits: `ranges`, and what these leave open."""
    sources = {split: source for split, (source, _) in listing.splits.items()}
    total = sum(map(len, sources.values()))
    known = survey(item for source in sources.values() for item in source.sample())
    if not known.deep and total * known.form(image_size).size <= memory_limit:
        with suppress(Deviation):  # some image is unlike those surveyed: survey all
            return _decoded(listing, known, known.form(image_size, ranges), scratch), ranges
    if known.deep or not known.settled:
        known = _survey_all(sources, known, total)
    if known.deep:
        ranges = settle(name, _extents(sources, total), ranges)
    form = known.form(image_size, ranges)
    if total * form.size <= memory_limit:
        return _decoded(listing, known, form, scratch), ranges
    tell_transparent(known.transparent)
    return {
        split: Streamed(FromSource(source.random_access(scratch), form), labels)
        for split, (source, labels) in listing.splits.items()
    }, ranges


def _decoded(listing: Listing, known: Survey, form: Form, scratch: Path) -> dict[str, Samples]:
    """All images in memory: many small ones from the array that an earlier run has left, mapped, so that processes
    share it. Raises as `decode_all`."""
    splits: dict[str, Samples] = {}
    transparent = known.transparent
    for split, (source, labels) in listing.splits.items():
        shape = (len(source), form.height, form.width, form.channels)
        lasting = len(source) >= MANY and max(form.height, form.width) <= SMALL
        digest = hashlib.sha256(repr((VERSION, source.fingerprint(), form)).encode()).hexdigest() if lasting else ""
        path = scratch / f"{digest[:32]}.pixels.npy"
        pixels = load_pixels(path, shape) if lasting else None
        if pixels is None:
            pixels = np.empty(shape, np.uint8)
            with progress(f"decoding {split} images", len(source)) as advance:
                first = decode_all(source.chunks(), form, pixels, advance)
            transparent = transparent or first
            if lasting:
                keep_pixels(path, pixels)
        splits[split] = InMemory(torch.from_numpy(pixels), labels)
    tell_transparent(transparent)
    return splits


def _survey_all(sources: Mapping[str, Source], known: Survey, total: int) -> Survey:
    with progress("surveying images", total) as advance:
        for source in sources.values():
            for chunk in source.chunks():
                known = survey(chunk, known)
                advance(len(chunk))
    return known


def _extents(sources: Mapping[str, Source], total: int) -> dict[str, list[tuple[str, Extent]]]:
    """Kind and extent of each image of more than 8 bits: of all, so that no order or sample decides."""
    extents: dict[str, list[tuple[str, Extent]]] = {split: [] for split in sources}
    with progress("measuring images", total) as advance:
        for split, source in sources.items():
            for chunk in source.chunks():
                extents[split] += filter(None, in_threads(lambda item: extent(*item), chunk))
                advance(len(chunk))
    return extents


def tell_transparent(name: str | None) -> None:
    """Say once what becomes of transparent pixels, of which image `name` has some."""
    if name is not None:
        _LOG.info("%s has transparent pixels; there and in all others they are shown on white.", name)
