"""Cache folders that runs share: one that is in use stays, those that were not used for longest make room."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

try:
    import fcntl
except ImportError:  # not on Windows: caches are then never evicted
    fcntl = None  # type: ignore[assignment]

GONE = ".gone"  # ends the name of a folder that is being deleted


def evict(root: Path, limit: int) -> None:
    """Delete the caches under ``root`` that were not used for longest until the rest takes ``limit`` bytes at most.

    A cache that some process has open stays; where another process is at it, it alone does it.
    """
    try:
        with FileLock(root / "evict.lock", timeout=0):
            _evict(root, limit)
    except (Timeout, OSError):
        return


def _evict(root: Path, limit: int) -> None:
    for gone in root.glob(f"*{GONE}"):  # a kill was quicker
        shutil.rmtree(gone, ignore_errors=True)
    caches = sorted(root.glob("*/cache.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    taken = 0
    for path in caches:
        taken += bytes_in(path.parent)
        if taken > limit and (alone := _exclusive_lock(path.parent)):
            taken -= bytes_in(path.parent)
            discard(path.parent)
            os.close(alone)


def discard(folder: Path) -> None:
    """Delete a cache: a kill meanwhile leaves it whole or not at all under its name, never a part to go on with."""
    gone = folder.with_name(f"{folder.name}-{os.getpid()}{GONE}")
    with suppress(OSError):
        os.replace(folder, gone)
        shutil.rmtree(gone, ignore_errors=True)


def open_together(folder: Path) -> int | None:
    """Make the folder, and a handle that says that it is in use until it is closed; None where there are no locks."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        if fcntl is None:
            return None
        with suppress(FileNotFoundError):
            handle = os.open(folder / "in-use", os.O_RDWR | os.O_CREAT)
            with suppress(OSError):  # a file system without locks
                fcntl.flock(handle, fcntl.LOCK_SH)
            with suppress(FileNotFoundError):  # it was evicted meanwhile
                if os.path.samestat(os.fstat(handle), os.stat(folder / "in-use")):
                    return handle
            os.close(handle)


def _exclusive_lock(folder: Path) -> int | None:
    """A handle that holds the folder alone; None where it is in use."""
    if fcntl is None:
        return None
    handle = os.open(folder / "in-use", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle


def bytes_in(folder: Path) -> int:
    """The room that a folder's files take, some of which may vanish meanwhile."""
    taken = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                taken += os.stat(os.path.join(place, name)).st_blocks * 512
    return taken
