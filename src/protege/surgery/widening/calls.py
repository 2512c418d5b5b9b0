"""The calls that a network makes: in which module each is, and the how-many-eth of its function there."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..tracing.calls import FAILURES
from .copies import leaves, map_numbers, numbers_in

CallKey = tuple[str, Callable, int]  # module, function, how-many-eth call of it while that module runs


@dataclass
class _Frame:
    path: str
    kind: type
    counts: Counter = field(default_factory=Counter)


class CallMode(TorchFunctionMode):
    """Within `watch`, every call on tensors is `seen`."""

    stack: list[_Frame]

    @contextmanager
    def watch(self, network: nn.Module) -> Iterator[None]:
        self.stack = [_Frame("", type(network))]
        hooks = [hook for path, module in network.named_modules() for hook in self._hooks(path, module)]
        try:
            with self:
                yield
        finally:
            for hook in hooks:
                hook.remove()

    def _hooks(self, path: str, module: nn.Module) -> list[Any]:
        def enter(module: nn.Module, args: Any) -> None:
            self.stack.append(_Frame(path, type(module)))

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            self.stack.pop()

        return [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        for frame in self.stack:
            frame.counts[func] += 1
        self.seen(func, args, kwargs, out)
        return out

    def seen(self, func: Any, args: tuple, kwargs: dict[str, Any], out: Any) -> None:
        """What to do about a call."""
        raise NotImplementedError

    @property
    def place(self) -> str:
        """The module that runs, for a sentence."""
        frame = self.stack[-1]
        return f"module {frame.path!r} ({frame.kind.__name__})" if frame.path else f"{frame.kind.__name__}.forward"

    def call(self, func: Any) -> CallKey:
        """The call that was just made of this function."""
        frame = self.stack[-1]
        return frame.path, func, frame.counts[func]


class ScalarMode(CallMode):
    """Notes the numbers in each call, and in which of them a second network computes with others.

    Whoever scales by the number of channels (``x * x.shape[1] ** -0.5``) computes with a number that grows with them.
    Sizes and dimensions are numbers too, but whole ones only: a call that takes no fraction in their place.
    """

    def __init__(self, others: Mapping[CallKey, list[float]] | None = None) -> None:
        super().__init__()
        self.others = others
        self.numbers: dict[CallKey, list[float]] = {}
        self.differing: dict[CallKey, dict[int, float]] = {}  # → position: the other's number as a share of this one

    def seen(self, func: Any, args: tuple, kwargs: dict[str, Any], out: Any) -> None:
        call = self.call(func)
        self.numbers[call] = mine = numbers_in((args, kwargs))
        theirs = (self.others or {}).get(call, ())
        if len(mine) != len(theirs) or not leaves((args, kwargs), Tensor):
            return
        for place, (a, b) in enumerate(zip(mine, theirs, strict=True)):
            differ = a * b > 0 and math.isfinite(a * b) and not math.isclose(a, b, rel_tol=1e-3)
            if differ and (isinstance(a, float) or self._takes_fractions(func, args, kwargs, place)):
                self.differing.setdefault(call, {})[place] = b / a

    def _takes_fractions(self, func: Any, args: tuple, kwargs: dict[str, Any], place: int) -> bool:
        args, kwargs = map_numbers((args, kwargs), lambda number, leaf: leaf + 0.5 if number == place else leaf)
        try:
            func(*args, **kwargs)
        except FAILURES:
            return False
        return True
