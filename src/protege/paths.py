"""Paths that users name: any text may be one, and a file system need not be able to say so much as that it is none."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

from protege.errors import UserError, told

TEXT = 1 << 24  # bytes of a file of settings, at most
_PIPES = ("/dev/stdin", "/dev/fd/", "/proc/self/fd/")  # what a shell gives in place of a file


def usable(path: Any, what: str) -> Path:
    """The path as a `Path`, ``~`` expanded, whatever lies there. Raises `UserError` naming ``what`` for what is no text
    or path, and for one that no file system can be asked about: a NUL in it, a name too long, a loop of links."""
    if not isinstance(path, str | os.PathLike) or isinstance(path := os.fspath(path), bytes):
        raise UserError(f"{what} = {path!r} is a {type(path).__name__}; expected a path as text: name another.")
    try:
        found = Path(path).expanduser()
        os.stat(found)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError, RuntimeError) as error:
        why = getattr(error, "strerror", None) or told(error)
        raise UserError(f"{what} = {path!r} cannot be a path here ({why}); expected another: name it.") from None
    return found


def read_text(path: Any, what: str) -> str:
    """The text of a file of settings, in UTF-8. Raises `UserError` naming ``what`` where there is none, for what is no
    file (a folder, a device, a pipe that is no shell's) and for one of more than 16 MiB."""
    file = usable(path, what)
    if not file.exists():
        raise UserError(f"{str(path)!r} does not exist; expected {what}: check the path.")
    if not (file.is_file() or (stat.S_ISFIFO(file.stat().st_mode) and str(file).startswith(_PIPES))):
        kind = "a folder" if file.is_dir() else "no file"
        raise UserError(f"{str(path)!r} is {kind}; expected {what}: name its file.")
    try:
        with open(file, "rb") as opened:
            data = opened.read(TEXT + 1)
        if len(data) > TEXT:
            raise UserError(f"{str(path)!r} has more than {TEXT >> 20} MiB; expected {what}: name another file.")
        return data.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{str(path)!r} cannot be read ({told(error)}); expected {what}: name another file.") from None
