"""Structured pruning of any network: whole channels go, together with all that depends on them.

Two ways to rank the channels of one group of tied ones (`groups`):

- "l1", filter pruning (Li et al. 2017, arXiv 1608.08710, section 3.1): the sum of a filter's absolute weights. Each
  group loses the same share of its channels.
- "slim", network slimming (Liu et al. 2017, arXiv 1708.06519, section 3): the BatchNorm scale |γ|, ranked across the
  whole network. Groups without BatchNorm stay whole, and every group keeps a tenth of its channels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..copying import copy_network
from ..errors import UserError, told
from ..modes import eval_mode
from .groups import Group, tied_channels, trace
from .shrunk import Shrunk, kept_whole, matching, outputs_of, profile

HOWS = ("l1", "slim")
FLOOR = 0.1  # the share of a group's channels that slimming never takes: an emptied layer cuts the network in two
TOLERANCE = 0.02  # of the network's multiply-adds


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
                "recurrent layer but nn.LSTM: use how='decouple'."
            )
    changed = copy_network(network).requires_grad_(True)
    for parameter in changed.parameters():
        parameter.grad = None
    graph = trace(changed, example.detach())
    groups = tied_channels(graph, changed, how)
    if not groups:
        remedy = "use how='l1'" if how == "slim" else "shrink another network, or use how='decouple'"
        what = "no channels scaled by BatchNorm" if how == "slim" else "no channels that can be removed"
        raise UserError(f"the {type(network).__name__} has {what}; expected some for how={how!r}: {remedy}.")
    if layers is not None:
        groups = _chosen(groups, layers, network)
    if isinstance(ratio, Mapping):
        dropped = _by_layer(groups, ratio, network)
    elif ratio is not None:
        dropped = _by_ratio(groups, how, ratio)
    else:
        dropped = _by_macs(network, example, groups, how, macs or 0.0)
    if not any(dropped.values()):
        raise UserError(f"the ratio {ratio} removes no channel of so small a network; expected more: raise ratio=….")
    kept = _cut(graph, changed, groups, dropped)
    for parameter, old in zip(changed.parameters(), network.parameters(), strict=True):
        parameter.requires_grad_(old.requires_grad)
    for module, old_module in zip(changed.modules(), network.modules(), strict=True):
        module.training = old_module.training
    _try(network, changed, example)
    return Shrunk(changed, kept)


def _check(how: str, ratio: Any, macs: Any) -> None:
    if how not in HOWS:
        raise UserError(f"how = {how!r} is no way of pruning; expected {' or '.join(HOWS)}: change how=….")
    if (ratio is None) == (macs is None):
        raise UserError(f"shrink got ratio = {ratio!r} and macs = {macs!r}; expected one of them: give only that.")
    for name, value in ratio.items() if isinstance(ratio, Mapping) else [("", ratio if macs is None else macs)]:
        what = f"the ratio of {name!r}" if name else ("ratio" if macs is None else "macs")
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
            raise UserError(f"{what} is {value!r}; expected a share above 0 and below 1: correct it.")


def _chosen(groups: list[Group], layers: Sequence[str], network: nn.Module) -> list[Group]:
    names = set(matching(layers, _able(groups), network))
    return [group for group in groups if names & set(group.outputs)]


def _able(groups: Sequence[Group]) -> list[str]:
    return [name for group in groups for name in group.outputs]


def _by_layer(groups: list[Group], ratios: Mapping[str, float], network: nn.Module) -> dict[int, list[int]]:
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


def _least(group: Group, share: float) -> list[int]:
    """The least important units of a group, so many as make the share, never all."""
    count = min(math.floor(share * len(group.units) + 0.5), len(group.units) - 1)
    return group.scores.argsort(stable=True)[:count].tolist()


def _order(groups: Sequence[Group], how: str, share: float) -> list[tuple[int, int]]:
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


def _by_ratio(groups: Sequence[Group], how: str, ratio: float) -> dict[int, list[int]]:
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
    network: nn.Module, example: Tensor, groups: Sequence[Group], how: str, target: float
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
            f"allow (the nearest is {left(best):.3f}): change macs=…, or allow more layers=…."
        )
    return _collect(order[:best])


def _remaining(
    network: nn.Module, groups: Sequence[Group], dropped: Mapping[int, list[int]], layers: Mapping[str, int]
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
    graph: Any, network: nn.Module, groups: Sequence[Group], dropped: Mapping[int, list[int]]
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
                "expected the same: prune it with layers=… that do not make its outputs."
            )
    except (RuntimeError, ValueError, IndexError) as error:
        raise UserError(
            f"the pruned {type(after).__name__} fails in {running[-1] if running else ''!r} ({told(error)}), which "
            "counts on channels that are gone; expected sizes that follow the layers: name other layers=…."
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
