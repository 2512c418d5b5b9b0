"""Structured pruning of any network: whole channels go, together with all that depends on them.

Which channels depend on each other (a convolution's filters, its BatchNorm, what reads them, and, across a residual
sum, the channels of other layers) is told by torch-pruning's dependency graph (Fang et al. 2023, arXiv 2301.12900). Two
ways to rank the channels of one such group:

- "l1", filter pruning (Li et al. 2017, arXiv 1608.08710, section 3.1): the sum of a filter's absolute weights. Each
  group loses the same share of its channels.
- "slim", network slimming (Liu et al. 2017, arXiv 1708.06519, section 3): the BatchNorm scale |γ|, ranked across the
  whole network. Groups without BatchNorm stay whole, and every group keeps a tenth of its channels.

Layers whose channels are tied vote together: with the mean over them, l1 in units of each layer's average filter.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from ..errors import UserError, told
from ..modes import eval_mode
from .shrunk import LAYERS, Shrunk, kept_whole, matching, outputs_of, profile

HOWS = ("l1", "slim")
FLOOR = 0.1  # the share of a group's channels that slimming never takes: an emptied layer cuts the network in two
TOLERANCE = 0.02  # of the network's multiply-adds


@dataclass(frozen=True)
class _Part:
    """How a layer takes part in a group: it loses outputs, inputs or (depthwise) both at once."""

    name: str
    side: str  # "out", "in" or "both"
    losses: Tensor  # [units], channels of this layer that go with each unit


@dataclass(frozen=True)
class _Group:
    """Tied channels. A unit is what can go alone: a channel, or as many as there are groups in a convolution."""

    root: nn.Module
    prune: Any  # torch-pruning's function for the root
    units: list[list[int]]  # channels of the root in each
    scores: Tensor  # [units], the least important is the smallest
    parts: tuple[_Part, ...]

    @property
    def outputs(self) -> list[str]:
        return [part.name for part in self.parts if part.side != "in"]


def shrink(
    network: nn.Module,
    example: Tensor,
    how: str = "l1",
    *,
    ratio: float | Mapping[str, float] | None = None,
    macs: float | None = None,
    layers: Sequence[str] | None = None,
) -> Shrunk:
    """A pruned copy of `network` (any that works on the prepared `example` [B, …]) and the channels each layer kept.

    `ratio` is the share of channels to remove: of all that can be ("l1": of each group of tied ones), or {layer: share}
    with names or patterns such as "layer3.*.conv1"; a layer tied to others takes these along. `macs` instead is the
    share of the multiply-adds to be left, met within 2 % of the network's. `layers` limits either to some layers. The
    outputs, the inputs and what happens between the heads of an attention stay whole. Weights are the original's, in
    the same order. Raises `UserError` for values out of range, unknown layers, targets out of reach, and networks
    without anything to prune.
    """
    _check(how, ratio, macs)
    for name, module in network.named_modules():
        if isinstance(module, nn.RNNCellBase | nn.GRU | nn.RNN):
            raise UserError(
                f"the layer {name!r} is a {type(module).__name__}, which cannot be pruned; expected no "
                "recurrent layer but nn.LSTM: use --how decouple."
            )
    changed = copy.deepcopy(network).requires_grad_(True)
    for parameter in changed.parameters():
        parameter.grad = None
    graph = _trace(changed, example.detach())
    groups = _groups(graph, changed, how)
    if not groups:
        remedy = "use --how l1" if how == "slim" else "shrink another network, or use --how decouple"
        what = "no channels scaled by BatchNorm" if how == "slim" else "no channels that can be removed"
        raise UserError(f"the {type(network).__name__} has {what}; expected some for --how {how}: {remedy}.")
    if layers is not None:
        groups = _chosen(groups, layers, network)
    if isinstance(ratio, Mapping):
        dropped = _by_layer(groups, ratio, network)
    elif ratio is not None:
        dropped = _by_ratio(groups, how, ratio)
    else:
        dropped = _by_macs(network, example, groups, how, macs or 0.0)
    if not any(dropped.values()):
        raise UserError(f"the ratio {ratio} removes no channel of so small a network; expected more: raise --ratio.")
    kept = _cut(graph, changed, groups, dropped)
    for parameter, old in zip(changed.parameters(), network.parameters(), strict=True):
        parameter.requires_grad_(old.requires_grad)
    for module, old_module in zip(changed.modules(), network.modules(), strict=True):
        module.training = old_module.training
    _try(network, changed, example)
    return Shrunk(changed, kept)


def _check(how: str, ratio: Any, macs: Any) -> None:
    if how not in HOWS:
        raise UserError(f"how = {how!r} is no way of pruning; expected {' or '.join(HOWS)}: change --how.")
    if (ratio is None) == (macs is None):
        raise UserError(f"shrink got ratio = {ratio!r} and macs = {macs!r}; expected one of them: give only that.")
    for name, value in ratio.items() if isinstance(ratio, Mapping) else [("", ratio if macs is None else macs)]:
        what = f"the ratio of {name!r}" if name else ("ratio" if macs is None else "macs")
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
            raise UserError(f"{what} is {value!r}; expected a share above 0 and below 1: correct it.")


def _trace(network: nn.Module, example: Tensor) -> Any:
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
            "that runs on the example input with gradients: give fitting --data, or use --how decouple."
        ) from error
    finally:
        for module, mode in zip(padded, modes, strict=True):
            module.padding_mode = mode


def _groups(graph: Any, network: nn.Module, how: str) -> list[_Group]:
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
                parts.append(_Part(names[dep.target.module], side, losses))
        root = tied[0].dep
        found.append(_Group(root.target.module, root.handler, units, means, tuple(parts)))
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


def _chosen(groups: list[_Group], layers: Sequence[str], network: nn.Module) -> list[_Group]:
    names = set(matching(layers, _able(groups), network))
    return [group for group in groups if names & set(group.outputs)]


def _able(groups: Sequence[_Group]) -> list[str]:
    return [name for group in groups for name in group.outputs]


def _by_layer(groups: list[_Group], ratios: Mapping[str, float], network: nn.Module) -> dict[int, list[int]]:
    """The units to drop of each group by its number, where layers were given shares of their own."""
    shares: dict[int, tuple[float, str]] = {}
    for pattern, share in ratios.items():
        names = set(matching([pattern], _able(groups), network))
        for number, group in enumerate(groups):
            if not names & set(group.outputs):
                continue
            other, before = shares.setdefault(number, (share, pattern))
            if other != share:
                raise UserError(
                    f"{before!r} and {pattern!r} have the ratios {other:g} and {share:g} but their channels are tied; "
                    "expected one ratio for both: correct one."
                )
    return {number: _least(groups[number], share) for number, (share, _) in shares.items()}


def _least(group: _Group, share: float) -> list[int]:
    """The least important units of a group, so many as make the share, never all."""
    count = min(math.floor(share * len(group.units) + 0.5), len(group.units) - 1)
    return group.scores.argsort(stable=True)[:count].tolist()


def _order(groups: Sequence[_Group], how: str, share: float) -> list[tuple[int, int]]:
    """All (group, unit) that may go, the first to go first.

    "slim" ranks by the scale itself; "l1" by the rank within the group, so that all groups thin out evenly.
    """
    order = []
    for number, group in enumerate(groups):
        ranked, size = group.scores.argsort(stable=True).tolist(), len(group.units)
        most = size - max(1, math.ceil(min(FLOOR, 1 - share) * size)) if how == "slim" else size - 1
        for rank, unit in enumerate(ranked[:most]):
            key = float(group.scores[unit]) if how == "slim" else (rank + 0.5) / size
            order.append((key, rank / size, number, unit))
    return [(number, unit) for _, _, number, unit in sorted(order)]


def _collect(order: Sequence[tuple[int, int]]) -> dict[int, list[int]]:
    dropped: dict[int, list[int]] = {}
    for number, unit in order:
        dropped.setdefault(number, []).append(unit)
    return dropped


def _by_ratio(groups: Sequence[_Group], how: str, ratio: float) -> dict[int, list[int]]:
    if how == "l1":
        return {number: _least(group, ratio) for number, group in enumerate(groups)}
    target = ratio * sum(len(unit) for group in groups for unit in group.units)
    gone, order = 0.0, []
    for number, unit in _order(groups, how, ratio):
        if gone + len(groups[number].units[unit]) / 2 > target:
            break
        order.append((number, unit))
        gone += len(groups[number].units[unit])
    return _collect(order)


def _by_macs(
    network: nn.Module, example: Tensor, groups: Sequence[_Group], how: str, target: float
) -> dict[int, list[int]]:
    """The shortest way down the order that ends at the target, by halving: what is left falls with each unit."""
    total, layers = profile(network, example)
    order = _order(groups, how, 1.0)

    def left(count: int) -> float:
        return 1 - sum(layers.values()) / total + _remaining(network, groups, _collect(order[:count]), layers) / total

    least = left(len(order))
    low, high = 0, len(order)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if left(middle) > target else (low, middle)
    best = min((low, high), key=lambda count: abs(left(count) - target))
    if abs(left(best) - target) > TOLERANCE:
        raise UserError(
            f"macs = {target:g} cannot be met; expected {least:.3f} to 1 of this network's, in steps that its channels "
            f"allow (the nearest is {left(best):.3f}): change --macs, or allow more --layers."
        )
    return _collect(order[:best])


def _remaining(
    network: nn.Module, groups: Sequence[_Group], dropped: Mapping[int, list[int]], layers: Mapping[str, int]
) -> float:
    """Multiply-adds of the convolutions and linear layers once the units are dropped."""
    lost: dict[str, list[int]] = {name: [0, 0] for name in layers}
    for number, units in dropped.items():
        for part in groups[number].parts:
            if part.name in lost:
                lost[part.name][part.side == "in"] += int(part.losses[units].sum())
    remaining = 0.0
    for name, macs in layers.items():
        layer: Any = network.get_submodule(name)
        outputs, inputs = outputs_of(layer), layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
        remaining += macs * (1 - lost[name][0] / outputs) * (1 - lost[name][1] / inputs)
    return remaining


def _cut(
    graph: Any, network: nn.Module, groups: Sequence[_Group], dropped: Mapping[int, list[int]]
) -> dict[str, list[int]]:
    """Remove the units from `network` in place; returns each layer's remaining outputs."""
    names = {module: name for name, module in network.named_modules()}
    kept = kept_whole(network)
    for number, units in dropped.items():
        if not units:
            continue
        group = groups[number]
        channels = sorted(channel for unit in units for channel in group.units[unit])
        tied = graph.get_pruning_group(group.root, group.prune, channels)
        for dep, idxs in tied:
            name = names.get(dep.target.module)
            if name in kept and graph.is_out_channel_pruning_fn(dep.handler):
                gone = set(idxs)  # positions now: what a concatenation feeds may have lost others before
                kept[name] = [channel for place, channel in enumerate(kept[name]) if place not in gone]
        tied.prune()
    return kept


def _try(before: nn.Module, after: nn.Module, example: Tensor) -> None:
    """Refuse a network that the cuts broke: some compute with sizes that stand nowhere but in their code."""
    running: list[str] = []
    hooks = [
        module.register_forward_pre_hook(lambda _m, _i, name=name: running.append(name))
        for name, module in after.named_modules()
    ]
    try:
        with torch.no_grad():
            shapes = [[tuple(t.shape) for t in _tensors(_eval(network, example))] for network in (before, after)]
        if shapes[0] != shapes[1]:
            raise UserError(
                f"the pruned {type(after).__name__} gives outputs of shape {shapes[1]} instead of {shapes[0]}; "
                "expected the same: prune it with --layers that do not make its outputs."
            )
    except (RuntimeError, ValueError, IndexError) as error:
        raise UserError(
            f"the pruned {type(after).__name__} fails in {running[-1] if running else ''!r} ({told(error)}), which "
            "counts on channels that are gone; expected sizes that follow the layers: name other --layers."
        ) from error
    finally:
        for hook in hooks:
            hook.remove()


def _eval(network: nn.Module, example: Tensor) -> Any:
    with eval_mode(network):
        return network(example)


def _tensors(outputs: Any) -> list[Tensor]:
    if isinstance(outputs, Mapping):
        outputs = list(outputs.values())
    if isinstance(outputs, list | tuple):
        return [tensor for item in outputs for tensor in _tensors(item)]
    return [outputs] if isinstance(outputs, Tensor) else []
