"""Copies of a user's network, whatever it keeps beside its weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

Network = TypeVar("Network", bound=nn.Module)


def copy_network(network: Network) -> Network:
    """A network of its own with the same weights, buffers and modes.

    Unlike `copy.deepcopy` it takes networks that were just run with gradients: of a tensor that a forward pass left
    behind (an attention map, a loss, the weight that `weight_norm` computed) the copy has the value, without what it
    was computed from. What cannot be copied at all, such as a lock or an open file, both networks share.
    """
    with _Detached():
        try:
            return copy.deepcopy(network)
        except TypeError:
            shared = {id(value): value for value in _uncopyable(network, set())}
            return copy.deepcopy(network, shared)


class _Detached(TorchFunctionMode):
    """Copies of tensors that were computed hold their values only, where `copy.deepcopy` would refuse them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            tensor, memo = args
            memo[id(tensor)] = tensor.detach().clone()
            return memo[id(tensor)]
        return func(*args, **(kwargs or {}))


def _uncopyable(value: Any, seen: set[int]) -> Iterator[Any]:
    """The attributes in a network, in rows and tables of these too, of which there are no copies."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, nn.Module):
        parts = list(vars(value).values())
    elif isinstance(value, dict):
        parts = list(value.values())
    elif isinstance(value, list | tuple):
        parts = list(value)
    else:
        try:
            copy.deepcopy(value)
        except Exception:
            yield value
        return
    for part in parts:
        yield from _uncopyable(part, seen)
