"""From encoded images to pixels, with Pillow.

Sets whose images share one size up to 64 pixels keep it; all others are brought to one size by the field's
usual way of evaluating: short side resized, centre cropped.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain, islice
from multiprocessing import get_all_start_methods, get_context
from os import cpu_count
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .framing import Frame
from .pixels import Deviation, is_grey, open_image, readable, shown
from .ranges import Ranges
from .views import SMALL

_MANY = 2000
_CHUNK_BYTES = 4 << 20
_T = TypeVar("_T")
_R = TypeVar("_R")
Named = tuple[bytes, str]
"""An encoded image, and what it is called in a sentence."""


@dataclass(frozen=True)
class Form:
    """What decoded images look like: uint8 [height, width, channels]; `resize` to it, by a rule if one is given, or
    have it already. `ranges` are those of images of more than 8 bits a channel."""

    height: int
    width: int
    channels: int
    resize: bool | Frame
    ranges: Ranges = ()

    @property
    def frame(self) -> Frame:
        """How photos are brought to the size."""
        return self.resize if isinstance(self.resize, Frame) else Frame()

    def framed(self, frame: Frame, size: tuple[int, int] | None) -> Form:
        """The form of the same photos by another rule, at another (height, width) if one is given."""
        height, width = size or (self.height, self.width)
        return replace(self, height=height, width=width, resize=True if frame == Frame() else frame)


Crop = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Boxes (top, left, height, width) in images of these heights and widths, and whether they are flipped: see `boxes`."""


def decode(data: bytes, name: str, form: Form, crop: Crop | None = None) -> tuple[np.ndarray, bool]:
    """Pixels of an encoded image, uint8 [height, width, channels] of `form`, and whether some were transparent.

    With `crop` a box of it, cut from the full-size original.
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
    if crop is not None:
        box, flip = crop(torch.tensor([image.height]), torch.tensor([image.width]))
        top, left, height, width = box[0].tolist()
        target = (form.width, form.height)
        image = image.resize(target, Image.Resampling.BILINEAR, box=(left, top, left + width, top + height))
        if flip.item():
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    elif isinstance(form.resize, Frame) or image.size != (form.width, form.height):
        image = form.frame.applied(image, form.width, form.height)
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
    images, size = (
        chain.from_iterable(chunks),
        max(1, min(256, _CHUNK_BYTES // (form.height * form.width * form.channels))),
    )
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
