"""What is made once of a user's images and kept in a scratch folder for later runs, in formats that others read too:
decoded pixels as NumPy's .npy, mapped, and encoded images out of Parquet as an Arrow file, which gives any row at once
(Parquet is read a group of rows at a time, of which there may be one).

Both carry checksums: what is damaged is made anew, or named.
"""

from __future__ import annotations

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
_SUM = 4  # bytes of the checksum behind an array
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


def load_pixels(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """The pixels that an earlier run has kept, uint8 of this shape; None where none are, or none that are sound."""
    with suppress(OSError, ValueError, EOFError):
        pixels = np.load(path, mmap_mode="c")
        with path.open("rb") as file:
            file.seek(-_SUM, os.SEEK_END)
            known = file.read()
        if pixels.shape == shape and pixels.dtype == np.uint8 and known == _sum_of(pixels):
            _mark_used(path)
            return pixels
    return None


def keep_pixels(path: Path, pixels: np.ndarray) -> None:
    """Keep pixels for later runs, unless the disk has little room."""
    with suppress(OSError):  # without it the next run decodes again
        _drop_unused(path.parent, "*.pixels.npy")
        if pixels.nbytes < shutil.disk_usage(path.parent).free // 2:
            with whole(path) as file:
                np.save(file, pixels)
                file.write(_sum_of(pixels))


def _sum_of(pixels: np.ndarray) -> bytes:
    return zlib.crc32(np.ascontiguousarray(pixels).data).to_bytes(_SUM, "little")


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
