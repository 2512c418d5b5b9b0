"""A user's own map-style Datasets of (image, mask) as scenes, read into memory."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from protege.data.items import is_image, read_item
from protege.data.mapped import image_pixels
from protege.data.progress import progress
from protege.data.repeatable import Watch, refuse_random
from protege.data.scenes import VOID, ScenesInMemory
from protege.errors import UserError
from protege.labels import UNLABELLED

_LOG = logging.getLogger("protege")


def has_masks(dataset: Any) -> bool:
    """Whether the labels of a Dataset are images: a PIL image, or an array or tensor of two dimensions or more."""
    try:
        return is_image(read_item(dataset, 0, "")[1])
    except UserError:  # whoever opens it as another kind of set says what is wrong
        return False


def scene_sets(datasets: dict[str, Any], memory_limit: int, name: str) -> tuple[dict[str, ScenesInMemory], tuple]:
    """The scenes of each split and the class names: the training Dataset's `classes`, or the masks' numbers.

    Images: see `image_pixels`; masks: class numbers [H, W] from 0, where 255 and -100 do not count. All have one
    shape. Raises UserError for what cannot be used.
    """
    first = {split: _scene(dataset, 0, f"item 0 of {split} {name}") for split, dataset in datasets.items()}
    shape = first["train"][0].shape
    decoded = sum(map(len, datasets.values())) * int(np.prod(shape[:2])) * (shape[2] + 1)
    if decoded > memory_limit:
        raise UserError(
            f"{name} has {decoded:,} bytes of images and masks, over the memory limit of {memory_limit:,}; raise it, "
            "or write them as files for segmentation:PATH, which are read as they are needed."
        )
    watch = Watch()
    found = {split: _read(dataset, f"{split} {name}", shape, watch) for split, dataset in datasets.items()}
    own = getattr(datasets["train"], "classes", None)
    known = found["train"].masks[found["train"].masks != VOID]
    classes = tuple(map(str, own)) if own else tuple(map(str, range(int(known.max()) + 1 if len(known) else 0)))
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
    shown = set(known.unique().tolist())
    for absent in (n for n in range(len(classes)) if n not in shown):
        _LOG.warning("no training mask of %s shows class %d ('%s').", name, absent, classes[absent])
    return found, classes


def _read(dataset: Any, name: str, shape: torch.Size, watch: Watch) -> ScenesInMemory:
    pixels = torch.empty((len(dataset), *shape), dtype=torch.uint8)
    masks = torch.empty(pixels.shape[:3], dtype=torch.uint8)
    with progress(f"reading {name}", len(dataset)) as advance:
        for at in range(len(dataset)):
            image, mask = _scene(dataset, at, f"item {at} of {name}")
            if image.shape != shape:
                raise UserError(
                    f"item {at} of {name} has shape {tuple(image.shape)} unlike the first's {tuple(shape)} (height, "
                    "width, channels); resize in the transforms so that all are alike."
                )
            pixels[at], masks[at] = image, mask
            advance(1)
    refuse_random(
        lambda at: _scene(dataset, at, f"item {at} of {name}"),
        lambda at: (pixels[at], masks[at]),
        range(len(dataset)),
        lambda at: f"item {at} of {name}",
        watch,
    )
    return ScenesInMemory(pixels, masks)


def _scene(dataset: Any, at: int, where: str) -> tuple[Tensor, Tensor]:
    """Pixels uint8 [H, W, C] and mask uint8 [H, W] of an item."""
    image, label = read_item(dataset, at, where)
    if not is_image(label):
        raise UserError(f"{where} has no mask; class numbers of the image's own size are expected, as others have.")
    pixels = image_pixels(image, where)
    mask = torch.as_tensor(np.array(label) if isinstance(label, Image.Image) else label)
    if mask.shape != pixels.shape[:2] or mask.dtype.is_floating_point or mask.dtype.is_complex:
        kind = str(mask.dtype).removeprefix("torch.")
        raise UserError(
            f"{where} has a mask of shape {tuple(mask.shape)} ({kind}); class numbers (integers) of the image's own "
            f"size {tuple(pixels.shape[:2])} are expected."
        )
    mask = mask.long()
    mask = torch.where(mask == UNLABELLED, VOID, mask)
    if mask.min() < 0 or mask.max() > VOID:
        odd = int(mask.min() if mask.min() < 0 else mask.max())
        raise UserError(f"{where} has the label {odd} in its mask; 0 to 254 is expected, or 255 for none.")
    return pixels, mask.to(torch.uint8)
