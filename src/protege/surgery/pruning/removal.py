"""Removing channels from the layers of a network, in place: what is left keeps its values and its order.

The modules that can have other sizes stand in one table (`KINDS`), which serves telling what was cut (`structure`) too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm

from ...torch_utils import copy_network, forget
from ..layers import put

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Kind:
    """A kind of module: its sizes by name, those that are channels on a side ("in", "out", or "both" of what has as
    many), the shapes of its tensors, and whether it can do without a bias."""

    name: str
    module: type[nn.Module]
    sizes: tuple[str, ...]
    sides: Mapping[str, tuple[str, ...]]
    shapes: Callable[[Any], Shapes]
    biased: bool = False


def _weighted(module: type[nn.Module], shapes: Callable[[Any], Shapes], *sizes: str) -> Kind:
    sides = {"in": sizes[:1], "out": sizes[1:2], "both": sizes}
    return Kind(module.__name__, module, sizes, sides, shapes, biased=True)


def _conv_shapes(conv: Any) -> Shapes:
    ends = (conv.in_channels, conv.out_channels)
    first, second = ends if conv.transposed else ends[::-1]
    return {"weight": (first, second // conv.groups, *conv.kernel_size), "bias": (conv.out_channels,)}


def _linear_shapes(linear: Any) -> Shapes:
    return {"weight": (linear.out_features, linear.in_features), "bias": (linear.out_features,)}


def _norm(name: str, module: type[nn.Module], size: str, *more: str) -> Kind:
    def shapes(norm: Any) -> Shapes:
        value = getattr(norm, size)
        shape = (value,) if isinstance(value, int) else tuple(value)
        return dict.fromkeys(("weight", "bias", "running_mean", "running_var"), shape)

    return Kind(name, module, (size, *more), {"both": (size,)}, shapes)


def _embedding_shapes(embedding: Any) -> Shapes:
    return {"weight": (embedding.num_embeddings, embedding.embedding_dim)}


def _reading_shapes(layer: Any) -> Shapes:
    first = [(key, value) for key, value in layer.named_parameters() if key.startswith("weight_ih_l0")]
    return {key: (len(value), layer.input_size) for key, value in first}


_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_EMBEDDING = ("num_embeddings", "embedding_dim")
_KINDS = (
    *(_weighted(conv, _conv_shapes, "in_channels", "out_channels", "groups") for conv in _CONVS),
    _weighted(nn.Linear, _linear_shapes, "in_features", "out_features"),
    _norm("BatchNorm", _BatchNorm, "num_features"),
    _norm("InstanceNorm", _InstanceNorm, "num_features"),
    _norm("LayerNorm", nn.LayerNorm, "normalized_shape"),
    _norm("RMSNorm", nn.RMSNorm, "normalized_shape"),
    _norm("GroupNorm", nn.GroupNorm, "num_channels", "num_groups"),
    _norm("PReLU", nn.PReLU, "num_parameters"),
    Kind("Embedding", nn.Embedding, _EMBEDDING, {"out": _EMBEDDING[1:]}, _embedding_shapes),
)
KINDS = {kind.name: kind for kind in _KINDS}
_RECURRENT = Kind("RNN", nn.RNNBase, ("input_size",), {"in": ("input_size",)}, _reading_shapes)  # what it reads


def kind_of(module: nn.Module) -> Kind | None:
    """A module's kind in `KINDS`; None for one of which not all sizes are known."""
    return next((kind for kind in _KINDS if isinstance(module, kind.module)), None)


def width_of(module: nn.Module, side: str) -> int | None:
    """How many channels a module has on a side; None where these are not its own to lose."""
    kind = _RECURRENT if isinstance(module, nn.RNNBase) else kind_of(module)
    value: Any = getattr(module, kind.sides[side][0]) if kind is not None and side in kind.sides else ()
    return value if isinstance(value, int) else value[0] if len(value) == 1 else None


def groups_of(module: Any) -> int:
    """The groups that a module's channels are in, which must lose the same places; 1 for a depthwise convolution."""
    if isinstance(module, _ConvNd):
        return 1 if module.groups == module.out_channels == module.in_channels else module.groups
    return module.num_groups if isinstance(module, nn.GroupNorm) else 1


# ---- removing --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Site:
    """Where channels go: the outputs or inputs of a layer, "both" of what has as many in as out (a norm, a depthwise
    convolution), dimension ``dim`` of a "parameter" (or buffer) that stands alone, a "number" that counts them (an
    attribute of a module, or number ``dim`` of it), or ``dim`` of the outputs of a layer that does not mix them
    ("through")."""

    name: str
    side: str  # "out", "in", "both", "parameter", "number" or "through"
    dim: int = 0

    @property
    def module(self) -> str:
        """The name of the layer, or of the module that has the parameter or number."""
        return self.name.rpartition(".")[0] if self.side in ("parameter", "number") else self.name


class CannotRemove(Exception):
    """Why channels cannot be removed, as the end of a sentence."""


def remove(network: nn.Module, removal: Mapping[Site, Sequence[int]]) -> None:
    """Take the channels away from every site; weights shared by layers stay shared, or `CannotRemove`."""
    names_of: dict[nn.Parameter, list[str]] = {}
    for name, parameter in network.named_parameters(remove_duplicate=False):
        names_of.setdefault(parameter, []).append(name)
    for site, gone in removal.items():
        if site.side == "parameter":
            _cut(network.get_submodule(site.module), site.name.rpartition(".")[2], site.dim, gone)
        elif site.side == "number":
            module, key = network.get_submodule(site.module), site.name.rpartition(".")[2]
            value = getattr(module, key)
            if isinstance(value, int):
                setattr(module, key, value - len(gone))
            else:
                parts = [item - len(gone) * (n == site.dim) for n, item in enumerate(value)]
                setattr(module, key, type(value)(parts))
        elif site.side != "through":
            _cut_module(network.get_submodule(site.name), site, gone)
    for first, *others in names_of.values():  # the keys are what the parameters were
        shared = network.get_parameter(first)
        for name in others:
            value = network.get_parameter(name)
            if shared.shape != value.shape or not torch.equal(shared, value):
                raise CannotRemove(f"{first!r} and {name!r} are one and the same, and would no longer be")
            put(network, name, shared)


def _cut_module(module: Any, site: Site, gone: Sequence[int]) -> None:
    kind = _RECURRENT if isinstance(module, nn.RNNBase) else kind_of(module)
    total, groups = width_of(module, site.side), groups_of(module)
    if kind is None or total is None:
        raise CannotRemove(f"{site.name!r} is a {type(module).__name__}, whose channels stay as they are")
    if any(isinstance(value, Tensor) for value in vars(module).values()):
        raise CannotRemove(f"the weight of a {type(module).__name__} is computed from other tensors on each call")
    if isinstance(module, nn.PReLU) and total == 1:  # one slope for all
        return
    if isinstance(module, _ConvNd) and site.side == "both":
        _cut_depthwise(module, site.name, gone)
        return
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


def _cut_depthwise(conv: Any, name: str, gone: Sequence[int]) -> None:
    """Take outputs away, and with all that are made of one input, that input."""
    each = conv.out_channels // conv.groups
    inputs = {channel // each for channel in gone}
    if conv.groups != conv.in_channels:
        raise CannotRemove(f"{name!r} makes one channel of several")
    if len(inputs) * each != len(gone):
        raise CannotRemove(f"{name!r} makes several channels of one, of which each would lose others")
    conv.in_channels, conv.groups = conv.in_channels - len(inputs), conv.groups - len(inputs)
    conv.out_channels -= len(gone)
    for key in ("weight", "bias"):
        if getattr(conv, key) is not None:
            _cut(conv, key, 0, gone)


def renewed(network: nn.Module, shared: Iterable[Tensor] = ()) -> nn.Module:
    """A copy in the same modes without what some modules keep of their weights until they are trained on; both have the
    tensors that are ``shared``."""
    fresh = copy_network(network, shared)
    forget(fresh)
    return fresh


def _cut(module: nn.Module, key: str, dim: int, gone: Sequence[int]) -> None:
    value = getattr(module, key).detach()
    left = torch.tensor(sorted(set(range(value.shape[dim])) - set(gone)), device=value.device)
    kept = value.index_select(dim, left)
    setattr(module, key, kept if key in module._buffers else nn.Parameter(kept))
