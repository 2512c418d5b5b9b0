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

from .framing import Box, Frame
from .pixels import Deviation, draft, is_grey, open_image, prepared, readable, upright_size
from .ranges import Ranges
from .views import SMALL

_MANY = 2000
_CHUNK_BYTES = 4 << 20
_T = TypeVar("_T")
_R = TypeVar("_R")
Named = tuple[bytes, str]
"""An encoded image, and what it is called in a sentence."""
Remarks = dict[str, str]
"""Which of `REMARKS` images show, and what the first that does is called in a sentence."""


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


def decode(data: bytes, name: str, form: Form, crop: Crop | None = None) -> tuple[np.ndarray, set[str]]:
    """Pixels of an encoded image, uint8 [height, width, channels] of `form`, and which of `REMARKS` it shows.

    With `crop` a box of it, cut from the full-size original. A JPEG that is brought to a much smaller size is decoded
    at a reduced one. Raises UserError naming the image where it cannot be decoded, and Deviation where it is not of the
    form.
    """
    target, frame = (form.width, form.height), form.frame
    with readable(name):
        image = open_image(data)
        if form.channels == 1 and not is_grey(image):
            raise Deviation(f"{name} is in colour")
        size = width, height = upright_size(image, data)
        if crop is None:
            averaged = form.resize and frame.interpolation != "nearest"
            whole: Box = (0, 0, *size)
            box, flip, resized = whole, False, frame.resized(size, target) if averaged else size
        else:
            cut, flips = crop(torch.tensor([height]), torch.tensor([width]))
            top, left, down, across = cut[0].tolist()
            box, flip, resized = (left, top, left + across, top + down), bool(flips), target
        box = draft(image, box, resized)
        try:
            image, to_srgb, remarks = prepared(image, form.channels, form.ranges)
        except Deviation as error:
            raise Deviation(f"{name} {error}") from None
        if not form.resize and size != target:
            raise Deviation(f"{name} is {width}×{height}")
        if to_srgb is not None and frame.mode == "border":  # whose colour is given as it is to be
            image, to_srgb = to_srgb(image), None
        if crop is not None:
            image = image.resize(target, Image.Resampling.BILINEAR, box=box)
        elif isinstance(form.resize, Frame) or size != target:
            image = frame.applied(image, *target, box)
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else image
        image = image if to_srgb is None else to_srgb(image)
    return np.asarray(image).reshape(form.height, form.width, form.channels), remarks


def in_threads(work: Callable[[_T], _R], items: Iterable[_T]) -> Iterator[_R]:
    """`map` on all processors: Pillow decodes without the interpreter's lock."""
    with ThreadPoolExecutor(cpu_count()) as pool:
        try:
            yield from pool.map(work, items)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _decode_chunk(chunk: list[Named], form: Form) -> tuple[np.ndarray, Remarks]:
    decoded = [decode(data, name, form) for data, name in chunk]
    remarks: Remarks = {}
    for (_, name), (_, shows) in zip(chunk, decoded, strict=True):
        remarks = dict.fromkeys(shows, name) | remarks
    return np.stack([pixels for pixels, _ in decoded]), remarks


def _pool(form: Form, total: int) -> Executor:
    """Threads for large images, whose decoding frees the interpreter lock; a small one spends its time in
    Pillow's Python code, so many of those are worth processes, and threads would only hinder each other."""
    if max(form.height, form.width) > SMALL:
        return ThreadPoolExecutor(cpu_count())
    if total < _MANY or "fork" not in get_all_start_methods():
        return ThreadPoolExecutor(1)
    return ProcessPoolExecutor(cpu_count(), mp_context=get_context("fork"))


def decode_all(chunks: Iterable[list[Named]], form: Form, count: int) -> Iterator[tuple[np.ndarray, Remarks]]:
    """The pixels, uint8 [M, H, W, C], of `count` images, some at a time and in their order, decoded on all processors;
    and what they show. Raises as `decode`."""
    images, size = (
        chain.from_iterable(chunks),
        max(1, min(256, _CHUNK_BYTES // (form.height * form.width * form.channels))),
    )
    pending: deque[Future[tuple[np.ndarray, Remarks]]] = deque()
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
