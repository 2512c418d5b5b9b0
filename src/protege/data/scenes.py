"""Scenes: images with a class for every pixel, in memory or decoded as they are fetched.

A view moves the image and its mask by the same draw. Pixels are interpolated and mirrored at the border as in all
views; a mask takes its nearest value, and what a translation brings in from outside the image has no label.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from protege.data.batch import Batch
from protege.data.contents import content_of
from protege.data.decode import centred
from protege.data.masks import VOID, mask_values
from protege.data.pixels import open_image, reason, shown
from protege.data.ranges import Ranges
from protege.data.samples import Samples, has_room
from protege.data.views import CLEAN, Augment, boxes, moved, pick, reflect, render, resized_crops
from protege.errors import UserError
from protege.labels import UNLABELLED


def render_masks(masks: Tensor, at: Tensor, index: Tensor, view: int, augment: Augment) -> Tensor:
    """The labels that belong to `render_scenes`: int64 [B, H, W] of masks[at] (uint8 [N, H, W]), `UNLABELLED` for
    pixels that are `VOID` or come from outside."""
    _, height, width = masks.shape
    outside = None
    if view == CLEAN or not augment.changes:
        picked = masks.index_select(0, at)
    else:
        if augment.crop:
            rows, columns = _nearest(augment, index, view, height, width)
        else:
            rows, columns = moved(augment, index, view, height, width)
            out = [(p < 0) | (p >= size) for p, size in ((rows, height), (columns, width))]
            outside = out[0][:, :, None] | out[1][:, None, :]
            rows, columns = reflect(rows, height), reflect(columns, width)
        picked = pick(masks[..., None], at, rows, columns)[..., 0]
    void = picked == VOID if outside is None else (picked == VOID) | outside
    return picked.long().masked_fill_(void, UNLABELLED)


def _nearest(augment: Augment, index: Tensor, view: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """The pixels nearest to the centres that a random resized crop looks at: rows [B, H], columns [B, W]."""
    size = torch.full_like(index, height), torch.full_like(index, width)
    box, flip = boxes(augment, index, view, *size, width / height)
    rows, columns = (
        start[:, None] + ((2 * torch.arange(n, device=index.device) + 1) * length[:, None]) // (2 * n)
        for start, length, n in ((box[:, 0], box[:, 2], height), (box[:, 1], box[:, 3], width))
    )
    return rows, torch.where(flip[:, None], columns.flip(1), columns)


def render_scenes(pixels: Tensor, at: Tensor, index: Tensor, view: int, augment: Augment) -> Tensor:
    """`render`, but random crops are shaped like the image: a scene is seldom square, and should not be squeezed."""
    if augment.crop and view != CLEAN:
        aspect = pixels.shape[2] / pixels.shape[1]
        return resized_crops(pixels, at, index, view, augment, aspect).permute(0, 3, 1, 2)
    return render(pixels, at, index, view, augment)


class Scenes(Samples):
    """Images whose labels are per pixel; `labels` is None, batches have int64 [B, H, W]."""

    labels = None

    @abstractmethod
    def part(self, index: Tensor) -> Scenes:
        """The scenes at positions `index` only."""


class ScenesInMemory(Scenes):
    """All pixels uint8 [N, H, W, C] and masks uint8 [N, H, W], `VOID` where there is no label."""

    in_memory = True

    def __init__(self, pixels: Tensor, masks: Tensor, *, digest: str | None = None) -> None:
        if pixels.dtype != torch.uint8 or masks.dtype != torch.uint8 or pixels.shape[:3] != masks.shape:
            raise ValueError("ScenesInMemory needs uint8 pixels [N, H, W, C] and masks [N, H, W].")
        self.pixels, self.masks = pixels.contiguous(), masks.contiguous()
        _, height, width, channels = pixels.shape
        self.shape = (channels, height, width)
        self._digest = digest

    def __len__(self) -> int:
        return len(self.pixels)

    def fetch(self, index: Tensor, view: int, augment: Augment) -> Batch:
        at = index.to(self.pixels.device, non_blocking=True)
        inputs = render_scenes(self.pixels, at, at, view, augment)
        return Batch(inputs, render_masks(self.masks, at, at, view, augment), index.cpu(), view)

    def fingerprint(self) -> str:
        if self._digest is None:
            digest = hashlib.sha256(repr(tuple(self.pixels.shape)).encode())
            digest.update(self.pixels.cpu().numpy().data)
            digest.update(self.masks.cpu().numpy().data)
            self._digest = digest.hexdigest()
        return self._digest

    def to(self, device: torch.device | str) -> ScenesInMemory:
        if not has_room(device, self.pixels.nbytes + self.masks.nbytes):
            return self
        pixels = self.pixels.to(device)
        return self if pixels is self.pixels else ScenesInMemory(pixels, self.masks.to(device), digest=self._digest)

    def relabelled(self, place: Tensor) -> ScenesInMemory:
        table = torch.from_numpy(_composed(bytes(range(256)), place)).to(self.masks.device)
        return ScenesInMemory(self.pixels, table[self.masks.int()])

    def part(self, index: Tensor) -> ScenesInMemory:
        return ScenesInMemory(self.pixels[index], self.masks[index])


@dataclass(frozen=True)
class SceneForm:
    """What decoded scenes look like, and what their masks mean.

    `table`: the class of each of the 256 values of a mask, `VOID` for none. `white`: the value of white in masks that
    are black and white. `ranges`: those of images of more than 8 bits a channel.
    """

    height: int
    width: int
    channels: int
    ranges: Ranges = ()
    table: bytes = bytes(range(256))
    white: int = 1


class ScenesInFiles(Scenes):
    """Images and masks that are decoded when they are fetched, in the workers of `batches`; the same pixels and
    labels as the same files in memory."""

    in_memory = False

    def __init__(self, pairs: list[tuple[Path, Path]], form: SceneForm) -> None:
        self.pairs, self.form = pairs, form
        self.shape = (form.channels, form.height, form.width)
        self._digest: str | None = None

    def __len__(self) -> int:
        return len(self.pairs)

    def fetch(self, index: Tensor, view: int, augment: Augment) -> Batch:
        index, form = index.cpu(), self.form
        pixels = np.empty((len(index), form.height, form.width, form.channels), np.uint8)
        masks = np.empty((len(index), form.height, form.width), np.uint8)
        for n, position in enumerate(index.tolist()):
            image, mask = self.pairs[position]
            pixels[n] = read_pixels(image, form)
            masks[n] = fitted_mask(read_mask(mask), form)
        masks = np.frombuffer(form.table, np.uint8)[masks]
        at = torch.arange(len(index))
        inputs = render_scenes(torch.from_numpy(pixels), at, index, view, augment)
        return Batch(inputs, render_masks(torch.from_numpy(masks), at, index, view, augment), index, view)

    def fingerprint(self) -> str:
        if self._digest is None:
            paths = [path for pair in self.pairs for path in pair]
            self._digest = hashlib.sha256(f"{content_of(paths)} {self.form}".encode()).hexdigest()
        return self._digest

    def relabelled(self, place: Tensor) -> ScenesInFiles:
        return ScenesInFiles(self.pairs, replace(self.form, table=_composed(self.form.table, place).tobytes()))

    def part(self, index: Tensor) -> ScenesInFiles:
        return ScenesInFiles([self.pairs[i] for i in index.tolist()], self.form)


def _composed(table: bytes, place: Tensor) -> np.ndarray:
    """The table with class k called `place[k]`, `VOID` as before."""
    then = np.full(256, VOID, np.uint8)
    then[: len(place)] = place.numpy()
    return then[np.frombuffer(table, np.uint8)]


def _opened(path: Path, kind: str) -> Image.Image:
    """An image file, its header read. Raises UserError naming the file, which is called a `kind`."""
    try:
        return open_image(path)
    except Exception as error:
        raise _corrupt(path, kind, error) from error


def _corrupt(path: Path, kind: str, error: Exception) -> UserError:
    return UserError(
        f"{kind} {path} cannot be read ({reason(error)}); an intact image is expected: restore or remove it."
    )


def read_pixels(path: Path, form: SceneForm) -> np.ndarray:
    """Pixels of an image file brought to the form, uint8 [height, width, channels]."""
    with _opened(path, "image") as image:
        try:
            ready, _ = shown(image, form.channels, form.ranges)
        except Exception as error:
            raise _corrupt(path, "image", error) from error
    if ready.size != (form.width, form.height):
        ready = centred(ready, form.width, form.height)
    return np.asarray(ready).reshape(form.height, form.width, form.channels)


def read_mask(path: Path) -> np.ndarray:
    """Label values of a mask file, uint8 [H, W], or bool of a black and white one. Raises UserError for what cannot be
    one."""
    with _opened(path, "mask") as image:
        if image.format == "JPEG":
            raise UserError(
                f"mask {path} is a JPEG, which does not keep values exactly; a PNG of label values is expected: "
                "export the masks again."
            )
        try:
            return mask_values(image, f"mask {path}")
        except UserError:
            raise
        except Exception as error:
            raise _corrupt(path, "mask", error) from error


def fitted_mask(values: np.ndarray, form: SceneForm) -> np.ndarray:
    """Label values brought to the form, each pixel the nearest one's."""
    if values.dtype == np.bool_:
        values = values.astype(np.uint8) * np.uint8(form.white)
    if values.shape == (form.height, form.width):
        return values
    return np.asarray(centred(Image.fromarray(values), form.width, form.height, Image.Resampling.NEAREST))
