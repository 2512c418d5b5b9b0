"""Trying a call: on random numbers, and on copies of them, to see in which layout its results are copies too; and what
may be tried so that they are: nothing first, another order of the copies last."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .copies import VIEWS, Copies, Layout, gather, leaves, map_leaves, spread, view_groups

FAILURES = (RuntimeError, ValueError, IndexError, AssertionError, TypeError)  # of a call on other numbers or sizes


@dataclass
class Known:
    tensor: Tensor  # kept, so that its id stays its own
    layout: Layout
    origins: frozenset[str] | None  # the parameters and buffers it is made of; None: data


@dataclass
class Attempt:
    layouts: list[Layout]
    numbers: dict[int, tuple[int, int]] = field(default_factory=dict)
    sizes: tuple[int, ...] | None = None
    fixed: frozenset[int] = frozenset()  # dimensions of the result whose sizes no batch changes
    inner: dict[str, int] = field(default_factory=dict)
    bare: dict[tuple[str, int], Copies] = field(default_factory=dict)

    @property
    def label(self) -> tuple:
        """Where it puts the copies, whatever their order."""
        return self.sizes or (), tuple(self.numbers)


class Trial:
    """One call on random numbers, against the same call on copies of them."""

    def __init__(self, func: Any, args: tuple, kwargs: dict, operands: list[Known], generator: torch.Generator) -> None:
        self.func, self.args, self.kwargs, self.operands = func, args, kwargs, operands
        self.inputs = [
            torch.rand(o.tensor.shape, generator=generator, dtype=o.tensor.dtype).to(o.tensor) + 0.5
            if o.tensor.is_floating_point() and o.origins != frozenset() and (any(o.layout) or o.origins)
            else o.tensor
            for o in operands
        ]
        self.expected = leaves(self._call([x.clone() for x in self.inputs], {}), Tensor)

    def _call(self, tensors: list[Tensor], numbers: dict[int, tuple[int, int]]) -> Any:
        replacements, count = iter(tensors), itertools.count()

        def visit(leaf: Any) -> Any:
            if isinstance(leaf, Tensor):
                return next(replacements)
            if type(leaf) is int:
                return numbers.get(next(count), (0, leaf))[1]
            return leaf

        args, kwargs = map_leaves((self.args, self.kwargs), visit)
        return self.func(*args, **kwargs)

    def __call__(self, attempt: Attempt, choice: tuple) -> list[Layout] | None:
        """The layouts of the results under an attempt; None where they are not copies of the student's."""
        wide = [gather(x.clone(), layout) for x, layout in zip(self.inputs, attempt.layouts, strict=True)]
        try:
            if attempt.sizes is not None:
                results = [wide[0].reshape(attempt.sizes)]
            else:
                results = leaves(self._call(wide, attempt.numbers), Tensor)
        except FAILURES:
            return None
        if len(results) != len(self.expected):
            return None
        hints = [copies for layout in attempt.layouts for copies in layout if copies]
        layouts = [_match(a, b, hints, choice) for a, b in zip(self.expected, results, strict=True)]
        return None if any(layout is None for layout in layouts) else layouts  # type: ignore[return-value]


def _match(narrow: Tensor, wide: Tensor, hints: list[Copies], choice: tuple) -> Layout | None:
    """The layout in which ``wide`` is a copy of ``narrow``; None where it is not."""
    if narrow.dim() != wide.dim():
        return None
    grown = [dim for dim in range(narrow.dim()) if narrow.shape[dim] != wide.shape[dim]]
    fits = [
        [h for h in hints if len(h.index) == wide.shape[dim] and int(h.index.max()) + 1 == narrow.shape[dim]]
        for dim in grown
    ]
    layout = _first_match(narrow, wide, grown, fits)
    if layout is not None or not grown:
        return layout
    maker = hints[0].maker if len({h.maker for h in hints}) == 1 else None
    indices = [_signature(narrow, wide, dim, grown) for dim in grown]
    return _first_match(narrow, wide, grown, [[Copies(f, maker, choice)] if f is not None else [] for f in indices])


def _first_match(narrow: Tensor, wide: Tensor, grown: list[int], options: list[list[Copies]]) -> Layout | None:
    for combination in itertools.product(*options):
        layout: list[Copies | None] = [None] * narrow.dim()
        for dim, copies in zip(grown, combination, strict=True):
            layout[dim] = copies
        if _close(gather(narrow, tuple(layout)), wide):
            return tuple(layout)
    return None


def _signature(narrow: Tensor, wide: Tensor, dim: int, grown: list[int]) -> Tensor | None:
    """Match the slices of ``wide`` along a dimension with those of ``narrow``; None where one has no copy.

    Slices that are alike, as those of a padding are, are shared out in order.
    """
    others = [d for d in grown if d != dim]
    a, b = narrow.double(), wide.double()
    if others:
        a, b = a.amax(others, keepdim=True), b.amax(others, keepdim=True)
    a, b = a.movedim(dim, 0).flatten(1), b.movedim(dim, 0).flatten(1)
    if a.shape[1] != b.shape[1] or a.shape[1] == 0:
        return None
    along = torch.rand(a.shape[1], generator=torch.Generator().manual_seed(1), dtype=a.dtype).to(a)
    marks = (a @ along).cpu()
    index = ((b @ along).cpu()[:, None] - marks[None]).abs().argmin(1)
    for first in index.unique().tolist():
        alike, places = (x.isclose(marks[first], 0, 1e-10).nonzero()[:, 0] for x in (marks, marks[index]))
        if len(alike) > 1 and len(places) % len(alike) == 0:
            index[places] = alike.repeat_interleave(len(places) // len(alike))
    return index if len(index.unique()) == len(marks) else None


def _close(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:
        return False
    if not a.is_floating_point():  # positions, as of a maximum over copies, are what they are
        return bool((a == b).all()) or a.dtype == torch.int64
    tolerance = 1e-9 if a.dtype == torch.float64 else 1e-4
    return torch.allclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True)


# ---- what may be tried -----------------------------------------------------------------------------------------------


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
        if func in VIEWS and leaves((args[1:], kwargs), int):
            yield from self._view_attempts(operands[0].tensor, layouts[0], results[0])
            return
        numbers = leaves((args, kwargs), int)
        options: list[dict[int, tuple[int, int]]] = [{}]
        if len(numbers) <= 12:
            chosen: list[tuple[int, ...]] = [(i,) for i in reversed(range(len(numbers)))]
            chosen += [tuple(range(a, b)) for a, b in ((0, len(numbers)), (1, len(numbers)), (0, len(numbers) - 1))]
            options += [{i: (numbers[i], numbers[i] * self.ratio) for i in places} for places in chosen if places]
        for way, inner in self._ways(layouts):
            for freed, bare in self._freed(operands, way):
                for option in options:
                    yield Attempt(freed, option, inner=inner, bare=bare)

    def _ways(self, layouts: list[Layout]) -> Iterator[tuple[list[Layout], dict[str, int]]]:
        """The layouts as they are; then with the copies of one weight ordered otherwise; then not copied at all."""
        yield layouts, {}
        copied = [copies for layout in layouts for copies in layout if copies]
        makers = {copies.maker: int(copies.index.max()) + 1 for copies in copied if copies.maker}
        for maker, channels in makers.items():
            for inner in range(1, channels):
                if channels % inner == 0 and self.askable(maker, inner):
                    yield self._with_inner(layouts, maker, inner), {maker: inner}
        if len(layouts) > 1:
            for maker in makers:
                if self.askable(maker, 0):
                    yield self._with_inner(layouts, maker, 0), {maker: 0}

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
                        for name in operand.origins:
                            dims = [d for d, length in enumerate(self.tensors[name].shape) if length == size]
                            if dims:
                                bare[name, dims[-1]] = copies
                        break
            if bare:
                yield freed, bare

    def _view_attempts(self, x: Tensor, layout: Layout, result: Tensor) -> Iterator[Attempt]:
        """A view keeps copies where the channels stay whole, and splits them before the last factor: (heads, size)."""
        proposals: list[list[Attempt]] = []
        for ins, outs in view_groups(x.shape, result.shape):
            copied = [dim for dim in ins if layout[dim] is not None]
            if not copied:
                continue
            if len(copied) > 1:
                return
            copies, wide_in = (
                layout[copied[0]],
                math.prod(len(c.index) if (c := layout[d]) else x.shape[d] for d in ins),
            )
            assert copies is not None
            pure = [dim for dim in ins if x.shape[dim] > 1] in ([], copied)
            order = [dim for dim in outs if result.shape[dim] > 1] or outs[:1]
            if pure and len(order) > 1:  # one head is a factor too: (3, 1, size)
                order = [dim for dim in outs if order[0] <= dim <= order[-1]]
                order = [order[-2], order[-1], *order[:-2]]
            elif pure:
                order += [dim for dim in outs if dim not in order]
            else:  # where the channels stay a dimension of their own, they stay whole
                order.sort(key=lambda dim: result.shape[dim] != x.shape[copied[0]])
            options = []
            for dim in order:
                rest = math.prod(result.shape[d] for d in outs if d != dim)
                if wide_in % rest:
                    continue
                after = math.prod(result.shape[d] for d in outs if d > dim)
                sizes = list(result.shape)
                sizes[dim] = wide_in // rest
                attempt = Attempt(
                    [layout],
                    sizes=tuple(sizes),
                    fixed=frozenset(outs) if pure and len(outs) > 1 and 0 not in ins else frozenset(),
                )
                options.append(attempt)
                maker = copies.maker
                if pure and maker and dim != 0 and self.askable(maker, after):
                    changed = self._with_inner([layout], maker, after)
                    if changed[0][copied[0]] is not None:
                        options.append(Attempt(changed, sizes=attempt.sizes, fixed=attempt.fixed, inner={maker: after}))
            proposals.append(options)
        if len(proposals) == 1:
            yield from proposals[0]
