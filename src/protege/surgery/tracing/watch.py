"""Watching the calls of torch's functions that code makes while it runs, and which module makes them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from types import FunctionType
from typing import Any

import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from ..nests import tensors_in

Heard = Callable[[Callable[..., Any], tuple, dict[str, Any], Any], Any]  # function, arguments, what it gave


class Listening(TorchFunctionMode):
    """Inside, every call of a function of torch that takes tensors is handed to ``heard`` after it was made; what that
    returns, unless it is None, is what the code gets, as with a module's forward hook. Attention is one call, or, if
    not ``whole``, those that its Python code makes."""

    def __init__(self, heard: Heard, whole: bool = False) -> None:
        super().__init__()
        self.heard, self.whole = heard, whole

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.multi_head_attention_forward and not self.whole:
            with self:
                return _attention()(*args, **kwargs)
        output = func(*args, **kwargs)
        other = self.heard(func, args, kwargs, output) if tensors_in((args, kwargs)) else None
        return output if other is None else other


@cache
def _attention() -> FunctionType:
    """`F.multi_head_attention_forward` without its question whether anybody listens, after which it would not run."""
    function: Any = F.multi_head_attention_forward
    return FunctionType(
        function.__code__,
        {**function.__globals__, "has_torch_function": lambda _: False},
        function.__name__,
        function.__defaults__,
    )


@dataclass
class Frame:
    """A module that runs, and how often each function was called since it began."""

    name: str
    module: nn.Module
    counts: Counter[Callable] = field(default_factory=Counter)

    def __str__(self) -> str:
        kind = type(self.module).__name__
        return f"{self.name!r} ({kind})" if self.name else f"{kind}.forward"


@contextmanager
def watching(network: nn.Module, heard: Heard, stack: list[Frame]) -> Iterator[None]:
    """Inside, every call is handed to ``heard`` (as by `Listening`), and the ``stack`` holds the modules of the network
    that run, the innermost last."""
    stack[:] = [Frame("", network)]

    def hooks_of(name: str, module: nn.Module) -> tuple[Any, Any]:
        def enter(_module: nn.Module, _args: Any) -> None:
            stack.append(Frame(name, module))

        def leave(_module: nn.Module, _args: Any, _output: Any) -> None:
            stack.pop()

        return module.register_forward_pre_hook(enter), module.register_forward_hook(leave)

    def counted(func: Any, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        for frame in stack:
            frame.counts[func] += 1
        return heard(func, args, kwargs, output)

    hooks = [hook for named in network.named_modules() for hook in hooks_of(*named)]
    try:
        with Listening(counted, whole=True):
            yield
    finally:
        for hook in hooks:
            hook.remove()
