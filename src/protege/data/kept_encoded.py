"""Encoded images out of Parquet, kept in a scratch folder for later runs as an Arrow file, which gives any row at once:
Parquet is read a group of rows at a time, of which there may be one. They carry checksums: what is damaged is named.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import UserError
from ..files import whole
from .kept import drop_unused, mark_used

_SCHEMA = pa.schema({"image": pa.large_binary(), "crc32": pa.uint32()})


def keep_images(path: Path, chunks: Iterable[list[bytes]]) -> None:
    """Keep encoded images in an Arrow file, if it is not there. Raises UserError where that cannot be written."""
    if path.exists():
        mark_used(path)
        return
    try:
        drop_unused(path.parent, "*.images.arrow")
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
