"""The calls of torch's functions that code makes while it runs, and what they take that is computed from a network's
own tensors alone: its weights, in whatever form a call takes them.

A weight may be a parameter, a view of one, or computed from several on each call (standardised, masked, factored); how
it came about is kept, so that it can be computed again after its parameters have changed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..nests import replaced, tensors_in

CONVOLUTIONS = (torch.conv1d, torch.conv2d, torch.conv3d)  # torch.nn.functional's are the same objects
TRANSPOSED = (torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d)
MATMULS = (torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.mm, Tensor.mm)
UNFLATTEN = (Tensor.unflatten, torch.unflatten)
VIEWS = (Tensor.view, Tensor.reshape, torch.reshape, *UNFLATTEN)
RECURRENT = (torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu)
# what a call may say to other numbers or sizes
FAILURES = (RuntimeError, ValueError, IndexError, AssertionError, TypeError, AttributeError)


@dataclass(frozen=True)
class Product:
    """A call that multiplies ``x`` with a weight, whose dimension ``out`` has its outputs and ``into`` its inputs; None
    where these are ids. ``channel``, counted from the last, is where channels lie in what it takes and gives."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    out: int
    into: int | None
    groups: int = 1
    channel: int = -1


def product_in(func: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Product | None:
    """A call as a product; None for any other."""

    def given(position: int, name: str) -> Any:
        return args[position] if len(args) > position else kwargs.get(name)

    if func is F.linear:
        return Product(given(0, "input"), given(1, "weight"), given(2, "bias"), 0, 1)
    if func in CONVOLUTIONS or func in TRANSPOSED:
        out, into = (1, 0) if func in TRANSPOSED else (0, 1)
        x, weight, bias, groups = given(0, "input"), given(1, "weight"), given(2, "bias"), given(6, "groups") or 1
        return Product(x, weight, bias, out, into, groups, 1 - weight.dim())
    if func is F.embedding:
        return Product(given(0, "input"), given(1, "weight"), None, 1, None)
    if func is torch.addmm:
        return Product(given(1, "mat1"), given(2, "mat2"), given(0, "input"), 1, 0)
    if func in MATMULS:
        weight = given(1, "mat2" if "mat2" in kwargs else "other")
        if isinstance(weight, Tensor) and weight.dim() == 2:
            return Product(given(0, "input"), weight, None, 1, 0)
    return None


def view_sizes(func: Callable, x: Tensor, rest: tuple, kwargs: dict[str, Any]) -> list[int]:
    """The sizes one of `VIEWS` asks for, all of them."""
    if func in UNFLATTEN:
        dim, sizes = (*rest, *(kwargs[k] for k in ("dim", "sizes") if k in kwargs))
        dim %= x.dim()
        return [*x.shape[:dim], *sizes, *x.shape[dim + 1 :]]
    rest = (*rest, *(kwargs[k] for k in ("shape", "size") if k in kwargs))
    return list(rest[0]) if not isinstance(rest[0], int) else list(rest)


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
        held = {id(leaf): self._known.get(id(leaf)) for leaf in tensors_in(arguments)}
        return {key: weight for key, weight in held.items() if weight is not None and weight.value is not None}

    def note(self, func: Callable[..., Any], args: tuple, kwargs: dict[str, Any], output: Any) -> bool:
        """Whether a call computes with weights alone; what it gives is one from then on."""
        sources = self.among((args, kwargs))
        if not isinstance(output, Tensor) or not sources or len(sources) < len({*map(id, tensors_in((args, kwargs)))}):
            return False
        if id(output) not in self._known:
            origins = {name: tensor for source in sources.values() for name, tensor in source.origins.items()}
            self._known[id(output)] = Weight(output, origins, (func, args, kwargs), sources)
        return True
