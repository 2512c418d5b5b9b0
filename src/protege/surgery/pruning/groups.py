"""The channels of any network that depend on each other, and what they count for.

Which depend on each other (a convolution's filters, its BatchNorm, what reads them, and, across a residual sum, the
channels of other layers) is told by torch-pruning's dependency graph (Fang et al. 2023, arXiv 2301.12900). It follows
most code, not all: what it says is checked by values (`law`).

The graph is torch-pruning's, the walk through it and the choice are not: where a channel goes with several others
(halves that are multiplied, a Gram matrix) its own pruner takes one of them for all and removes more than was asked
for, or goes in circles, and one layer that it cannot follow ends it for the whole network. Layers whose channels are
tied vote together on what to prune: with the mean over them, l1 in units of each layer's average filter, which
mostly leaves more of the accuracy than the first layer's vote alone (`studies/pruning_votes.py`).
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from ...errors import UserError, told
from ..laws import outputs_in
from ..layers import LAYERS, outputs_of
from .decouple import decouplable
from .removal import Site, groups_of, width_of
from .result import LeftOut

Wires = list[tuple[int, int]]  # (channel of a site, channel of the root that it goes with)

MOST = 2_000_000  # wires of a group: a walk that finds more goes in circles
_HEADS = "its channels are made and read within an attention, where they are arranged in heads"
_LOST = "its channels cannot be followed"


@dataclass(frozen=True)
class Group:
    """Tied channels. A unit is what can go alone: a channel, or as many as there are groups in a convolution."""

    units: list[list[int]]  # channels of the root in each
    scores: Tensor  # [units], the least important is the smallest
    sites: Mapping[Site, Wires] = field(repr=False)
    layers: tuple[str, ...]  # those of which it holds outputs

    def removal(self, units: Sequence[int]) -> dict[Site, set[int]]:
        """What goes where with the units."""
        roots = {channel for unit in units for channel in self.units[unit]}
        return {site: {channel for channel, root in wires if root in roots} for site, wires in self.sites.items()}


class _Fault(Exception):
    """Why a group cannot be pruned, as the end of a sentence."""


def dependency_graph(network: nn.Module, example: Tensor) -> Any:
    """torch-pruning's dependency graph of `network`; `UserError` where it cannot be traced."""
    import torch_pruning  # here, as it takes a second to import and only pruning needs it

    def computed(outputs: Any) -> list[Tensor]:
        return [tensor for tensor in outputs_in(outputs) if tensor.grad_fn is not None]

    # The slices that make a circular padding of a sequence are taken for slices of its channels, without an end.
    padded: list[Any] = [module for module in network.modules() if isinstance(module, _ConvNd)]
    modes = [module.padding_mode for module in padded]
    for module in padded:
        module.padding_mode = "zeros"  # the sizes are the same
    try:
        with torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch_pruning.DependencyGraph().build_dependency(
                network, example, forward_fn=lambda model, x: model(x), output_transform=computed, verbose=False
            )
    except Exception as error:
        raise UserError(
            f"the dependencies in the {type(network).__name__} cannot be traced ({told(error)}); expected a network "
            "that runs on the example input with gradients: give fitting data=…"
            + (", or use how='decouple'." if len(decouplable(network)) > 1 else ", or shrink another network.")
        ) from error
    finally:
        for module, mode in zip(padded, modes, strict=True):
            module.padding_mode = mode


def tied_channels(graph: Any, network: nn.Module, how: str) -> tuple[list[Group], list[LeftOut]]:
    """What may be pruned, and what the graph cannot tell how; neither has the layers that give the outputs, nor those
    that `how` cannot rank."""
    from torch_pruning.dependency import index_mapping
    from torch_pruning.ops import OPTYPE

    sites = _Sites(graph, network)
    index_mapping.update_index_mapping(graph)
    groups: list[Group] = []
    left_out: list[LeftOut] = []
    visited: set[nn.Module] = set()
    for root in list(graph.module2node):
        if not isinstance(root, LAYERS) or root in visited:
            continue
        layers = (sites.names[root],)
        try:
            reached, fault = _reached(graph, root, sites)
            writers = [node for node, handler in reached if graph.is_out_channel_pruning_fn(handler)]
            visited.update(node.module for node in writers if isinstance(node.module, nn.Module))
            if any(not node.outputs or node.type == OPTYPE.OUTPUT for node in writers):
                continue
            layers = tuple(sites.names[node.module] for node in writers if isinstance(node.module, LAYERS))
            if fault is not None:
                raise _Fault(fault)
            group = _group(reached, sites, root, how)
        except _Fault as error:
            left_out.append(LeftOut(layers, str(error)))
        except Exception as error:  # torch-pruning meets networks that it was not made for
            left_out.append(LeftOut(layers, f"{_LOST} ({told(error)})"))
        else:
            groups += [group] if group is not None else []
    return groups, left_out


class _Sites:
    """What the nodes of a graph are in the network, and how many channels they have there."""

    def __init__(self, graph: Any, network: nn.Module) -> None:
        self.graph = graph
        self.modules = dict(network.named_modules())
        self.names = {module: name for name, module in self.modules.items()}
        self.parameters = dict(network.named_parameters())
        self.most = max((max(p.shape) for p in self.parameters.values() if p.dim()), default=0)

    def of(self, node: Any, handler: Any) -> Site | None:
        """None for operations, which have nothing to lose."""
        from torch_pruning.ops import OPTYPE

        if node.type == OPTYPE.PARAMETER:
            name = self.graph._param_to_name[node.module]
            owner = name.rpartition(".")[0]
            if isinstance(self.modules[owner], nn.RMSNorm):  # which torch-pruning does not know
                return Site(owner, "both")
            return Site(name, "parameter", node.pruning_dim % node.module.dim())
        if node.module not in self.names:
            return None
        name = self.names[node.module]
        if node.type in (OPTYPE.CONV, OPTYPE.LINEAR, OPTYPE.LSTM):
            return Site(name, "out" if self.graph.is_out_channel_pruning_fn(handler) else "in")
        if node.type in (OPTYPE.EMBED, OPTYPE.MHA):
            return Site(name, "out")
        sided = (OPTYPE.DEPTHWISE_CONV, OPTYPE.BN, OPTYPE.LN, OPTYPE.GN, OPTYPE.IN, OPTYPE.PRELU)
        return Site(name, "both") if node.type in sided else None

    def fault(self, node: Any, handler: Any, channels: Sequence[int]) -> str | None:
        """Why a node cannot lose these channels."""
        site = self.of(node, handler)
        if site is None:  # what flows through an operation ends in a layer or a parameter
            return None if 0 <= min(channels) <= max(channels) < self.most else _LOST
        owner = self.modules[site.module]
        if isinstance(owner, nn.MultiheadAttention):
            return _HEADS
        if isinstance(owner, nn.RNNBase | nn.RNNCellBase) and not (isinstance(owner, nn.LSTM) and site.side == "in"):
            return f"{site.module!r} is a {type(owner).__name__}, which cannot be pruned"
        width = self.width(site)
        if not 0 <= min(channels) <= max(channels) < width:
            return f"{site.name!r} has {width} channels where {1 + max(channels)} are expected"
        return None

    def width(self, site: Site) -> int:
        """How many channels there are."""
        if site.side == "parameter":
            return self.parameters[site.name].shape[site.dim]
        module = self.modules[site.name]
        if isinstance(module, nn.PReLU) and module.num_parameters == 1:
            return self.most  # one slope for all
        return width_of(module, site.side) or self.most  # what has none of its own cannot be cut (`removal`)

    def period(self, site: Site, channels: int) -> int:
        """After how many channels a site's groups repeat, which must lose the same places: 0 for none, 1 where that
        would depend on more groups than those of these `channels`."""
        groups = 1 if site.side == "parameter" else groups_of(self.modules[site.name])
        if groups == 1:
            return 0
        return self.width(site) // groups if channels == self.width(site) else 1


def _reached(graph: Any, root: nn.Module, sites: _Sites) -> tuple[dict[tuple[Any, Any], Wires], str | None]:
    """All that channels of the root's output go with: (node, how it loses them) → which with which; and what is wrong
    with that, if anything.

    torch-pruning's own walk keeps one root for each channel; where a channel goes with several they are one unit. It
    does not stop where the channels it asks for do not exist.
    """
    from torch_pruning._helpers import _HybridIndex

    start, size = graph.module2node[root], outputs_of(root)
    handler = graph.get_pruner_of_module(root).prune_out_channels
    reached = {(start, handler): {(n, n) for n in range(size)}}
    stack = [(start, handler, [_HybridIndex(idx=n, root_idx=n) for n in range(size)])]
    fault, count = None, 0
    while stack and count < MOST:
        node, handler, indices = stack.pop()
        for dep in node.dependencies:
            if not dep.is_triggered_by(handler):
                continue
            there = indices
            for mapping in dep.index_mapping:
                there = mapping(there) if mapping is not None else there
            wires = reached.setdefault((dep.target, dep.handler), set())
            fresh = [index for index in there if (index.idx, index.root_idx) not in wires]
            if not fresh:
                continue
            wires.update((index.idx, index.root_idx) for index in fresh)
            count += len(fresh)
            wrong = sites.fault(dep.target, dep.handler, [index.idx for index in fresh])
            fault = fault or wrong
            if wrong is None:
                stack.append((dep.target, dep.handler, fresh))
    if stack:
        fault = fault or _LOST
    return {key: sorted(wires) for key, wires in reached.items() if wires}, fault


def _group(reached: Mapping[tuple[Any, Any], Wires], of: _Sites, root: nn.Module, how: str) -> Group | None:
    """The group of a root whose channels go with these; None where `how` cannot rank it or there is one channel."""
    size = outputs_of(root)
    sites: dict[Site, Wires] = {}
    for (node, handler), wires in reached.items():
        site = of.of(node, handler)
        if site is not None:
            sites[site] = sorted({*sites.get(site, []), *wires})
    if _crosses_heads(sites, of.modules):
        raise _Fault(_HEADS)
    scores = _scores(sites, of.modules, size, how)
    if scores is None or size < 2:
        return None
    units = _units(sites, of, size)
    if len(units) < 2:
        raise _Fault("none of its channels can go without all others")
    layers = tuple(site.name for site in sites if site.side != "in" and isinstance(of.modules.get(site.name), LAYERS))
    return Group(units, torch.stack([scores[unit].mean() for unit in units]), sites, layers)


def _units(sites: Mapping[Site, Wires], of: _Sites, size: int) -> list[list[int]]:
    """The root's channels in the smallest sets that can go alone.

    A channel that goes with several of the root's ties these, and so do the same places of a layer's groups.
    """
    owner = list(range(size))

    def find(channel: int) -> int:
        while owner[channel] != channel:
            owner[channel] = channel = owner[owner[channel]]
        return channel

    for site, wires in sites.items():
        period = of.period(site, len({channel for channel, _ in wires}))
        first: dict[int, int] = {}
        for channel, root in wires:
            place = channel % period if period else channel
            owner[find(root)] = find(first.setdefault(place, root))
    sets: defaultdict[int, list[int]] = defaultdict(list)
    for channel in range(size):
        sets[find(channel)].append(channel)
    return list(sets.values())


def _crosses_heads(sites: Mapping[Site, Wires], modules: Mapping[str, nn.Module]) -> bool:
    """Whether channels are made and read within one attention, where they are arranged in heads."""
    made = {site.name for site in sites if site.side in ("out", "both")}
    read = {site.name for site in sites if site.side in ("in", "both") and isinstance(modules[site.name], LAYERS)}
    for name in made:
        owner = name.rpartition(".")[0]
        heads = [getattr(modules[owner], key, None) for key in ("num_heads", "num_attention_heads")]
        if any(isinstance(value, int) for value in heads) and any(r.rpartition(".")[0] == owner for r in read - made):
            return True
    return False


def _scores(sites: Mapping[Site, Wires], modules: Mapping[str, nn.Module], size: int, how: str) -> Tensor | None:
    """The importance of each of the root's channels [size], or None where nothing in the group can tell."""
    votes = []
    for site, wires in sites.items():
        module: Any = modules.get(site.name)
        if how == "slim" and isinstance(module, _BatchNorm) and module.weight is not None:
            values = module.weight.detach().abs().double().cpu()
        elif how == "l1" and isinstance(module, LAYERS) and site.side != "in":
            dim = 1 if getattr(module, "transposed", False) else 0
            values = module.weight.detach().abs().double().cpu().transpose(0, dim).flatten(1).sum(1)
            values = values.repeat(outputs_of(module) // len(values))  # of a grouped transposed convolution
            values = values / values.mean().clamp_min(1e-30)
        else:
            continue
        channels, roots = (torch.tensor(part) for part in zip(*wires, strict=True))
        votes.append(torch.zeros(size, dtype=torch.float64).index_add_(0, roots, values[channels]))
    return torch.stack(votes).mean(0) if votes else None
