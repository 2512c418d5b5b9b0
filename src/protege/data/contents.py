"""What files and images hold, as digests and as places: numbers from 0 to 1 that depend on nothing else."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import UserError

READ = 1 << 28  # bytes that are read at most to tell whether a set is the same
PIECES, PIECE = 1024, 1 << 18  # of more than that, so many are read, each of so many bytes at most
_PARTS, _PART = 16, 1 << 12  # of a large image, to give it its place


class Stamps:
    """Size and time of numbered files when they were first read, so that what is read of them later is the same."""

    def __init__(self, count: int) -> None:
        self._known = np.full((count, 2), -1, np.int64)

    def check(self, number: int, path: str | Path, kind: str) -> None:
        """To be called after a file is read, and before it is hashed; `kind`: what it is. Raises UserError where it has
        changed since the first time."""
        try:
            stat = os.stat(path)
        except OSError as error:
            raise UserError(f"{kind} {path} cannot be read ({error.strerror}); restore or remove it.") from error
        now, known = (stat.st_size, stat.st_mtime_ns), self._known[number]
        if known[0] < 0:
            known[:] = now
        elif tuple(known.tolist()) != now:
            raise UserError(
                f"{kind} {path} has changed since the data was opened; expected the same until the end: load the data "
                "again."
            )

    def part(self, index: Tensor) -> Stamps:
        other = Stamps(0)
        other._known = self._known[index.numpy()]
        return other


def content_of(paths: Sequence[Path], everything: bool = False) -> str:
    """Digest of what files hold: of all up to `READ` bytes together, or of `everything`; beyond that of the size and
    time of each, and of 1,024 pieces of up to 256 KiB that are evenly spread."""
    stats = [path.stat() for path in paths]
    sizes = [stat.st_size for stat in stats]
    digest = hashlib.sha256(repr(sizes).encode())
    if everything or sum(sizes) <= READ:
        for path in paths:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()
    digest.update(repr([stat.st_mtime_ns for stat in stats]).encode())
    ends = np.cumsum(sizes)
    for at in np.linspace(0, int(ends[-1]) - 1, PIECES).astype(np.int64).tolist():
        number = int(np.searchsorted(ends, at, side="right"))
        with paths[number].open("rb") as file:
            file.seek(max(0, min(at - int(ends[number]) + sizes[number], sizes[number] - PIECE)))
            digest.update(file.read(PIECE))
    return digest.hexdigest()


def place_of_bytes(data: bytes) -> float:
    """The place of an encoded image."""
    return _place(len(data), lambda at, size: data[at : at + size])


def places_of_files(paths: Sequence[Path]) -> Tensor:
    """The place of each image file, float64 [N]."""
    return torch.tensor([_place_of_file(path) for path in paths], dtype=torch.float64)


def place_of_image(image: Any) -> float:
    """The place of an image that is given in Python: a PIL image, an array or a tensor."""
    if isinstance(image, Image.Image):
        return place_of_bytes(image.tobytes())
    array = image.detach().cpu().numpy() if isinstance(image, Tensor) else np.asarray(image)
    return place_of_bytes(np.ascontiguousarray(array).tobytes())


def _place_of_file(path: Path) -> float:
    try:
        with path.open("rb", buffering=0) as file:

            def read(at: int, size: int) -> bytes:
                file.seek(at)
                return file.read(size)

            return _place(os.fstat(file.fileno()).st_size, read)
    except OSError as error:
        raise UserError(f"image {path} cannot be read ({error.strerror}); restore or remove it.") from error


def _place(size: int, read: Callable[[int, int], bytes]) -> float:
    if size <= _PARTS * _PART:
        parts = [read(0, size)]
    else:
        parts = [read(at, _PART) for at in np.linspace(0, size - _PART, _PARTS).astype(np.int64).tolist()]
    digest = hashlib.blake2b(b"".join([size.to_bytes(8, "little"), *parts]), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64
