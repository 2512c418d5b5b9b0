"""Where encoded images come from: files, rows of Parquet, or one file of images end to end.

A source knows its images in order: `chunks()` reads them once through, `sample()` gives a few from all over,
`streamable()` gives a source with random access (`read(i)`), `part(index)` some of them, and `places()` that of each
image (see `contents`).
"""

from __future__ import annotations

import hashlib
import os
import time
import zlib
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import accumulate
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from protege.data.contents import READ, content_of, place_of_bytes, places_of_files
from protege.data.progress import progress
from protege.errors import UserError
from protege.writing import clear_drafts, whole

_SAMPLE = 256
_CHUNK = 256
_CHUNK_BYTES = 16 << 20
UNUSED = 30 * 24 * 3600  # seconds after which goes what was made of images and nobody has read

Named = tuple[bytes, str]


def drop_unused(folder: Path, pattern: str) -> None:
    """Remove files of this pattern that were not used for long, and what killed processes have left."""
    clear_drafts(folder)
    for old in folder.glob(pattern):
        if time.time() - old.stat().st_mtime > UNUSED:
            old.unlink(missing_ok=True)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Raise `UserError` naming a Parquet file where it turns out to be none, or damaged."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"data file {path} is not Parquet, or is damaged; give a readable Parquet file.") from error


class Files:
    """Images in files of their own."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, position: int) -> Named:
        path = self.paths[position]
        try:
            return path.read_bytes(), f"image {path}"
        except OSError as error:
            raise UserError(f"image {path} cannot be read ({error.strerror}); restore or remove it.") from error

    def chunks(self) -> Iterator[list[Named]]:
        for start in range(0, len(self), _CHUNK):
            yield [self.read(i) for i in range(start, min(start + _CHUNK, len(self)))]

    def sample(self) -> Iterator[Named]:
        return (self.read(i) for i in range(0, len(self), max(1, len(self) // _SAMPLE)))

    def streamable(self, scratch: Path) -> Files:
        return self

    def part(self, index: Tensor) -> Files:
        return Files([self.paths[i] for i in index.tolist()])

    def fingerprint(self) -> str:
        return content_of(self.paths)

    def places(self) -> Tensor:
        return places_of_files(self.paths)


class Rows:
    """Images in a column of Parquet files: binary, or struct(bytes, path) as the Hugging Face hub publishes
    them."""

    def __init__(self, paths: list[Path], column: str) -> None:
        self.paths, self.column = paths, column
        self._count = sum(pq.read_metadata(p).num_rows for p in paths)

    def __len__(self) -> int:
        return self._count

    def _read(self, path: Path, most: int = _CHUNK) -> Iterator[list[Named]]:
        row = 0
        with readable(path), pq.ParquetFile(path, buffer_size=1 << 20) as file:
            groups = (file.metadata.row_group(i) for i in range(file.num_row_groups))
            each = sum(g.total_byte_size for g in groups) // max(1, file.metadata.num_rows)
            rows = max(1, min(most, _CHUNK_BYTES // max(1, each)))
            for batch in file.iter_batches(rows, columns=[self.column]):
                column = batch.column(0)
                if column.type.num_fields:
                    column = column.field("bytes")
                chunk = []
                for data in column.to_pylist():
                    name = f"image in row {row} of {path}"
                    if data is None:
                        raise UserError(f"{name} is null; every row needs the encoded image's bytes.")
                    chunk.append((data, name))
                    row += 1
                yield chunk

    def chunks(self) -> Iterator[list[Named]]:
        for path in self.paths:
            yield from self._read(path)

    def sample(self) -> Iterator[Named]:
        step = -(-len(self.paths) // _SAMPLE)
        paths = self.paths[::step]
        for path in paths:
            yield from next(self._read(path, -(-_SAMPLE // len(paths))), [])

    def fingerprint(self) -> str:
        return hashlib.sha256(f"{content_of(self.paths)} {self.column}".encode()).hexdigest()

    def places(self) -> Tensor:
        return torch.tensor([place_of_bytes(data) for chunk in self.chunks() for data, _ in chunk], dtype=torch.float64)

    def streamable(self, scratch: Path) -> Blob:
        """The images extracted into one file under `scratch`, or that file of an earlier run."""
        digest = self.fingerprint()
        target = scratch / f"{digest[:32]}.v2.images"
        origins = [(p, pq.read_metadata(p).num_rows) for p in self.paths]
        if target.exists():
            with suppress(OSError):  # another user's
                os.utime(target)
        else:
            try:
                scratch.mkdir(parents=True, exist_ok=True)
                drop_unused(scratch, "*.images")
                self._extract(target)
            except OSError as error:
                raise UserError(
                    f"scratch folder {scratch} cannot hold the extracted images ({error.strerror}); "
                    "name one with room and write permission in $PROTEGE_CACHE."
                ) from error
        return Blob(target, origins, digest)

    def _extract(self, target: Path) -> None:
        ends, sums = np.zeros(len(self) + 1, np.int64), np.zeros(len(self) + 1, np.int64)
        done = 0
        with whole(target) as file, progress("extracting images", len(self)) as advance:
            for chunk in self.chunks():
                sizes = [len(data) for data, _ in chunk]
                ends[done + 1 : done + 1 + len(chunk)] = ends[done] + np.cumsum(sizes)
                sums[done : done + len(chunk)] = [zlib.crc32(data) for data, _ in chunk]
                file.writelines(data for data, _ in chunk)
                done += len(chunk)
                advance(len(chunk))
            sums[-1] = _sum_of(ends, sums)
            file.write(ends.tobytes() + sums.tobytes())


def _sum_of(ends: np.ndarray, sums: np.ndarray) -> int:
    return zlib.crc32(ends.tobytes() + sums[:-1].tobytes())


class Blob:
    """Images end to end in one file; behind them their offsets (int64 [N + 1]), their checksums (int64 [N]) and one of
    all these; read with `os.pread`."""

    def __init__(self, path: Path, origins: list[tuple[Path, int]], digest: str) -> None:
        self.path, self.origins, self.digest = path, origins, digest
        self._ends = list(accumulate(rows for _, rows in origins))
        count = self._ends[-1]
        table = 16 * (count + 1)
        size = path.stat().st_size
        with path.open("rb") as file:
            file.seek(max(0, size - table))
            data = file.read()
        self.offsets, self.sums = np.frombuffer(data if len(data) == table else bytes(table), np.int64).reshape(2, -1)
        if self.offsets[-1] + table != size or self.sums[-1] != _sum_of(self.offsets, self.sums):
            raise self._damaged()
        self.rows = np.arange(count)
        self._file: int | None = os.open(path, os.O_RDONLY)  # at once: a cache may be deleted while it is in use

    def __len__(self) -> int:
        return len(self.rows)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_file": None}

    def __del__(self) -> None:
        if getattr(self, "_file", None) is not None:
            os.close(self._file)  # type: ignore[arg-type]

    def _name(self, row: int) -> str:
        shard = bisect_right(self._ends, row)
        path, rows = self.origins[shard]
        return f"image in row {row - self._ends[shard] + rows} of {path}"

    def _damaged(self) -> UserError:
        return UserError(f"the extracted images {self.path} are damaged; remove this file, it is made anew.")

    def read(self, position: int) -> Named:
        if self._file is None:
            self._file = os.open(self.path, os.O_RDONLY)
        row = int(self.rows[position])
        start, end = self.offsets[row : row + 2].tolist()
        data = os.pread(self._file, end - start, start)
        if zlib.crc32(data) != self.sums[row]:
            raise self._damaged()
        return data, self._name(row)

    def chunks(self) -> Iterator[list[Named]]:
        for start in range(0, len(self), _CHUNK):
            yield [self.read(i) for i in range(start, min(start + _CHUNK, len(self)))]

    def part(self, index: Tensor) -> Blob:
        other = Blob(self.path, self.origins, self.digest)
        other.rows = self.rows[index.numpy()]
        return other

    def fingerprint(self) -> str:
        sizes = np.diff(self.offsets)[self.rows].tolist()
        if sum(sizes) > READ:
            return hashlib.sha256(self.digest.encode() + self.rows.tobytes()).hexdigest()
        digest = hashlib.sha256(repr(sizes).encode())  # of the images alone, however the Parquet was written
        for position in range(len(self)):
            digest.update(hashlib.sha256(self.read(position)[0]).digest())
        return digest.hexdigest()


Source = Files | Rows
Streamable = Files | Blob
