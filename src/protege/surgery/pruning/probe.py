"""What one call does with the positions of its operands, seen by what it makes of other numbers.

A call either *moves* numbers (views, slices, concatenations, paddings; also what leaves positive numbers as they are):
then each result is one of the operands' elements. Or it *computes*: then changing an operand at one position of a
dimension changes results at some positions of a dimension of theirs, mostly the same, or at all of them: that
dimension is summed over, or normalised, or sorted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..nests import map_leaves, tensors_in
from ..tracing.calls import FAILURES

ALL = 64  # positions of a dimension up to which each is tried; of more, some
HALF = 2**23  # so many numbers from a half to one, which ReLU6 and its like leave as they are, are exact as floats
NOTHING = -1  # the source of an element that is a constant


@dataclass(frozen=True)
class Flow:
    """Where positions of a dimension go: ``dim`` of the result, the first that each position there comes from, and the
    first that goes where each does."""

    dim: int
    source: np.ndarray
    first: np.ndarray


class Replay:
    """A call that can be made again with other numbers in its tensors of floating point (`operands`)."""

    def __init__(self, func: Callable, args: tuple, kwargs: dict[str, Any]) -> None:
        self.func, self.args, self.kwargs = func, args, kwargs
        self.operands = [tensor for tensor in tensors_in((args, kwargs)) if tensor.is_floating_point()]
        self.draws = torch.Generator().manual_seed(0)

    def __call__(self, operands: Sequence[Tensor]) -> list[Tensor]:
        """The tensors that it gives, or that it changes."""
        others = iter(operands)

        def visit(leaf: Any) -> Any:
            if isinstance(leaf, Tensor):
                return next(others).clone() if leaf.is_floating_point() else leaf.clone()
            return leaf

        args, kwargs = map_leaves((self.args, self.kwargs), visit)
        result = self.func(*args, **kwargs)
        return tensors_in(args[0] if result is None else result)

    def random(self, like: Tensor) -> Tensor:
        """Numbers from a half to three halves, where most functions are smooth."""
        return (torch.rand(like.shape, generator=self.draws, dtype=torch.float64) + 0.5).to(like.device)

    def moved(self) -> list[np.ndarray] | None:
        """For each result which element of all operands, counted through, each of its elements is, or `NOTHING`; None
        where the call computes."""
        total = sum(tensor.numel() for tensor in self.operands)
        if not 2 <= total < HALF:
            return None
        order, again, back = _numbers(total)
        try:
            first, second = self(self._numbered(order)), self(self._numbered(again))
        except FAILURES:
            return None
        sources: list[np.ndarray] = []
        for a, b in zip(first, second, strict=True):
            if not a.is_floating_point() or a.shape != b.shape:
                return None
            a, b = ((2 * x.cpu().double().flatten() - 1) * HALF for x in (a, b))
            constant = (a == b) | (a.isnan() & b.isnan())
            number = torch.where(constant, 1, a).long()
            if not bool(((number >= 1) & (number <= total)).all()):
                return None
            source = back[number]
            if not bool((constant | ((again[source] == b) & (number == a))).all()):
                return None
            sources.append(torch.where(constant, NOTHING, source).view(tuple(first[len(sources)].shape)).numpy())
        return sources

    def _numbered(self, numbers: Tensor) -> list[Tensor]:
        parts = ((numbers.double() / HALF + 1) / 2).split([tensor.numel() for tensor in self.operands])
        return [part.view(x.shape).to(x.device) for part, x in zip(parts, self.operands, strict=True)]

    def elementwise(self, result: Tensor) -> bool:
        """Whether each element of the result depends on the elements at its own place alone."""
        try:
            if torch.broadcast_shapes(*(x.shape for x in self.operands)) != result.shape:
                return False
            base = [self.random(x) for x in self.operands]
            before = self(base)[0]
            for n, x in enumerate(self.operands):
                mask = torch.rand(x.shape, generator=self.draws).to(x.device) < 0.5
                after = self([torch.where(mask, self.random(x), y) if i == n else y for i, y in enumerate(base)])[0]
                if bool(((after != before) & ~mask.broadcast_to(result.shape)).any()):
                    return False
        except FAILURES:
            return False
        return True

    def flows(self, operand: int, dim: int, results: Sequence[Tensor], every: bool) -> list[Flow | None]:
        """Where the positions of an operand's dimension go in each result; None where they go nowhere of their own, or,
        but for ``every``, not to the same places."""
        size = self.operands[operand].shape[dim]
        base = [self.random(x) for x in self.operands]
        before = self(base)

        def changes(position: int) -> list[list[np.ndarray]]:  # of each result, along each of its dimensions
            other = base[operand].clone()
            other.select(dim, position).copy_(self.random(other.select(dim, position)))
            after = self([other if i == operand else y for i, y in enumerate(base)])
            return [_changed(a, b) for a, b in zip(before, after, strict=True)]

        some = {position: changes(position) for position in {0, size // 2, size - 1}}
        flows = []
        for n, result in enumerate(results):
            everywhere = all(mark.all() for change in some.values() for mark in change[n])
            flow = None if everywhere else _same_place({p: change[n] for p, change in some.items()}, size, result)
            if flow is None and not everywhere and every and size <= ALL:
                some |= {position: changes(position) for position in range(size) if position not in some}
                flow = _any_place([some[position][n] for position in range(size)], result)
            flows.append(flow)
        return flows


@lru_cache(maxsize=4)
def _numbers(total: int) -> tuple[Tensor, Tensor, Tensor]:
    """Numbers from 1 in an order that no arithmetic gives, others of which none is in its place, and the place of each
    of the first."""
    order = torch.randperm(total, generator=torch.Generator().manual_seed(0)) + 1
    back = torch.zeros(total + 1, dtype=torch.long)
    back[order] = torch.arange(total)
    return order, order.roll(1), back


def _changed(before: Tensor, after: Tensor) -> list[np.ndarray]:
    """Along each dimension the positions at which anything is another."""
    other = (before != after) & ~(before.isnan() & after.isnan())
    return [other.movedim(dim, 0).flatten(1).any(1).cpu().numpy() for dim in range(other.dim())]


def _same_place(changes: dict[int, list[np.ndarray]], size: int, result: Tensor) -> Flow | None:
    for dim, there in enumerate(result.shape):
        if there == size and all((change[dim] == (np.arange(size) == p)).all() for p, change in changes.items()):
            return Flow(dim, np.arange(size), np.arange(size))
    return None


def _any_place(changes: list[list[np.ndarray]], result: Tensor) -> Flow | None:
    for dim, there in enumerate(result.shape):
        marks = np.stack([change[dim] for change in changes])  # [positions, those of the result]
        if there < 2 or not marks.any(0).all() or not marks.any(1).all():
            continue
        copied, joined = (marks.sum(0) == 1).all(), (marks.sum(1) == 1).all()  # joined as the halves of a GLU are
        if copied or joined:
            return Flow(dim, marks.argmax(0), marks.argmax(0)[marks.argmax(1)])
    return None
