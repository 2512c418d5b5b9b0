"""Paths that users name: any text may be one, and a file system need not be able to say so much as that it is none."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Any

from protege.errors import UserError, shown, told

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
        found = Path(path).expanduser()
        if any(len(part.encode()) > NAME for part in found.parts):  # perhaps below a folder that is yet to be made
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        os.stat(found)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError, RuntimeError) as error:
        why = getattr(error, "strerror", None) or told(error)
        raise UserError(
            f"{what}={shown(str(path))} cannot be {done} ({why}); expected another path: name one that can."
        ) from None
    return found


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
