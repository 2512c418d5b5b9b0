"""Trying a call: on random numbers, and on copies of them, to see in which layout its results are copies too."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..nests import map_leaves, tensors_in
from ..tracing.calls import FAILURES
from .attempts import Attempt
from .copies import Copies, Known, Layout, gather


class Trial:
    """One call on random numbers, against the same call on copies of them."""

    def __init__(self, func: Any, args: tuple, kwargs: dict, operands: list[Known], generator: torch.Generator) -> None:
        self.func, self.args, self.kwargs, self.operands = func, args, kwargs, operands
        self.inputs = [
            torch.rand(o.tensor.shape, generator=generator, dtype=o.tensor.dtype).to(o.tensor) + 0.5
            if o.tensor.is_floating_point() and o.origins != () and (any(o.layout) or o.origins)
            else o.tensor
            for o in operands
        ]
        self.expected = tensors_in(self._call([x.clone() for x in self.inputs], {}))

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
                results = tensors_in(self._call(wide, attempt.numbers))
        except FAILURES:
            return None
        if len(results) != len(self.expected):
            return None
        if attempt.factor != 1:
            if len(results) != 1 or not results[0].is_floating_point():
                return None
            results = [results[0] / attempt.factor]
        hints = [copies for layout in attempt.layouts for copies in layout if copies]
        layouts = [_match(a, b, hints, choice) for a, b in zip(self.expected, results, strict=True)]
        matched = [layout for layout in layouts if layout is not None]
        if len(matched) < len(layouts):
            return None
        made = [copies for layout in matched for copies in layout if copies]
        if attempt.numbers and all(map(_even, hints)) and not all(map(_even, made)):  # some copies got lost
            return None
        if attempt.splits:
            matched = [tuple(copies and replace(copies, choice=choice) for copies in layout) for layout in matched]
        return matched


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
    if not narrow.numel() or not wide.numel():
        return None
    others = [d for d in grown if d != dim]
    a, b = narrow.double(), wide.double()
    if others:
        a, b = a.amax(others, keepdim=True), b.amax(others, keepdim=True)
    a, b = (x.movedim(dim, 0).reshape(x.shape[dim], -1) for x in (a, b))
    if a.shape[1] != b.shape[1] or a.shape[1] == 0:
        return None
    along = torch.rand(a.shape[1], generator=torch.Generator().manual_seed(1), dtype=a.dtype).to(a)
    marks, order = (a @ along).cpu().sort()
    wide_marks = (b @ along).cpu()
    after = torch.searchsorted(marks, wide_marks).clamp(max=len(marks) - 1)
    before = (after - 1).clamp(min=0)
    nearest = torch.where((wide_marks - marks[before]).abs() < (wide_marks - marks[after]).abs(), before, after)
    index = order[nearest]
    kinds = torch.zeros_like(order)
    kinds[order[1:]] = (marks.diff() > 1e-10).cumsum(0)
    for kind in (kinds.bincount() > 1).nonzero()[:, 0]:
        alike, places = ((x == kind).nonzero()[:, 0] for x in (kinds, kinds[index]))
        if len(places) % len(alike) == 0:
            index[places] = alike.repeat_interleave(len(places) // len(alike))
    return index if len(index.unique()) == len(marks) else None


def _close(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:
        return False
    if not a.is_floating_point():  # positions, as of a maximum over copies, are what they are
        return bool((a == b).all()) or a.dtype == torch.int64
    tolerance = 1e-9 if a.dtype == torch.float64 else 1e-4
    return torch.allclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True)


def _even(copies: Copies) -> bool:
    """Whether each channel has as many copies as the others."""
    counts = copies.index.bincount()
    return bool((counts == counts[0]).all())
