"""A function of tensors that is launched as one: recorded as a CUDA graph after a few calls, then replayed.

A step of a small network is hundreds of kernels of a few microseconds each, and launching them one by one takes longer
than running them. A graph launches them all at once. But it repeats just what was recorded: a number of Python's that
changes from call to call, a tensor that is put in another's place, a choice by chance stay what they were then. So a
recording is tried against the function itself before it stands in for it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

WARM = 3  # calls as they are before a recording: what is made once (an optimizer's state, say) is made in them
CLOSE = 1e-2  # of how far two calls move something: kernels that add in any order are far nearer to each other
NOISY = 1 / 4  # of what a call changes, at most, that only rounding moves, such as a bias before a normalisation

Tensors = dict[Any, Tensor]
Function = Callable[[Tensors], Any]
Recorder = Callable[[Function, Tensors], tuple[Callable[[], Any], Any]]


class Unlike(Exception):
    """A recording does something else than what was recorded."""


class Captured:
    """``function`` of a dict of tensors on the ``device``, recorded once for each kind of input (shapes, types).

    It may return a dict of tensors, which the next call overwrites, and change in place those that ``state`` lists.
    Before a recording is used, two calls of it must come to what two calls of the function come to, which must leave
    what ``steady`` gives as it is. ``kept`` is a context after which everything else that a call may change is as
    before. Where there is no such recording, or no memory for one, all are given up: the function runs as it is, and
    ``failed`` is called with the reason.

    ``record`` gives what repeats a function on these very tensors, and the tensors in which that leaves its outputs;
    None: as a CUDA graph, where the device has them.
    """

    def __init__(
        self,
        function: Function,
        device: torch.device,
        *,
        state: Callable[[], Sequence[Tensor]] = lambda: (),
        steady: Callable[[], Any] = lambda: None,
        kept: Callable[[], AbstractContextManager[Any]] = nullcontext,
        failed: Callable[[Exception], None] = lambda error: None,
        record: Recorder | None = None,
    ) -> None:
        self.function, self.state, self.steady, self.kept, self.failed = function, state, steady, kept, failed
        self._graphs = _Graphs(device) if record is None and device.type == "cuda" else None
        self._record = self._graphs.record if self._graphs else record
        self._calls = 0
        self._recorded: dict[Hashable, tuple[Callable[[], Any], Tensors, Any]] = {}

    def __call__(self, tensors: Mapping[Any, Tensor], plain: Callable[[], Any] | None = None) -> Any:
        """What the function makes of these tensors; ``plain`` does the same where it is to run as it is."""
        plain = plain or (lambda: self.function(dict(tensors)))
        if self._record is None:
            return plain()
        kind = tuple((name, value.shape, value.dtype, value.stride()) for name, value in tensors.items())
        if kind not in self._recorded:
            self._calls += 1
            if self._calls <= WARM:
                return self._graphs.warm(plain) if self._graphs else plain()
            try:
                self._recorded[kind] = self._tried({name: value.clone() for name, value in tensors.items()})
            except Exception as error:
                self._record = None
                self._recorded.clear()  # their memory may be what was missing
                self.failed(error)
        if kind not in self._recorded:
            return plain()
        replay, inputs, outputs = self._recorded[kind]
        for name, value in tensors.items():
            inputs[name].copy_(value, non_blocking=True)
        replay()
        return outputs

    @torch.no_grad()
    def _tried(self, inputs: Tensors) -> tuple[Callable[[], Any], Tensors, Any]:
        """A recording that does the same as the function. Raises what recording raises, and `Unlike`."""
        assert self._record is not None
        state = [value.detach() for value in self.state()]
        begun = [value.clone() for value in state]

        def put_back() -> None:
            for value, before in zip(state, begun, strict=True):
                value.copy_(before)

        def reached(outputs: Any) -> list[Tensor]:
            values = [value.clone() for value in (*state, *(outputs.values() if outputs else ()))]
            put_back()
            return values

        def twice() -> list[Tensor]:
            self.function(inputs)  # which may wait, as what is made once is made now
            with _without_waiting() if self._graphs else nullcontext():
                return reached(self.function(inputs))

        def tried() -> list[Tensor]:
            with torch.enable_grad(), self.kept():
                before = self.steady()
                values = self._graphs.warm(twice) if self._graphs else twice()
                if self.steady() != before:
                    raise Unlike("it counts its calls, replaces a tensor or draws random numbers on the processor")
            return values

        try:
            wanted, again = tried(), tried()
            with torch.enable_grad(), self.kept():
                replay, outputs = self._record(self.function, inputs)
            put_back()
            with self.kept():
                replay()
                replay()
                got = reached(outputs)
        finally:
            put_back()
        begun += [torch.zeros_like(value) for value in wanted[len(begun) :]]
        noisy = [not _close(*values) for values in zip(again, wanted, begun, strict=True)]
        if sum(noisy) > (0 if torch.are_deterministic_algorithms_enabled() else NOISY * len(noisy)):
            raise Unlike("it comes to other numbers each time")
        if not all(noise or _close(*values) for noise, *values in zip(noisy, got, wanted, begun, strict=True)):
            raise Unlike("a recording of it comes to other numbers")
        return replay, inputs, outputs


def steady_of(network: nn.Module, device: torch.device) -> Any:
    """What calls of a network leave as it is if they are to be recorded: the numbers that it counts with, which tensors
    it holds (it may change them, but not put others in their places), and where the random numbers stand that the
    device does not draw itself."""
    values = [(name, _mark(value)) for module in network.modules() for name, value in vars(module).items()]
    kind, keys, *rest = np.random.get_state(legacy=True)
    drawn = [random.getstate(), kind, np.asarray(keys).tolist(), rest]
    return values, drawn, [] if device.type == "cpu" else torch.get_rng_state().tolist()


def _mark(value: Any) -> Any:
    if isinstance(value, list | dict | set):
        return [_mark(item) for item in (value.values() if isinstance(value, dict) else value)]
    return value if isinstance(value, int | float | str) else id(value) if isinstance(value, Tensor) else None


def _close(got: Tensor, wanted: Tensor, begun: Tensor) -> bool:
    """Whether two ways from where it ``begun`` reach the same, to within `CLOSE` of the way. Whole numbers do to the
    bit, and all do in a deterministic run, as one that is killed goes on without a recording."""
    if torch.are_deterministic_algorithms_enabled() or not got.is_floating_point():
        return torch.equal(got, wanted)
    got, wanted, begun = (value.detach().double().nan_to_num() for value in (got, wanted, begun))
    norm = torch.linalg.vector_norm
    return bool(norm(got - wanted) <= CLOSE * norm(wanted - begun) + 1e-6 * norm(wanted))


class _Graphs:
    """CUDA graphs of one function: they share their memory, as one is replayed at a time."""

    def __init__(self, device: torch.device) -> None:
        self.stream, self.pool = torch.cuda.Stream(device), torch.cuda.graph_pool_handle()

    def warm(self, plain: Callable[[], Any]) -> Any:
        """A call on the stream that will be recorded, as PyTorch asks for before a backward pass is."""
        now = torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(now)
        with torch.cuda.stream(self.stream):
            outputs = plain()
        now.wait_stream(self.stream)  # so both streams use each other's memory in order
        return outputs

    def record(self, function: Function, inputs: Tensors) -> tuple[Callable[[], Any], Any]:
        """What replays the function on these very tensors, and the tensors in which it leaves its outputs."""
        graph = torch.cuda.CUDAGraph()
        now = torch.cuda.current_stream(self.stream.device)
        # other threads may copy meanwhile: they read files, and write what was computed
        recording = torch.cuda.graph(graph, self.pool, self.stream, capture_error_mode="thread_local")
        with torch.cuda.stream(now), recording:  # one that fails does not leave its stream itself
            outputs = function(inputs)
        return graph.replay, outputs


@contextmanager
def _without_waiting() -> Iterator[None]:
    """Inside, what waits for the device raises: in a capture it would spoil torch's allocator and random numbers."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
