"""What a person sees while a run works: bars on a terminal, a line now and then in a log."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

console = Console(stderr=True, highlight=False)


def in_words(seconds: float) -> str:
    """A time as a person says it: ``40 s``, ``12 min``, ``3 h 20 min``."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


class Display:
    """One bar at a time, with a rate and the remaining time; silent in processes other than the first."""

    def __init__(self, active: bool) -> None:
        self.active = active
        self.bars: Progress | None = None
        self._task: Any = None
        self._said = self._moved = 0.0
        self._title, self._total = "", 0

    def __enter__(self) -> Display:
        if self.active and console.is_terminal:
            self.bars = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                TimeRemainingColumn(),
                console=console,
                transient=True,
            )
            self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bars:
            self.bars.stop()
            self.bars = None

    def start(self, title: str, total: int, done: int = 0) -> None:
        """Begin a bar of ``total``."""
        self._title, self._total, self._moved = title, total, time.monotonic()
        if self.bars:
            if self._task is not None:
                self.bars.remove_task(self._task)
            self._task = self.bars.add_task(title, total=total, completed=done, note="")

    def due(self) -> bool:
        """Whether it is time to move: twice a second on a terminal, twice a minute in a log."""
        if self.active and time.monotonic() - self._moved > (0.5 if self.bars else 30):
            self._moved = time.monotonic()
            return True
        return False

    def move(self, done: int, note: str = "") -> None:
        """Move the bar to ``done``; in a log, say so."""
        if self.bars:
            self.bars.update(self._task, completed=done, note=note)
        elif self.active and done < self._total:
            self.say(f"{self._title}  {done:,}/{self._total:,}  {note}", always=True)

    def say(self, line: str, *, always: bool = False) -> None:
        """A line above the bar; in a log, at most one every five seconds unless ``always``."""
        if self.active and (always or self.bars or time.monotonic() - self._said > 5):
            self._said = time.monotonic()
            console.print(line, markup=False, soft_wrap=True)

    def reporter(self, title: str) -> Any:
        """A callback ``(done, total)`` that starts and moves a bar of its own, which is gone when all is done."""
        began = False

        def report(done: int, total: int) -> None:
            nonlocal began
            if not began:
                self.start(title, total)
                began = True
            if done >= total or self.due():
                self.move(done)
            if done >= total and self.bars:
                self.bars.remove_task(self._task)
                self._task = None

        return report
