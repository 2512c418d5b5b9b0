"""The channels of any network that depend on each other, and what they count for.

Which depend on each other (a convolution's filters, its BatchNorm, what reads them, and, across a residual sum, the
channels of other layers) is seen in a run (`watch`), and checked by values (`law`). Layers whose channels are tied vote
together on what to prune: with the mean over them, l1 in units of each layer's average filter, which mostly leaves
more of the accuracy than the first layer's vote alone (`studies/pruning_votes.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...errors import UserError, told
from ...torch_utils import eval_mode
from ..layers import LAYERS, outputs_of
from .channels import Channels
from .removal import Site, renewed
from .result import LeftOut
from .ties import FIXED
from .watch import OUTPUTS, channels_of

Wires = list[tuple[int, int]]  # (channel of a site, channel of the root that it goes with)

PARTS = ("heads", "stream", "hidden")
ALONE = "none of its channels can go without all others"


@dataclass(frozen=True)
class Group:
    """Tied channels. A unit is what can go alone: a channel, or as many as there are groups in a convolution, or a head
    of an attention. `part`: "heads", "stream" (what a residual sum goes on with), or "hidden" (all others)."""

    units: list[list[int]]  # channels of the root in each
    scores: Tensor  # [units], the least important is the smallest
    sites: Mapping[Site, Wires] = field(repr=False)
    layers: tuple[str, ...]  # those of which it holds outputs
    part: str = "hidden"

    def removal(self, units: Sequence[int]) -> dict[Site, set[int]]:
        """What goes where with the units."""
        roots = {channel for unit in units for channel in self.units[unit]}
        return {site: {channel for channel, root in wires if root in roots} for site, wires in self.sites.items()}


def tied_channels(
    network: nn.Module, example: Tensor, how: str
) -> tuple[list[Group], list[LeftOut], dict[Site, tuple[str, int]]]:
    """What may be pruned, and what cannot be; neither has the layers that give the outputs, nor those that `how` cannot
    rank. And the weights that are no layer's of `LAYERS`: the name of the module that uses each, and its outputs.
    `UserError` for a network that does not run on the example [B, …]."""
    copied = renewed(network)
    try:
        with eval_mode(copied):
            try:
                state = channels_of(copied, example[:1])
            except Exception:  # perhaps it takes no sample alone
                state = channels_of(copied, example)
    except Exception as error:
        raise UserError(
            f"the {type(network).__name__} does not run on the example ({told(error)}); expected one that it takes: "
            "give fitting data=…."
        ) from error
    lying = state.sites()
    places: dict[int, list[tuple[Site, int]]] = {}  # of each class that can go
    for site, classes in lying.items():
        for position in np.flatnonzero(classes).tolist():
            places.setdefault(int(classes[position]), []).append((site, position))
    ranks = _Ranks(network, how)
    groups: list[Group] = []
    left_out: list[LeftOut] = []
    grouped: set[int] = set()
    weights: dict[Site, tuple[str, int]] = {}
    for owner, (name, dim) in state.makers.items():
        channels = state.channels[name, dim]
        root = next(site for site, _ in state.site(name, dim, channels))
        classes = lying[root]
        if root.side == "parameter":
            weights[root] = owner, len(classes)
        free = [value for value in dict.fromkeys(classes.tolist()) if value != FIXED and value not in grouped]
        if not free:
            reasons = {why for channel in channels.tolist() if (why := state.ties.why(channel)) is not None}
            if reasons - {OUTPUTS} and not set(classes.tolist()) & grouped:
                left_out.append(LeftOut((owner,), min(reasons - {OUTPUTS})))
            continue
        grouped.update(free)
        units = [np.flatnonzero(classes == value).tolist() for value in free]
        sites: dict[Site, Wires] = {}
        for value, unit in zip(free, units, strict=True):
            for site, position in places[value]:
                sites.setdefault(site, []).append((position, unit[0]))
        layers = tuple(dict.fromkeys(s.module for s in sites if s.side in ("out", "both") and s.module in ranks.layers))
        layers = layers or (owner,)
        if len(units) < 2:
            if len(classes) > 1:
                left_out.append(LeftOut(layers, ALONE))
            continue
        scores = ranks.scores(sites, [unit[0] for unit in units])
        if scores is not None:
            groups.append(Group(units, scores, sites, layers, _part(state, free, sites)))
    return groups, left_out, weights


def _part(state: Channels, classes: Sequence[int], sites: Mapping[Site, Wires]) -> str:
    heads = {int(value) for tags in state.heads for value in np.unique(state.ties.classes(tags))}
    if heads & set(classes):
        return "heads"
    order = {path: number for number, path in enumerate(state.makers)}
    read = [order[site.module] for site in sites if site.side == "in" and site.module in order]
    made = [order[site.module] for site in sites if site.side == "out" and site.module in order]
    return "stream" if read and made and min(read) < max(made) else "hidden"


class _Ranks:
    """The importance of channels by the layers that make them ("l1") or the BatchNorms that scale them ("slim")."""

    def __init__(self, network: nn.Module, how: str) -> None:
        self.network, self.how = network, how
        self.modules = dict(network.named_modules())
        self.layers = {name for name, module in self.modules.items() if isinstance(module, LAYERS)}

    def scores(self, sites: Mapping[Site, Wires], roots: Sequence[int]) -> Tensor | None:
        """Of each unit, known by the root's first channel in it; None where nothing can tell."""
        votes = []
        for site, wires in sites.items():
            values = self._values(site)
            if values is None:
                continue
            positions, units = (torch.tensor(part) for part in zip(*wires, strict=True))
            size = max(roots) + 1
            total = torch.zeros(size, dtype=torch.float64).index_add_(0, units, values[positions])
            count = torch.zeros(size, dtype=torch.float64).index_add_(0, units, torch.ones(len(units)).double())
            votes.append((total / count.clamp_min(1))[list(roots)])
        return torch.stack(votes).mean(0) if votes else None

    def _values(self, site: Site) -> Tensor | None:
        module: Any = self.modules.get(site.name)
        if self.how == "slim":
            scaled = isinstance(module, _BatchNorm) and module.weight is not None and site.side == "both"
            return module.weight.detach().abs().double().cpu() if scaled else None
        if site.side == "parameter":
            weight = _tensor(self.network, site.name)
            return _sums(weight, site.dim) if weight.dim() > 1 else None
        if not isinstance(module, LAYERS) or site.side not in ("out", "both"):
            return None
        sums = _sums(module.weight, 1 if getattr(module, "transposed", False) else 0)
        return sums.repeat(outputs_of(module) // len(sums))  # of a grouped transposed convolution


def _sums(weight: Tensor, dim: int) -> Tensor:
    values = weight.detach().abs().double().cpu().transpose(0, dim).flatten(1).sum(1)
    return values / values.mean().clamp_min(1e-30)


def _tensor(network: nn.Module, name: str) -> Tensor:
    path, _, key = name.rpartition(".")
    return getattr(network.get_submodule(path), key)
