"""What calls and networks take and give: nests of tuples, lists, dictionaries and slices."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor


def map_leaves(value: Any, visit: Callable[[Any], Any]) -> Any:
    """A nest with every leaf replaced by ``visit(leaf)``, in order."""
    if isinstance(value, slice):
        return slice(*(map_leaves(part, visit) for part in (value.start, value.stop, value.step)))
    if isinstance(value, dict):
        return {key: map_leaves(part, visit) for key, part in value.items()}
    if isinstance(value, tuple | list):
        parts = [map_leaves(part, visit) for part in value]
        return parts if isinstance(value, list) else tuple(parts)
    return visit(value)


def leaves(value: Any) -> list[Any]:
    """What is in a nest, in order."""
    collected: list[Any] = []
    map_leaves(value, collected.append)
    return collected


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors in a nest, in order."""
    return [leaf for leaf in leaves(value) if isinstance(leaf, Tensor)]


def replaced(value: Any, by: Mapping[int, Tensor]) -> Any:
    """A nest with other tensors in place of some, which are named by their id."""
    return map_leaves(value, lambda leaf: by.get(id(leaf), leaf) if isinstance(leaf, Tensor) else leaf)
