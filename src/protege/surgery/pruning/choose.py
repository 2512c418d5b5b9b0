"""Which channels go: shares of groups of tied ones, the smallest scales of the network, or a budget of multiply-adds.

A choice is {number of a group: its units that go}.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor, nn

from ...errors import UserError
from ..counting import profile
from ..layers import inputs_of, outputs_of
from .groups import Group
from .removal import Site
from .result import matching

Choice = dict[int, list[int]]

FLOOR = 0.1  # the share of a group's channels that slimming never takes: an emptied layer cuts the network in two
TOLERANCE = 0.02  # of the network's multiply-adds


def by_ratio(groups: Sequence[Group], how: str, ratio: float) -> Choice:
    """The share of all channels whose scales are the smallest, or ("l1") of each group."""
    if how == "l1":
        return by_shares(groups, dict.fromkeys(range(len(groups)), ratio))
    target = ratio * sum(len(unit) for group in groups for unit in group.units)
    gone, first = 0.0, []
    for number, unit in _order(groups, how, ratio):
        if gone + len(groups[number].units[unit]) / 2 > target:
            break
        first.append((number, unit))
        gone += len(groups[number].units[unit])
    return _choice(first)


def by_shares(groups: Sequence[Group], shares: Mapping[int, float]) -> Choice:
    """The least important units of each group by its number, so many as make its share, never all."""
    choice = {}
    for number, share in shares.items():
        ranked = groups[number].scores.argsort(stable=True).tolist()
        choice[number] = [unit for rank, unit in enumerate(ranked[:-1]) if rank + 0.5 <= share * len(ranked)]
    return choice


def by_layer(groups: Sequence[Group], ratios: Mapping[str, float], network: nn.Module, able: Sequence[str]) -> Choice:
    """As `by_shares`, where layers (names or patterns) have shares; `UserError` where two of one group differ."""
    shares: dict[int, tuple[float, str]] = {}
    for pattern, share in ratios.items():
        names = set(matching([pattern], able, network))
        for number in [number for number, group in enumerate(groups) if names & set(group.layers)]:
            other, before = shares.setdefault(number, (share, pattern))
            if other != share:
                raise UserError(
                    f"{before!r} and {pattern!r} have the ratios {other:g} and {share:g} but their channels are tied; "
                    "expected one ratio for both: correct one."
                )
    return by_shares(groups, {number: share for number, (share, _) in shares.items()})


def by_macs(
    network: nn.Module, example: Tensor, groups: Sequence[Group], how: str, target: float
) -> tuple[Choice, str | None]:
    """The shortest way down the order that ends at the target, by halving, as what is left falls with each unit; and a
    sentence where it ends too far from it."""
    total, layers = profile(network, example)
    order = _order(groups, how, 1.0)

    def left(count: int) -> float:
        lost: dict[str, list[int]] = {name: [0, 0] for name in layers}
        for site, gone in removal_of(groups, _choice(order[:count])).items():
            if site.name in lost and site.side != "through":
                lost[site.name][site.side == "in"] += len(gone)
        remaining = 0.0
        for name, macs in layers.items():
            layer = network.get_submodule(name)
            remaining += macs * (1 - lost[name][0] / outputs_of(layer)) * (1 - lost[name][1] / inputs_of(layer))
        return 1 - sum(layers.values()) / total + remaining / total

    low, high = 0, len(order)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if left(middle) > target else (low, middle)
    best = min((low, high), key=lambda count: abs(left(count) - target))
    unmet = (
        f"macs = {target:g} cannot be met; expected {left(len(order)):.3f} to 1 of this network's, in steps that its "
        f"channels allow (the nearest is {left(best):.3f}): change macs=…, or allow more layers=…"
    )
    return _choice(order[:best]), unmet if abs(left(best) - target) > TOLERANCE else None


def removal_of(groups: Sequence[Group], choice: Mapping[int, Sequence[int]]) -> dict[Site, list[int]]:
    """The channels to be removed at each site."""
    removal: dict[Site, set[int]] = {}
    for number, units in choice.items():
        for site, channels in groups[number].removal(units).items():
            removal.setdefault(site, set()).update(channels)
    return {site: sorted(channels) for site, channels in removal.items() if channels}


def _order(groups: Sequence[Group], how: str, share: float) -> list[tuple[int, int]]:
    """All (group, unit) that may go, the first to go first.

    "slim" ranks by the scale itself; "l1" by the rank within the group, so that all groups thin out evenly.
    """
    order = []
    for number, group in enumerate(groups):
        size = len(group.units)
        most = size - max(1, math.ceil(min(FLOOR, 1 - share) * size)) if how == "slim" else size - 1
        for rank, unit in enumerate(group.scores.argsort(stable=True).tolist()[:most]):
            key = float(group.scores[unit]) if how == "slim" else (rank + 0.5) / size
            order.append((key, rank / size, number, unit))
    return [(number, unit) for _, _, number, unit in sorted(order)]


def _choice(units: Iterable[tuple[int, int]]) -> Choice:
    choice: Choice = {}
    for number, unit in units:
        choice.setdefault(number, []).append(unit)
    return choice
