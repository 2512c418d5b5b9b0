"""From encoded images to pixels, with Pillow.

Sets whose images share one size up to 64 pixels keep it; all others are brought to one size by the field's
usual way of evaluating: short side resized, centre cropped.
"""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain, islice
from multiprocessing import get_all_start_methods, get_context
from os import cpu_count

import numpy as np
import torch
from PIL import Image

from protege.data.views import CLEAN, Augment, boxes
from protege.errors import UserError

SMALL = 64
"""Images up to this many pixels high and wide keep their size."""

_MANY = 2000
_CHUNK_BYTES = 4 << 20
GREY = ("1", "L", "LA", "I", "I;16", "I;16B", "I;16L", "F")


class Deviation(Exception):
    """An image does not have the form that a sample of the set suggested."""


@dataclass(frozen=True)
class Form:
    """What decoded images look like: uint8 [height, width, channels]; `resize` to it, or have it already."""

    height: int
    width: int
    channels: int
    resize: bool

    @property
    def size(self) -> int:
        """Bytes of one decoded image."""
        return self.height * self.width * self.channels


@dataclass(frozen=True)
class Survey:
    """What is known of the images of a set after reading some headers."""

    sizes: frozenset[tuple[int, int]] = frozenset()
    colour: bool = False

    def add(self, size: tuple[int, int], colour: bool) -> Survey:
        if size in self.sizes and (self.colour or not colour):
            return self
        sizes = self.sizes | {size} if len(self.sizes) < 2 else self.sizes
        return replace(self, sizes=sizes, colour=self.colour or colour)

    @property
    def small(self) -> bool:
        return len(self.sizes) == 1 and max(max(s) for s in self.sizes) <= SMALL

    @property
    def settled(self) -> bool:
        """Whether images not yet seen cannot change the form."""
        return self.colour and not self.small

    def form(self, image_size: int | None) -> Form:
        channels = 3 if self.colour else 1
        if image_size is None and self.small:
            ((width, height),) = self.sizes
            return Form(height, width, channels, resize=False)
        side = image_size or 224
        return Form(side, side, channels, resize=True)


def _open(data: bytes, name: str) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data))
    except Exception as error:
        raise _corrupt(name, error) from error


def _corrupt(name: str, error: Exception) -> UserError:
    reason = "not an image Pillow knows" if isinstance(error, Image.UnidentifiedImageError) else str(error)
    return UserError(f"{name} cannot be decoded ({reason}); replace or remove this image.")


def header(data: bytes, name: str) -> tuple[tuple[int, int], bool]:
    """((width, height), whether it has colour) of an encoded image."""
    image = _open(data, name)
    return image.size, image.mode not in GREY


def survey(images: Iterable[tuple[bytes, str]], known: Survey | None = None) -> Survey:
    """Read headers of (encoded image, its name)."""
    result = known or Survey()
    for data, name in images:
        result = result.add(*header(data, name))
    return result


def to_channels(image: Image.Image, channels: int) -> Image.Image:
    """In 8 bit a pixel, grey (1) or in colour (3)."""
    if image.mode.startswith("I"):  # 16 bit a pixel; Pillow would clip instead of scale
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    return image.convert("L" if channels == 1 else "RGB")


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


def decode(data: bytes, name: str, form: Form, crop: tuple[Augment, int, int] | None = None) -> np.ndarray:
    """Pixels of an encoded image, uint8 [height, width, channels] of `form`.

    With `crop` = (augment, position, view), its random resized crop, cut from the full-size original.
    Raises UserError naming the image where it cannot be decoded, and Deviation where it is not of the form.
    """
    image = _open(data, name)
    if form.channels == 1 and image.mode not in GREY:
        raise Deviation(f"{name} is in colour")
    if not form.resize and image.size != (form.width, form.height):
        raise Deviation(f"{name} is {image.width}×{image.height}")
    try:
        image = to_channels(image, form.channels)
    except Exception as error:
        raise _corrupt(name, error) from error
    if crop is not None and crop[2] != CLEAN and crop[0].crop:
        augment, position, view = crop
        sides = torch.tensor([image.height]), torch.tensor([image.width])
        box, flip = boxes(augment, torch.tensor([position]), view, *sides)
        top, left, height, width = box[0].tolist()
        target = (form.width, form.height)
        image = image.resize(target, Image.Resampling.BILINEAR, box=(left, top, left + width, top + height))
        if flip.item():
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    elif form.resize:
        image = centred(image, form.width, form.height)
    return np.asarray(image).reshape(form.height, form.width, form.channels)


def _decode_chunk(chunk: list[tuple[bytes, str]], form: Form) -> np.ndarray:
    return np.stack([decode(data, name, form) for data, name in chunk])


def _pool(form: Form, total: int) -> Executor:
    """Threads for large images, whose decoding frees the interpreter lock; a small one spends its time in
    Pillow's Python code, so many of those are worth processes, and threads would only hinder each other."""
    if max(form.height, form.width) > SMALL:
        return ThreadPoolExecutor(cpu_count())
    if total < _MANY or "fork" not in get_all_start_methods():
        return ThreadPoolExecutor(1)
    return ProcessPoolExecutor(cpu_count(), mp_context=get_context("fork"))


def decode_all(chunks: Iterable[list[tuple[bytes, str]]], form: Form, out: np.ndarray) -> Iterator[int]:
    """Decode all chunks, in order, into `out` (uint8 [N, H, W, C]) on all processors; yields how many were
    just done.

    Raises as `decode`.
    """
    images, size = chain.from_iterable(chunks), max(1, min(256, _CHUNK_BYTES // form.size))
    pending: deque[Future[np.ndarray]] = deque()
    start = 0
    with _pool(form, len(out)) as pool:
        try:
            while True:
                while len(pending) < 2 * (cpu_count() or 1) and (chunk := list(islice(images, size))):
                    pending.append(pool.submit(_decode_chunk, chunk, form))
                if not pending:
                    return
                done = pending.popleft().result()
                out[start : start + len(done)] = done
                start += len(done)
                yield len(done)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
