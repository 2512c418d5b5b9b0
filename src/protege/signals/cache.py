"""The memory of signals: one row for each (sample, view), in memory-mapped files.

Remembering is exact. A view is replayed from (seed, sample, view), so a signal stored for it is the signal of the
very pixels the student sees (as in FKD, Shen & Xing 2022), never of other ones (known to hurt: Beyer et al. 2022).
A stored row never changes. The folder knows the fingerprint of network + data + views and refuses any other
(`folder`); each row has a checksum, by which rows that the disk has spoiled are found when a view is opened, and
computed anew (`rows`).
"""

from __future__ import annotations

import os
import shutil
import weakref
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from ..errors import UserError, full_disk, in_bytes
from .folder import bytes_in, claim, close, discard, refuse_other_files, unwritable
from .rows import Rows, blank, bytes_of_view, layout_of


class Vanished(Exception):
    """The folder was deleted meanwhile: what this process has open is there to the end, new rows need a new folder."""


class SignalCache:
    """Signals of one frozen network on one data set's views; nothing is looked at or made before `open`.

    ``identity`` maps `network`, `outputs`, `data`, `views`, `signals` and `precision` to text. ``fields`` is an example
    of one batch's fields, whose shapes after the first dimension (and kinds) every row has. ``total`` samples have a
    row in each view's files; of these a run uses ``used``. Fields of bfloat16 and of integers are stored as they are,
    other floating ones as float16; fields ``[N, C, H, W]`` lie channels-last, and come back as convolutions want them.

    ``block`` samples go through the network at once, or as many as did when the folder was made, so that a row does not
    depend on who asked; None where that is not known, as of a folder of an earlier version.

    ``named`` is the folder that the user named, in which this one lies. What is not ``durable`` never waits for the
    disk, so that it must not be trusted after a crash of the machine.
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
        block: int | None = None,
        named: Path | None = None,
        durable: bool = True,
    ) -> None:
        self.folder, self.identity, self.total, self.durable = folder, dict(identity), total, durable
        self.layout, self.named, self.budget, self.block = layout_of(fields), named, budget, block
        self.view_bytes = bytes_of_view(self.layout, total, used)
        self.capacity = 0
        self._views: dict[int, Rows] = {}
        self._in_use: list[int] = []  # the handle that says so
        weakref.finalize(self, close, self._in_use)

    @property
    def shown(self) -> str:
        """The folder as a user knows it."""
        return str(self.named or self.folder)

    def open(self) -> SignalCache:
        """Find or make the folder, and settle how many views the budget and the disk have room for (``capacity``).

        Raises `UserError` where it holds other files or the signals of another identity, or cannot be written.
        """
        if self.named is not None:
            refuse_other_files(self.named)
        for last in (False, False, True):
            try:
                self._claim()
                room = shutil.disk_usage(self.folder).free // 4 + bytes_in(self.folder)  # half is for the run's rest
                break
            except FileNotFoundError as error:  # deleted at this very moment
                if last:
                    raise unwritable(self.shown, error) from None
            except OSError as error:
                raise unwritable(self.shown, error) from None
        self.capacity = int(min(self.budget, room) // max(self.view_bytes, 1))
        return self

    def _claim(self) -> None:
        close(self._in_use)
        form = {"samples": self.total, "fields": self.layout}
        handles, self.block = claim(self.folder, self.identity, form, self.block, self.shown)
        self._in_use += handles

    def _name(self, view: int) -> Path:
        return self.folder / ("clean" if view < 0 else f"view-{view:04d}")

    def _rows(self, view: int) -> Rows:
        if view not in self._views:
            if not (self.folder / "cache.json").exists():
                self._claim()
            with self._writing(), FileLock(self.folder / "lock"):
                self._views[view] = Rows(self._name(view), self.layout, self.total)
        return self._views[view]

    def holds(self, view: int) -> bool:
        """Whether this view lies within the budget, and so is stored."""
        return view < self.capacity and self.capacity > 0

    def known(self, view: int, index: Tensor) -> bool:
        """Whether every one of these rows is stored."""
        try:
            return bool(self._rows(view).are_known(index).all())
        except Vanished:
            return False

    def missing(self, view: int, index: Tensor) -> Tensor:
        """Those of these rows that are not stored."""
        return index[~self._rows(view).are_known(index)]

    def stored(self, view: int) -> Tensor:
        """Which rows are stored, bool [total]."""
        try:
            return self._rows(view).stored()
        except Vanished:
            return torch.zeros(self.total, dtype=torch.bool)

    # ---- what a fill set out to store ---------------------------------------------------------------------------

    def _plan(self, view: int, part: str) -> Path:
        return self._name(view) / f"plan-{part}.npy"

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

    # ---- rows ---------------------------------------------------------------------------------------------------

    def write(self, view: int, index: Tensor, fields: Mapping[str, Tensor]) -> None:
        """Store rows that are not known yet; they count as known after `commit`."""
        with self._writing():
            self._rows(view).write(index, fields)

    def commit(self, view: int) -> None:
        """Mark what was written as known: a kill at any moment leaves no half-written row."""
        with self._writing():
            self._rows(view).commit(self.durable)

    def put(self, view: int, index: Tensor, stored: Mapping[str, Tensor]) -> None:
        """`write` for what comes as it is stored."""
        with self._writing():
            self._rows(view).put(index, stored)

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
            raise unwritable(self.shown, error) from error

    def read(
        self, view: int, index: Tensor, device: torch.device | str = "cpu", names: Collection[str] | None = None
    ) -> dict[str, Tensor]:
        """Rows of a view, of the fields of these names or all: floating ones as float32, integer ones as int64."""
        return self._rows(view).read(index, device, names)

    def rows(self, view: int, index: Tensor, names: Collection[str] | None = None) -> dict[str, Tensor]:
        """A copy of rows as they are stored, of the fields of these names or all."""
        return self._rows(view).rows(index, names)

    def blank(self, count: int) -> dict[str, Tensor]:
        """Rows as they are stored, for values to come."""
        return blank(self.layout, count)

    def load(self, view: int, index: Tensor, device: torch.device, names: Collection[str]) -> None:
        """Keep these fields of these rows, which are stored, on the device, where it is one with room to spare."""
        if device.type != "cuda" or self.loaded(view, names):
            return
        size = len(index) * sum(value.nbytes for name, value in self.blank(1).items() if name in names)
        if size + 4 * self.total < torch.cuda.mem_get_info(device)[0] // 16:
            self._rows(view).load(index, device, names)

    def loaded(self, view: int, names: Collection[str]) -> bool:
        """Whether these fields of a view lie on a device."""
        return view in self._views and self._views[view].holds(names)

    def forget(self, view: int | None = None) -> None:
        """Let go of a view that is not there any more, or of all that are open."""
        for number in [*self._views] if view is None else [view]:
            self._views.pop(number, None)

    def remove(self) -> None:
        """Delete the folder: for signals that no other run can use."""
        self.forget()
        discard(self.folder)

    def describe(self) -> dict[str, int | str]:
        """Where it lies and how much of the disk it takes."""
        views = len(list(self.folder.glob("*/")))
        return {"path": str(self.folder), "bytes": bytes_in(self.folder), "views": views}
