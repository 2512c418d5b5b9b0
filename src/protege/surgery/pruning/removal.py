"""Removing channels from the layers of a network, in place: what is left keeps its values and its order.

Not by torch-pruning (1.6.1), which mixes up the order of a LayerNorm's, leaves an InstanceNorm its statistics, fails on
transposed convolutions in groups, and makes two weights of one that layers share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from ..layers import put
from .sizes import LSTM, groups_of, kind_of, width_of


@dataclass(frozen=True)
class Site:
    """Where channels go: the outputs or inputs of a layer, "both" of what has as many in as out (a norm, a depthwise
    convolution), or dimension ``dim`` of a "parameter" that stands alone."""

    name: str
    side: str  # "out", "in", "both" or "parameter"
    dim: int = 0


class CannotRemove(Exception):
    """Why channels cannot be removed, as the end of a sentence."""


def remove(network: nn.Module, removal: Mapping[Site, Sequence[int]]) -> None:
    """Take the channels away from every site; weights shared by layers stay shared, or `CannotRemove`."""
    names_of: dict[nn.Parameter, list[str]] = {}
    for name, parameter in network.named_parameters(remove_duplicate=False):
        names_of.setdefault(parameter, []).append(name)
    for site, gone in removal.items():
        if site.side == "parameter":
            owner, _, key = site.name.rpartition(".")
            _cut(network.get_submodule(owner), key, site.dim, gone)
        else:
            _cut_module(network.get_submodule(site.name), site, gone)
    for first, *others in names_of.values():  # the keys are what the parameters were
        shared = network.get_parameter(first)
        for name in others:
            value = network.get_parameter(name)
            if shared.shape != value.shape or not torch.equal(shared, value):
                raise CannotRemove(f"{first!r} and {name!r} are one and the same, and would no longer be")
            put(network, name, shared)


def _cut_module(module: Any, site: Site, gone: Sequence[int]) -> None:
    kind = LSTM if isinstance(module, nn.LSTM) else kind_of(module)
    total, groups = width_of(module, site.side), groups_of(module)
    if kind is None or total is None:
        raise CannotRemove(f"{site.name!r} is a {type(module).__name__}, whose channels stay as they are")
    if any(isinstance(value, Tensor) for value in vars(module).values()):
        raise CannotRemove(f"the weight of a {type(module).__name__} is computed from other tensors on each call")
    if isinstance(module, nn.PReLU) and total == 1:  # one slope for all
        return
    if isinstance(module, _ConvNd) and site.side == "both" and groups > 1:
        raise CannotRemove(f"{site.name!r} makes one channel of several")
    places = sorted({channel % (total // groups) for channel in gone})
    if len(places) * groups != len(gone):
        raise CannotRemove(f"{site.name!r} has its channels in {groups} groups, of which each would lose others")
    for size in kind.sides[site.side]:
        value = getattr(module, size)
        setattr(module, size, value - len(gone) if isinstance(value, int) else (value[0] - len(gone),))
    for key, shape in kind.shapes(module).items():
        now = () if getattr(module, key, None) is None else getattr(module, key).shape
        for dim, (before, after) in enumerate(zip(now, shape, strict=False)):
            if before != after:  # where a weight has the channels of one group, it loses the places
                _cut(module, key, dim, gone if before - after == len(gone) else places)


def _cut(module: nn.Module, key: str, dim: int, gone: Sequence[int]) -> None:
    value = getattr(module, key).detach()
    left = torch.tensor(sorted(set(range(value.shape[dim])) - set(gone)), device=value.device)
    kept = value.index_select(dim, left)
    setattr(module, key, kept if key in module._buffers else nn.Parameter(kept))
