"""A user's own map-style Datasets of (image, mask) as scenes, read into memory."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from protege.data.classes import naming_of
from protege.data.contents import place_of_image
from protege.data.items import is_image, read_item
from protege.data.masks import VOID, grey_levels, mask_values, refuse_white_object
from protege.data.pixels import reason
from protege.data.progress import progress
from protege.data.raw import Kind, image_pixels
from protege.data.repeatable import Watch, refuse_random
from protege.data.scenes import ScenesInMemory
from protege.errors import UserError
from protege.labels import UNLABELLED
from protege.naming import numbers

_NONE, _TRUE = -1, 256  # in masks that are read: no label, and what is not black in a mask that is black and white
_LOG = logging.getLogger("protege")


def has_masks(dataset: Any) -> bool:
    """Whether the labels of a Dataset are images: a PIL image, or an array or tensor of two dimensions or more."""
    try:
        return is_image(read_item(dataset, 0, "")[1])
    except UserError:  # whoever opens it as another kind of set says what is wrong
        return False


def places_of_scenes(scenes: ScenesInMemory) -> Tensor:
    """The place of each image, float64 [N], see `protege.data.contents`."""
    return torch.tensor([place_of_image(pixels) for pixels in scenes.pixels], dtype=torch.float64)


def scene_sets(
    datasets: dict[str, Any], memory_limit: int, name: str, kind: Kind
) -> tuple[dict[str, ScenesInMemory], tuple]:
    """The scenes of each split and the class names: the training Dataset's `classes`, or the masks' numbers.

    Images: see `image_pixels`; masks: class numbers [H, W] from 0, where -100 does not count, nor does 255 unless masks
    are drawn in grey levels (see `grey_levels`). All have one shape. Raises UserError for what cannot be used, and
    Deviation for an image that is not of the `kind`.
    """
    shape = _scene(datasets["train"], 0, f"item 0 of train {name}", kind)[0].shape
    decoded = sum(map(len, datasets.values())) * int(np.prod(shape[:2])) * (shape[2] + 1)
    if decoded > memory_limit:
        raise UserError(
            f"{name} has {decoded:,} bytes of images and masks, over the memory limit of {memory_limit:,}; raise it, "
            "or write them as files for segmentation:PATH, which are read as they are needed."
        )
    watch = Watch()
    read = {split: _read(dataset, f"{split} {name}", shape, kind, watch) for split, dataset in datasets.items()}
    naming = naming_of(datasets["train"], f"train {name}")
    own = naming.names if naming else ()
    seen = {split: values for split, (_, _, values) in read.items()}
    levels = _levels(seen["train"], len(own) or None)
    if levels:
        _LOG.info(
            "the masks of %s hold the grey levels %s: each is a class, 255 too.", name, ", ".join(map(str, levels))
        )
    table = _table(levels)
    found = {s: ScenesInMemory(pixels, torch.from_numpy(table[masks + 1])) for s, (pixels, masks, _) in read.items()}
    known = sorted(set(table[seen["train"].any(0)].tolist()) - {VOID})
    classes = own or numbers(max(known) + 1 if known else 0)
    if len(classes) < 2:
        raise UserError(f"{name} has masks of {len(classes)} class; at least two are expected.")
    for split, scenes in found.items():
        wrong = (scenes.masks != VOID) & (scenes.masks >= len(classes))
        if wrong.any():
            item, *_ = at = wrong.nonzero()[0].tolist()
            raise UserError(
                f"the mask of item {item} of {split} {name} holds the label {int(scenes.masks[tuple(at)])}; 0 to "
                f"{len(classes) - 1} is expected, as there are {len(classes)} classes, or {VOID} for none."
            )
    if not levels:
        items = [f"item {at} of {split} {name}" for split, dataset in datasets.items() for at in range(len(dataset))]
        voids = np.concatenate([values[:, 1:257] for values in seen.values()])
        remedy = "give -100 instead of 255 if this is meant"
        refuse_white_object(name, [classes[n] for n in known], len(datasets["train"]), voids, items.__getitem__, remedy)
    for absent in (n for n in range(len(classes)) if n not in known):
        _LOG.warning("no training mask of %s shows class %d ('%s').", name, absent, classes[absent])
    return found, classes


def _levels(seen: np.ndarray, classes: int | None) -> tuple[int, ...]:
    """The grey levels of masks with these values, `_TRUE` being white where others are drawn in grey."""
    present: Any = seen.any(0)
    drawn = set(np.flatnonzero(present[1:257]).tolist())
    if VOID not in drawn:
        return ()
    return grey_levels(drawn | {0} if present[_TRUE + 1] else drawn, classes)


def _table(levels: tuple[int, ...]) -> np.ndarray:
    """The class of each value from `_NONE` to `_TRUE`, or `VOID`."""
    values = {value: n for n, value in enumerate(levels)} or {value: value for value in range(VOID)}
    numbers = [values.get(value, VOID) for value in range(_NONE, _TRUE)]
    return np.array([*numbers, values.get(VOID, 1)], np.uint8)


def _read(
    dataset: Any, name: str, shape: torch.Size, kind: Kind, watch: Watch
) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """Pixels uint8 [N, H, W, C], masks int16 [N, H, W] from `_NONE` to `_TRUE`, and which of these values each has."""
    pixels = torch.empty((len(dataset), *shape), dtype=torch.uint8)
    masks = np.empty(pixels.shape[:3], np.int16)
    seen = np.zeros((len(dataset), _TRUE - _NONE + 1), bool)
    with progress(f"reading {name}", len(dataset)) as advance:
        for at in range(len(dataset)):
            image, mask = _scene(dataset, at, f"item {at} of {name}", kind)
            if image.shape != shape:
                raise UserError(
                    f"item {at} of {name} has shape {tuple(image.shape)} unlike the first's {tuple(shape)} (height, "
                    "width, channels); resize in the transforms so that all are alike."
                )
            pixels[at], masks[at] = image, mask
            seen[at, np.unique(mask - _NONE)] = True
            advance(1)
    refuse_random(
        lambda at: _scene(dataset, at, f"item {at} of {name}", kind),
        lambda at: (pixels[at], torch.from_numpy(masks[at])),
        range(len(dataset)),
        lambda at: f"item {at} of {name}",
        watch,
    )
    return pixels, masks, seen


def _scene(dataset: Any, at: int, where: str, kind: Kind) -> tuple[Tensor, Tensor]:
    """Pixels uint8 [H, W, C] and mask int16 [H, W], from `_NONE` to `_TRUE`, of an item."""
    image, label = read_item(dataset, at, where)
    if not is_image(label):
        raise UserError(f"{where} has no mask; class numbers of the image's own size are expected, as others have.")
    pixels, _ = image_pixels(image, where, kind)
    mask = torch.as_tensor(_of_image(label, where) if isinstance(label, Image.Image) else label)
    mask = mask[0] if mask.ndim == 3 and len(mask) == 1 else mask
    if mask.shape != pixels.shape[:2] or mask.dtype.is_floating_point or mask.dtype.is_complex:
        name = str(mask.dtype).removeprefix("torch.")
        raise UserError(
            f"{where} has a mask of shape {tuple(mask.shape)} ({name}); class numbers (integers) of the image's own "
            f"size {tuple(pixels.shape[:2])} are expected."
        )
    if mask.dtype == torch.bool:
        return pixels, mask.to(torch.int16) * _TRUE
    mask = mask.long()
    mask = torch.where(mask == UNLABELLED, _NONE, mask)
    if mask.min() < _NONE or mask.max() > VOID:
        odd = int(mask.min() if mask.min() < _NONE else mask.max())
        raise UserError(f"{where} has the label {odd} in its mask; 0 to 254 is expected, or 255 for none.")
    return pixels, mask.to(torch.int16)


def _of_image(mask: Image.Image, where: str) -> np.ndarray:
    try:
        return np.array(mask_values(mask, f"the mask of {where}"))
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"the mask of {where} cannot be decoded ({reason(error)}); mend or remove it.") from error
