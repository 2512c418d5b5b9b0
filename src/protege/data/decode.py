"""From encoded images to pixels, with Pillow.

Sets whose images share one size up to 64 pixels keep it; all others are brought to one size by the field's
usual way of evaluating: short side resized, centre cropped.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice
from multiprocessing import get_all_start_methods, get_context
from os import cpu_count
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from PIL import Image

from .pixels import (
    Deviation,
    depth,
    is_grey,
    is_transparent,
    open_image,
    png_header,
    readable,
    seems_cut,
    shown,
    upright_size,
)
from .pixels import extent as pixel_extent
from .ranges import Extent, Ranges
from .views import CLEAN, boxes

if TYPE_CHECKING:
    from .augment import Augment

SMALL = 64
"""Images up to this many pixels high and wide keep their size."""

_MANY = 2000
_CHUNK_BYTES = 4 << 20
_T = TypeVar("_T")
_R = TypeVar("_R")
Named = tuple[bytes, str]
"""An encoded image, and what it is called in a sentence."""


@dataclass(frozen=True)
class Form:
    """What decoded images look like: uint8 [height, width, channels]; `resize` to it, or have it already. `ranges` are
    those of images of more than 8 bits a channel."""

    height: int
    width: int
    channels: int
    resize: bool
    ranges: Ranges = ()

    @property
    def size(self) -> int:
        """Bytes of one decoded image."""
        return self.height * self.width * self.channels


@dataclass(frozen=True)
class Survey:
    """What is known of the images of a set after reading some headers.

    `sizes`: up to two of the upright (width, height) there are. `deep`: the kinds of images with more than 8 bits a
    channel. `transparent`: the name of one with transparent pixels.
    """

    sizes: frozenset[tuple[int, int]] = frozenset()
    colour: bool = False
    deep: frozenset[str] = frozenset()
    transparent: str | None = None

    def add(self, data: bytes, name: str, pixels: bool = True) -> tuple[Survey, tuple[int, int]]:
        """With one more image; and its upright (width, height). `pixels`: whether to look for transparent ones."""
        with readable(name):
            image = open_image(data)
            size, kind = upright_size(image, data), depth(image)
            colour = self.colour or not is_grey(image)
            transparent = self.transparent or (name if pixels and is_transparent(image) else None)
        sizes = self.sizes | {size} if len(self.sizes) < 2 else self.sizes
        return Survey(sizes, colour, self.deep if kind is None else self.deep | {kind}, transparent), size

    @property
    def small(self) -> bool:
        return len(self.sizes) == 1 and max(max(s) for s in self.sizes) <= SMALL

    @property
    def settled(self) -> bool:
        """Whether images not yet seen cannot change the form."""
        return self.colour and not self.small

    def form(self, image_size: int | None, ranges: Ranges = ()) -> Form:
        channels = 3 if self.colour else 1
        if image_size is None and self.small:
            ((width, height),) = self.sizes
            return Form(height, width, channels, False, ranges)
        side = image_size or 224
        return Form(side, side, channels, True, ranges)


def survey(images: Iterable[Named]) -> Survey:
    """What these images tell."""
    known = Survey()
    for data, name in images:
        known, _ = known.add(data, name)
    return known


def survey_headers(images: Iterable[Named], known: Survey) -> Survey:
    """What the headers of all these images tell beside what is `known`; those that are alike are read once."""
    headers: set[bytes] = set()
    for data, name in images:
        header = png_header(data)
        refuse_cut(data, name)
        if header is None or header not in headers:
            known, _ = known.add(data, name, pixels=False)
            headers.add(header or b"")
    return known


def refuse_cut(data: bytes, name: str) -> None:
    """Raise UserError where an image cannot be decoded because its end is missing; one that seems whole is believed."""
    if seems_cut(data):
        with readable(name):
            open_image(data).load()


def extent(data: bytes, name: str) -> tuple[str, Extent] | None:
    """The `depth` of an encoded image and the extent of its pixels; None for one of 8 bits."""
    with readable(name):
        image = open_image(data)
    return pixel_extent(image, name)


def centred(
    image: Image.Image, width: int, height: int, resample: Image.Resampling = Image.Resampling.BILINEAR
) -> Image.Image:
    """Short side resized, centre cropped, in one resampling."""
    # Whole numbers are divided once at the end: the box may not be larger than the image by even a rounding.
    across = min(image.width, width * image.height / height)
    down = min(image.height, height * image.width / width)
    left, top = (image.width - across) / 2, (image.height - down) / 2
    box = (left, top, left + across, top + down)
    return image.resize((width, height), resample, box=box)


def decode(data: bytes, name: str, form: Form, crop: tuple[Augment, int, int] | None = None) -> tuple[np.ndarray, bool]:
    """Pixels of an encoded image, uint8 [height, width, channels] of `form`, and whether some were transparent.

    With `crop` = (augment, position, view), its random resized crop, cut from the full-size original.
    Raises UserError naming the image where it cannot be decoded, and Deviation where it is not of the form.
    """
    with readable(name):
        image = open_image(data)
        if form.channels == 1 and not is_grey(image):
            raise Deviation(f"{name} is in colour")
        try:
            image, transparent = shown(image, form.channels, form.ranges)
        except Deviation as error:
            raise Deviation(f"{name} {error}") from None
    if not form.resize and image.size != (form.width, form.height):
        raise Deviation(f"{name} is {image.width}×{image.height}")
    if crop is not None and crop[2] != CLEAN and crop[0].crop:
        augment, position, view = crop
        sides = torch.tensor([image.height]), torch.tensor([image.width])
        box, flip = boxes(augment, torch.tensor([position]), view, *sides)
        top, left, height, width = box[0].tolist()
        target = (form.width, form.height)
        image = image.resize(target, Image.Resampling.BILINEAR, box=(left, top, left + width, top + height))
        if flip.item():
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    elif form.resize and image.size != (form.width, form.height):
        image = centred(image, form.width, form.height)
    return np.asarray(image).reshape(form.height, form.width, form.channels), transparent


def in_threads(work: Callable[[_T], _R], items: Iterable[_T]) -> Iterator[_R]:
    """`map` on all processors: Pillow decodes without the interpreter's lock."""
    with ThreadPoolExecutor(cpu_count()) as pool:
        try:
            yield from pool.map(work, items)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _decode_chunk(chunk: list[Named], form: Form) -> tuple[np.ndarray, str | None]:
    decoded = [decode(data, name, form) for data, name in chunk]
    first = next((name for (_, name), (_, transparent) in zip(chunk, decoded, strict=True) if transparent), None)
    return np.stack([pixels for pixels, _ in decoded]), first


def _pool(form: Form, total: int) -> Executor:
    """Threads for large images, whose decoding frees the interpreter lock; a small one spends its time in
    Pillow's Python code, so many of those are worth processes, and threads would only hinder each other."""
    if max(form.height, form.width) > SMALL:
        return ThreadPoolExecutor(cpu_count())
    if total < _MANY or "fork" not in get_all_start_methods():
        return ThreadPoolExecutor(1)
    return ProcessPoolExecutor(cpu_count(), mp_context=get_context("fork"))


def decode_all(chunks: Iterable[list[Named]], form: Form, count: int) -> Iterator[tuple[np.ndarray, str | None]]:
    """The pixels, uint8 [M, H, W, C], of `count` images, some at a time and in their order, decoded on all processors;
    and the name of one that has transparent pixels. Raises as `decode`."""
    images, size = chain.from_iterable(chunks), max(1, min(256, _CHUNK_BYTES // form.size))
    pending: deque[Future[tuple[np.ndarray, str | None]]] = deque()
    with _pool(form, count) as pool:
        try:
            while True:
                while len(pending) < 2 * (cpu_count() or 1) and (chunk := list(islice(images, size))):
                    pending.append(pool.submit(_decode_chunk, chunk, form))
                if not pending:
                    return
                yield pending.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
