"""The tensors that the state of a network is made of, quantised and wrapped ones among them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def plain_parts(value: Any) -> Iterator[tuple[Tensor, str]]:
    """The plain tensors that a value of a `state_dict` holds, and what else tells how to read each of them.

    Those are a quantised tensor's integers with its scales, the parts of a wrapped one (as of torchao), and the
    elements of what is packed for a kernel.
    """
    if isinstance(value, Tensor):
        if hasattr(value, "__tensor_flatten__"):
            names, context = value.__tensor_flatten__()
            for name in names:
                for part, told in plain_parts(getattr(value, name)):
                    yield part, f"{type(value).__name__}.{name} {told}"
            yield torch.empty(0), repr(context)
        elif value.is_quantized:
            per_channel = value.qscheme() in (torch.per_channel_affine, torch.per_channel_symmetric)
            yield value.int_repr(), f"{value.dtype}"
            if per_channel:
                yield value.q_per_channel_scales(), "scales"
                yield value.q_per_channel_zero_points(), "zero points"
            else:
                yield torch.empty(0), f"{value.q_scale()} {value.q_zero_point()}"
        else:
            yield value, f"{tuple(value.shape)}{value.dtype}"
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield torch.empty(0), repr(key)
            yield from plain_parts(part)
    elif isinstance(value, tuple | list):
        for part in value:
            yield from plain_parts(part)
    elif hasattr(value, "unpack"):  # a kernel's own object
        yield from plain_parts(value.unpack())
    elif isinstance(value, torch.ScriptObject) and hasattr(value, "__getstate__"):
        yield from plain_parts(value.__getstate__())
    else:  # of other objects nothing is known that is the same in another process
        same = isinstance(value, int | float | complex | str | bytes | torch.dtype | None)
        yield torch.empty(0), repr(value) if same else type(value).__name__


def has_own_precision(network: nn.Module) -> bool:
    """Whether a network computes in a precision of its own: its numbers are not all whole or in single precision, or it
    holds tensors that are quantised or wrapped."""
    return any(_is_own(value) for value in network.state_dict().values())


def is_quantised(value: Any) -> bool:
    """Whether a value of a `state_dict` is, or holds, a tensor that is quantised or wrapped."""
    if isinstance(value, tuple | list):
        return any(map(is_quantised, value))
    if isinstance(value, Tensor):
        return value.is_quantized or (hasattr(value, "__tensor_flatten__") and hasattr(value, "dequantize"))
    return isinstance(value, torch.ScriptObject) or (isinstance(value, torch.dtype) and value in _QUANTISED)


def _is_own(value: Any) -> bool:
    if isinstance(value, Tensor) and not is_quantised(value):
        return value.is_floating_point() and value.dtype != torch.float32
    return is_quantised(value)


def own_dtype(network: nn.Module) -> torch.dtype | None:
    """The one type of all of a network's floating parameters and buffers, where that is not single precision."""
    tensors = [*network.parameters(), *network.buffers()]
    kinds = {tensor.dtype for tensor in tensors if tensor.is_floating_point()}
    return kinds.pop() if len(kinds) == 1 and kinds != {torch.float32} else None


_QUANTISED = (torch.qint8, torch.quint8, torch.qint32)
