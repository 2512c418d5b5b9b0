"""What may be tried so that a call's results are copies: nothing first, another order of the copies last."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..tracing.calls import VIEWS
from .copies import Copies, Known, Layout, copy_numbers, groupings, spread, whole_numbers_in


@dataclass
class Attempt:
    """What may be changed about a call so that its results are copies: the operands' layouts, and how it is edited."""

    layouts: list[Layout]
    numbers: dict[int, tuple[int, int]] = field(default_factory=dict)
    sizes: tuple[int, ...] | None = None
    grown: frozenset[int] = frozenset()  # dimensions of the result that are larger than the student's
    fixed: frozenset[int] = frozenset()  # dimensions of the result whose sizes no batch changes
    groups: list[tuple[list[int], list[int], int | None]] = field(default_factory=list)  # as in a `CallEdit`'s view
    inner: dict[str, int] = field(default_factory=dict)
    bare: dict[tuple[str, int], Copies] = field(default_factory=dict)
    splits: bool = False  # there are other dimensions that the copies could go to
    orders: dict[int, dict[int, Tensor]] = field(default_factory=dict)  # as in a `CallEdit`
    factor: float = 1.0

    @property
    def label(self) -> tuple:
        """Where it puts the copies, whatever their order."""
        return self.sizes or (), tuple(self.numbers)

    @property
    def costs(self) -> bool:
        """Whether the wide network has to compute more than the call."""
        return bool(self.orders) or self.factor != 1


@dataclass(frozen=True)
class Attempts:
    """Proposes attempts for a call, the least change first.

    ``askable(maker, inner)``: whether a weight may still be asked for that order of copies. ``tensors``: the network's
    parameters and buffers by name.
    """

    ratio: int
    askable: Callable[[str, int], bool]
    tensors: Mapping[str, Tensor]

    def __call__(
        self, func: Any, args: tuple, kwargs: dict, results: list[Tensor], operands: list[Known]
    ) -> Iterator[Attempt]:
        layouts = [operand.layout for operand in operands]
        if func in VIEWS and whole_numbers_in((args[1:], kwargs)):
            yield from self._view_attempts(operands[0].tensor, layouts[0], results[0])
            return
        numbers = whole_numbers_in((args, kwargs))
        options: list[dict[int, tuple[int, int]]] = [{}]
        if len(numbers) <= 12:
            chosen: list[tuple[int, ...]] = [(i,) for i in reversed(range(len(numbers)))]
            chosen += [(i, i + 1) for i in range(len(numbers) - 1)]
            chosen += [tuple(range(a, b)) for a, b in ((0, len(numbers)), (1, len(numbers)), (0, len(numbers) - 1))]
            options += [{i: (numbers[i], numbers[i] * self.ratio) for i in places} for places in chosen if places]
        last = []
        for way, inner, orders in self._ways(layouts):
            for freed, bare in self._freed(operands, way):
                for option in options:
                    attempt = Attempt(freed, option, inner=inner, bare=bare, orders=orders)
                    if 0 in inner.values():
                        last.append(attempt)
                    else:
                        yield attempt
        for way, inner, orders in self._ways(layouts):
            if 0 not in inner.values():
                for factor in (self.ratio, math.sqrt(self.ratio)):
                    yield Attempt(way, inner=inner, orders=orders, factor=factor)
        yield from last

    def _ways(self, layouts: list[Layout]) -> Iterator[tuple[list[Layout], dict[str, int], dict]]:
        """The layouts as they are; then with the copies of one weight ordered otherwise; then with all copies put next
        to one another first, and one channel in the place of many; then one weight not copied at all."""
        yield layouts, {}, {}
        copied = [copies for layout in layouts for copies in layout if copies]
        makers = {copies.maker: int(copies.index.max()) + 1 for copies in copied if copies.maker}
        for maker, channels in makers.items():
            for inner in range(1, channels):
                if channels % inner == 0 and self.askable(maker, inner):
                    yield self._with_inner(layouts, maker, inner), {maker: inner}, {}
        arranged = [tuple(copies and _arranged(copies) for copies in layout) for layout in layouts]
        pairs = enumerate(zip(layouts, arranged, strict=True))
        if orders := {i: order for i, pair in pairs if (order := _orders(*pair))}:
            yield arranged, {}, orders
        yield from self._repeated(layouts)
        if len(layouts) > 1:
            for maker in makers:
                if self.askable(maker, 0):
                    yield self._with_inner(layouts, maker, 0), {maker: 0}, {}

    def _repeated(self, layouts: list[Layout]) -> Iterator[tuple[list[Layout], dict[str, int], dict]]:
        """Where one channel goes with many (a gate), each of its copies goes with the copies of the same number."""
        many = {dim - len(layout): c for layout in layouts for dim, c in enumerate(layout) if c and c.index.any()}
        changed, orders = list(layouts), {}
        for i, layout in enumerate(layouts):
            for dim, copies in enumerate(layout):
                if copies and not copies.index.any() and dim - len(layout) in many:
                    changed[i] = (*layout[:dim], None, *layout[dim + 1 :])
                    orders[i] = {dim: copy_numbers(many[dim - len(layout)])}
        if orders:
            yield changed, {}, orders

    def _with_inner(self, layouts: list[Layout], maker: str, inner: int) -> list[Layout]:
        def change(copies: Copies | None) -> Copies | None:
            if copies is None or copies.maker != maker:
                return copies
            channels = int(copies.index.max()) + 1
            if inner == 0 or channels % inner:
                return None
            return Copies(spread(channels, self.ratio, inner), maker, copies.choice)

        return [tuple(map(change, layout)) for layout in layouts]

    def _freed(self, operands: list[Known], layouts: list[Layout]) -> Iterator[tuple[list[Layout], dict]]:
        """The layouts as they are; then with bare parameters copied along, by position from the right, then by size."""
        yield layouts, {}
        copied = [
            (dim - len(layout), operand.tensor.shape[dim], copies)
            for operand, layout in zip(operands, layouts, strict=True)
            for dim, copies in enumerate(layout)
            if copies
        ]
        for aligned in (True, False):
            bare: dict[tuple[str, int], Copies] = {}
            freed = list(layouts)
            for i, operand in enumerate(operands):
                if not operand.origins or any(layouts[i]):
                    continue
                for from_right, size, copies in copied:
                    shape = operand.tensor.shape
                    places = [
                        d
                        for d in range(len(shape))
                        if shape[d] == size and (not aligned or d - len(shape) == from_right)
                    ]
                    if places and size > 0:
                        dim = places[-1]
                        freed[i] = tuple(copies if d == dim else None for d in range(len(shape)))
                        bare |= parts_of(copies, {name: self.tensors[name] for name in operand.origins})
                        break
            if bare:
                yield freed, bare

    def _view_attempts(self, x: Tensor, layout: Layout, result: Tensor) -> Iterator[Attempt]:
        """A view keeps copies where the channels stay whole, and splits them before the last factor: (heads, size).

        Last, they may be put in another order first.
        """
        attempts: list[Attempt] = []
        for groups in reversed(list(groupings(x.shape, result.shape))):
            copied = [group for group in groups if any(layout[dim] for dim in group[0])]
            each = [list(self._group_attempts(x, layout, result, *group)) for group in copied]
            made = each[0] if len(each) == 1 else list(map(_together, itertools.product(*each)))
            labels = {attempt.label for attempt in attempts}
            for attempt in made:
                if attempt.label not in labels:
                    edits = [(i, o, next((dim for dim in o if dim in attempt.grown), None)) for i, o in groups]
                    attempts.append(replace(attempt, groups=edits))
        splits = len({attempt.sizes for attempt in attempts}) > 1
        for attempt in sorted(attempts, key=lambda attempt: attempt.costs):
            yield replace(attempt, splits=splits)

    def _group_attempts(
        self, x: Tensor, layout: Layout, result: Tensor, ins: list[int], outs: list[int]
    ) -> Iterator[Attempt]:
        """Those for the group of dimensions ``ins`` → ``outs`` that has the copies."""
        copied = [dim for dim in ins if layout[dim] is not None]
        if len(copied) > 1 or (x.shape[copied[0]] == 1 and any(x.shape[dim] > 1 for dim in ins if dim < copied[0])):
            return  # heads and tokens are no dimension
        copies = layout[copied[0]]
        assert copies is not None
        channels = int(copies.index.max()) + 1
        wide_in = math.prod(len(copies.index) if dim == copied[0] else x.shape[dim] for dim in ins)
        pure = [dim for dim in ins if x.shape[dim] > 1] in ([], copied)
        order = [dim for dim in outs if result.shape[dim] > 1] or outs[:1]
        if pure and len(order) > 1:  # one head is a factor too: (3, 1, size)
            order = [dim for dim in outs if order[0] <= dim <= order[-1]]
            order = [order[-2], order[-1], *order[:-2]]
        elif pure:
            if x.dim() > 2:  # one head is a factor alone, too: (1, size)
                order = [dim for dim in outs if dim == order[0] - 1] + order
            order += [dim for dim in outs if dim not in order]
        else:  # where the channels stay a dimension of their own, they stay whole
            order.sort(key=lambda dim: result.shape[dim] != x.shape[copied[0]])
        for dim in order:
            rest = math.prod(result.shape[d] for d in outs if d != dim)
            if wide_in % rest:
                continue
            after = math.prod(result.shape[d] for d in outs if d > dim)
            sizes = list(result.shape)
            sizes[dim] = wide_in // rest
            fixed = frozenset(outs) if pure and len(outs) > 1 and 0 not in ins else frozenset()
            attempt = Attempt([layout], sizes=tuple(sizes), grown=frozenset([dim]), fixed=fixed)
            yield attempt
            maker = copies.maker
            if pure and maker and dim != 0 and self.askable(maker, after):
                changed = self._with_inner([layout], maker, after)
                if changed[0][copied[0]] is not None:
                    yield replace(attempt, layouts=changed, inner={maker: after})
            orders = [copies.index.sort().values]
            if len(copies.index) == channels * self.ratio and channels % after == 0:
                orders.append(spread(channels, self.ratio, after))
            for index in orders:
                if not torch.equal(index, copies.index):
                    moved = tuple(Copies(index, None, c.choice) if c is copies else c for c in layout)
                    yield replace(attempt, layouts=[moved], orders={0: _orders(layout, moved)})


def _together(attempts: tuple[Attempt, ...]) -> Attempt:
    """One attempt at a view in which several groups of dimensions have copies."""
    first = attempts[0]
    sizes = [next((a.sizes[d] for a in attempts if d in a.grown), size) for d, size in enumerate(first.sizes or ())]  # type: ignore[index]
    grown, fixed = (frozenset().union(*sets) for sets in zip(*((a.grown, a.fixed) for a in attempts), strict=True))
    return Attempt(first.layouts, sizes=tuple(sizes), grown=grown, fixed=fixed)


def _arranged(copies: Copies) -> Copies:
    """The copies of each channel next to one another."""
    return Copies(copies.index.sort().values, None, copies.choice)


def _orders(have: Layout, want: Layout) -> dict[int, Tensor]:
    """dimension → the positions to take so that its copies, which lie as in ``have``, lie as in ``want``."""
    orders = {}
    for dim, (a, b) in enumerate(zip(have, want, strict=True)):
        if a is not None and b is not None and not torch.equal(a.index, b.index):
            orders[dim] = a.index.argsort(stable=True)[b.index.argsort(stable=True).argsort()]
    return orders


def parts_of(copies: Copies, tensors: Mapping[str, Tensor], at: int | None = None) -> dict[tuple[str, int], Copies]:
    """The copies of the parameters that a tensor is made of, by (name, dimension; ``at``: which): each its copies, or,
    where one after another makes up the channels (biases that are put together), each its own part of them."""
    size, start = int(copies.index.max()) + 1, 0
    bare: dict[tuple[str, int], Copies] = {}
    for name, tensor in tensors.items():
        dims = [dim for dim, length in enumerate(tensor.shape) if length == size and at in (dim, None)]
        if dims:
            bare[name, dims[-1]] = copies
    if not bare and sum(len(tensor) for tensor in tensors.values() if tensor.dim() == 1) == size:
        for name, tensor in tensors.items():
            if tensor.dim() == 1:
                inside = (copies.index >= start) & (copies.index < start + len(tensor))
                bare[name, 0] = replace(copies, index=copies.index[inside] - start)
                start += len(tensor)
    return bare
