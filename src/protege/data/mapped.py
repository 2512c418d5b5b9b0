"""A user's own map-style torch Dataset as samples."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from protege.data.batch import Batch
from protege.data.decode import centred
from protege.data.pixels import is_grey, shown
from protege.data.progress import progress
from protege.data.samples import InMemory, Samples
from protege.data.views import Augment, render
from protege.errors import UserError
from protege.labels import UNLABELLED

_CHECKED = 16


def image_pixels(image: Any, where: str, image_size: int | None = None) -> Tensor:
    """Raw pixels, uint8 [H, W, C], of a PIL image, a uint8 array [H, W] or [H, W, C], or a tensor [H, W] or
    [C, H, W] of uint8 or of floats from 0 to 1. PIL images are brought to `image_size` if that is given.
    Raises UserError naming `where` for anything else."""
    if isinstance(image, Image.Image):
        image, _ = shown(image, 1 if is_grey(image) else 3)
        image = np.array(centred(image, image_size, image_size) if image_size else image)
    if isinstance(image, np.ndarray):
        tensor = torch.from_numpy(np.ascontiguousarray(image))
        tensor = tensor[:, :, None] if tensor.ndim == 2 else tensor
    elif isinstance(image, Tensor):
        tensor = image[None] if image.ndim == 2 else image
        tensor = tensor.permute(1, 2, 0) if tensor.ndim == 3 else tensor
    else:
        raise UserError(
            f"{where} has an image of type {type(image).__name__}; a PIL image, an array or a tensor is expected."
        )
    if tensor.ndim != 3 or tensor.shape[2] not in (1, 3):
        raise UserError(
            f"{where} has an image of shape {tuple(image.shape)}; arrays [H, W, C] or tensors [C, H, W] "
            "with 1 or 3 channels are expected."
        )
    if tensor.dtype.is_floating_point:
        low, high = tensor.min().item(), tensor.max().item()
        if not bool(tensor.isfinite().all()):
            raise UserError(f"{where} has pixels that are not finite; mend or remove this image.")
        if not (low >= 0 and high <= 1):
            raise UserError(
                f"{where} has float values from {low:.3g} to {high:.3g} where 0 to 1 is expected; remove "
                "Normalize from the dataset's transforms, the model normalises."
            )
        tensor = (tensor * 255).round().to(torch.uint8)
    if tensor.dtype != torch.uint8:
        kind = str(tensor.dtype).removeprefix("torch.")
        raise UserError(f"{where} has {kind} pixels; give uint8, or floats from 0 to 1.")
    return tensor.contiguous()


class Mapped(Samples):
    """A map-style Dataset whose items are (image, label), read item by item, in the workers of `batches`.

    Images: see `image_pixels`; all of one shape. Items that are images alone have no label (-100). Labels are taken
    from `.targets` or `.labels` if that has one for each item, as the items looked at have it, and there is no
    `target_transform`; otherwise by reading every item once. Items must be
    the same at every reading, because views are replayed: augmentation belongs to `Augment`, not to the dataset.
    """

    in_memory = False

    def __init__(
        self,
        dataset: Any,
        name: str = "dataset",
        *,
        positions: Tensor | None = None,
        labels: Tensor | None = None,
        image_size: int | None = None,
    ) -> None:
        self.dataset, self.name, self.image_size = dataset, name, image_size
        total = self._length()
        self.positions = torch.arange(total) if positions is None else positions
        first = self._pixels(0)
        self._expected = tuple(first.shape)
        height, width, channels = self._expected
        self.shape = (channels, height, width)
        if labels is None:
            self._check_repeatable()
            labels = self._known_labels(total)
        self.labels: Tensor = self._read_labels() if labels is None else labels
        self._digest: str | None = None

    def __len__(self) -> int:
        return len(self.positions)

    def _length(self) -> int:
        try:
            total = len(self.dataset)
        except TypeError:
            total = None
        if total is None or not hasattr(self.dataset, "__getitem__"):
            raise UserError(
                f"{self.name} is a {type(self.dataset).__name__}; a map-style Dataset, with len() and [i], is expected."
            )
        if total == 0:
            raise UserError(f"{self.name} is empty; a Dataset with at least one image a class is expected.")
        return total

    def _where(self, at: int) -> str:
        return f"item {int(self.positions[at])} of {self.name}"

    def _item(self, at: int) -> Sequence:
        item = self.dataset[int(self.positions[at])]
        if isinstance(item, Image.Image | np.ndarray | Tensor):  # an image alone
            item = (item, UNLABELLED)
        elif isinstance(item, Sequence) and len(item) == 1:  # as of TensorDataset(images)
            item = (item[0], UNLABELLED)
        if not isinstance(item, Sequence) or len(item) < 2:
            raise UserError(f"{self._where(at)} is a {type(item).__name__}; a pair (image, label) is expected.")
        return item

    def _pixels(self, at: int) -> Tensor:
        return image_pixels(self._item(at)[0], self._where(at), self.image_size)

    def _same_shape(self, at: int) -> Tensor:
        pixels = self._pixels(at)
        if tuple(pixels.shape) != self._expected:
            raise UserError(
                f"{self._where(at)} has shape {tuple(pixels.shape)} unlike item {int(self.positions[0])}'s "
                f"{self._expected} (height, width, channels); give an image size, or resize in the "
                "transforms so that all are alike."
            )
        return pixels

    def _label(self, at: int) -> int:
        label = self._item(at)[1]
        value = label.item() if isinstance(label, Tensor | np.generic) and label.ndim == 0 else label
        if isinstance(value, bool) or not isinstance(value, int):
            shown = value if isinstance(value, int | float | str) else type(value).__name__
            raise UserError(f"{self._where(at)} has the label {shown!r}; an integer from 0 is expected.")
        return value

    def _known_labels(self, total: int) -> Tensor | None:
        """The labels that the dataset lists, where it has one for each item and the items looked at have them."""
        if getattr(self.dataset, "target_transform", None) is not None:  # the list tells what stands before it
            return None
        for attribute in ("targets", "labels"):
            labels = getattr(self.dataset, attribute, None)
            if labels is None or not hasattr(labels, "__len__") or len(labels) != total:
                continue
            try:
                found = labels if isinstance(labels, Tensor) else torch.from_numpy(np.asarray(labels))
            except (TypeError, ValueError):  # words, or lists of several lengths
                continue
            whole = not (found.dtype.is_floating_point or found.dtype.is_complex or found.dtype == torch.bool)
            if found.ndim == 1 and whole:
                found = found.to("cpu", torch.int64)[self.positions]
                if all(int(found[at]) == self._label(at) for at in self._some()):
                    return found
        return None

    def _read_labels(self) -> Tensor:
        with progress(f"reading the labels of {self.name}", len(self)) as advance:
            labels = []
            for at in range(len(self)):
                labels.append(self._label(at))
                advance(1)
        return torch.tensor(labels)

    def _some(self) -> list[int]:
        """A few items spread over the set."""
        return torch.linspace(0, len(self) - 1, min(_CHECKED, len(self))).long().tolist()

    def _check_repeatable(self) -> None:
        for at in self._some():
            if not torch.equal(self._same_shape(at), self._same_shape(at)):
                raise UserError(
                    f"{self._where(at)} differs from one reading to the next; remove random transforms "
                    "from the dataset and use augment instead, whose views can be replayed."
                )

    def fetch(self, index: Tensor, view: int, augment: Augment) -> Batch:
        index = index.cpu()
        pixels = torch.stack([self._same_shape(i) for i in index.tolist()])
        inputs = render(pixels, torch.arange(len(index)), index, view, augment)
        return Batch(inputs, self.labels[index], index, view)

    def part(self, index: Tensor) -> Mapped:
        """The items at positions `index` only."""
        chosen = {"positions": self.positions[index], "labels": self.labels[index]}
        return Mapped(self.dataset, self.name, **chosen, image_size=self.image_size)

    def materialise(self) -> InMemory:
        """All pixels read into memory."""
        pixels = torch.empty((len(self), *self._expected), dtype=torch.uint8)
        with progress(f"reading {self.name}", len(self)) as advance:
            for at in range(len(self)):
                pixels[at] = self._same_shape(at)
                advance(1)
        return InMemory(pixels, self.labels)

    def fingerprint(self) -> str:
        """Digest of the labels and of the pixels of at most 256 items spread over the set."""
        if self._digest is None:
            digest = hashlib.sha256(self.labels.numpy().tobytes())
            for at in torch.linspace(0, len(self) - 1, min(256, len(self))).long().tolist():
                digest.update(self._same_shape(at).numpy().tobytes())
            self._digest = digest.hexdigest()
        return self._digest
