"""Work on disk that goes on while a device computes: rows that were computed are written, and those to come read."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

LATE = 2  # blocks that wait to be written, at most
EARLY = 4  # batches that are read before they are asked for


@contextmanager
def behind(threaded: bool) -> Iterator[Callable[[Callable[[], object]], None]]:
    """Gives what does pieces of work in their order: at once or, ``threaded``, in a thread, a few pieces late.

    What a piece raises is raised by one of the next calls or at the end, and no later piece is done. Where the caller
    fails those that wait are not done either.
    """
    if not threaded:
        yield _at_once
        return
    waiting: deque[Future] = deque()
    failed = False

    def guarded(work: Callable[[], object]) -> None:
        nonlocal failed
        if failed:
            return
        try:
            work()
        except BaseException:
            failed = True
            raise

    def do(work: Callable[[], object]) -> None:
        waiting.append(pool.submit(guarded, work))
        while waiting and (len(waiting) > LATE or waiting[0].done()):
            waiting.popleft().result()

    with ThreadPoolExecutor(1) as pool:
        try:
            yield do
            while waiting:
                waiting.popleft().result()
        finally:
            failed = True


def _at_once(work: Callable[[], object]) -> None:
    work()


def to_host(fields: Mapping[str, Tensor]) -> Callable[[], dict[str, Tensor]]:
    """Begin to copy tensors to the processor; returns what waits for them, in any thread, and gives them."""
    copies, begun = {}, []
    for name, value in fields.items():
        if not value.is_cuda:
            copies[name] = value
            continue
        copies[name] = torch.empty_like(value, device="cpu", pin_memory=True)
        if value.stride() != copies[name].stride():  # else it would be copied by way of memory that makes this wait
            value = value.clone()
        copies[name].copy_(value, non_blocking=True)
        begun.append(value.device)
    events = [torch.cuda.current_stream(device).record_event(torch.cuda.Event(blocking=True)) for device in set(begun)]

    def landed() -> dict[str, Tensor]:
        for event in events:
            event.synchronize()
        return copies

    return landed


class Ahead:
    """What ``read`` gives for each index of an ``order``, read by a thread before it is asked for; `close` ends it."""

    def __init__(self, read: Callable[[Tensor], Any], order: Iterable[Tensor], begin: Callable[[], object]) -> None:
        """``begin`` is called in the thread, first of all."""
        self._read, self._order = read, iter(order)
        self._pool = ThreadPoolExecutor(1, initializer=begin)
        self._coming: deque[tuple[Tensor, Future]] = deque()
        self._more()

    def _more(self) -> None:
        while len(self._coming) < EARLY and (index := next(self._order, None)) is not None:
            self._coming.append((index, self._pool.submit(self._read, index)))

    def take(self, index: Tensor) -> Any:
        """What was read for the next index of the order; of another one it is read now."""
        if not self._coming or not torch.equal(self._coming[0][0], index):
            return self._read(index)
        read = self._coming.popleft()[1].result()
        self._more()
        return read

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
