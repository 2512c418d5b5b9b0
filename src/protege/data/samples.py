"""Samples: what a set of examples offers, and the fast case, everything in memory.

Positions always refer to the full set; a part of it is a tensor of positions, never a copy.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from protege.data.batch import Batch
from protege.data.classes import renumbered
from protege.data.views import Augment, render


class Samples(ABC):
    """A set of examples that are fetched by position.

    `labels`: int64 [N] on the CPU, one label a sample; None where labels are per pixel or token.
    `shape`: of one of the inputs that `fetch` returns: (C, H, W), or (L,) of tokens.
    `in_memory`: whether `fetch` is a few tensor operations, or reads and decodes.
    """

    labels: Tensor | None
    shape: tuple[int, ...]
    in_memory: bool

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def fetch(self, index: Tensor, view: int, augment: Augment) -> Batch:
        """The samples at positions `index` (int64 [B]) in the given view (`CLEAN`: not augmented).

        The pixels depend on (position, view, augment) only. Raises UserError where an image cannot be read.
        """

    @property
    def extent(self) -> int:
        """How large a sample is to a network, in pixels."""
        return math.prod(self.shape[1:])

    @abstractmethod
    def fingerprint(self) -> str:
        """Hex digest of what the samples hold, in their order, with their labels; computed once.

        It covers all of what lies in memory, and of what is read when it is fetched up to 256 MiB. Of larger files it
        covers the size and time of each and 1,024 pieces of them, of a larger Dataset in Python all labels, the size
        and time of the files that it lists, and an even choice of its images. Names and places of files do not count.
        """

    def relabelled(self, place: Tensor) -> Samples:
        """The same samples with class k called `place[k]` (int64 [K])."""
        raise TypeError(f"{type(self).__name__} has no classes to rename.")  # text: its labels are words

    def to(self, device: torch.device | str) -> Samples:
        """The set with its pixels on `device` if there is room; streams stay as they are, their batches are moved."""
        return self


def has_room(device: torch.device | str, size: int) -> bool:
    """Whether ``size`` bytes take at most half of what is free on the device; on a processor they lie there already."""
    device = torch.device(device)
    return device.type != "cuda" or size <= torch.cuda.mem_get_info(device)[0] // 2


class InMemory(Samples):
    """All pixels as one uint8 tensor [N, H, W, C]; a fetch is index arithmetic and one gather."""

    in_memory = True

    def __init__(self, pixels: Tensor, labels: Tensor, *, digest: str | None = None) -> None:
        if pixels.dtype != torch.uint8 or pixels.ndim != 4 or len(pixels) != len(labels):
            raise ValueError("InMemory needs uint8 pixels [N, H, W, C] and as many labels.")
        self.pixels = pixels.contiguous()
        self.labels: Tensor = labels.to("cpu", torch.int64)
        self._device_labels = self.labels.to(pixels.device)
        self._digest = digest
        _, height, width, channels = pixels.shape
        self.shape = (channels, height, width)

    def __len__(self) -> int:
        return len(self.pixels)

    def fetch(self, index: Tensor, view: int, augment: Augment) -> Batch:
        at = index.to(self.pixels.device, non_blocking=True)
        inputs = render(self.pixels, at, at, view, augment)
        return Batch(inputs, self._device_labels.index_select(0, at), index.cpu(), view)

    def fingerprint(self) -> str:
        if self._digest is None:
            digest = hashlib.sha256(repr(tuple(self.pixels.shape)).encode())
            digest.update(self.pixels.cpu().numpy().data)
            digest.update(self.labels.numpy().data)
            self._digest = digest.hexdigest()
        return self._digest

    def relabelled(self, place: Tensor) -> InMemory:
        return InMemory(self.pixels, renumbered(self.labels, place))

    def to(self, device: torch.device | str) -> InMemory:
        if not has_room(device, self.pixels.nbytes):
            return self
        pixels = self.pixels.to(device)
        return self if pixels is self.pixels else InMemory(pixels, self.labels, digest=self._digest)
