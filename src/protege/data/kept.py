"""What is made once of a user's images and kept in a scratch folder for later runs, in formats that others read too:
decoded pixels as NumPy's .npy, mapped, and encoded images out of Parquet as an Arrow file, which gives any row at once
(Parquet is read a group of rows at a time, of which there may be one).

Both carry checksums: what is damaged is made anew, or named.
"""

from __future__ import annotations

import io
import math
import os
import shutil
import time
import zlib
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import UserError
from ..files import clear_drafts, whole

UNUSED = 30 * 24 * 3600  # seconds after which goes what nobody has read
_SUM, _SUMS = 4, np.dtype("<u4")  # bytes of a checksum
_SCHEMA = pa.schema({"image": pa.large_binary(), "crc32": pa.uint32()})


def _drop_unused(folder: Path, pattern: str) -> None:
    """Make the folder; remove files of this pattern that were not used for long, and what killed processes left."""
    folder.mkdir(parents=True, exist_ok=True)
    clear_drafts(folder)
    for old in folder.glob(pattern):
        if time.time() - old.stat().st_mtime > UNUSED:
            old.unlink(missing_ok=True)


def _mark_used(path: Path) -> None:
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
        _mark_used(path)

    @classmethod
    def open(cls, path: Path, shape: tuple[int, ...], make: bool = True) -> KeptPixels | None:
        """The file, made unless it is there; None where it cannot be, or would leave the disk little room."""
        with suppress(OSError, ValueError, EOFError):
            return cls(path, shape)
        with suppress(OSError, ValueError, EOFError):  # without it the next run decodes again
            if make:
                _drop_unused(path.parent, "*.pixels.npy")
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


def keep_images(path: Path, chunks: Iterable[list[bytes]]) -> None:
    """Keep encoded images in an Arrow file, if it is not there. Raises UserError where that cannot be written."""
    if path.exists():
        _mark_used(path)
        return
    try:
        _drop_unused(path.parent, "*.images.arrow")
        with whole(path) as file, pa.ipc.new_file(file, _SCHEMA) as writer:
            for images in chunks:
                writer.write(pa.record_batch([images, list(map(zlib.crc32, images))], schema=_SCHEMA))
    except OSError as error:
        raise UserError(
            f"scratch folder {path.parent} cannot hold the extracted images ({error.strerror or error}); "
            "name one with room and write permission in $PROTEGE_CACHE."
        ) from error


class KeptImages:
    """The encoded images of an Arrow file, mapped. Raises UserError naming the file where it is damaged."""

    def __init__(self, path: Path, count: int) -> None:
        self.path, self.count = path, count
        try:
            table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
            table.validate(full=True)
            sound = table.schema.equals(_SCHEMA) and len(table) == count
        except (pa.ArrowException, OSError, ValueError):
            sound = False
        if not sound:
            raise self._damaged()
        self._images, self._sums = table.column("image"), table.column("crc32").to_numpy()

    def __reduce__(self) -> tuple:
        return KeptImages, (self.path, self.count)

    def _damaged(self) -> UserError:
        return UserError(f"the extracted images {self.path} are damaged; remove this file, it is made anew.")

    def read(self, row: int) -> bytes:
        """The image of a row."""
        data = self._images[row].as_py()
        if data is None or zlib.crc32(data) != self._sums[row]:
            raise self._damaged()
        return data

    def sizes(self) -> np.ndarray:
        """Bytes of each image, int64 [N]."""
        return pc.binary_length(self._images).to_numpy()
