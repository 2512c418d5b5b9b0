"""Copied dimensions as values: which there are, what a parameter and a call become under them.

The vocabulary of `layout` (which finds copies) and `widen` (which makes them).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

UNFLATTEN = (Tensor.unflatten, torch.unflatten)
VIEWS = (Tensor.view, Tensor.reshape, torch.reshape, *UNFLATTEN)


@dataclass(frozen=True)
class Copies:
    """One copied dimension: ``index[wide position]`` is the student's channel.

    ``maker`` is the weight (``name:dimension``) whose order of copies it is, ``choice`` the call that split it.
    """

    index: Tensor
    maker: str | None = None
    choice: tuple | None = None


Layout = tuple[Copies | None, ...]


def spread(channels: int, ratio: int, inner: int = 1) -> Tensor:
    """``[ratio·channels]`` → channel: blocks of ``inner`` channels, each copied ``ratio`` times in a row."""
    return torch.arange(channels).view(-1, 1, inner).expand(-1, ratio, -1).flatten()


def gather(tensor: Tensor, layout: Layout) -> Tensor:
    """The tensor with its copied dimensions copied."""
    for dim, copies in enumerate(layout):
        if copies is not None:
            tensor = tensor.index_select(dim, copies.index.to(tensor.device))
    return tensor


@dataclass(frozen=True)
class Placement:
    """How a parameter or buffer grows: its copied dimensions, and the one whose values are shared out (``shared``)."""

    layout: Layout
    shared: int | None = None


@dataclass(frozen=True)
class CallEdit:
    """How one call differs in the wide network.

    ``numbers``: position among the call's whole numbers → (student's, wide). ``view``: sizes that no batch changes, and
    the groups of dimensions that hold the same elements before and after, each with the one to compute (or None).
    ``divide``: the input is divided by these counts.
    """

    numbers: dict[int, tuple[int, int]] = field(default_factory=dict)
    view: tuple[dict[int, int], list[tuple[list[int], list[int], int | None]]] | None = None
    divide: Tensor | None = None

    def __call__(self, func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        """The call, edited. Sizes that the program read from a wide tensor are right already and stay."""
        if self.view is not None:
            x = args[0] if args else kwargs["input"]
            fixed, groups = self.view
            sizes = view_sizes(func, x, args[1:], kwargs)
            for dim, size in fixed.items():
                sizes[dim] = size
            for ins, outs, grown in groups:
                grown = next((dim for dim in outs if sizes[dim] == -1), grown)
                if grown is not None:
                    sizes[grown] = math.prod(x.shape[d] for d in ins) // math.prod(sizes[d] for d in outs if d != grown)
            if func in UNFLATTEN:
                dim = (args[1] if len(args) > 1 else kwargs["dim"]) % x.dim()
                return func(x, dim, sizes[dim : len(sizes) - (x.dim() - dim - 1)])
            return func(x, sizes)
        if self.divide is not None:
            return func(args[0] / self.divide.to(args[0]), *args[1:], **kwargs)
        count = itertools.count()

        def visit(leaf: Any) -> Any:
            if type(leaf) is int:
                narrow, wide = self.numbers.get(next(count), (None, None))
                return wide if leaf == narrow else leaf
            return leaf

        args, kwargs = map_leaves((args, kwargs), visit)
        return func(*args, **kwargs)


def map_leaves(value: Any, visit: Callable[[Any], Any]) -> Any:
    """A nest of tuples, lists, dicts and slices with every leaf replaced by ``visit(leaf)``, in order."""
    if isinstance(value, slice):
        return slice(*(map_leaves(part, visit) for part in (value.start, value.stop, value.step)))
    if isinstance(value, dict):
        return {key: map_leaves(part, visit) for key, part in value.items()}
    if isinstance(value, tuple | list):
        parts = [map_leaves(part, visit) for part in value]
        return parts if isinstance(value, list) else tuple(parts)
    return visit(value)


def leaves(value: Any, kind: type) -> list[Any]:
    """The leaves of exactly (whole numbers) or at least (tensors) that type."""
    collected: list[Any] = []
    map_leaves(
        value,
        lambda leaf: collected.append(leaf) if (type(leaf) is int if kind is int else isinstance(leaf, kind)) else 0,
    )
    return collected


def view_sizes(func: Callable, x: Tensor, rest: tuple, kwargs: dict[str, Any]) -> list[int]:
    """The sizes a view asks for, all of them."""
    if func in UNFLATTEN:
        dim, sizes = (*rest, *(kwargs[k] for k in ("dim", "sizes") if k in kwargs))
        dim %= x.dim()
        return [*x.shape[:dim], *sizes, *x.shape[dim + 1 :]]
    rest = (*rest, *(kwargs[k] for k in ("shape", "size") if k in kwargs))
    return list(rest[0]) if not isinstance(rest[0], int) else list(rest)


def view_groups(before: torch.Size, after: torch.Size) -> Iterator[tuple[list[int], list[int]]]:
    """The dimensions of a view that make up the same elements before and after."""
    i = j = 0
    while i < len(before) or j < len(after):
        ins: list[int] = []
        outs: list[int] = []
        left = right = 1
        while not (ins or outs) or left != right:
            if (left <= right and i < len(before)) or j >= len(after):
                ins.append(i)
                left *= before[i]
                i += 1
            else:
                outs.append(j)
                right *= after[j]
                j += 1
        while i < len(before) and before[i] == 1 and (j >= len(after) or after[j] != 1):
            ins.append(i)
            i += 1
        while j < len(after) and after[j] == 1 and (i >= len(before) or before[i] != 1):
            outs.append(j)
            j += 1
        yield ins, outs


def counts_of(copies: Copies) -> Tensor:
    """How many copies each wide position's channel has."""
    return copies.index.bincount()[copies.index]


def same(a: Copies | None, b: Copies | None) -> bool:
    return (a is None and b is None) or (a is not None and b is not None and torch.equal(a.index, b.index))
