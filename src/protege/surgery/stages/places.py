"""What the outputs of a network's modules are: maps, tokens or vectors, at which resolution, and with which channels.

A shape alone does not always say it: [8, 8, 8] may be a map with its channels first or last. Then values do: as another
part of the input is changed, what changes most moves along an axis of places, and not along one of channels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...torch_utils import untouched
from ..laws import other_samples
from ..tracing.taps import feature, first_outputs

CLEARLY = 0.2  # of the changes: attention, which looks everywhere, moves little
SAME = 0.3  # halvings: convolutions without padding shrink a map too, but stay at a resolution


@dataclass(frozen=True)
class Place:
    """`grid` is (height, width) of a map, also one that is laid out as tokens; (length,) of other tokens; () of a
    vector. `halvings`: how often the input was halved on the way, None where that has no sense. `last`: the channels
    come last."""

    halvings: float | None
    grid: tuple[int, ...]
    last: bool


@dataclass(frozen=True)
class Cut:
    """The first output of module `name` and its `shape` for one sample.

    It is a map, [C, H, W] or, with the channels `last`, [H, W, C] or [H·W, C], whose `grid` is (H, W); tokens [L, C] or
    [C, L], whose grid is (L,); or a vector. `level` is how often the input was halved on the way, None for vectors and
    for tokens that are no places of it.
    """

    name: str
    shape: tuple[int, ...]
    level: int | None
    grid: tuple[int, ...] = ()
    last: bool = False

    @property
    def channels(self) -> int:
        return self.shape[-1] if self.last else self.shape[0]

    @property
    def is_map(self) -> bool:
        return len(self.grid) == 2

    @property
    def is_plain(self) -> bool:
        """Whether `laid_out` gives what it is given."""
        return len(self.shape) == (3 if self.is_map else 1 + len(self.grid)) and self.last == (len(self.grid) == 1)

    def laid_out(self, feature: Tensor) -> Tensor:
        """The output [N, *shape] as losses take it: a map [N, C, H, W], tokens [N, L, C], a vector [N, C]."""
        if not self.grid:
            return feature.flatten(1)
        if not self.is_map:
            return feature if self.last else feature.mT
        first = feature.movedim(-1, 1) if self.last else feature
        return first if first.dim() == 4 else first.unflatten(2, self.grid)

    def __str__(self) -> str:
        place = f" (the input halved {self.level} times)" if self.level is not None else ""
        return f"output of shape {list(self.shape)}{place}"


def readings(value: Any, example: Tensor) -> list[Place]:
    """What an output may be in relation to the input [N, C, H, W], or [N, T] of token ids, the likeliest first."""
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.dim() < 2 or len(value) != len(example):
        return []
    first, *rest = shape = tuple(value.shape[1:])
    if math.prod(rest) == 1 or math.prod(shape[:-1]) == 1:
        return [Place(None, (), math.prod(rest) != 1)]
    if example.dim() == 4 and len(shape) == 3:
        options = [((rest[0], rest[1]), False), ((first, rest[0]), True)]
        places = [(_halvings(grid, example), grid, last) for grid, last in options]
        return [Place(halved, grid, last) for halved, grid, last in places if halved is not None]
    if example.dim() == 4 and len(shape) == 2:
        tokens, flat = (_grid(count, example) for count in shape)
        known = [Place(_halvings(tokens, example), tokens, True) if tokens else Place(None, (first,), True)]
        return known + ([Place(_halvings(flat, example), flat, False)] if flat else [])
    if example.dim() == 2 and len(shape) == 2:
        length = example.shape[1]
        lengths = [(first, True), (rest[0], False)]
        sure = [(count, last) for count, last in lengths if count == length]
        rows = sure if len(sure) == 1 else lengths
        return [Place(math.log2(length / count), (count,), last) for count, last in rows]
    return []


def places_of(network: nn.Module, outputs: Mapping[str, Any], example: Tensor) -> dict[str, Place]:
    """What the first outputs of named modules are, but for those that are nothing of the kind."""
    options = {name: known for name, value in outputs.items() if (known := readings(value, example))}
    unsure = {name: network.get_submodule(name) for name, known in options.items() if len(known) > 1}
    places = {name: known[0] for name, known in options.items()}
    if not unsure:
        return places
    with untouched(network):
        before, other = _heard(network, unsure, example), other_samples(example, len(example))
        moves = []
        for axis in range(2, example.dim()) if example.dim() > 2 else (1,):
            half = example.shape[axis] // 2
            (a, b), (c, d) = (x.tensor_split([half], axis) for x in (example, other))
            halves = [_heard(network, unsure, torch.cat(parts, axis)) for parts in ((c, b), (a, d))]
            moves.append([{name: (v[name] - before[name]).abs().double() for name in unsure} for v in halves])
    for name in unsure:
        gaps = [[gap[name] for gap in halves] for halves in moves]
        likely, *others = options[name]
        best = max(others, key=lambda place: _follows(gaps, place))
        if _follows(gaps, best) > _follows(gaps, likely) + CLEARLY:
            places[name] = best
    return places


def _heard(network: nn.Module, modules: Mapping[str, nn.Module], x: Tensor) -> dict[str, Any]:
    with first_outputs(modules) as outputs:
        network(x.clone())
    return {name: feature(output) for name, output in outputs.items()}


def cut_at(name: str, output: Tensor, place: Place) -> Cut:
    """A cut at the output of a module."""
    level = None if place.halvings is None else round(place.halvings)
    return Cut(name, tuple(output.shape[1:]), level, place.grid, place.last)


def _follows(gaps: list[list[Tensor]], place: Place) -> float:
    """How far what changes most moves along the axes of a place's grid, from where the first half of the input is
    changed along one of its own axes, and then the second."""
    start = 1 if place.last else 2
    axes = range(start, start + gaps[0][0].dim() - 2)
    return sum(_ahead(first, axis) - _ahead(second, axis) for axis, (first, second) in zip(axes, gaps, strict=False))


def _ahead(gap: Tensor, axis: int) -> float:
    """Which share of a gap is in the first half of an axis."""
    along = gap.sum([other for other in range(gap.dim()) if other != axis])
    half = len(along) // 2
    ahead, behind = float(along[:half].sum()), float(along[len(along) - half :].sum())
    return ahead / (ahead + behind) if ahead + behind else 0.5


def _halvings(grid: tuple[int, ...], example: Tensor) -> float | None:
    """How often the input was halved; None for what is no map of it, such as a pooled one or a gate."""
    if len(grid) != 2 or math.prod(grid) < 2:
        return None
    down, across = (math.log2(n / max(m, 1)) for n, m in zip(example.shape[2:], grid, strict=True))
    return (across + down) / 2 if abs(across - down) < 2 * SAME else None


def _grid(count: int, example: Tensor) -> tuple[int, int] | tuple[()]:
    """Rows and columns of that many places, in the proportions of the input; () where there are none."""
    height, width = example.shape[2:]
    if count < 2:
        return ()
    rows = [n for n in range(1, count + 1) if count % n == 0]
    away, best = min((abs(math.log2(n * n * width / (count * height))), n) for n in rows)
    return (best, count // best) if away < SAME else ()
