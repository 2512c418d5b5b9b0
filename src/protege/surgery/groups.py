"""The channels of any network that depend on each other, and what they count for.

Which depend on each other (a convolution's filters, its BatchNorm, what reads them, and, across a residual sum, the
channels of other layers) is told by torch-pruning's dependency graph (Fang et al. 2023, arXiv 2301.12900). Layers whose
channels are tied vote together on what to prune: with the mean over them, l1 in units of each layer's average filter.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from ..errors import UserError, told
from .shrunk import LAYERS, outputs_of


@dataclass(frozen=True)
class Part:
    """How a layer takes part in a group: it loses outputs, inputs or (depthwise) both at once."""

    name: str
    side: str  # "out", "in" or "both"
    losses: Tensor  # [units], channels of this layer that go with each unit


@dataclass(frozen=True)
class Group:
    """Tied channels. A unit is what can go alone: a channel, or as many as there are groups in a convolution."""

    root: nn.Module
    prune: Any  # torch-pruning's function for the root
    units: list[list[int]]  # channels of the root in each
    scores: Tensor  # [units], the least important is the smallest
    parts: tuple[Part, ...]

    @property
    def outputs(self) -> list[str]:
        return [part.name for part in self.parts if part.side != "in"]


def trace(network: nn.Module, example: Tensor) -> Any:
    """torch-pruning's dependency graph of `network`; `UserError` where it cannot be traced."""
    import torch_pruning  # here, as it takes a second to import and only pruning needs it

    # The slices that make a circular padding of a sequence are taken for slices of its channels, without an end.
    padded: list[Any] = [module for module in network.modules() if isinstance(module, _ConvNd)]
    modes = [module.padding_mode for module in padded]
    for module in padded:
        module.padding_mode = "zeros"  # the sizes are the same
    try:
        with torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch_pruning.DependencyGraph().build_dependency(network, example, verbose=False)
    except Exception as error:
        raise UserError(
            f"the dependencies in the {type(network).__name__} cannot be traced ({told(error)}); expected a network "
            "that runs on the example input with gradients: give fitting data=…, or use how='decouple'."
        ) from error
    finally:
        for module, mode in zip(padded, modes, strict=True):
            module.padding_mode = mode


def tied_channels(graph: Any, network: nn.Module, how: str) -> list[Group]:
    """What can be pruned: groups that end in no output, cross no attention, and that `how` can rank."""
    from torch_pruning.ops import OPTYPE

    names = {module: name for name, module in network.named_modules()}
    found = []
    for tied in graph.get_all_groups(root_module_types=LAYERS):
        items = [(item.dep, list(item.idxs), list(item.root_idxs)) for item in tied.items]
        writers = [dep.target for dep, _, _ in items if graph.is_out_channel_pruning_fn(dep.handler)]
        is_output = any(not node.outputs or node.type == OPTYPE.OUTPUT for node in writers)
        if is_output or _crosses_heads(items, graph, names, network):
            continue
        size = outputs_of(tied[0].dep.target.module)
        units = _units(items, graph, size)
        scores = _scores(items, graph, size, how)
        if scores is None or len(units) < 2:
            continue
        means, parts = torch.stack([scores[unit].mean() for unit in units]), []
        for dep, _, roots in items:
            if isinstance(dep.target.module, LAYERS):
                both = dep.target.type == OPTYPE.DEPTHWISE_CONV
                side = "both" if both else "out" if graph.is_out_channel_pruning_fn(dep.handler) else "in"
                counts = torch.bincount(torch.tensor(roots), minlength=size)
                losses = torch.stack([counts[unit].sum() for unit in units])
                parts.append(Part(names[dep.target.module], side, losses))
        root = tied[0].dep
        found.append(Group(root.target.module, root.handler, units, means, tuple(parts)))
    return found


def _units(items: Any, graph: Any, size: int) -> list[list[int]]:
    """The root's channels in the smallest sets that can go alone.

    What has its channels in groups must stay so: each group loses the same places, so these are tied.
    """
    owner = list(range(size))
    for dep, idxs, roots in items:
        module = dep.target.module
        groups = getattr(module, "num_groups", getattr(module, "groups", 1))
        if groups == 1 or type(groups) is not int or not hasattr(module, "weight") or _is_depthwise(module):
            continue
        is_output = graph.is_out_channel_pruning_fn(dep.handler)
        total = getattr(module, "num_channels", None) or (module.out_channels if is_output else module.in_channels)
        if len(set(idxs)) < total:  # the rest are another group's, on which these would depend
            return [list(range(size))]
        first: dict[int, int] = {}
        for place, root in zip(idxs, roots, strict=True):
            old, new = owner[root], owner[first.setdefault(place % (total // groups), root)]
            owner = [new if one == old else one for one in owner] if old != new else owner
    sets: dict[int, list[int]] = {}
    for channel, one in enumerate(owner):
        sets.setdefault(one, []).append(channel)
    return list(sets.values())


def _is_depthwise(module: Any) -> bool:
    return getattr(module, "groups", 1) == getattr(module, "out_channels", 0) == getattr(module, "in_channels", 0)


def _crosses_heads(items: Any, graph: Any, names: Mapping[nn.Module, str], network: nn.Module) -> bool:
    """Whether channels are made and read within one attention, where they are arranged in heads."""
    made = {names[d.target.module] for d, _, _ in items
            if d.target.module in names and graph.is_out_channel_pruning_fn(d.handler)}  # fmt: skip
    if any(isinstance(d.target.module, nn.MultiheadAttention) for d, _, _ in items):
        return True
    read = {names[d.target.module] for d, _, _ in items
            if isinstance(d.target.module, LAYERS) and graph.is_in_channel_pruning_fn(d.handler)}  # fmt: skip
    for name in made:
        owner = name.rpartition(".")[0]
        heads = [getattr(network.get_submodule(owner), key, None) for key in ("num_heads", "num_attention_heads")]
        if any(isinstance(value, int) for value in heads) and any(r.rpartition(".")[0] == owner for r in read - made):
            return True
    return False


def _scores(items: Any, graph: Any, size: int, how: str) -> Tensor | None:
    """The importance of each of the root's channels [size], or None where nothing in the group can tell."""
    votes = []
    for dep, idxs, roots in items:
        module = dep.target.module
        if how == "slim":
            if not isinstance(module, _BatchNorm) or module.weight is None:
                continue
            values = module.weight.detach().abs().double().cpu()
        else:
            if not isinstance(module, LAYERS) or not graph.is_out_channel_pruning_fn(dep.handler):
                continue
            dim = 1 if getattr(module, "transposed", False) else 0
            values = module.weight.detach().abs().double().cpu().transpose(0, dim).flatten(1).sum(1)
            if dim == 1 and len(values) != outputs_of(module):  # a grouped transposed convolution
                values = values.repeat(outputs_of(module) // len(values))
            values = values / values.mean().clamp_min(1e-30)
        votes.append(torch.zeros(size, dtype=torch.float64).index_add_(0, torch.tensor(roots), values[idxs]))
    return torch.stack(votes).mean(0) if votes else None
