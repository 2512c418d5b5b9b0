"""Removing channels from the layers of a network, in place: what is left keeps its values and its order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd


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
    shared = [names for names in _names_of_each(network).values() if len(names) > 1]
    for site, gone in removal.items():
        if site.side == "parameter":
            owner, _, key = site.name.rpartition(".")
            _keep(network.get_submodule(owner), key, site.dim, gone)
        else:
            _shrink(network.get_submodule(site.name), site, gone)
    for names in shared:
        _share_again(network, names)


def _names_of_each(network: nn.Module) -> dict[int, list[str]]:
    names: dict[int, list[str]] = {}
    for name, parameter in network.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return names


def _share_again(network: nn.Module, names: Sequence[str]) -> None:
    values = dict(network.named_parameters(remove_duplicate=False))
    first, *others = names
    for other in others:
        if values[first].shape != values[other].shape or not torch.equal(values[first], values[other]):
            raise CannotRemove(f"{first!r} and {other!r} are one and the same, and would no longer be")
        owner, _, key = other.rpartition(".")
        setattr(network.get_submodule(owner), key, values[first])


def _shrink(module: Any, site: Site, gone: Sequence[int]) -> None:
    if isinstance(module, _ConvNd):
        _shrink_conv(module, site, gone)
    elif isinstance(module, nn.Linear):
        size, dim = ("out_features", 0) if site.side == "out" else ("in_features", 1)
        _keep(module, "weight", dim, gone)
        if site.side == "out":
            _keep(module, "bias", 0, gone)
        setattr(module, size, getattr(module, size) - len(gone))
    elif isinstance(module, _NormBase):
        for key in ("weight", "bias", "running_mean", "running_var"):
            _keep(module, key, 0, gone)
        module.num_features -= len(gone)
    elif isinstance(module, nn.LayerNorm) and len(module.normalized_shape) == 1:
        for key in ("weight", "bias"):
            _keep(module, key, 0, gone)
        module.normalized_shape = (module.normalized_shape[0] - len(gone),)
    elif isinstance(module, nn.GroupNorm):
        _evenly(site, gone, module.num_channels, module.num_groups)
        for key in ("weight", "bias"):
            _keep(module, key, 0, gone)
        module.num_channels -= len(gone)
    elif isinstance(module, nn.PReLU):
        if module.num_parameters > 1:
            _keep(module, "weight", 0, gone)
            module.num_parameters -= len(gone)
    elif isinstance(module, nn.Embedding):
        _keep(module, "weight", 1, gone)
        module.embedding_dim -= len(gone)
    elif isinstance(module, nn.LSTM) and site.side == "in":
        for key in [key for key, _ in module.named_parameters() if key.startswith("weight_ih_l0")]:
            _keep(module, key, 1, gone)
        module.input_size -= len(gone)
    else:
        raise CannotRemove(f"{site.name!r} is a {type(module).__name__}, whose channels stay as they are")


def _shrink_conv(module: Any, site: Site, gone: Sequence[int]) -> None:
    if site.side == "both":
        if not module.in_channels == module.out_channels == module.groups:
            raise CannotRemove(f"{site.name!r} makes one channel of several")
        _keep(module, "weight", 0, gone)
        module.in_channels -= len(gone)
        module.groups -= len(gone)
    else:
        total = module.out_channels if site.side == "out" else module.in_channels
        places = _evenly(site, gone, total, module.groups)
        # the weight has all channels of one side, and those of one group of the other
        whole = module.transposed == (site.side == "in")
        _keep(module, "weight", 0 if whole else 1, gone if whole else places)
    if site.side == "in":
        module.in_channels -= len(gone)
    else:
        _keep(module, "bias", 0, gone)
        module.out_channels -= len(gone)


def _evenly(site: Site, gone: Sequence[int], total: int, groups: int) -> list[int]:
    """The places in each group that go, which are the same in all."""
    size = total // groups
    places = sorted({channel % size for channel in gone})
    if len(places) * groups != len(gone):
        raise CannotRemove(f"{site.name!r} has its channels in {groups} groups, of which each would lose others")
    return places


def _keep(module: nn.Module, key: str, dim: int, gone: Sequence[int]) -> None:
    value: Tensor | None = getattr(module, key, None)
    if value is None:
        return
    computed = key not in module._parameters and key not in module._buffers
    if computed and key not in getattr(module, "parametrizations", {}):
        raise CannotRemove(f"the {key} of a {type(module).__name__} is computed from other tensors on each call")
    left = torch.ones(value.shape[dim], dtype=torch.bool)
    left[list(gone)] = False
    kept = value.detach().index_select(dim, left.nonzero().flatten().to(value.device))
    setattr(module, key, kept if key in module._buffers else nn.Parameter(kept, requires_grad=value.requires_grad))
