"""What is given in Python for data: sets by split, items of several forms, and labels of several kinds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import IterableDataset

from ..errors import UserError, told
from .classes import seems_id
from .labels import UNLABELLED
from .repeatable import Watch

SPLITS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
"""The names under which a folder, a dict or a hub set has the splits."""

IMAGES = ("image", "img", "images", "pixel_values")
LABELS = ("label", "labels", "target", "targets", "class", "fine_label", "mask", "y")
_ARRAYS = (np.ndarray, Tensor)


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
            splits[split] = _one(dataset, f"{key} dataset")
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
        return {split: _one(part, f"{split} dataset") for split, part in zip(("train", "test"), given, strict=True)}
    return {"train": _one(given, "train dataset")}


def has_splits(given: Any) -> bool:
    """Whether what is given names splits: a dict, or a tuple that is no pair of arrays."""
    return isinstance(given, Mapping) or (isinstance(given, tuple) and not _paired(given))


def _paired(given: Any) -> bool:
    if not isinstance(given, tuple) or len(given) != 2:
        return False
    return isinstance(given[0], _ARRAYS) and isinstance(given[1], (*_ARRAYS, list))


def _one(given: Any, name: str) -> Any:
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
        items = list(_each(given, total, name))
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


def _each(given: IterableDataset, total: int, name: str) -> Any:
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
    told_as = f"{where} has the label {_short(value.tolist())}"
    if not (np.issubdtype(value.dtype, np.number) or value.dtype == bool):
        raise UserError(
            f"{told_as}; one class an image is expected, as several at once (multi-label) are not supported."
        )
    if not np.isin(value, (0, 1)).all():
        raise UserError(
            f"{told_as}; one class an image is expected, as vectors of numbers (regression, soft labels) are not "
            "supported."
        )
    if value.sum() != 1:
        raise UserError(
            f"{told_as}, with {int(value.sum())} classes; one class an image is expected, as none or several at once "
            "(multi-label) are not supported."
        )
    return int(value.argmax())


def _short(values: list) -> str:
    return repr(values) if len(values) <= 8 else f"{repr(values[:8])[:-1]}, …]"
