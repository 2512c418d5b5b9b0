"""A path of removals from a whole network to a tiny one, on which every budget is a place.

Steps of all groups are taken in the order of what they cost (`cost`) for what they save, in multiply-adds and
parameters, so the layers that hurt most are thinned least.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from ...numerics import exact
from ..counting import count_parameters, profile
from ..layers import inputs_of, outputs_of
from .choose import Choice, by_shares, removal_of
from .cost import STEPS, Step, steps_of
from .groups import Group, tied_channels
from .law import Law
from .removal import Site
from .result import LeftOut, Shrunk, together
from .shrink import cut


class Sizes:
    """The shares of a network's multiply-adds and parameters that are left, by arithmetic, as steps are taken."""

    def __init__(self, network: nn.Module, example: Tensor) -> None:
        self.macs, layers = profile(network, example)
        self.params = count_parameters(network)
        self.layers = layers
        modules: dict[str, Any] = {name: network.get_submodule(name) for name in layers}
        self.weights = {name: modules[name].weight.numel() for name in layers}
        self.widths = {name: (outputs_of(modules[name]), inputs_of(modules[name])) for name in layers}
        self.lost = {name: [0, 0] for name in layers}
        self.left = {"macs": float(self.macs), "params": float(self.params)}

    def loss(self, group: Group, units: Sequence[int]) -> dict[tuple[str, int], int]:
        """How many outputs (0) and inputs (1) each layer loses with the units."""
        lost: dict[tuple[str, int], int] = {}
        for site, gone in group.removal(units).items():
            if site.name in self.layers and site.side != "through" and gone:
                key = site.name, int(site.side == "in")
                lost[key] = lost.get(key, 0) + len(gone)
        return lost

    def saving(self, loss: dict[tuple[str, int], int]) -> dict[str, float]:
        """What the loss takes away now, as shares of the whole network's."""
        macs = params = 0.0
        for name in {name for name, _ in loss}:
            (outs, ins), (out, into) = self.widths[name], self.lost[name]
            now = (1 - out / outs) * (1 - into / ins)
            then = (1 - (out + loss.get((name, 0), 0)) / outs) * (1 - (into + loss.get((name, 1), 0)) / ins)
            macs += self.layers[name] * (now - then)
            params += self.weights[name] * (now - then)
        return {"macs": macs / self.macs, "params": params / self.params}

    def take(self, loss: dict[tuple[str, int], int]) -> dict[str, float]:
        """The shares left after the loss."""
        saved = self.saving(loss)
        for (name, side), count in loss.items():
            self.lost[name][side] += count
        self.left = {key: value - saved[key] * getattr(self, key) for key, value in self.left.items()}
        return {key: value / getattr(self, key) for key, value in self.left.items()}


@dataclass(frozen=True)
class Place:
    """A place on the path: the step that leads there, and the shares of the network that are left."""

    group: int
    step: Step
    macs: float
    params: float


@dataclass
class Path:
    """The way down; `cut(n)` is the network after the first n places."""

    network: nn.Module = field(repr=False)
    groups: list[Group] = field(repr=False)
    left_out: list[LeftOut]
    weights: dict[Site, tuple[str, int]] = field(repr=False)
    law: Law = field(repr=False)
    steps: list[list[Step]] = field(repr=False)
    sizes: Callable[[], Sizes] = field(repr=False)
    saving: Sequence[str]
    places: list[Place] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.places = _walk(self.sizes(), self.groups, self.steps, self.saving)

    def only(self, parts: Sequence[str]) -> Path | None:
        """The path on which nothing but these parts is thinned; None where it would be the same, or go nowhere."""
        chosen = [number for number, group in enumerate(self.groups) if group.part in parts]
        if len(chosen) in (0, len(self.groups)):
            return None
        return replace(self, groups=[self.groups[n] for n in chosen], steps=[self.steps[n] for n in chosen])

    def choice(self, count: int) -> Choice:
        choice: Choice = {}
        for place in self.places[:count]:
            choice.setdefault(place.group, []).extend(place.step.units)
        return choice

    def cut(self, count: int) -> Shrunk:
        """The network after the first `count` places. Groups that it does not stand losing so much of stay whole."""
        choice = self.choice(count)
        faults = self.law.faults({n: removal_of(self.groups, {n: units}) for n, units in choice.items()})
        choice = {number: units for number, units in choice.items() if number not in faults}
        left_out = [*self.left_out, *(LeftOut(self.groups[number].layers, why) for number, why in faults.items())]
        return cut(self.network, self.groups, self.groups, choice, left_out, self.weights)

    def reasons(self) -> list[str]:
        """What stays whole, and why."""
        return [str(part) for part in together(self.left_out)]

    def first(self, **most: float) -> int:
        """The number of places after which no more is left than the shares `macs` and `params`."""
        for number, place in enumerate(self.places):
            if all(getattr(place, key) <= share for key, share in most.items()):
                return number + 1
        return len(self.places)


@exact()
def path_of(
    network: nn.Module,
    example: Tensor,
    inputs: Iterable[Tensor],
    *,
    saving: Sequence[str] = ("macs",),
) -> Path:
    """The path of a network that works on the prepared `example` [B, …], its costs measured on the prepared `inputs`
    (chunks [B, …]). `saving`: what a step is worth, of "macs" and "params"."""
    groups, left_out, weights = tied_channels(network, example.detach(), "l1")
    law = Law(network, example.detach())
    half = by_shares(groups, dict.fromkeys(range(len(groups)), 0.5))
    faults = law.faults({n: removal_of(groups, {n: units}) for n, units in half.items() if units})
    left_out += [LeftOut(groups[number].layers, why) for number, why in faults.items()]
    groups = [group for number, group in enumerate(groups) if number not in faults]
    measured = steps_of(network, groups, inputs)
    known = [some for some in measured if some]
    steps = [some or _unread(group, known) for group, some in zip(groups, measured, strict=True)]
    return Path(network, groups, left_out, weights, law, steps, partial(Sizes, network, example), saving)


def _walk(sizes: Sizes, groups: Sequence[Group], order: Sequence[list[Step]], saving: Sequence[str]) -> list[Place]:
    """All steps in the order of what they cost for what they save, those of one group in their own order."""
    losses: dict[int, dict[tuple[str, int], int]] = {}
    taken = [0] * len(groups)

    def worth(number: int) -> float:
        step = order[number][taken[number]]
        loss = losses[number] = sizes.loss(groups[number], step.units)
        saved = sizes.saving(loss)
        return step.cost / max(sum(saved[key] for key in saving), 1e-12)

    heap = [(worth(number), number) for number in range(len(groups)) if order[number]]
    heapq.heapify(heap)
    places = []
    while heap:
        value, number = heapq.heappop(heap)
        now = worth(number)
        if heap and now > heap[0][0] and now > value:
            heapq.heappush(heap, (now, number))
            continue
        step = order[number][taken[number]]
        left = sizes.take(losses[number])
        places.append(Place(number, step, left["macs"], left["params"]))
        taken[number] += 1
        if taken[number] < len(order[number]):
            heapq.heappush(heap, (worth(number), number))
    return places


def _unread(group: Group, known: list[list[Step]]) -> list[Step]:
    """A group that no layer reads goes by its l1 scores, at what the others cost on the mean."""
    ranked = group.scores.argsort(stable=True).tolist()[:-1]
    size = max(1, len(group.units) // STEPS)
    parts = [ranked[n : n + size] for n in range(0, len(ranked), size)]

    def cost(number: int) -> float:
        costs = [some[min(len(some) - 1, number * len(some) // len(parts))].cost for some in known]
        return sum(costs) / len(costs) if costs else float(number + 1)

    return [Step(sorted(units), cost(number)) for number, units in enumerate(parts)]
