"""Files that are there whole or not at all, and what a kill leaves of them."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

import psutil

# What is being written, by which process of which machine (containers that share a disk number theirs alike); or what
# version 0.1 wrote a model to.
_DRAFT = re.compile(
    r"\.(?P<name>.+)\.(?P<process>\d+)-(?P<machine>[0-9a-f]{8})-[0-9a-f]{8}\.tmp"
    r"|\.(config\.json|model\.safetensors)\.(?P<old>\d+)\.tmp"
)
_STALE = 3600.0  # seconds after which a draft of another machine, whose processes are not known here, was left
_UNSYNCED = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EROFS)  # of file systems that cannot wait for the disk


@contextmanager
def whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, which takes the place of ``path`` once it is on the disk; after an error nothing changed."""
    draft = _draft(path)
    try:
        with open(draft, "wb") as file:
            yield file
            file.flush()
            sync(file.fileno())
        os.replace(draft, path)
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write text as UTF-8, whole or not at all."""
    with whole(path) as file:
        file.write(text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=1) + "\n")


@contextmanager
def drafts(folder: Path, name: str) -> Iterator[Path]:
    """A hidden folder within ``folder`` for the files of libraries that write where they are told to; it goes with all
    that is left in it."""
    made = _draft(folder / name)
    try:
        made.mkdir()
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def sync(handle: int) -> None:
    """Wait until what was written is on the disk, where the file system can tell."""
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _UNSYNCED:
            raise


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    if os.name == "nt" and path.is_dir():  # which cannot be opened there
        return
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        sync(handle)
    finally:
        os.close(handle)


def digest_of(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_draft(item: Path) -> bool:
    """Whether this is what `whole` or `drafts` writes to, perhaps left by a kill."""
    return _DRAFT.fullmatch(item.name) is not None


def clear_drafts(folder: Path, name: str = "") -> None:
    """Remove what killed processes left of drafts in the folder: all, or those of ``name``."""
    for item in folder.glob(".*.tmp"):
        parts = _DRAFT.fullmatch(item.name)
        if parts and name in ("", parts["name"]) and not _is_written(item, parts):
            if item.is_dir() and not item.is_symlink():
                shutil.rmtree(item, ignore_errors=True)
            else:
                with suppress(OSError):
                    item.unlink(missing_ok=True)


def _draft(path: Path) -> Path:
    """A name for a draft of the file, another one at each call: threads, too, write side by side."""
    clear_drafts(path.parent, path.name)
    return path.with_name(f".{path.name}.{os.getpid()}-{_machine()}-{uuid4().hex[:8]}.tmp")


def _machine() -> str:
    return hashlib.blake2b(platform.node().encode(), digest_size=4).hexdigest()


def _is_written(item: Path, parts: re.Match[str]) -> bool:
    """Whether the process lives that began a draft: one of its number that is older than the draft."""
    try:
        begun = item.stat().st_mtime
        if parts["machine"] not in (None, _machine()):
            return time.time() - begun < _STALE
        process = psutil.Process(int(parts["process"] or parts["old"]))
        return process.status() != psutil.STATUS_ZOMBIE and process.create_time() <= begun
    except (psutil.Error, OSError, OverflowError):
        return False
