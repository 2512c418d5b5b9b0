"""Decoded pixels, made once of a user's images and kept in a scratch folder for later runs, in a format that others
read too: NumPy's .npy, mapped. They carry checksums: what is damaged is made anew.
"""

from __future__ import annotations

import io
import math
import os
import shutil
import time
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np

from ..files import clear_drafts, whole

UNUSED = 30 * 24 * 3600  # seconds after which goes what nobody has read
_SUM, _SUMS = 4, np.dtype("<u4")  # bytes of a checksum


def drop_unused(folder: Path, pattern: str) -> None:
    """Make the folder; remove files of this pattern that were not used for long, and what killed processes left."""
    folder.mkdir(parents=True, exist_ok=True)
    clear_drafts(folder)
    for old in folder.glob(pattern):
        if time.time() - old.stat().st_mtime > UNUSED:
            old.unlink(missing_ok=True)


def mark_used(path: Path) -> None:
    with suppress(OSError):  # another user's
        os.utime(path)


class KeptPixels:
    """Pixels that runs share, uint8 [N, H, W, C]: an array in a file, mapped, and behind it the checksum of each image.

    An image that has not been decoded yet, or is damaged, is known by its checksum.
    """

    def __init__(self, path: Path, shape: tuple[int, ...]) -> None:
        self.path = path
        self.pixels = np.load(path, mmap_mode="c")
        self.start = path.stat().st_size - _SUM * shape[0]
        if (self.pixels.shape, self.pixels.dtype) != (shape, np.uint8) or self.start != _start(shape):
            raise ValueError(f"{path} has another form")
        self._sums = np.memmap(path, _SUMS, "r", offset=self.start)  # what other processes write is seen here
        mark_used(path)

    @classmethod
    def open(cls, path: Path, shape: tuple[int, ...], make: bool = True) -> KeptPixels | None:
        """The file, made unless it is there; None where it cannot be, or would leave the disk little room."""
        with suppress(OSError, ValueError, EOFError):
            return cls(path, shape)
        with suppress(OSError, ValueError, EOFError):  # without it the next run decodes again
            if make:
                drop_unused(path.parent, "*.pixels.npy")
                if math.prod(shape) < shutil.disk_usage(path.parent).free // 2:
                    with whole(path) as file:
                        file.write(_header(shape))
                        file.truncate(_start(shape) + _SUM * shape[0])
                    return cls(path, shape)
        return None

    def has(self, rows: np.ndarray) -> np.ndarray:
        """Which of these images are sound in the file now, whoever has decoded them, bool."""
        sums = zip(rows, self._sums[rows].tolist(), strict=True)
        return np.array([bool(known) and known == _sum_of(self.pixels[row]) for row, known in sums], bool)

    def add(self, rows: np.ndarray, pixels: np.ndarray) -> None:
        """Keep the pixels of some images, whose rows are sorted; those that follow each other are written at once."""
        sums, size = np.array(list(map(_sum_of, pixels)), _SUMS), pixels[0].nbytes
        runs = np.split(np.arange(len(rows)), np.flatnonzero(np.diff(rows) != 1) + 1)
        with suppress(OSError), self.path.open("r+b") as file:
            for run in runs:
                file.seek(self.start - size * (len(self.pixels) - rows[run[0]]))
                file.write(pixels[run].tobytes())
                file.seek(self.start + _SUM * rows[run[0]])
                file.write(sums[run].tobytes())


def _header(shape: tuple[int, ...]) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return file.getvalue()


def _start(shape: tuple[int, ...]) -> int:
    """Where the checksums behind pixels of this shape begin."""
    return len(_header(shape)) + math.prod(shape)


def _sum_of(image: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(image).data)
