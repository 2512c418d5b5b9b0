"""Encoded images, and how they become samples.

`open_images` keeps in memory what is decoded of a set where that fits and streams it otherwise. `FromSource` is the
stream: it reads and decodes one image, with its mask if it has one.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from .augment import Augment
from .contents import content_of
from .damaged import sound
from .dataset import Data, Request
from .decode import Form, Remarks, decode, decode_all, in_threads
from .framing import Frame
from .kept import KeptPixels
from .masks import MaskForm, fitted_mask, read_mask
from .pixels import (
    REMARKS,
    Deviation,
    depth,
    extent,
    is_grey,
    open_image,
    png_header,
    readable,
    remarks_of,
    seems_cut,
    smallest,
    upright_size,
)
from .progress import progress
from .ranges import Extent, Ranges, settle
from .samples import Images, InMemory, Samples, Streamed
from .sources import Files, Source
from .views import CLEAN, SMALL, boxes

VERSION = 4  # of what decoding makes of an image
MANY = 5000  # small images from which on decoding takes longer than a moment
_LOG = logging.getLogger("protege")


class Survey:
    """What is known of the images of a set by their headers.

    `sizes`: up to two of the upright (width, height) there are. `deep`: the kinds of images with more than 8 bits a
    channel. `remarks`: what the first of its kind shows.
    """

    def __init__(self) -> None:
        self.sizes: set[tuple[int, int]] = set()
        self.colour = False
        self.deep: set[str] = set()
        self.remarks: Remarks = {}
        self._headers: set[bytes] = set()  # of which the next one tells nothing new

    def add(self, data: bytes, name: str, pixels: bool = False) -> tuple[int, int] | None:
        """Look at one more image; returns its upright (width, height), None where its header is known. `pixels`:
        whether to look for transparent ones. Raises UserError for what is no image, or is cut short."""
        header = None if pixels else png_header(data)
        cut = seems_cut(data)
        if header in self._headers and not cut:
            return None
        with readable(name):
            image = open_image(data)
            size, kind = upright_size(image, data), depth(image)
            self.colour = self.colour or not is_grey(image)
            self.remarks = dict.fromkeys(remarks_of(image, pixels and "transparent" not in self.remarks), name) | (
                self.remarks
            )
            if cut:
                smallest(image).load()
        if len(self.sizes) < 2:
            self.sizes.add(size)
        self.deep |= {kind} if kind else set()
        self._headers |= {header} if header else set()
        return size

    def form(self, image_size: int | None, ranges: Ranges = ()) -> Form:
        """What the images are brought to: their own size where that is small and the same for all."""
        channels, side = 3 if self.colour else 1, image_size or 224
        if image_size is None and len(self.sizes) == 1:
            ((width, height),) = self.sizes
            if max(width, height) <= SMALL:
                return Form(height, width, channels, False, ranges)
        return Form(side, side, channels, True, ranges)


class FromSource:
    """Reads an image of a source, and its mask where there are files of `masks`. `first`: the form of whole photos as
    their set was opened, whose size is `fixed` if it was asked for."""

    def __init__(
        self,
        source: Source,
        form: Form,
        masks: Files | None = None,
        mask_form: MaskForm | None = None,
        first: Form | None = None,
        fixed: bool = True,
    ) -> None:
        self.source, self.form, self.masks, self.mask_form = source, form, masks, mask_form
        self.first, self.fixed, self.frame = first or form, fixed, form.frame
        self.shape = (form.channels, form.height, form.width)
        self.crops = mask_form is None

    def __len__(self) -> int:
        return len(self.source)

    def read(self, position: int, augment: Augment, view: int) -> tuple[np.ndarray, np.ndarray | None]:
        data, name = self.source.read(position)
        crop = None
        if self.crops and augment.crop and view != CLEAN:
            crop = partial(boxes, augment, torch.tensor([position]), view)
        with _of_one_form():
            pixels, _ = decode(data, name, self.form, crop)
        if self.masks is None or self.mask_form is None:
            return pixels, None
        values = fitted_mask(read_mask(self.masks.paths[position]), self.form.height, self.form.width)
        self.masks.check(position)
        return pixels, self.mask_form.classes_of(values)

    def content(self, labels: Tensor | None) -> str:
        form = self.form
        if self.masks is None or self.mask_form is None:
            text = f"{VERSION} {self.source.fingerprint()} {form}"
            return hashlib.sha256(text.encode() + (b"" if labels is None else labels.numpy().tobytes())).hexdigest()
        assert isinstance(self.source, Files)
        self.source.check_all()
        self.masks.check_all()
        pairs = zip(self.source.paths, self.masks.paths, strict=True)
        files = content_of([path for pair in pairs for path in pair])
        meaning = f"table={self.mask_form.table!r}, white={self.mask_form.white}"
        return hashlib.sha256(f"{VERSION} {files} {form} {meaning}".encode()).hexdigest()

    def framed(self, frame: Frame, size: tuple[int, int] | None) -> FromSource | None:
        form = self.first.framed(frame, None if self.fixed else size)
        if self.mask_form is not None or not self.form.resize or form == self.form:
            return None
        return FromSource(self.source, form, first=self.first, fixed=self.fixed)

    def part(self, index: Tensor) -> FromSource:
        masks = self.masks and self.masks.part(index)
        return FromSource(self.source.part(index), self.form, masks, self.mask_form, self.first, self.fixed)

    def relabelled(self, place: Tensor) -> FromSource:
        mask_form = None if self.mask_form is None else self.mask_form.relabelled(place)
        return FromSource(self.source, self.form, self.masks, mask_form, self.first, self.fixed)


@dataclass(frozen=True, eq=False)
class Kept:
    """Encoded images that stay in memory once they are decoded: those that `reader` would read. `crops`: whether random
    crops are cut from them, as from those for training. `counts`: how many there are in all, and for training."""

    reader: FromSource
    survey: Survey
    request: Request
    crops: bool
    counts: tuple[int, int]

    @property
    def frame(self) -> Frame:
        return self.reader.frame

    def part(self, index: Tensor) -> Kept:
        return replace(self, reader=self.reader.part(index))

    def opened(self) -> tuple[Images, Images | None]:
        """The images, and larger or whole ones from which random crops are cut."""
        source, form, request = self.reader.source, self.reader.form, self.request
        large = _larger(form, request.decoded_size) if self.crops else None
        photos = self if form.resize else None
        images = in_memory(source, form, self.survey, request.scratch, photos)
        return images, None if large is None else in_memory(source, large, self.survey)

    def images(self, frame: Frame, size: tuple[int, int] | None) -> tuple[Images, Images | None] | FromSource | None:
        made = self.reader.framed(frame, size)
        if made is None:
            return None
        if _bytes_of(self.counts, made.form, self.request.decoded_size) > self.request.memory_limit:
            return FromSource(
                made.source.random_access(self.request.scratch), made.form, first=made.first, fixed=made.fixed
            )
        return replace(self, reader=made).opened()


def open_images(
    request: Request,
    images: Mapping[str, tuple[Source, Tensor]],
    classes: tuple[str, ...],
    numbering: str,
    superclasses: tuple[int, ...] | None = None,
) -> Data:
    """Data of encoded images and their labels (int64 [N]) by split.

    Nothing is decoded but a few images and those of more than 8 bits. What fits into memory has the header of each
    image looked at, unless an earlier run has done so.
    """
    if request.skip_bad:
        images = _sound(images, request.skip_bad)
    sources = {split: source for split, (source, _) in images.items()}
    survey, total, surveyed = Survey(), sum(map(len, sources.values())), 0
    for image in chain.from_iterable(source.sample() for source in sources.values()):
        survey.add(*image, pixels=True)
        surveyed += 1
    form = survey.form(request.image_size, request.ranges)
    counts = total, len(sources["train"])
    fits = _bytes_of(counts, form, request.decoded_size) <= request.memory_limit
    settled = survey.colour and form.resize  # whatever those are that have not been looked at
    if surveyed < total and (fits or survey.deep or not settled):
        new = list(sources.values())
        if fits and not survey.deep:
            new = [source for source in new if _kept(source, form, request.scratch, make=False) is None]
        with progress("surveying images", sum(map(len, new))) as advance:
            for chunk in chain.from_iterable(source.chunks() for source in new):
                for data, name in chunk:
                    survey.add(data, name)
                advance(len(chunk))
        form = survey.form(request.image_size, request.ranges)
        fits = _bytes_of(counts, form, request.decoded_size) <= request.memory_limit
    if survey.deep:
        form = replace(form, ranges=settle(request.spec, _extents(sources), request.ranges))
    tell_remarks(survey.remarks)
    splits: dict[str, Samples] = {}
    for split, (source, labels) in images.items():
        source = source if fits else source.random_access(request.scratch)
        reader = FromSource(source, form, fixed=request.image_size is not None)
        if fits:
            pixels, larger = Kept(reader, survey, request, split == "train", counts).opened()
            splits[split] = InMemory(pixels, labels, larger=larger)
        else:
            splits[split] = Streamed(reader, labels)
    places, ranges = sources["train"].places, form.ranges
    return request.data(splits, classes, places, numbering=numbering, superclasses=superclasses, ranges=ranges)


def _sound(images: Mapping[str, tuple[Source, Tensor]], allowed: int) -> dict[str, tuple[Source, Tensor]]:
    """The images that can be decoded, with their labels."""
    total = sum(len(source) for source, _ in images.values())
    kept = sound({split: source.attempts() for split, (source, _) in images.items()}, total, allowed)
    return {split: (source.part(kept[split]), labels[kept[split]]) for split, (source, labels) in images.items()}


def _larger(form: Form, side: int | None) -> Form | None:
    """What images are brought to from which crops are cut."""
    if side is not None and form.resize and side > form.height:
        return replace(form, height=side, width=side, resize=True)
    return form.framed(Frame(), None) if isinstance(form.resize, Frame) else None


def _bytes_of(counts: tuple[int, int], form: Form, side: int | None) -> int:
    large = _larger(form, side)
    forms = [(form, counts[0]), *([(large, counts[1])] if large else [])]
    return sum(count * form.height * form.width * form.channels for form, count in forms)


def in_memory(
    source: Source, form: Form, survey: Survey, scratch: Path | None = None, photos: Kept | None = None
) -> Images:
    """The images of a source, decoded when they are first asked for; many small ones into a file in the folder
    `scratch`, for later runs. `photos` as those of `Images`."""
    kept = _kept(source, form, scratch) if scratch else None
    shape = (len(source), form.height, form.width, form.channels)

    def decoded(rows: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
        if kept is not None:
            sound = kept.has(rows.numpy())
            yield rows[sound], None
            rows = rows[~sound]
        if not len(rows):
            return
        with progress("decoding images", len(rows)) as advance, _of_one_form():
            for pixels, remarks in decode_all(source.chunks(rows.tolist()), form, len(rows)):
                now, rows = rows[: len(pixels)], rows[len(pixels) :]
                advance(len(pixels))
                tell_remarks({what: name for what, name in remarks.items() if what not in survey.remarks})
                survey.remarks = remarks | survey.remarks
                if kept is not None:  # pages that stay as they are in the file show what others write there
                    kept.add(now.numpy(), pixels)
                    sound = kept.has(now.numpy())
                    yield now[sound], None
                    now, pixels = now[~sound], pixels[~sound]
                yield now, torch.from_numpy(pixels)

    return Images(
        torch.from_numpy(np.zeros(shape, np.uint8) if kept is None else kept.pixels),
        decoded,
        partial(_digest, source, form),
        photos=photos,
    )


def _digest(source: Source, form: Form) -> str:
    return hashlib.sha256(repr((VERSION, source.digest, form)).encode()).hexdigest()


def _kept(source: Source, form: Form, scratch: Path, make: bool = True) -> KeptPixels | None:
    """The file of a source's pixels, if it is worth one."""
    if len(source) < MANY or max(form.height, form.width) > SMALL:
        return None
    path = scratch / f"{_digest(source, form)[:32]}.pixels.npy"
    return KeptPixels.open(path, (len(source), form.height, form.width, form.channels), make)


@contextmanager
def _of_one_form() -> Iterator[None]:
    try:
        yield
    except Deviation as error:
        raise UserError(
            f"{error}, unlike the images read before; convert it to the others' form, or remove it."
        ) from error


def _extents(sources: Mapping[str, Source]) -> dict[str, list[tuple[str, Extent]]]:
    """Kind and extent of each image of more than 8 bits: of all, so that no order or sample decides."""
    extents: dict[str, list[tuple[str, Extent]]] = {}
    with progress("measuring images", sum(map(len, sources.values()))) as advance:
        for split, source in sources.items():
            extents[split] = []
            for chunk in source.chunks():
                extents[split] += filter(None, in_threads(lambda image: extent(*image), chunk))
                advance(len(chunk))
    return extents


def tell_remarks(remarks: Remarks) -> None:
    """Say once what becomes of images that show something, of which these are the first."""
    for what, name in remarks.items():
        _LOG.log(logging.WARNING if what == "profile" else logging.INFO, "%s %s.", name, REMARKS[what])
