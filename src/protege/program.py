"""Whether protege is the program that runs, or a library in somebody's program."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_commanded = ContextVar("commanded", default=False)


@contextmanager
def commanded() -> Iterator[None]:
    """Inside, protege is the program: what is imported is nobody's choice."""
    before = _commanded.set(True)
    try:
        yield
    finally:
        _commanded.reset(before)


def is_commanded() -> bool:
    return _commanded.get()
