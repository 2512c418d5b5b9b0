"""Where the bytes of encoded images lie: a `Source` knows the images of a split in order."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .contents import Stamps, content_of, place_of_bytes, places_of_files
from .damaged import Attempt, decode_once
from .decode import Named
from .pixels import readable

CHUNK = 256
_SAMPLE = 256


class Source(ABC):
    """Encoded images that can be read in any order."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, position: int) -> Named:
        """An encoded image, and what it is called in a sentence."""

    @abstractmethod
    def part(self, index: Tensor) -> Source:
        """The images at positions `index` only."""

    @abstractmethod
    def fingerprint(self, everything: bool = False) -> str:
        """Hex digest of what the images hold: of all of them up to `READ` bytes together, or of `everything`."""

    @cached_property
    def digest(self) -> str:
        """The fingerprint of all that the images hold."""
        return self.fingerprint(everything=True)

    def chunks(self, positions: Sequence[int] | None = None) -> Iterator[list[Named]]:
        """The images at sorted positions (None: all), some at a time."""
        positions = range(len(self)) if positions is None else positions
        for start in range(0, len(positions), CHUNK):
            yield [self.read(at) for at in positions[start : start + CHUNK]]

    def attempts(self) -> Iterator[list[Attempt]]:
        """What decodes each image once, some at a time."""
        for chunk in self.chunks():
            yield [partial(decode_once, *image) for image in chunk]

    def sample(self) -> Iterator[Named]:
        """A few images from all over."""
        return (self.read(i) for i in range(0, len(self), max(1, len(self) // _SAMPLE)))

    def random_access(self, scratch: Path) -> Source:
        """The same images, fast to read in any order; what that takes lies in the folder `scratch`."""
        return self

    def places(self) -> Tensor:
        """The place of each image, float64 [N], see `contents`."""
        return torch.tensor([place_of_bytes(data) for chunk in self.chunks() for data, _ in chunk], dtype=torch.float64)


class Files(Source):
    """Images, or masks, in files of their own."""

    def __init__(self, paths: Sequence[Path], kind: str = "image", stamps: Stamps | None = None) -> None:
        self.paths, self.kind = list(paths), kind
        self._stamps = stamps or Stamps(len(self.paths))

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, position: int) -> Named:
        path = self.paths[position]
        name = f"{self.kind} {path}"
        with readable(name):
            data = path.read_bytes()
        self.check(position)
        return data, name

    def attempts(self) -> Iterator[list[Attempt]]:
        for start in range(0, len(self), CHUNK):
            yield [partial(self._decode_once, at) for at in range(start, min(start + CHUNK, len(self)))]

    def _decode_once(self, position: int) -> None:
        decode_once(*self.read(position))

    def check(self, position: int) -> None:
        """Raise UserError where a file is not as it was when it was first read."""
        self._stamps.check(position, self.paths[position], self.kind)

    def check_all(self) -> None:
        for position in range(len(self)):
            self.check(position)

    def part(self, index: Tensor) -> Files:
        return Files([self.paths[i] for i in index.tolist()], self.kind, self._stamps.part(index))

    def fingerprint(self, everything: bool = False) -> str:
        self.check_all()
        return content_of(self.paths, everything)

    def places(self) -> Tensor:
        return places_of_files(self.paths)


class Chosen(Source):
    """Some images of a source that is read in order; `index`: which, int64 [N]."""

    def __init__(self, source: Source, index: np.ndarray) -> None:
        self.source, self.index = source, index

    def __len__(self) -> int:
        return len(self.index)

    def read(self, position: int) -> Named:
        return self.source.read(int(self.index[position]))

    def chunks(self, positions: Sequence[int] | None = None) -> Iterator[list[Named]]:
        rows = self.index if positions is None else self.index[list(positions)]
        in_order = bool((np.diff(rows) >= 0).all())
        for part in [rows] if in_order else np.array_split(rows, range(CHUNK, len(rows), CHUNK)):
            order = part.argsort(kind="stable")
            chunks = self.source.chunks(part[order].tolist())
            if in_order:
                yield from chunks
            else:
                images = list(chain.from_iterable(chunks))
                yield [images[at] for at in order.argsort()]

    def sample(self) -> Iterator[Named]:
        return chain.from_iterable(self.chunks(range(0, len(self), max(1, len(self) // _SAMPLE))))

    def part(self, index: Tensor) -> Source:
        return Chosen(self.source, self.index[index.numpy()])

    def fingerprint(self, everything: bool = False) -> str:
        return hashlib.sha256(self.source.fingerprint(everything).encode() + self.index.tobytes()).hexdigest()

    def random_access(self, scratch: Path) -> Source:
        return self.source.random_access(scratch).part(torch.from_numpy(self.index))
