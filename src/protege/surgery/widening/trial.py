"""Trying a call: on random numbers, and on copies of them, to see in which layout its results are copies too."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .copies import Copies, Layout, gather, leaves, map_leaves

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
