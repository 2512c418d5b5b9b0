"""The memory of signals: one row for each (sample, view), in memory-mapped files.

Remembering is exact. A view is replayed from (seed, sample, view), so a signal stored for it is the signal of the
very pixels the student sees (as in FKD, Shen & Xing 2022), never of other ones (known to hurt: Beyer et al. 2022).
A stored row never changes. The folder knows the fingerprint of network + data + views and refuses any other; each row
has a checksum, by which rows that the disk has spoiled are found when a view is opened, and computed anew.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import weakref
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from ..errors import UserError, full_disk, in_bytes
from ..files import sync, write_json
from .checksums import checksums, of_view
from .sharing import bytes_in, discard, open_together

logger = logging.getLogger(__name__)
VERSION = 3
KNOWN = "int32"  # kind of the checksums, 0 for a row that is not stored
_MEANING = {
    "network": "weights",
    "outputs": "outputs",
    "data": "data set",
    "views": "augmentation",
    "signals": "signals",
    "precision": "precision",
}


def widened(value: Tensor) -> Tensor:
    """Stored numbers as they are computed with: float32, int64; masks stay as they are."""
    return value.float() if value.is_floating_point() else value if value.dtype == torch.bool else value.long()


def _rows_last(value: Tensor) -> Tensor:
    """Images with their channels last, everything else as it is."""
    return value.movedim(1, -1) if value.dim() == 4 else value


def halved(name: str, value: Tensor) -> Tensor:
    """A field as it is stored. Raises `UserError` where half precision cannot hold its numbers."""
    if not value.is_floating_point():
        return value
    stored = value.half()
    if not bool(torch.isfinite(stored).all()):
        raise UserError(
            f"the signal {name!r} has values that are not finite in half precision; expected finite "
            "outputs: check the network's weights and normalisation, or use views='all'."
        )
    return stored


class Vanished(Exception):
    """The folder was deleted meanwhile: what this process has open is there to the end, new rows need a new folder."""


def _close(handles: list[int]) -> None:
    while handles:
        os.close(handles.pop())


Layout = Mapping[str, tuple[tuple[int, ...], str]]
"""Of each field, the shape and the kind of number of a stored row."""


def layout_of(fields: Mapping[str, Tensor]) -> Layout:
    """How the rows of a batch's fields are stored: floating ones as float16, images channels-last."""
    return {
        name: (tuple(_rows_last(value).shape[1:]), "float16" if value.is_floating_point() else str(value.dtype)[6:])
        for name, value in fields.items()
    }


def bytes_of_view(layout: Layout, total: int, used: int) -> int:
    """The most that one view of ``total`` samples takes on disk where ``used`` of them are stored.

    Files are sparse: a row that is never written costs nothing, a touched page is whole. (So rows are written to the
    files: through a memory map the system may allocate what lies between them.)
    """
    rows = [int(np.prod(shape)) * np.dtype(kind).itemsize for shape, kind in layout.values()] + [4]  # each a file
    page = 4096
    return min(total * sum(rows), used * sum(-(-row // page) + (row > 8) for row in rows) * page)


class SignalCache:
    """Signals of one frozen network on one data set's views.

    ``identity`` maps `network`, `outputs`, `data`, `views`, `signals` and `precision` to text. ``fields`` is an example
    of one batch's fields, whose shapes after the first dimension (and kinds) every row has. ``total`` samples have a
    row in each view's files; of these a run uses ``used``. Floating fields are stored as float16, integers as they are;
    fields ``[N, C, H, W]`` lie channels-last, and come back as convolutions want them.

    ``named`` is the folder that the user named, in which this one lies. What is not ``durable`` never waits for the
    disk, so that it must not be trusted after a crash of the machine. Raises `UserError` when ``folder`` holds the
    signals of another identity, or cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        identity: Mapping[str, str],
        fields: Mapping[str, Tensor],
        *,
        total: int,
        used: int,
        budget: int,
        named: Path | None = None,
        durable: bool = True,
    ) -> None:
        self.folder, self.total, self.shown, self.durable = folder, total, str(named or folder), durable
        self.layout = layout_of(fields)
        self._views: dict[int, dict[str, np.memmap]] = {}
        self._tensors: dict[int, dict[str, Tensor]] = {}
        self._pending: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {}  # rows and their checksums
        self.view_bytes = bytes_of_view(self.layout, total, used)
        self._identity = dict(identity)
        self._files: dict[Path, os.stat_result] = {}  # as they were when they were opened
        self._in_use: list[int] = []  # the handle that says so
        weakref.finalize(self, _close, self._in_use)
        if named is not None:
            self._refuse_strangers()
        for last in (False, False, True):
            try:
                self._claim()
                room = shutil.disk_usage(folder).free // 4 + self._bytes_on_disk()  # half is for the rest of the run
                break
            except FileNotFoundError as error:  # deleted at this very moment
                if last:
                    raise self._unwritable(error) from None
            except OSError as error:
                raise self._unwritable(error) from None
        self.capacity = int(min(budget, room) // max(self.view_bytes, 1))

    def _refuse_strangers(self) -> None:
        """Refuse a folder of other files before anything is put into it."""
        folder = Path(self.shown)
        if folder.is_dir() and any(not re.fullmatch(r"\w+-[0-9a-f]{16}", item.name) for item in folder.iterdir()):
            raise UserError(
                f"the cache folder {self.shown!r} holds other files; expected an empty folder or a cache: name "
                "another with cache=…."
            )

    def _unwritable(self, error: OSError) -> UserError:
        return UserError(
            f"the cache folder {self.shown!r} cannot be written ({error.strerror}); expected a writable "
            "folder: name another with cache=…."
        )

    def _claim(self) -> None:
        """Make the folder where it is not there (any more), and refuse one with signals of another identity."""
        _close(self._in_use)
        if (handle := open_together(self.folder)) is not None:
            self._in_use.append(handle)
        with FileLock(self.folder / "lock"):
            self._refuse_another(self._identity)

    def _refuse_another(self, identity: dict[str, str]) -> None:
        path = self.folder / "cache.json"
        mine = {"version": VERSION, "identity": identity, "samples": self.total, "fields": self.layout}
        if not path.exists():  # whose the views are that may lie here is not known
            for left in self.folder.iterdir():
                if re.fullmatch(r"clean|view-\d+", left.name) and left.is_dir() and not left.is_symlink():
                    shutil.rmtree(left, ignore_errors=True)
            write_json(path, mine)
            return
        os.utime(path)
        try:
            theirs = json.loads(path.read_text())
            known = dict(theirs["identity"])
        except (ValueError, KeyError, TypeError):
            raise UserError(
                f"the cache {self.shown!r} is damaged (cache.json cannot be read); expected a cache this "
                "program wrote: delete the folder or name another with cache=…."
            ) from None
        for key, value in identity.items():
            if known.get(key) != value:
                raise UserError(
                    f"the cache {self.shown!r} was made by another teacher or for other pixels (not the "
                    f"same {_MEANING.get(key, key)}); expected signals of this teacher on these views: name "
                    "another folder with cache=… or leave it out."
                )
        if json.loads(json.dumps(mine)) != theirs:
            raise UserError(
                f"the cache {self.shown!r} has another version or layout; expected version {VERSION}: delete "
                "the folder or name another with cache=…."
            )

    def _name(self, view: int) -> Path:
        return self.folder / ("clean" if view < 0 else f"view-{view:04d}")

    def _file(self, view: int, name: str) -> Path:
        kind = KNOWN if name == "known" else self.layout[name][1]
        return self._name(view) / f"{name.replace('/', '_')}.{kind}"

    def _open(self, view: int) -> dict[str, np.memmap]:
        """The view's files as memory maps, made (sparse, all rows unknown) where they are not there yet."""
        if view not in self._views:
            folder = self._name(view)
            if not (self.folder / "cache.json").exists():
                self._claim()
            with self._writing(), FileLock(self.folder / "lock"):
                folder.mkdir(exist_ok=True)
                maps = {}
                if any(not self._file(view, name).exists() for name in self.layout):  # some of it was deleted
                    self._file(view, "known").unlink(missing_ok=True)
                begun = self._file(view, "known").exists()
                for name, (shape, kind) in {**self.layout, "known": ((), KNOWN)}.items():
                    path = self._file(view, name)
                    size = self.total * int(np.prod(shape)) * np.dtype(kind).itemsize
                    if begun and name != "known" and path.stat().st_size != size:
                        raise UserError(
                            f"the cache file {str(path)!r} is damaged (it has not its {size} bytes); expected what "
                            f"this program wrote: delete the folder {str(self.folder)!r}."
                        )
                    with open(path, "ab") as file:
                        file.truncate(size)
                        self._files[path] = os.fstat(file.fileno())
                    maps[name] = np.memmap(path, dtype=kind, mode="r+", shape=(self.total, *shape))
                tensors = {name: torch.from_numpy(m) for name, m in maps.items() if name != "known"}
                if begun:
                    self._forget_damaged(view, maps["known"], tensors)
            self._views[view], self._tensors[view] = maps, tensors
        return self._views[view]

    def _forget_damaged(self, view: int, known: np.ndarray, tensors: Mapping[str, Tensor]) -> None:
        """Let rows that are not what was stored be computed anew."""
        damaged = [rows[found != known[rows]] for rows, found in of_view(np.flatnonzero(known), tensors)]
        if count := sum(map(len, damaged)):
            known[np.concatenate(damaged)] = 0
            logger.warning("%d rows in %s are damaged; their signals are computed anew.", count, self._name(view))

    def holds(self, view: int) -> bool:
        """Whether this view lies within the budget, and so is stored."""
        return view < self.capacity and self.capacity > 0

    def known(self, view: int, index: Tensor) -> bool:
        """Whether every one of these rows is stored."""
        try:
            return bool((self._open(view)["known"][index.numpy()] != 0).all())
        except Vanished:
            return False

    def missing(self, view: int, index: Tensor) -> Tensor:
        """Those of these rows that are not stored."""
        return index[torch.from_numpy(self._open(view)["known"][index.numpy()] == 0)]

    def plan(self, view: int, part: str) -> list[Tensor]:
        """The blocks of rows that a fill of this part set out to store and has not stored in whole."""
        try:
            rows, sizes = np.split(np.load(self._plan(view, part)), 2)
            sound = rows.dtype == np.int64 and rows.ndim == 1 and bool(((rows >= 0) & (rows < self.total)).all())
            blocks = torch.from_numpy(rows).split(sizes[sizes > 0].tolist()) if sound else ()
        except (OSError, ValueError, EOFError, RuntimeError, TypeError, IndexError):
            return []  # damaged: as if nothing had been planned
        return [block for block in blocks if not self.known(view, block)]

    def set_plan(self, view: int, part: str, blocks: Sequence[Tensor]) -> None:
        """Keep what is to be stored, atomically; nothing where there are no blocks."""
        path = self._plan(view, part)
        if not blocks:
            path.unlink(missing_ok=True)
            return
        rows = torch.cat(list(blocks)).numpy()
        sizes = np.zeros_like(rows)
        sizes[: len(blocks)] = [len(block) for block in blocks]
        temporary = path.with_suffix(".tmp")
        with self._writing():
            with open(temporary, "wb") as file:
                np.save(file, np.concatenate([rows, sizes]))
            os.replace(temporary, path)

    def _plan(self, view: int, part: str) -> Path:
        return self._name(view) / f"plan-{part}.npy"

    def write(self, view: int, index: Tensor, fields: Mapping[str, Tensor]) -> None:
        """Store rows that are not known yet; they count as known after `commit`."""
        maps = self._open(view)
        rows = index.numpy()
        new = np.flatnonzero(maps["known"][rows] == 0)
        rows = rows[new]
        stored = {
            name: _rows_last(halved(name, value)).to("cpu", getattr(torch, self.layout[name][1]))[torch.from_numpy(new)]
            for name, value in fields.items()
        }
        for name, value in stored.items():
            self._put(view, name, rows, value.numpy())
        self._pending.setdefault(view, []).append((rows, checksums(rows, stored)))

    def _put(self, view: int, name: str, rows: np.ndarray, values: np.ndarray) -> None:
        """Write rows of a field to its file, those that lie side by side at once."""
        size = values[:1].nbytes
        begins = np.flatnonzero(np.diff(rows, prepend=-2) != 1)
        with self._writing(), self._opened(view, name) as file:
            for block in np.split(np.arange(len(rows)), begins[1:]) if size else []:
                file.seek(int(rows[block[0]]) * size)
                file.write(np.ascontiguousarray(values[block]).data.cast("B"))

    @contextmanager
    def _opened(self, view: int, name: str) -> Iterator[BinaryIO]:
        """A file for writing, which must be the one that is mapped."""
        path = self._file(view, name)
        with open(path, "r+b") as file:
            if not os.path.samestat(os.fstat(file.fileno()), self._files[path]):
                raise FileNotFoundError
            yield file

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise Vanished from None
        except OSError as error:
            if full_disk(error):
                raise UserError(
                    f"the disk of the cache {self.shown!r} is full; expected room for {in_bytes(self.view_bytes)} a "
                    "view: free some and go on with resume=True, or start anew with a lower cache_budget=…."
                ) from error
            raise self._unwritable(error) from error

    def forget(self, view: int) -> None:
        """Let go of a view that is not there any more."""
        for kept in (self._views, self._tensors, self._pending):
            kept.pop(view, None)

    def commit(self, view: int) -> None:
        """Flush what was written, then mark it as known: a kill at any moment leaves no half-written row."""
        pending = self._pending.pop(view, [])
        if not pending:
            return
        rows, sums = map(np.concatenate, zip(*pending, strict=True))
        self._flush(view, self.layout)
        self._put(view, "known", rows, sums)
        self._flush(view, ["known"])

    def _flush(self, view: int, names: Collection[str]) -> None:
        for name in names if self.durable else ():
            with self._writing(), self._opened(view, name) as file:
                sync(file.fileno())

    def read(
        self, view: int, index: Tensor, device: torch.device | str = "cpu", names: Collection[str] | None = None
    ) -> dict[str, Tensor]:
        """Rows of a view, of the fields of these names or all: floating ones as float32, integer ones as int64."""
        self._open(view)
        fields = {}
        for name, stored in self._tensors[view].items():
            if names is not None and name not in names:
                continue
            value = stored[index.to(stored.device, non_blocking=True)].to(device, non_blocking=True)
            value = value.movedim(-1, 1) if value.dim() == 4 else value
            fields[name] = widened(value)
        return fields

    def load(self, view: int, device: torch.device, names: Collection[str]) -> None:
        """Keep these fields of a whole view on the device, where it is an accelerator with room to spare."""
        if device.type != "cuda":
            return
        self._open(view)
        tensors = self._tensors[view]
        if sum(tensors[name].nbytes for name in names) < torch.cuda.mem_get_info(device)[0] // 16:
            tensors.update({name: tensors[name].to(device) for name in names})

    @contextmanager
    def lock(self, view: int, part: str) -> Iterator[None]:
        """Held while (a part of) a view is filled, so that runs side by side pay for a teacher once."""
        with self._writing():
            lock = FileLock(self.folder / f"lock-{self._name(view).name}-{part}")
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def _bytes_on_disk(self) -> int:
        return bytes_in(self.folder)

    def remove(self) -> None:
        """Delete the folder: for signals that no other run can use."""
        self._views, self._tensors = {}, {}
        discard(self.folder)

    def describe(self) -> dict[str, int | str]:
        """Where it lies and how much of the disk it takes."""
        views = len(list(self.folder.glob("*/")))
        return {"path": str(self.folder), "bytes": self._bytes_on_disk(), "views": views}
