"""Who may use a cache's folder: any number of processes, for one identity; what nobody uses makes room."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..errors import UserError
from ..files import write_json

try:
    import fcntl
except ImportError:  # not on Windows: caches are then never evicted
    fcntl = None  # type: ignore[assignment]

VERSION = 3
GONE = ".gone"  # ends the name of a folder that is being deleted
_MEANING = {"network": "weights", "data": "data set", "views": "augmentation"}  # others are called what they are


# ---- one identity -----------------------------------------------------------------------------------------------


def claim(
    folder: Path, identity: Mapping[str, str], form: Mapping[str, Any], block: int | None, shown: str
) -> tuple[list[int], int | None]:
    """Make the folder where it is not there; returns handles that say that it is in use until they are closed, and
    how many samples the one who made it put through the network at once: ``block`` where that is us, None where it
    is not known.

    ``form`` tells what its files look like; errors call the folder as it is ``shown``. Raises `OSError`, and
    `UserError` for a folder with signals of another identity or form.
    """
    handles = _open_together(folder)
    with FileLock(folder / "lock"):
        try:
            mine = {"version": VERSION, "identity": dict(identity), **form}
            return handles, _refuse_another(folder, identity, mine, block, shown)
        except BaseException:
            close(handles)
            raise


def _refuse_another(
    folder: Path, identity: Mapping[str, str], mine: dict[str, Any], block: int | None, shown: str
) -> int | None:
    path = folder / "cache.json"
    if not path.exists():  # whose the views are that may lie here is not known
        for left in folder.iterdir():
            if re.fullmatch(r"clean|view-\d+", left.name) and left.is_dir() and not left.is_symlink():
                shutil.rmtree(left, ignore_errors=True)
        write_json(path, mine if block is None else {**mine, "block": block})
        return block
    os.utime(path)
    try:
        theirs = json.loads(path.read_text())
        known = dict(theirs["identity"])
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"the cache {shown!r} is damaged (cache.json cannot be read); expected a cache this program wrote: delete "
            "the folder or name another with cache=…."
        ) from None
    for key, value in identity.items():
        if known.get(key) != value:
            raise UserError(
                f"the cache {shown!r} was made by another teacher or for other pixels (not the same "
                f"{_MEANING.get(key, key)}); expected signals of this teacher on these views: name another folder with "
                "cache=… or leave it out."
            )
    block = theirs.pop("block", None)
    if json.loads(json.dumps(mine)) != theirs or not (block is None or (isinstance(block, int) and block >= 1)):
        raise UserError(
            f"the cache {shown!r} has another version or layout; expected version {VERSION}: delete the folder or name "
            "another with cache=…."
        )
    return block


def refuse_other_files(named: Path) -> None:
    """Raise `UserError` for a folder that a user named and that holds other files than caches."""
    if named.is_dir() and any(not re.fullmatch(r"\w+-[0-9a-f]{16}", item.name) for item in named.iterdir()):
        raise UserError(
            f"the cache folder {str(named)!r} holds other files; expected an empty folder or a cache: name another "
            "with cache=…."
        )


def unwritable(shown: str, error: OSError) -> UserError:
    """That a folder cannot be written, in a sentence."""
    return UserError(
        f"the cache folder {shown!r} cannot be written ({error.strerror}); expected a writable folder: name another "
        "with cache=…."
    )


# ---- room -------------------------------------------------------------------------------------------------------


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


def _open_together(folder: Path) -> list[int]:
    """Make the folder, and a handle that says that it is in use until it is closed; none where there are no locks."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        if fcntl is None:
            return []
        with suppress(FileNotFoundError):
            handle = os.open(folder / "in-use", os.O_RDWR | os.O_CREAT)
            with suppress(OSError):  # a file system without locks
                fcntl.flock(handle, fcntl.LOCK_SH)
            with suppress(FileNotFoundError):  # it was evicted meanwhile
                if os.path.samestat(os.fstat(handle), os.stat(folder / "in-use")):
                    return [handle]
            os.close(handle)


def close(handles: list[int]) -> None:
    """Close handles, and forget them."""
    while handles:
        os.close(handles.pop())


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
