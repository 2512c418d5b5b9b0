"""What a row is on disk: its numbers in 16 bits, images channels-last, and a checksum by which it counts as stored.

A view has a file for each field and one of checksums, all memory-mapped and sparse: a row that is never written takes
no room. Rows are written to the files and not through the maps, for which the system may allocate what lies between.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from ..files import sync
from .checksums import checksums, of_view

logger = logging.getLogger(__name__)
KNOWN = "known"  # the file of checksums, 0 for a row that is not stored
PAGE = 4096
PIECE = 2**26  # bytes that go to a device at once

Layout = Mapping[str, tuple[tuple[int, ...], str]]
"""Of each field, the shape and the kind of number of a stored row."""


def widened(value: Tensor) -> Tensor:
    """Stored numbers as they are computed with: float32, int64; masks stay as they are."""
    return value.float() if value.is_floating_point() else value if value.dtype == torch.bool else value.long()


def as_stored(fields: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Fields in the numbers that they are stored in."""
    return {name: value.to(getattr(torch, kind_of(value))) for name, value in fields.items()}


def as_computed(stored: Mapping[str, Tensor], device: torch.device | str) -> dict[str, Tensor]:
    """Rows as they are computed with, on a device: floating ones as float32, integer ones as int64, channels second."""
    there = {name: value.to(device, non_blocking=True) for name, value in stored.items()}
    return {name: widened(value.movedim(-1, 1) if value.dim() == 4 else value) for name, value in there.items()}


def kind_of(value: Tensor) -> str:
    """The kind of number that a field is stored as: bfloat16 as it is, other floating ones as float16."""
    kind = str(value.dtype).removeprefix("torch.")
    return "float16" if value.is_floating_point() and kind != "bfloat16" else kind


def refuse_infinite(name: str, stored: Tensor) -> None:
    """Raise `UserError` where a field, as it is stored, holds numbers that are not finite. Waits for the device."""
    if stored.is_floating_point() and not bool(stored.isfinite().all()):
        raise not_finite(name)


def not_finite(name: str) -> UserError:
    """That a field cannot be stored, in a sentence."""
    return UserError(
        f"the signal {name!r} has values that are not finite in half precision, which ends at 65,504; expected smaller "
        "outputs: check the network's weights and normalisation, or use precision='bf16', or views='all'."
    )


def _rows_last(value: Tensor) -> Tensor:
    """Images with their channels last, everything else as it is."""
    return value.movedim(1, -1) if value.dim() == 4 else value


def layout_of(fields: Mapping[str, Tensor]) -> Layout:
    """How the rows of a batch's fields are stored."""
    return {name: (tuple(_rows_last(value).shape[1:]), kind_of(value)) for name, value in fields.items()}


def blank(layout: Layout, count: int) -> dict[str, Tensor]:
    """Rows as they are stored, for values to come."""
    return {name: torch.empty(count, *shape, dtype=getattr(torch, kind)) for name, (shape, kind) in layout.items()}


def bytes_of_view(layout: Layout, total: int, used: int) -> int:
    """The most that one view of ``total`` samples takes on disk where ``used`` of them are stored: pages are whole."""
    rows = [_bytes(*field) for field in (*layout.values(), ((), "int32"))]
    return min(total * sum(rows), used * sum(-(-row // PAGE) + (row > 8) for row in rows) * PAGE)


def _bytes(shape: tuple[int, ...], kind: str) -> int:
    return int(np.prod(shape)) * np.dtype(_of_numpy(kind)).itemsize


def _of_numpy(kind: str) -> str:
    """The kind of number whose bits NumPy, which has no bfloat16, reads and writes."""
    return "int16" if kind == "bfloat16" else kind


class Rows:
    """The rows of one view in ``folder``, which is made where it is not there yet.

    ``index`` is int64 [N], on the CPU, but for `read` after `load`. What is written counts as known after `commit`, so
    that a kill at any moment leaves no half-written row. Raises `OSError`, a `FileNotFoundError` where files were
    deleted or replaced meanwhile, and `UserError` for files that another program has changed the size of.
    """

    def __init__(self, folder: Path, layout: Layout, total: int) -> None:
        self.folder, self.layout = folder, layout
        self._files: dict[str, os.stat_result] = {}  # as they were when they were opened
        self._pending: list[tuple[np.ndarray, np.ndarray]] = []  # rows and their checksums
        self._loaded: dict[str, Tensor] = {}  # fields of some rows, on a device
        self._place: Tensor | None = None  # int32 [total], there: where a row lies among those; None: they are all
        folder.mkdir(exist_ok=True)
        if any(not self._path(name).exists() for name in layout):  # some of it was deleted
            self._path(KNOWN).unlink(missing_ok=True)
        begun = self._path(KNOWN).exists()
        self._fields = {
            name: torch.from_numpy(self._map(name, shape, kind, total, begun)).view(getattr(torch, kind))
            for name, (shape, kind) in layout.items()
        }
        self._known = self._map(KNOWN, (), "int32", total, False)
        if begun:
            self._forget_damaged()

    def _path(self, name: str) -> Path:
        kind = "int32" if name == KNOWN else self.layout[name][1]
        return self.folder / f"{name.replace('/', '_')}.{kind}"

    def _map(self, name: str, shape: tuple[int, ...], kind: str, total: int, begun: bool) -> np.memmap:
        path, size = self._path(name), total * _bytes(shape, kind)
        if begun and path.stat().st_size != size:
            raise UserError(
                f"the cache file {str(path)!r} is damaged (it has not its {size} bytes); expected what this program "
                f"wrote: delete the folder {str(self.folder.parent)!r}."
            )
        with open(path, "ab") as file:
            file.truncate(size)
            self._files[name] = os.fstat(file.fileno())
        return np.memmap(path, dtype=_of_numpy(kind), mode="r+", shape=(total, *shape))

    def _forget_damaged(self) -> None:
        """Let rows that are not what was stored be computed anew."""
        stored = np.flatnonzero(self._known)
        damaged = [rows[sums != self._known[rows]] for rows, sums in of_view(stored, self._fields)]
        if count := sum(map(len, damaged)):
            self._known[np.concatenate(damaged)] = 0
            logger.warning("%d rows in %s are damaged; their signals are computed anew.", count, self.folder)

    def are_known(self, index: Tensor) -> Tensor:
        """Which of these rows are stored, bool [N]."""
        return torch.from_numpy(self._known[index.numpy()] != 0)

    def stored(self) -> Tensor:
        """Which rows are stored, bool [total]."""
        return torch.from_numpy(self._known != 0)

    def write(self, index: Tensor, fields: Mapping[str, Tensor]) -> None:
        """Store those of these rows that are not known yet."""
        stored = {}
        for name, value in fields.items():
            stored[name] = _rows_last(value.to(getattr(torch, self.layout[name][1]))).cpu()
            refuse_infinite(name, stored[name])
        self.put(index, stored)

    def put(self, index: Tensor, stored: Mapping[str, Tensor]) -> None:
        """Store those of these rows that are not known yet, which come as they are stored."""
        fresh = ~self.are_known(index)
        rows, stored = index[fresh].numpy(), {name: value[fresh] for name, value in stored.items()}
        for name, value in stored.items():
            self._put(name, rows, value.view(getattr(torch, _of_numpy(self.layout[name][1]))).numpy())
        self._pending.append((rows, checksums(rows, stored)))

    def commit(self, durable: bool) -> None:
        """Mark what was written as known; where that is to be ``durable``, once it has reached the disk."""
        pending, self._pending = self._pending, []
        if not pending:
            return
        rows, sums = map(np.concatenate, zip(*pending, strict=True))
        self._flush(self.layout, durable)
        self._put(KNOWN, rows, sums)
        self._flush([KNOWN], durable)

    def _put(self, name: str, rows: np.ndarray, values: np.ndarray) -> None:
        """Write rows of a field to its file, those that lie side by side at once."""
        size = values[:1].nbytes
        begins = np.flatnonzero(np.diff(rows, prepend=-2) != 1)
        with self._opened(name) as file:
            for block in np.split(np.arange(len(rows)), begins[1:]) if size else []:
                file.seek(int(rows[block[0]]) * size)
                file.write(np.ascontiguousarray(values[block]).data.cast("B"))

    def _flush(self, names: Collection[str], durable: bool) -> None:
        for name in names if durable else ():
            with self._opened(name) as file:
                sync(file.fileno())

    @contextmanager
    def _opened(self, name: str) -> Iterator[BinaryIO]:
        """A file for writing, which must be the one that is mapped."""
        with open(self._path(name), "r+b") as file:
            if not os.path.samestat(os.fstat(file.fileno()), self._files[name]):
                raise FileNotFoundError
            yield file

    def rows(self, index: Tensor, names: Collection[str] | None = None) -> dict[str, Tensor]:
        """A copy of rows of the fields of these names, or of all, as they are stored."""
        return {name: field[index] for name, field in self._fields.items() if names is None or name in names}

    def read(self, index: Tensor, device: torch.device | str, names: Collection[str] | None) -> dict[str, Tensor]:
        """Rows of the fields of these names, or of all, as they are computed with. Of what was loaded ``index`` may lie
        on the device, which is asked nothing."""
        if names is None or not self.holds(names):
            return as_computed(self.rows(index, names), device)
        index = index.to(self._loaded[next(iter(names))].device, non_blocking=True)
        at = index if self._place is None else self._place[index]
        return as_computed({name: self._loaded[name].index_select(0, at) for name in names}, device)

    def holds(self, names: Collection[str]) -> bool:
        """Whether these fields were loaded."""
        return bool(names) and self._loaded.keys() >= set(names)

    def load(self, index: Tensor, device: torch.device | str, names: Collection[str]) -> None:
        """Keep these fields of these rows on the device as they are stored; no others are read after that."""
        total = len(self._known)
        size = max(1, PIECE // max(1, sum(self._fields[name][:1].nbytes for name in names)))
        for name in names:
            stored = self._fields[name]
            self._loaded[name] = kept = torch.empty((len(index), *stored.shape[1:]), dtype=stored.dtype, device=device)
            for piece, rows in zip(kept.split(size), index.split(size), strict=True):
                piece.copy_(stored[rows])
        if len(index) < total:
            place = torch.full((total,), -1, dtype=torch.int32)
            place[index] = torch.arange(len(index), dtype=torch.int32)
            self._place = place.to(device)
