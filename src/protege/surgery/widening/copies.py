"""Copied dimensions as values: which there are, what a parameter and a call become under them.

The vocabulary of `watch` (which finds copies) and `widen` (which makes them).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..nests import leaves, map_leaves
from ..tracing.calls import UNFLATTEN, view_sizes


@dataclass(frozen=True)
class Copies:
    """One copied dimension: ``index[wide position]`` is the student's channel.

    ``maker`` is the weight (``name:dimension``) whose order of copies it is, ``choice`` the call that split it.
    """

    index: Tensor
    maker: str | None = None
    choice: tuple | None = None


Layout = tuple[Copies | None, ...]


@dataclass
class Known:
    """A tensor of the student's, how it is copied in the wide network, and what it is made of."""

    tensor: Tensor  # kept, so that its id stays its own
    layout: Layout
    origins: tuple[str, ...] | None  # the parameters and buffers it is made of, in order; None: data


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
    ``divide``: the input is divided by these counts. ``orders``: position among the call's tensors → dimensions whose
    copies are put in another order first. ``scalars``: position among the call's numbers → what it is multiplied by.
    ``factor``: what the result is divided by.
    """

    numbers: dict[int, tuple[int, int]] = field(default_factory=dict)
    view: tuple[dict[int, int], list[tuple[list[int], list[int], int | None]]] | None = None
    divide: Tensor | None = None
    orders: dict[int, dict[int, Tensor]] = field(default_factory=dict)
    scalars: dict[int, float] = field(default_factory=dict)
    factor: float = 1.0

    def __call__(self, func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        """The call, edited. Sizes that the program read from a wide tensor are right already and stay."""
        if self.scalars:
            args, kwargs = map_numbers((args, kwargs), lambda number, x: x * self.scalars.get(number, 1))
        if self.orders:
            args, kwargs = map_tensors((args, kwargs), self._ordered)
        out = self._call(func, args, kwargs)
        return out if self.factor == 1 else _apart(Tensor.div, out, self.factor)

    def _call(self, func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
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
            return func(_apart(Tensor.div, args[0], self.divide.to(args[0])), *args[1:], **kwargs)
        count = itertools.count()

        def visit(leaf: Any) -> Any:
            if type(leaf) is int:
                narrow, wide = self.numbers.get(next(count), (None, None))
                return wide if leaf == narrow else leaf
            return leaf

        args, kwargs = map_leaves((args, kwargs), visit)
        return func(*args, **kwargs)

    def _ordered(self, number: int, x: Tensor) -> Tensor:
        for dim, order in self.orders.get(number, {}).items():
            x = _apart(Tensor.index_select, x, dim, order.to(x.device))
        return x


def _apart(func: Callable, *args: Any) -> Any:
    """A call that the network does not make itself, and that no mode counts."""
    with torch._C.DisableTorchFunction():
        return func(*args)


def map_tensors(value: Any, visit: Callable[[int, Tensor], Any]) -> Any:
    """A nest with every tensor replaced by ``visit(how-many-eth, tensor)``."""
    count = itertools.count()
    return map_leaves(value, lambda leaf: visit(next(count), leaf) if isinstance(leaf, Tensor) else leaf)


def map_numbers(value: Any, visit: Callable[[int, float], Any]) -> Any:
    """The same of whole numbers and others: ``visit(how-many-eth, number)``."""
    count = itertools.count()
    return map_leaves(value, lambda leaf: visit(next(count), leaf) if type(leaf) in (int, float) else leaf)


def numbers_in(value: Any) -> list[float]:
    """The whole numbers and others in a nest, in order."""
    return [leaf for leaf in leaves(value) if type(leaf) in (int, float)]


def whole_numbers_in(value: Any) -> list[int]:
    """The whole numbers alone."""
    return [leaf for leaf in leaves(value) if type(leaf) is int]


def view_groups(before: Sequence[int], after: Sequence[int]) -> Iterator[tuple[list[int], list[int]]]:
    """The dimensions of a view that make up the same elements before and after; those of size one go along with what
    comes before them."""
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


def groupings(before: Sequence[int], after: Sequence[int]) -> Iterator[list[tuple[list[int], list[int]]]]:
    """The `view_groups`, and as another reading those in which dimensions of size one go along with what follows."""
    yield list(view_groups(before, after))
    backwards = view_groups(before[::-1], after[::-1])
    ends = len(before) - 1, len(after) - 1
    yield [([ends[0] - d for d in reversed(ins)], [ends[1] - d for d in reversed(outs)]) for ins, outs in backwards]


def counts_of(copies: Copies) -> Tensor:
    """How many copies each wide position's channel has."""
    return copies.index.bincount()[copies.index]


def copy_numbers(copies: Copies) -> Tensor:
    """``[wide position]`` → the how-many-eth copy of its channel it is, from 0."""
    order = copies.index.argsort(stable=True)
    first = torch.searchsorted(copies.index[order], copies.index)
    return order.argsort() - first


def same(a: Copies | None, b: Copies | None) -> bool:
    return (a is None and b is None) or (a is not None and b is not None and torch.equal(a.index, b.index))
