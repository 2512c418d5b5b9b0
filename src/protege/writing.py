"""Files that are there whole or not at all, and what a kill leaves of them."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import psutil

_DRAFT = re.compile(r"\.(?P<name>.+)\.(?P<process>\d+)\.tmp")  # what is being written, and by which process


@contextmanager
def whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, which takes the place of ``path`` once it is on the disk; after an error nothing changed."""
    draft = _draft(path)
    try:
        with open(draft, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
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


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def is_draft(item: Path) -> bool:
    """Whether this is what `whole` or `drafts` writes to, perhaps left by a kill."""
    return _DRAFT.fullmatch(item.name) is not None


def clear_drafts(folder: Path, name: str = "") -> None:
    """Remove what killed processes left of drafts in the folder: all, or those of ``name``."""
    for item in folder.glob(".*.tmp"):
        parts = _DRAFT.fullmatch(item.name)
        if parts and name in ("", parts["name"]) and not _is_written(item, int(parts["process"])):
            if item.is_dir() and not item.is_symlink():
                shutil.rmtree(item, ignore_errors=True)
            else:
                with suppress(OSError):
                    item.unlink(missing_ok=True)


def _draft(path: Path) -> Path:
    clear_drafts(path.parent, path.name)
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def _is_written(item: Path, process: int) -> bool:
    """Whether another process of this number lives that began before the draft did."""
    if process == os.getpid():
        return False
    try:
        other = psutil.Process(process)
        return other.status() != psutil.STATUS_ZOMBIE and other.create_time() <= item.stat().st_mtime
    except (psutil.Error, OSError, OverflowError):
        return False
