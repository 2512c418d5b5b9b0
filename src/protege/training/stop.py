"""Ctrl-C and SIGTERM while a run trains: heard between two updates, so that a checkpoint keeps all that was done."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from .progress import Display


class Stops:
    """Inside, the first signal is kept until `heed`, a second one ends at once; so does any outside `waiting`.

    Only where nobody else listens: signals whose handlers are not Python's own, and threads other than the first, are
    left alone.
    """

    def __init__(self, display: Display, listening: bool) -> None:
        self.display = display
        self.listening = listening and threading.current_thread() is threading.main_thread()
        self.waiting = False
        self.asked: int | None = None
        self._writing, self._late = False, False
        self._process = os.getpid()
        self._before: dict[int, object] = {}

    def __enter__(self) -> Stops:
        usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
        for number, handler in usual.items() if self.listening else ():
            if signal.getsignal(number) is handler:
                self._before[number] = signal.signal(number, self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._before = {}

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a worker, whose end its parent decides
            signal.signal(number, signal.SIG_IGN if number == signal.SIGINT else signal.SIG_DFL)
            if number != signal.SIGINT:
                os.kill(os.getpid(), number)
        elif self._writing:
            self._late = self._late or not self.waiting or self.asked is not None
            self.asked = self.asked or number
        elif self.waiting and self.asked is None:
            self.asked = number
            with suppress(RuntimeError):  # it came while something was being written
                self.display.say("stopping after this update; once more stops at once", always=True)
        else:
            raise _ending(number)

    @contextmanager
    def later(self) -> Iterator[None]:
        """Inside, nothing ends: what comes while a checkpoint is written is kept until it is whole."""
        self._writing = True
        try:
            yield
        finally:
            self._writing = False
        if self._late:
            self.heed()

    def heed(self) -> None:
        """Raise what was asked for meanwhile."""
        if self.asked is not None:
            raise _ending(self.asked)


def _ending(number: int) -> BaseException:
    return KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number)
