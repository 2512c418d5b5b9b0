"""The one exception that means: the input is wrong, not the program."""

import errno
import os
import re
import sys
import traceback
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

TOLD = 300  # characters
SHOWN = 12  # words
LONG = 120  # characters of a value
ALIKE = 0.7  # of two words, by difflib: 'hinton' and 'none' are not


class UserError(Exception):
    """Bad input, told in one sentence: the value, what was expected, the remedy.

    A sentence names arguments as Python gives them, ``lr=0.1``, or ``lr=…`` for any value, without spaces; the command
    line, which knows its options, says ``--lr`` for it, prints it without a traceback and exits with status 2. A
    notebook shows the sentence alone, too, unless ``PROTEGE_DEBUG`` is set.
    """

    def _render_traceback_(self) -> list[str]:
        return _shown(self)


class Stopped(KeyboardInterrupt):
    """A run was stopped by Ctrl-C; the sentence says how it goes on. Shown like a `UserError`."""

    def _render_traceback_(self) -> list[str]:
        return _shown(self)


def _shown(error: BaseException) -> list[str]:
    """What IPython shows of an error, line by line."""
    if os.environ.get("PROTEGE_DEBUG"):
        return "".join(traceback.format_exception(error)).splitlines()
    return [f"{type(error).__name__}: {error}"]


def told(error: BaseException) -> str:
    """What another library's error says, for within a sentence: its lines joined, at most 300 characters; its type
    where it says nothing."""
    text = " ".join(str(error).split()).rstrip(".")
    return (text if len(text) <= TOLD else text[: TOLD - 1].rstrip() + "…") or type(error).__name__


def shown(value: Any) -> str:
    """A value for within a sentence, as Python writes it; what is long, or cannot be written, in short."""
    try:
        text = repr(value)
    except Exception:  # a number of thousands of digits, or whatever a user's class raises
        return f"a {type(value).__name__} that cannot be written out"
    text = " ".join(text.split()) if "\n" in text else text  # a tensor's, in one line
    return text if len(text) <= LONG else f"{text[: LONG - 20]}…{text[-10:]}"


def printable(name: Any) -> str:
    """A name as text that any file and terminal takes: bytes that are no text are written as such."""
    return str(name).encode("utf-8", "backslashreplace").decode("utf-8")


def nearest(
    word: str, known: Iterable[str], otherwise: str = "", *, also: Mapping[str, str] | None = None, all_of: str = ""
) -> str:
    """'did you mean …' with the nearest known words; where none is near ``otherwise``, or the first of all.

    ``also`` are other names of known ones, in small letters without spaces and strokes. ``all_of``: what they are all
    called, to name them behind a guess, too.
    """
    names = sorted(filter(None, known))
    if not names:
        return otherwise or "it has none"
    other = (also or {}).get(re.sub(r"[\s_-]", "", word.lower()))
    close = [other] if other else get_close_matches(word.lower(), names, n=3, cutoff=ALIKE)
    if not close and also:
        close = [also[near] for near in get_close_matches(word.lower(), also, n=1, cutoff=ALIKE)]
    if not close and len(word) >= 3:
        close = [name for name in names if name.startswith(word.lower())][:3]
    if close:
        whole = f" (the {all_of} are {', '.join(names)})" if all_of else ""
        return f"did you mean {' or '.join(map(repr, close))}{whole}"
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return otherwise or f"choose one of {', '.join(names[:SHOWN])}{more}"


def full_disk(error: BaseException) -> bool:
    """Whether an error says that a disk (or a user's share of it) is full."""
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error)


def out_of_memory(error: BaseException, trains: bool) -> UserError | None:
    """The sentence for an error that says that memory does not suffice, of whatever device; None for all others.

    ``trains``: whether batches may be made smaller.
    """
    text = f"{type(error).__name__}: {error}"
    signs = ("OutOfMemoryError", "MemoryError", "DefaultCPUAllocator", "bad_alloc", "out of memory")
    if isinstance(error, UserError) or not any(sign in text for sign in signs):
        return None
    asked = re.search(r"tried to allocate (\d+) bytes", text)
    what = f"{in_bytes(int(asked[1]))} were asked for at once" if asked else told(error)
    batches = ", or lower batch_size=… or raise accumulate=…" if trains else ""
    return UserError(
        f"memory does not suffice ({what}); expected what fits: take smaller images, fewer classes, a smaller network "
        f"or less data{batches}."
    )


def in_bytes(size: int) -> str:
    """A size of at least one unit: ``12 KB``, ``3 MB``, ``1.2 GB``."""
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("KB", 10**3)):
        if size >= scale:
            return f"{size / scale:.{0 if size >= 10 * scale or unit == 'KB' else 1}f} {unit}"
    return f"{size} bytes"


def plain_in_sessions() -> None:
    """Let ``python -i`` show the sentence of a `UserError` alone, as notebooks do; elsewhere nothing changes."""
    if not (hasattr(sys, "ps1") or sys.flags.interactive):
        return
    usual = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        if isinstance(error, UserError | Stopped):
            print("\n".join(_shown(error)), file=sys.stderr)
        else:
            usual(kind, error, trace)

    sys.excepthook = hook
