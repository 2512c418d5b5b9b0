"""Images and masks that are given in Python, as PIL images, arrays and tensors: their pixels, of one kind for a whole
set."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import UserError
from .given import is_image, read_item
from .labels import UNLABELLED
from .masks import NONE, WHITE, mask_values
from .pixels import Deviation, depth, extent, is_grey, is_transparent, not_finite, readable, shown
from .progress import progress
from .ranges import ROUNDING, Extent, Ranges, settle
from .repeatable import spread
from .views import VOID

_LOOKED_AT = 32


@dataclass(frozen=True)
class ImageKind:
    """What the images of a set are brought to: grey (1) or colour (3) `channels`, where they are one of these, and the
    `ranges` of PIL images of more than 8 bits a channel. `transparent`: the name of one with transparent pixels;
    `everything`: whether all were looked at."""

    channels: int | None = None
    ranges: Ranges = ()
    transparent: str | None = None
    everything: bool = False


def kind_of(datasets: Mapping[str, Any], name: str, ranges: Ranges = (), everything: bool = False) -> ImageKind:
    """The kind of the images of Datasets by split, from some items spread over each or from `everything`. Grey among
    colour is colour, and one image of more than 8 bits has all looked at."""
    counts: set[int] = set()
    deep, transparent = False, None
    for split, at, image in _images(datasets, name, everything):
        counts.add(_channels(image))
        if isinstance(image, Image.Image):
            deep = deep or depth(image) is not None
            if transparent is None and is_transparent(image):
                transparent = f"item {at} of {split} {name}"
    if deep:
        extents: dict[str, list[tuple[str, Extent]]] = {split: [] for split in datasets}
        for split, at, image in _images(datasets, name, everything=True):
            counts.add(_channels(image))
            if (
                isinstance(image, Image.Image)
                and (measured := extent(image, f"item {at} of {split} {name}")) is not None
            ):
                extents[split].append(measured)
        ranges = settle(name, extents, ranges)
    return ImageKind(max(counts) if counts <= {1, 3} else None, ranges, transparent, everything or deep)


def _images(datasets: Mapping[str, Any], name: str, everything: bool) -> Iterable[tuple[str, int, Any]]:
    for split, dataset in datasets.items():
        positions = range(len(dataset)) if everything else spread(len(dataset), _LOOKED_AT)
        with progress(f"looking at {split} {name}", len(positions)) as advance:
            for at in positions:
                yield split, at, read_item(dataset, at, f"item {at} of {split} {name}")[0]
                advance(1)


def _channels(image: Any) -> int:
    """How many channels an image has, 0 for what is none."""
    if isinstance(image, Image.Image):
        return 1 if is_grey(image) else 3
    tensor = _in_order(image)
    return 0 if tensor is None else tensor.shape[2]


def image_pixels(image: Any, where: str, kind: ImageKind) -> tuple[Tensor, bool]:
    """Raw pixels, uint8 [H, W, C], of a PIL image, a uint8 array [H, W] or [H, W, C], or a tensor [H, W] or
    [C, H, W] of uint8 or of floats from 0 to 1, brought to `kind`; and whether some were transparent. An array whose
    channels can only come first is taken so, as is a tensor whose channels can only come last. Raises Deviation where
    an image is not of the kind, and UserError naming `where` for anything else."""
    channels, transparent = kind.channels, False
    if isinstance(image, Image.Image):
        if channels == 1 and not is_grey(image):
            raise Deviation(f"{where} is in colour")
        with readable(where):
            try:
                image, transparent = shown(image, channels or _channels(image), kind.ranges)
            except Deviation as error:
                raise Deviation(f"{where} {error}") from None
            image = np.array(image)
    if not isinstance(image, np.ndarray | Tensor):
        raise UserError(
            f"{where} has an image of type {type(image).__name__}; a PIL image, an array or a tensor is expected."
        )
    tensor = _in_order(image)
    if tensor is None:
        raise UserError(
            f"{where} has an image of shape {tuple(image.shape)} ({str(image.dtype).removeprefix('torch.')}); "
            "arrays [H, W, C] or tensors [C, H, W] with 1 or 3 channels, or some that are fewer than its pixels a "
            "side, are expected."
        )
    if not tensor.numel():
        raise UserError(f"{where} has an image of {tensor.shape[1]}×{tensor.shape[0]} pixels; mend it or leave it out.")
    tensor = _in_bytes(tensor, where)
    if channels == 1 and tensor.shape[2] == 3:
        raise Deviation(f"{where} is in colour")
    grey = channels == 3 and tensor.shape[2] == 1
    return (tensor.expand(-1, -1, 3) if grey else tensor).contiguous(), transparent


def _in_bytes(tensor: Tensor, where: str) -> Tensor:
    if tensor.dtype.is_floating_point:
        low, high = tensor.min().item(), tensor.max().item()
        if not bool(tensor.isfinite().all()):
            raise not_finite(where)
        if low < -ROUNDING or high > 1 + ROUNDING:
            remedy = "remove Normalize from the Dataset's transforms, the model normalises"
            if low >= -ROUNDING:
                remedy = "divide the images by 255, or give them as uint8"
            if low >= -0.5 and high <= 1.5:
                remedy = "end the Dataset's transforms by .clamp(0, 1)"
            raise UserError(
                f"{where} has float values from {low:.3g} to {high:.3g} where 0 to 1 is expected; {remedy}."
            )
        tensor = (tensor * 255).round().clamp(0, 255).to(torch.uint8)
    if tensor.dtype != torch.uint8:
        name = str(tensor.dtype).removeprefix("torch.")
        raise UserError(f"{where} has {name} pixels; give uint8, or floats from 0 to 1.")
    return tensor


def mask_of(label: Any, where: str, size: tuple[int, ...]) -> Tensor:
    """The values of the mask of an image of this (height, width), int16 [H, W]: see `protege.data.masks`."""
    if not is_image(label):
        raise UserError(f"{where} has no mask; class numbers of the image's own size are expected, as others have.")
    known = isinstance(label, Image.Image)
    if known:
        label = mask_values(label, f"the mask of {where}")
    mask = torch.as_tensor(label)
    mask = mask[0] if mask.ndim == 3 and len(mask) == 1 else mask
    if tuple(mask.shape) != size or mask.dtype.is_floating_point or mask.dtype.is_complex:
        name = str(mask.dtype).removeprefix("torch.")
        raise UserError(
            f"{where} has a mask of shape {tuple(mask.shape)} ({name}); class numbers (integers) of the image's own "
            f"size {size} are expected."
        )
    if known:
        return mask
    if mask.dtype == torch.bool:
        return mask.to(torch.int16) * WHITE
    mask = mask.long()
    mask = torch.where(mask == UNLABELLED, NONE, mask)
    if mask.min() < NONE or mask.max() > VOID:
        odd = int(mask.min() if mask.min() < NONE else mask.max())
        raise UserError(f"{where} has the label {odd} in its mask; 0 to 254 is expected, or 255 for none.")
    return mask.to(torch.int16)


def _in_order(image: Any) -> Tensor | None:
    """An array or tensor as [H, W, C]; None where no axis can be its channels."""
    if isinstance(image, np.ndarray):
        if image.dtype.kind not in "biufc":  # objects, dates, text
            return None
        return _channels_last(torch.from_numpy(np.ascontiguousarray(image)), 2)
    return _channels_last(image.detach().cpu(), 0) if isinstance(image, Tensor) else None


def _channels_last(image: Tensor, axis: int) -> Tensor | None:
    """An image [H, W, C] of one whose channels are by convention its given axis, 0 or 2; None where it has none."""
    if image.ndim == 2:
        return image[:, :, None]
    if image.ndim != 3:
        return None
    ways = {0: image.permute(1, 2, 0), 2: image}
    for usual, way in ((True, ways[axis]), (False, ways[2 - axis])):
        *sides, channels = way.shape
        colour, few = channels in (1, 3), 0 < channels < min(sides)
        if (usual and (colour or few)) or (colour and few):
            return way
    return None
