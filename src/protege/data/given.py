"""What is given in Python for data: sets by split, items of several forms, and their labels, images and masks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import IterableDataset

from ..errors import UserError, told
from .classes import seems_id
from .labels import UNLABELLED
from .masks import NONE, WHITE, mask_values
from .pixels import Deviation, depth, extent, is_grey, not_finite, readable, remarks_of, shown
from .progress import progress
from .ranges import ROUNDING, Extent, Ranges, settle
from .repeatable import Watch, spread
from .views import VOID

SPLITS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
"""The names under which a folder, a dict or a hub set has the splits."""

IMAGES = ("image", "img", "images", "pixel_values")
LABELS = ("label", "labels", "target", "targets", "class", "fine_label", "mask", "y")
_ARRAYS = (np.ndarray, Tensor)
_LOOKED_AT = 32


class Arrays:
    """Images and their labels, one each, as a map-style Dataset."""

    def __init__(self, images: Any, labels: Any) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, at: int) -> tuple[Any, Any]:
        return self.images[at], self.labels[at]


def splits_in(given: Any) -> dict[str, Any]:
    """Map-style Datasets by split ("train", "val", "test") of what is given: a Dataset, a pair of them (train, test),
    a dict of them by split; a pair of arrays (images, labels) in place of any of them."""
    if isinstance(given, Mapping):
        splits: dict[str, Any] = {}
        for key, dataset in given.items():
            split = next((split for split, names in SPLITS.items() if str(key).lower() in names), None)
            if split is None or split in splits:
                raise UserError(
                    f"data is a dict with the keys {', '.join(map(repr, given))}; a Dataset each under 'train', "
                    "'validation' and 'test', or some of them, is expected."
                )
            splits[split] = _dataset_in(dataset, f"{key} dataset")
        if "train" not in splits:
            raise UserError(
                f"data is a dict without 'train' ({', '.join(map(repr, given))}); add the training Dataset."
            )
        return splits
    if has_splits(given):
        if len(given) != 2:
            raise UserError(
                f"data is a tuple of {len(given)}; expected a pair (train Dataset, test Dataset), a pair of arrays "
                "(images, labels), or a dict {'train': …, 'validation': …, 'test': …}."
            )
        return {
            split: _dataset_in(part, f"{split} dataset") for split, part in zip(("train", "test"), given, strict=True)
        }
    return {"train": _dataset_in(given, "train dataset")}


def has_splits(given: Any) -> bool:
    """Whether what is given names splits: a dict, or a tuple that is no pair of arrays."""
    return isinstance(given, Mapping) or (isinstance(given, tuple) and not _paired(given))


def _paired(given: Any) -> bool:
    if not isinstance(given, tuple) or len(given) != 2:
        return False
    return isinstance(given[0], _ARRAYS) and isinstance(given[1], (*_ARRAYS, list))


def _dataset_in(given: Any, name: str) -> Any:
    """One set as something with len() and [i]; the items of an IterableDataset of known length are read."""
    if _paired(given):
        images, labels = given
        if not getattr(images, "ndim", 1) or not getattr(labels, "ndim", 1):
            raise UserError(f"{name} is a pair of arrays with one number each; expected images and their labels.")
        if len(images) != len(labels):
            raise UserError(f"{name} has {len(images)} images and {len(labels)} labels; as many of both are expected.")
        given = Arrays(images, labels)
    try:
        total = len(given)
    except Exception:  # whatever a Dataset of no length raises
        total = None
    if isinstance(given, IterableDataset) and total is not None:
        watch = Watch()
        items = list(_items_of(given, total, name))
        if watch.moved():
            raise UserError(
                f"{name} draws random numbers when it is read, so that its items may come in another order each time; "
                "leave out shuffling and random transforms, which training does itself."
            )
        return items
    if total is None or isinstance(given, IterableDataset) or not hasattr(given, "__getitem__"):
        hint = ": give its .dataset" if hasattr(given, "dataset") else ""
        raise UserError(
            f"{name} is a {type(given).__name__}; a map-style Dataset, with len() and [i], is expected{hint}."
        )
    if total == 0:
        raise UserError(f"{name} is empty; a Dataset with at least one image a class is expected.")
    return given


def _items_of(given: IterableDataset, total: int, name: str) -> Any:
    try:
        yield from islice(given, total)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{name} cannot be read ({type(error).__name__}: {told(error)}); mend its __iter__.") from error


def read_item(dataset: Any, position: int, where: str) -> tuple[Any, Any]:
    """The image and the label (None: it has none) of an item, whatever form it has."""
    try:
        item = dataset[position]
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{where} cannot be read ({type(error).__name__}: {told(error)}); mend the Dataset, or leave the item out "
            "with torch.utils.data.Subset."
        ) from error
    if isinstance(item, (Image.Image, *_ARRAYS)):
        return item, None
    if isinstance(item, Mapping):
        return _in_mapping(item, where)
    if isinstance(item, Sequence) and not isinstance(item, str | bytes) and len(item):
        if len(item) > 1 and is_image(item[1]) and not is_image(item[0]) and not isinstance(item[0], str):
            raise UserError(f"{where} has its label first; a pair (image, label) is expected: turn it round.")
        return item[0], item[1] if len(item) > 1 else None
    raise UserError(f"{where} is a {type(item).__name__}; a pair (image, label) is expected.")


def is_image(value: Any) -> bool:
    """Whether a value is an image or a mask by its form."""
    return isinstance(value, Image.Image) or (isinstance(value, _ARRAYS) and value.ndim >= 2)


def _in_mapping(item: Mapping, where: str) -> tuple[Any, Any]:
    """Of a dict: what has the form of an image (or the name, where several have), and what is named as a label, or is
    all that remains."""
    images = [key for key, value in item.items() if is_image(value)]
    named = [key for key in IMAGES if key in images]
    if len(images) == 1 or named:
        image = named[0] if named else images[0]
        rest = [key for key in item if key != image]
        label = next((key for key in LABELS if key in rest), rest[0] if len(rest) == 1 else None)
        if label is not None or not rest:
            return item[image], None if label is None else item[label]
    raise UserError(
        f"{where} is a dict with the keys {', '.join(map(repr, item))}; a pair (image, label), or a dict with 'image' "
        "and 'label', is expected."
    )


def label_in(value: Any, where: str) -> int | str:
    """The number or name of a class that a label gives, `UNLABELLED` for None: a whole number, a truth value or text,
    alone or as the only element of an array, or a one-hot vector. Raises `UserError` for all others."""
    if value is None:
        return UNLABELLED
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, list | tuple):
        with suppress(ValueError):  # lists of several lengths
            value = np.asarray(value)
    if isinstance(value, np.ndarray | np.generic):
        if value.size == 1:
            value = value.item()
        elif isinstance(value, np.ndarray) and value.ndim == 1 and value.size:
            return _of_vector(value, where)
    if isinstance(value, str):
        return str(value)
    if isinstance(value, int):
        if abs(value) >= 2**63:  # more than torch can hold
            raise UserError(seems_id(f"the label {value} of {where}"))
        return int(value)
    if isinstance(value, float):
        raise UserError(
            f"{where} has the label {value!r}; an integer from 0 is expected: give class numbers as integers, as "
            "numbers to be predicted (regression) are not supported."
        )
    raise UserError(f"{where} has the label {type(value).__name__!r}; an integer from 0 or a class name is expected.")


def _of_vector(value: np.ndarray, where: str) -> int:
    subject = f"{where} has the label {_short(value.tolist())}"
    if not (np.issubdtype(value.dtype, np.number) or value.dtype == bool):
        raise UserError(
            f"{subject}; one class an image is expected, as several at once (multi-label) are not supported."
        )
    if not np.isin(value, (0, 1)).all():
        raise UserError(
            f"{subject}; one class an image is expected, as vectors of numbers (regression, soft labels) are not "
            "supported."
        )
    if value.sum() != 1:
        raise UserError(
            f"{subject}, with {int(value.sum())} classes; one class an image is expected, as none or several at once "
            "(multi-label) are not supported."
        )
    return int(value.argmax())


def _short(values: list) -> str:
    return repr(values) if len(values) <= 8 else f"{repr(values[:8])[:-1]}, …]"


# ---- the pixels of images and masks ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class ImageKind:
    """What the images of a set are brought to: grey (1) or colour (3) `channels`, where they are one of these, and the
    `ranges` of PIL images of more than 8 bits a channel. `remarks`: what the first of its kind shows;
    `everything`: whether all were looked at."""

    channels: int | None = None
    ranges: Ranges = ()
    remarks: dict[str, str] = field(default_factory=dict)
    everything: bool = False


def kind_of(datasets: Mapping[str, Any], name: str, ranges: Ranges = (), everything: bool = False) -> ImageKind:
    """The kind of the images of Datasets by split, from some items spread over each or from `everything`. Grey among
    colour is colour, and one image of more than 8 bits has all looked at."""
    counts: set[int] = set()
    deep, remarks = False, dict[str, str]()
    for split, at, image in _images(datasets, name, everything):
        counts.add(_channels(image))
        if isinstance(image, Image.Image):
            deep = deep or depth(image) is not None
            shows = remarks_of(image, pixels="transparent" not in remarks)
            remarks = dict.fromkeys(shows, f"item {at} of {split} {name}") | remarks
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
    return ImageKind(max(counts) if counts <= {1, 3} else None, ranges, remarks, everything or deep)


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


def image_pixels(image: Any, where: str, kind: ImageKind) -> tuple[Tensor, set[str]]:
    """Raw pixels, uint8 [H, W, C], of a PIL image, a uint8 array [H, W] or [H, W, C], or a tensor [H, W] or
    [C, H, W] of uint8 or of floats from 0 to 1, brought to `kind`; and which of `REMARKS` it shows. An array whose
    channels can only come first is taken so, as is a tensor whose channels can only come last. Raises Deviation where
    an image is not of the kind, and UserError naming `where` for anything else."""
    channels, remarks = kind.channels, set[str]()
    if isinstance(image, Image.Image):
        if channels == 1 and not is_grey(image):
            raise Deviation(f"{where} is in colour")
        with readable(where):
            try:
                image, remarks = shown(image, channels or _channels(image), kind.ranges)
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
    return (tensor.expand(-1, -1, 3) if grey else tensor).contiguous(), remarks


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
