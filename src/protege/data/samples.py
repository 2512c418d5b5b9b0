"""Samples: what a set of examples offers, and the two ways in which images are kept.

`InMemory` holds pixels, those of files from when they are first asked for; `Streamed` reads a sample whenever it is
fetched. Both make a batch in the same way, with a label for each image or, where there are masks, for each pixel.
"""

from __future__ import annotations

import hashlib
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from .augment import Augment
from .batch import Batch
from .classes import renumbered
from .framing import Frame
from .mixing import blend, mixed_labels, partners, weights
from .rendering import Render, Renderer, rendered
from .views import CLEAN, VOID


class Samples(ABC):
    """A set of examples that are fetched by position.

    `labels`: int64 [N] on the CPU, one label a sample; None where labels are per pixel or token.
    `shape`: of one of the inputs that `fetch` returns: (C, H, W), or (L,) of tokens.
    `in_memory`: whether `fetch` is a few tensor operations, or reads and decodes.
    `frame`: by which rule the clean view of a whole photo is brought to the shape.
    """

    labels: Tensor | None
    shape: tuple[int, ...]
    in_memory: bool
    frame: Frame = Frame()
    _digest: str | None = None

    @abstractmethod
    def __len__(self) -> int: ...

    def fetch(self, index: Tensor, view: int, augment: Augment) -> Batch:
        """The samples at positions `index` (int64 [B]) in the given view (`CLEAN`: not augmented).

        The pixels depend on (position, view, augment) only. Raises UserError where an image cannot be read.
        """
        batch = self._fetch(index, view, augment)
        if augment.mixes and view != CLEAN:
            others = self._fetch(partners(augment, index, view, len(self)), view, augment)
            weight, share = weights(augment, index, view, *self.shape[1:])
            batch.inputs = blend(batch.inputs, others.inputs, weight)
            batch.labels = mixed_labels(batch.labels, others.labels, share)
        return batch

    def load(self, index: Tensor | None = None, augment: Augment | None = None) -> None:
        """Have the samples at these positions (None: all) decoded now, on all processors, if they are to stay in
        memory, as views by `augment` need them (None: as the clean one does). Raises UserError naming an image that
        cannot be; one that is not loaded so is decoded when fetched."""
        return

    def labels_of(self, index: Tensor, view: int, augment: Augment) -> Tensor | None:
        """The labels that `fetch` gives, without a look at the images; None where they are per pixel or token."""
        if self.labels is None or not augment.mixes or view == CLEAN:
            return None if self.labels is None else self.labels[index]
        _, share = weights(augment, index, view, *self.shape[1:])
        return mixed_labels(self.labels[index], self.labels[partners(augment, index, view, len(self))], share)

    @abstractmethod
    def _fetch(self, index: Tensor, view: int, augment: Augment) -> Batch:
        """The samples, not mixed with others."""

    def renderer(self, augment: Augment, index: Tensor | None = None) -> Render | None:
        """What makes batches of the samples at these positions (None: all) on the device where they lie, without the
        processor; None of streams, and with an `augment` that is made `on_host`. Raises as `load`, which it does."""
        return None

    def framed(self, frame: Frame, size: tuple[int, int] | None = None) -> Samples:
        """The same samples with whole photos brought to their shape by another rule; and to another `size` (height,
        width) than that of all sets, unless they were asked for at one. These themselves, where they are no photos, or
        are so already. Random crops are cut as before."""
        return self

    @property
    def device(self) -> torch.device:
        """Where batches are made."""
        return torch.device("cpu")

    @property
    def extent(self) -> int:
        """How large a sample is to a network, in pixels."""
        return math.prod(self.shape[1:])

    def fingerprint_of_pixels(self) -> str:
        """The fingerprint that runs begun before version 0.2 know these samples by."""
        return self.fingerprint()

    def fingerprint(self) -> str:
        """Hex digest of what the samples hold, in their order, with their labels; computed once.

        It covers all that is given in Python and fits into memory, and files up to 256 MiB. Of larger files it covers
        the size and time of each and 1,024 pieces of them, of a larger Dataset in Python all labels, the size and time
        of the files that it lists, and an even choice of its images. Names and places of files do not count.
        """
        self._digest = self._digest or self._content()
        return self._digest

    @abstractmethod
    def _content(self) -> str: ...

    def part(self, index: Tensor) -> Samples:
        """The samples at positions `index` (int64 [M]) only."""
        raise TypeError(f"{type(self).__name__} has no parts.")  # text: its blocks follow each other

    def relabelled(self, place: Tensor) -> Samples:
        """The same samples with class k called `place[k]` (int64 [K])."""
        raise TypeError(f"{type(self).__name__} has no classes to rename.")  # text: its labels are words

    def to(self, device: torch.device | str) -> Samples:
        """The set with its pixels on `device` if there is room; streams stay as they are, their batches are moved."""
        return self


_PART = 1024  # images that are copied at once


def has_room(device: torch.device | str, size: int) -> bool:
    """Whether ``size`` bytes take at most half of what is free on the device; on a processor they lie there already."""
    device = torch.device(device)
    return device.type != "cuda" or size <= torch.cuda.mem_get_info(device)[0] // 2


def default_memory_limit(device: torch.device | str) -> int:
    """Bytes of decoded images that are kept in memory where nobody says how many: 4 GiB; on a GPU, which sees images
    sooner than they are decoded, as many as `has_room` there and as are half of the machine's memory, which all
    processes share."""
    device, least = torch.device(device), 4 << 30
    if device.type != "cuda":
        return least
    import psutil

    here = psutil.virtual_memory().total // (2 * int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    return max(least, min(here, torch.cuda.mem_get_info(device)[0] // 2))


class Photos(Protocol):
    """Where images in memory come from, so that they can be brought to their size by another rule."""

    @property
    def frame(self) -> Frame: ...

    def part(self, index: Tensor) -> Photos: ...

    def images(self, frame: Frame, size: tuple[int, int] | None) -> tuple[Images, Images | None] | Reader | None:
        """The images by this rule, and those that random crops are cut from if they are others; what reads them where
        they do not fit into memory; None where they are so already."""


class Images:
    """Pixels as one uint8 tensor [N, H, W, C].

    With `decode`, an image has its pixels once it was loaded: `decode(rows)` takes sorted rows, int64 [M], and yields
    some of them at a time with their pixels, or with None where the tensor has these. `content` is then a digest of
    what they will be, in a set of which these are the images `of` (int64 [N]; None: all). `photos`: whence they come,
    if they are whole photos brought to a size.
    """

    def __init__(
        self,
        pixels: Tensor,
        decode: Callable[[Tensor], Iterator[tuple[Tensor, Tensor | None]]] | None = None,
        content: Callable[[], str] | None = None,
        of: Tensor | None = None,
        photos: Photos | None = None,
    ) -> None:
        self.pixels, self._decode, self.content, self.photos = pixels.contiguous(), decode, content, photos
        self.of = torch.arange(len(pixels)) if of is None else of
        self.missing = None if decode is None else torch.ones(len(pixels), dtype=torch.bool)

    def load(self, rows: Tensor) -> None:
        """Have the images at these rows (int64, on the CPU) decoded."""
        missing, decode = self.missing, self._decode  # once, as another thread may be about to finish
        if missing is None or decode is None:
            return
        wanted = rows[missing[rows]].unique()
        if not len(wanted):
            return
        for done, pixels in decode(wanted):
            if pixels is not None:
                self.pixels[done.to(self.pixels.device)] = pixels.to(self.pixels.device)
            missing[done] = False
        if not missing.any():
            self.missing = self._decode = None  # with all that it holds

    def on(self, device: torch.device | str, rows: Tensor) -> Images:
        """A copy of the images at some rows on a device; those that are not decoded yet are decoded here."""
        missing = self.missing
        late = None if missing is None else missing[rows]  # before the pixels are taken, as a thread may bring more

        def decode(wanted: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
            self.load(rows[wanted])
            for part in wanted.split(_PART):
                yield part, self.pixels[rows[part]]

        pixels = torch.zeros(len(rows), *self.pixels.shape[1:], dtype=torch.uint8, device=device)
        copy = Images(pixels, decode, self.content, self.of[rows], self.photos and self.photos.part(rows))
        copy.load(torch.arange(len(rows)) if late is None else (~late).nonzero()[:, 0])
        return copy


class InMemory(Samples):
    """Images in memory, as one uint8 tensor [N, H, W, C] or as `Images`, with a label for each, integers [N], or a
    mask, uint8 [N, H, W] with `VOID` where there is no label. A fetch is index arithmetic and one gather."""

    in_memory = True

    def __init__(
        self,
        pixels: Tensor | Images,
        labels: Tensor,
        *,
        rows: Tensor | None = None,
        digest: str | None = None,
        larger: Images | None = None,
    ) -> None:
        """`rows`: those of the pixels and labels that are samples, int64 (None: all). `larger`: the same images, from
        which random crops are cut."""
        self.larger = larger
        self.images = pixels if isinstance(pixels, Images) else Images(pixels)
        pixels, masked = self.images.pixels, labels.ndim == 3
        if pixels.dtype != torch.uint8 or pixels.ndim != 4 or len(pixels) != len(labels):
            raise ValueError("InMemory needs uint8 pixels [N, H, W, C] and as many labels.")
        if masked and (labels.dtype != torch.uint8 or labels.shape != pixels.shape[:3]):
            raise ValueError("InMemory needs masks uint8 [N, H, W].")
        self._targets = labels.contiguous() if masked else labels.to(pixels.device, torch.int64)
        self._rows = None if rows is None else rows.cpu()
        self._rows_there = None if rows is None else rows.to(pixels.device)
        self.labels = None if masked else self._of_samples(labels.to("cpu", torch.int64))
        self._digest = digest
        _, height, width, channels = pixels.shape
        self.shape = (channels, height, width)
        self.frame = self.images.photos.frame if self.images.photos else Frame()
        self._framed: dict[Any, Samples | None] = {}

    def __len__(self) -> int:
        return len(self.images.pixels if self._rows is None else self._rows)

    @property
    def device(self) -> torch.device:
        return self.images.pixels.device

    @property
    def pixels(self) -> Tensor:
        """The pixels of all samples, decoded."""
        self.load()
        return self._of_samples(self.images.pixels)

    @property
    def masks(self) -> Tensor | None:
        return None if self.labels is not None else self._of_samples(self._targets)

    def _of_samples(self, values: Tensor) -> Tensor:
        return values if self._rows is None else values[self._rows.to(values.device)]

    def _row_of(self, index: Tensor) -> Tensor:
        return index if self._rows is None else self._rows[index]

    def load(self, index: Tensor | None = None, augment: Augment | None = None) -> None:
        self._shown(augment).load(self._row_of(torch.arange(len(self)) if index is None else index.cpu()))

    def _shown(self, augment: Augment | None) -> Images:
        """The images that views (None: the clean one) are made of."""
        return self.images if self.larger is None or augment is None or not augment.crop else self.larger

    def _fetch(self, index: Tensor, view: int, augment: Augment) -> Batch:
        images = self._shown(None if view == CLEAN else augment)
        if images.missing is not None:
            images.load(self._row_of(index.cpu()))
        there = index.to(self.device, non_blocking=True)
        return Batch(*self._renderer(images, augment)(there, view), index, view)

    def _renderer(self, images: Images, augment: Augment) -> Renderer:
        _, height, width = self.shape
        size = None if images is self.images else (height, width)
        return Renderer(images.pixels, self._targets, augment, self._rows_there, size)

    def renderer(self, augment: Augment, index: Tensor | None = None) -> Render | None:
        if augment.on_host:
            return None
        self.load(index, augment)
        return self._renderer(self._shown(augment), augment)

    def _content(self) -> str:
        if self.images.content is None:
            return self.fingerprint_of_pixels()
        of = self.images.of[self._row_of(torch.arange(len(self)))]
        digest = hashlib.sha256(self.images.content().encode() + of.numpy().tobytes())
        digest.update(self._of_samples(self._targets).cpu().numpy().data)
        if self.larger is not None and self.larger.content is not None:
            digest.update(self.larger.content().encode())
        return digest.hexdigest()

    def fingerprint_of_pixels(self) -> str:
        """The fingerprint that these samples had before files were known by what is encoded in them: decodes all."""
        digest = hashlib.sha256(repr(tuple(self.pixels.shape)).encode())
        for values in (self.pixels, self._of_samples(self._targets)):
            digest.update(values.cpu().numpy().data)
        return digest.hexdigest()

    def part(self, index: Tensor) -> InMemory:
        return InMemory(self.images, self._targets, rows=self._row_of(index.cpu()), larger=self.larger)

    def relabelled(self, place: Tensor) -> InMemory:
        if self.labels is not None:
            targets = renumbered(self._targets.cpu(), place)
            return InMemory(self.images, targets, rows=self._rows, larger=self.larger)
        table = torch.full((256,), VOID, dtype=torch.uint8)
        table[: len(place)] = place.to(torch.uint8)
        masks = table.to(self._targets.device)[self._targets.int()]
        return InMemory(self.images, masks, rows=self._rows)

    def to(self, device: torch.device | str) -> InMemory:
        masks = 0 if self.labels is not None else len(self) * self._targets[0].nbytes
        size = len(self) * sum(images.pixels[0].nbytes for images in (self.images, self.larger) if images) + masks
        if not has_room(device, size) or self.images.pixels.device == torch.empty(0, device=device).device:
            return self
        return self.copied(device)

    def framed(self, frame: Frame, size: tuple[int, int] | None = None) -> Samples:
        if (frame, size) not in self._framed:
            self._framed[frame, size] = self._reframed(frame, size)
        return self._framed[frame, size] or self

    def _reframed(self, frame: Frame, size: tuple[int, int] | None) -> Samples | None:
        photos, rows = self.images.photos, self._row_of(torch.arange(len(self)))
        made = None if photos is None else photos.part(rows).images(frame, size)
        if made is None:
            return None
        targets = self._of_samples(self._targets).cpu()
        if not isinstance(made, tuple):
            return Streamed(made, targets)
        return InMemory(made[0], targets, larger=made[1]).to(self.device)

    def copied(self, device: torch.device | str) -> InMemory:
        """These samples alone, on a device; they are known as these are."""
        rows = self._row_of(torch.arange(len(self)))
        images, larger = (images and images.on(device, rows) for images in (self.images, self.larger))
        assert images is not None
        return InMemory(images, self._of_samples(self._targets).to(device), digest=self._digest, larger=larger)


class Reader(Protocol):
    """What reads one sample at a time: its pixels, uint8 [H, W, C], and its mask, uint8 [H, W], if it has one.

    `crops`: whether it cuts random crops itself, out of the full-size original. `place`: what number each class that
    it reads has (int64 [K]), where that is another.
    """

    @property
    def shape(self) -> tuple[int, int, int]: ...
    @property
    def crops(self) -> bool: ...
    @property
    def frame(self) -> Frame: ...

    def __len__(self) -> int: ...
    def read(self, position: int, augment: Augment, view: int) -> tuple[np.ndarray, np.ndarray | None]: ...
    def content(self, labels: Tensor | None) -> str: ...
    def framed(self, frame: Frame, size: tuple[int, int] | None) -> Reader | None: ...
    def part(self, index: Tensor) -> Reader: ...
    def relabelled(self, place: Tensor) -> Reader: ...


class Streamed(Samples):
    """Samples that are read when they are fetched, in the workers of `batches`, for sets that do not fit in memory.

    Shift and flip give exactly the pixels that the same set in memory gives. Random resized crops of encoded images
    without masks are cut from the full-size original, and so are sharper than crops of decoded small images.
    """

    in_memory = False

    def __init__(self, reader: Reader, labels: Tensor | None) -> None:
        self.reader, self.shape, self.frame = reader, reader.shape, reader.frame
        self._framed: dict[Any, Samples | None] = {}
        self.labels = None if labels is None else labels.to("cpu", torch.int64)

    def __len__(self) -> int:
        return len(self.reader)

    def _fetch(self, index: Tensor, view: int, augment: Augment) -> Batch:
        index = index.cpu()
        items = [self.reader.read(position, augment, view) for position in index.tolist()]
        pixels = torch.from_numpy(np.stack([image for image, _ in items]))
        masks = [mask for _, mask in items if mask is not None]
        targets = torch.from_numpy(np.stack(masks)) if self.labels is None else self.labels[index]
        rest = replace(augment, crop=0.0, flip=False) if self.reader.crops and augment.crop else augment
        return Batch(*rendered(pixels, targets, torch.arange(len(index)), index, view, rest), index, view)

    def framed(self, frame: Frame, size: tuple[int, int] | None = None) -> Samples:
        if (frame, size) not in self._framed:
            made = self.reader.framed(frame, size)
            self._framed[frame, size] = None if made is None else Streamed(made, self.labels)
        return self._framed[frame, size] or self

    def _content(self) -> str:
        return self.reader.content(self.labels)

    def part(self, index: Tensor) -> Streamed:
        return Streamed(self.reader.part(index), None if self.labels is None else self.labels[index])

    def relabelled(self, place: Tensor) -> Streamed:
        labels = None if self.labels is None else renumbered(self.labels, place)
        return Streamed(self.reader.relabelled(place), labels)
