"""What may be tried so that a call on copied channels gives copies: nothing first, another order of the copies last."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .copies import VIEWS, Copies, Layout, leaves, spread, view_groups
from .trial import Attempt, Known


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
