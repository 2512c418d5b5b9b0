"""The calls of torch's functions that code makes while it runs, and what they take that is computed from a network's
own tensors alone: its weights, in whatever form a call takes them.

A weight may be a parameter, a view of one, or computed from several on each call (standardised, masked, factored); how
it came about is kept, so that it can be computed again after its parameters have changed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

CONVOLUTIONS = (torch.conv1d, torch.conv2d, torch.conv3d)  # torch.nn.functional's are the same objects
TRANSPOSED = (torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d)
RECURRENT = (torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu)
FAILURES = (RuntimeError, ValueError, IndexError, AssertionError, TypeError)  # of a call on other numbers or sizes

Heard = Callable[[Callable[..., Any], tuple, dict[str, Any], Any], None]  # function, arguments, what it gave


class Listening(TorchFunctionMode):
    """Inside, every call of a function of torch that takes tensors is handed to ``heard`` after it was made."""

    def __init__(self, heard: Heard) -> None:
        super().__init__()
        self.heard = heard

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.multi_head_attention_forward:  # Python code, whose own calls are what counts
            with self:
                return _attention()(*args, **kwargs)
        output = func(*args, **kwargs)
        if tensors_of((args, kwargs)):
            self.heard(func, args, kwargs, output)
        return output


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


@dataclass(frozen=True)
class Weight:
    """A tensor that is computed from a network's parameters and buffers alone.

    ``origins`` are those, by name; ``made`` is the call that gave it (function, arguments), and None for one of them.
    """

    value: Tensor
    origins: Mapping[str, Tensor]
    made: tuple[Callable[..., Any], tuple, dict[str, Any]] | None = None
    sources: Mapping[int, Weight] = field(default_factory=dict)  # of its arguments, by their id

    def read(self) -> Tensor:
        """What it is now."""
        if self.made is None:
            return self.value
        function, args, kwargs = self.made
        given = {key: source.read() for key, source in self.sources.items()}
        return function(*replaced(args, given), **replaced(kwargs, given))


class Weights:
    """The weights of a network, and what calls make of them alone."""

    def __init__(self, network: nn.Module) -> None:
        tensors = [*network.named_parameters(), *network.named_buffers()]
        self._known = {id(tensor): Weight(tensor, {name: tensor}) for name, tensor in tensors}

    def among(self, arguments: Any) -> dict[int, Weight]:
        """Those that are among the arguments of a call, by their id."""
        held = {id(leaf): self._known.get(id(leaf)) for leaf in tensors_of(arguments)}
        return {key: weight for key, weight in held.items() if weight is not None and weight.value is not None}

    def note(self, func: Callable[..., Any], args: tuple, kwargs: dict[str, Any], output: Any) -> bool:
        """Whether a call computes with weights alone; what it gives is one from then on."""
        sources = self.among((args, kwargs))
        if not isinstance(output, Tensor) or not sources or len(sources) < len({*map(id, tensors_of((args, kwargs)))}):
            return False
        if id(output) not in self._known:
            origins = {name: tensor for source in sources.values() for name, tensor in source.origins.items()}
            self._known[id(output)] = Weight(output, origins, (func, args, kwargs), sources)
        return True


def tensors_of(arguments: Any) -> list[Tensor]:
    """The tensors among the arguments of a call."""
    return [leaf for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor)]


def replaced(arguments: Any, by: Mapping[int, Tensor]) -> Any:
    """Arguments with other tensors in place of some, which are named by their id."""
    return tree_map_only(Tensor, lambda tensor: by.get(id(tensor), tensor), arguments)
