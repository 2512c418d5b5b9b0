"""Paths that users name, the one atomic write, and whose a folder is: known by what only this program writes."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import re
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

import psutil

from .errors import UserError, shown, told

NAME = 255  # bytes of a file's or folder's name, at most, nearly everywhere
TEXT = 1 << 24  # bytes of a file of settings, at most
_PIPES = ("/dev/stdin", "/dev/fd/", "/proc/self/fd/")  # what a shell gives in place of a file


def usable(path: Any, what: str, done: str = "read") -> Path:
    """The path as a `Path`, ``~`` expanded, whatever lies there. Raises `UserError` naming ``what`` for what is no text
    or path, and for one that no file system can be asked about or no recipe can hold: a NUL in it, a name too long or
    not in UTF-8, a loop of links. ``done``: what cannot be done with it then."""
    if not isinstance(path, str | os.PathLike) or isinstance(path := os.fspath(path), bytes):
        raise UserError(f"{what}={shown(path)} is a {type(path).__name__}; expected a path as text: name another.")
    try:
        expanded = Path(path).expanduser()
        if any(len(part.encode()) > NAME for part in expanded.parts):  # perhaps below a folder that is yet to be made
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        os.stat(expanded)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError, RuntimeError) as error:
        why = getattr(error, "strerror", None) or told(error)
        raise UserError(
            f"{what}={shown(str(path))} cannot be {done} ({why}); expected another path: name one that can."
        ) from None
    return expanded


def read_text(path: Any, kind: str) -> str:
    """The text of a file of settings of this ``kind``, in UTF-8. Raises `UserError` where there is none, for what is no
    file (a folder, a device, a pipe that is no shell's) and for one of more than 16 MiB."""
    file = usable(path, "file")
    if not file.exists():
        raise UserError(f"{str(path)!r} does not exist; expected a {kind} file: check the path.")
    why = ""
    if not (file.is_file() or (stat.S_ISFIFO(file.stat().st_mode) and str(file).startswith(_PIPES))):
        why = "it is a directory" if file.is_dir() else "it is a device or a pipe"
    try:
        data = b""
        if not why:
            with open(file, "rb") as opened:
                data = opened.read(TEXT + 1)
        why = why or (f"it has more than {TEXT >> 20} MiB" if len(data) > TEXT else "")
        text = data.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = told(error)
    if why:
        raise UserError(f"{str(path)!r} is not readable as {kind} ({why}); expected a {kind} file: name another.")
    return text


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


LOG, CHECKPOINT = "metrics.jsonl", r"\d{8}\.(json|pt)"
CHOICE = "choice/choice.json"  # what a run tried before it had a method
_FOOTER = re.compile(rb"<footer>Made by (protege|understudy) from the files in this folder\.")


def recorded(folder: Path) -> dict[str, Any]:
    """What the run in ``folder`` says of its beginning: the ``start`` event of its log; empty where there is none."""
    try:
        with open(folder / LOG, "rb") as file:
            event = json.loads(file.readline())
    except (OSError, ValueError, RecursionError):
        return {}
    ours = isinstance(event, dict) and event.get("event") == "start" and {"method", "task", "student"} <= event.keys()
    return event if ours else {}


def is_run(folder: Path) -> bool:
    """Whether a run has written here: the beginning of its log or, where that was lost, a checkpoint or its result; or
    what it tried to choose its method."""
    if recorded(folder) or json_has(folder / "result.json", "version", "method", "student", "phases"):
        return True
    if json_has(folder / CHOICE, "version", "method", "tried"):
        return True
    records = [path for path in folder.glob("checkpoint/*.json") if re.fullmatch(CHECKPOINT, path.name)]
    return any(json_has(path, "sha256") and path.with_suffix(".pt").is_file() for path in records)


def is_finished(folder: Path) -> bool:
    """Whether a run's result and its student are there: what was lost of them is made again from the checkpoint."""
    student = folder / "student"
    whole = json_has(folder / "result.json", "student") and json_has(student / "config.json", "format")
    return whole and (student / "model.safetensors").is_file()


def is_study(folder: Path) -> bool:
    """Whether a study has written here."""
    return json_has(folder / "study.json", "version", "name", "columns", "rows", "runs")


def is_diagnosis(folder: Path) -> bool:
    """Whether a diagnosis has been written here."""
    return json_has(folder / "diagnosis.json", "version", "teacher", "verdicts", "recommendation")


def is_export(folder: Path) -> bool:
    """Whether a model was exported to this folder."""
    return json_has(folder / "export.json", "version", "to", "file", "difference")


def is_shrunk(folder: Path) -> bool:
    """Whether a model was shrunk into this folder."""
    return json_has(folder / "shrink.json", "version", "model", "how", "before", "after")


def is_compressed(folder: Path) -> bool:
    """Whether a model was compressed into this folder, or is being so."""
    return json_has(folder / "compress.json", "version", "model", "budget", "frontier")


def is_report(path: Path) -> bool:
    """Whether a page is one of this program's reports."""
    try:
        return _FOOTER.search(path.read_bytes()) is not None
    except OSError:
        return False


def json_has(path: Path, *keys: str) -> bool:
    """Whether a file holds a JSON object that has these keys."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and content.keys() >= set(keys)
