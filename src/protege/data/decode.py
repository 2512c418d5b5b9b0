"""From encoded images to pixels, with Pillow.

Sets whose images share one size up to 64 pixels keep it; all others are brought to one size by the field's
usual way of evaluating: short side resized, centre cropped.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice
from multiprocessing import get_all_start_methods, get_context
from os import cpu_count

import numpy as np
import torch
from PIL import Image

from protege.data.pixels import (
    Deviation,
    depth,
    is_grey,
    is_transparent,
    open_image,
    reason,
    shown,
    upright_size,
    values,
)
from protege.data.ranges import Extent, Ranges
from protege.data.views import CLEAN, Augment, boxes
from protege.errors import UserError

SMALL = 64
"""Images up to this many pixels high and wide keep their size."""

_MANY = 2000
_CHUNK_BYTES = 4 << 20


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
class Header:
    """What can be known of an image without its pixels: its upright (width, height), whether it has colour, its
    `depth`; and whether pixels are transparent, if that was asked."""

    size: tuple[int, int]
    colour: bool
    depth: str | None
    transparent: bool


@dataclass(frozen=True)
class Survey:
    """What is known of the images of a set after reading some headers.

    `sizes`: up to two of those there are. `deep`: the kinds of images with more than 8 bits a channel. `transparent`:
    the name of one with transparent pixels.
    """

    sizes: frozenset[tuple[int, int]] = frozenset()
    colour: bool = False
    deep: frozenset[str] = frozenset()
    transparent: str | None = None

    def add(self, header: Header, name: str) -> Survey:
        """With the image of this name."""
        return Survey(
            self.sizes | {header.size} if len(self.sizes) < 2 else self.sizes,
            self.colour or header.colour,
            self.deep if header.depth is None else self.deep | {header.depth},
            self.transparent or (name if header.transparent else None),
        )

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


def _open(data: bytes, name: str) -> Image.Image:
    try:
        return open_image(data)
    except Exception as error:
        raise _corrupt(name, error) from error


def _corrupt(name: str, error: Exception) -> UserError:
    return UserError(f"{name} cannot be decoded ({reason(error)}); replace or remove this image.")


def header(data: bytes, name: str, transparent: bool = True) -> Header:
    """The header of an encoded image. Whether it is `transparent` its pixels may have to tell."""
    image = _open(data, name)
    try:
        known = upright_size(image, data), not is_grey(image), depth(image)
        return Header(*known, transparent and is_transparent(image))
    except Exception as error:
        raise _corrupt(name, error) from error


def survey(images: Iterable[tuple[bytes, str]], known: Survey | None = None) -> Survey:
    """Look at (encoded image, its name)."""
    result = known or Survey()
    for data, name in images:
        result = result.add(header(data, name, result.transparent is None), name)
    return result


def extent(data: bytes, name: str) -> tuple[str, Extent] | None:
    """The `depth` of an encoded image and the extent of its pixels; None for one of 8 bits."""
    image = _open(data, name)
    kind = depth(image)
    if kind is None:
        return None
    try:
        found = values(image)
    except Exception as error:
        raise _corrupt(name, error) from error
    if kind == "float" and not np.isfinite(found).all():
        raise UserError(f"{name} has pixels that are not finite; mend or remove this image.")
    return kind, Extent.of(found[..., :3] if found.ndim == 3 else found)


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
    image = _open(data, name)
    if form.channels == 1 and not is_grey(image):
        raise Deviation(f"{name} is in colour")
    try:
        image, transparent = shown(image, form.channels, form.ranges)
    except Deviation as error:
        raise Deviation(f"{name} {error}") from None
    except Exception as error:
        raise _corrupt(name, error) from error
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
    elif form.resize:
        image = centred(image, form.width, form.height)
    return np.asarray(image).reshape(form.height, form.width, form.channels), transparent


def _decode_chunk(chunk: list[tuple[bytes, str]], form: Form) -> tuple[np.ndarray, str | None]:
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


def decode_all(
    chunks: Iterable[list[tuple[bytes, str]]], form: Form, out: np.ndarray
) -> Iterator[tuple[int, str | None]]:
    """Decode all chunks, in order, into `out` (uint8 [N, H, W, C]) on all processors; yields how many were just done,
    and the name of one with transparent pixels.

    Raises as `decode`.
    """
    images, size = chain.from_iterable(chunks), max(1, min(256, _CHUNK_BYTES // form.size))
    pending: deque[Future[tuple[np.ndarray, str | None]]] = deque()
    start = 0
    with _pool(form, len(out)) as pool:
        try:
            while True:
                while len(pending) < 2 * (cpu_count() or 1) and (chunk := list(islice(images, size))):
                    pending.append(pool.submit(_decode_chunk, chunk, form))
                if not pending:
                    return
                done, transparent = pending.popleft().result()
                out[start : start + len(done)] = done
                start += len(done)
                yield len(done), transparent
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
