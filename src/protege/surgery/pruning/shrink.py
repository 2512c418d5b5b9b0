"""Structured pruning of any network: whole channels go, together with all that depends on them.

Two ways to rank the channels of one group of tied ones (`groups`):

- "l1", filter pruning (Li et al. 2017, arXiv 1608.08710, section 3.1): the sum of a filter's absolute weights. Each
  group loses the same share of its channels.
- "slim", network slimming (Liu et al. 2017, arXiv 1708.06519, section 3): the BatchNorm scale |γ|, ranked across the
  whole network. Groups without BatchNorm stay whole, and every group keeps a tenth of its channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ...errors import UserError, shown
from ...numerics import exact
from ..layers import let_learn
from .choose import Choice, by_layer, by_macs, by_ratio, removal_of
from .decouple import decouplable
from .groups import PARTS, Group, tied_channels
from .law import Law
from .removal import Site, remove, renewed
from .result import LeftOut, Shrunk, kept_whole, matching, together

HOWS = ("l1", "slim")
SHOWN = 6  # reasons given in a sentence


@exact()
def shrink(
    network: nn.Module,
    example: Tensor,
    how: str = "l1",
    *,
    ratio: float | Mapping[str, float] | None = None,
    macs: float | None = None,
    layers: Sequence[str] | None = None,
    parts: Sequence[str] = PARTS,
) -> Shrunk:
    """A pruned copy of `network` (any that works on the prepared `example` [B, …]) and the channels each layer kept.

    `ratio` is the share of channels to remove: of all that can be ("l1": of each group of tied ones), or {layer: share}
    with names or patterns such as "layer3.*.conv1"; a layer tied to others takes these along. `macs` instead is the
    share of the multiply-adds to be left, met within 2 % of the network's. `layers` limits either to some layers, and
    `parts` to the "heads" of attentions, which go whole, the "stream" that residual sums go on with, or the "hidden"
    channels of a block. The outputs and the inputs stay whole. Weights are the original's, in the same order, and all
    learn, as those of a frozen network must be recovered, too.

    What is returned computes what the original does with zeros for the removed channels (`law`). Layers of which
    that cannot be made so stay whole; `Shrunk.left_out` names them and says why. Raises `UserError` for values out of
    range, unknown layers, targets out of reach, and networks without anything to prune.

    >>> pruned = shrink(network, x, ratio=0.5)
    >>> pruned.network[0].out_channels, len(pruned.kept["0"]), pruned.left_out
    (4, 4, ())
    """
    _check(how, ratio, macs, parts)
    groups, left_out, weights = tied_channels(network, example.detach(), how)
    groups = [group for group in groups if group.part in parts]
    able = [name for tied in [part.layers for part in groups] + [part.layers for part in left_out] for name in tied]
    for patterns in (layers, list(ratio) if isinstance(ratio, Mapping) else None):
        if patterns is not None:
            names = set(matching(patterns, able, network))
            groups = [group for group in groups if names & set(group.layers)]
            left_out = [part for part in left_out if names & set(part.layers)]
    every, law = groups, Law(network, example.detach())
    while True:
        if not groups:
            raise _nothing(network, how, left_out)
        unmet = None
        if isinstance(ratio, Mapping):
            choice = by_layer(groups, ratio, network, able)
        elif ratio is not None:
            choice = by_ratio(groups, how, ratio)
        else:
            choice, unmet = by_macs(network, example, groups, how, macs or 0.0)
        choice = {number: units for number, units in choice.items() if units}
        if not choice and unmet is None:
            raise UserError(
                f"the ratio {ratio} removes no channel of so small a network; expected more: raise ratio=…"
                + _also(left_out)
            )
        faults = law.faults({number: removal_of(groups, {number: units}) for number, units in choice.items()})
        if not faults and unmet is not None:
            raise UserError(unmet + _also(left_out))
        if not faults:
            break
        left_out += [LeftOut(groups[number].layers, why) for number, why in faults.items()]
        groups = [group for number, group in enumerate(groups) if number not in faults]
    return cut(network, groups, every, choice, left_out, weights)


def cut(
    network: nn.Module,
    groups: Sequence[Group],
    every: Sequence[Group],
    choice: Choice,
    left_out: Sequence[LeftOut],
    weights: Mapping[Site, tuple[str, int]],
) -> Shrunk:
    """A copy of the network without the units of `choice`, of `groups`; `every` holds those that could be chosen."""
    removal = removal_of(groups, choice)
    changed = renewed(network)
    remove(changed, removal)
    let_learn(changed)
    counts: dict[str, tuple[int, int]] = {}
    for part in PARTS:
        if before := sum(len(group.units) for group in every if group.part == part):
            gone = sum(len(units) for number, units in choice.items() if groups[number].part == part)
            counts[part] = before, before - gone
    return Shrunk(changed, _kept(network, removal, weights), tuple(left_out), counts)


def _check(how: str, ratio: Any, macs: Any, parts: Sequence[str]) -> None:
    if not isinstance(how, str) or how not in HOWS:
        raise UserError(f"how = {shown(how)} is no way of pruning; expected {' or '.join(HOWS)}: change how=….")
    if isinstance(parts, str) or not list(parts) or set(parts) - set(PARTS):
        raise UserError(
            f"parts = {shown(parts)} cannot be thinned; expected some of {', '.join(PARTS)}: change parts=…."
        )
    if (ratio is None) == (macs is None):
        got = f"ratio = {shown(ratio)} and macs = {shown(macs)}"
        raise UserError(f"shrink got {got}; expected one of them: give only that.")
    for name, value in ratio.items() if isinstance(ratio, Mapping) else [("", ratio if macs is None else macs)]:
        what = f"the ratio of {name!r}" if name else ("ratio" if macs is None else "macs")
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
            raise UserError(f"{what} is {shown(value)}; expected a share above 0 and below 1: correct it.")


def _kept(
    network: nn.Module, removal: Mapping[Site, list[int]], weights: Mapping[Site, tuple[str, int]]
) -> dict[str, list[int]]:
    kept = kept_whole(network) | {name: list(range(size)) for name, size in weights.values()}
    parameters = dict(network.named_parameters(remove_duplicate=False))
    for site, gone in removal.items():
        if site in weights:
            name, size = weights[site]
            kept[name] = sorted(set(range(size)) - set(gone))
        elif site.side in ("out", "both") and site.name in kept:
            kept[site.name] = sorted(set(kept[site.name]) - set(gone))
        elif site.name in parameters and site.dim == 0 and site.name.endswith("weight"):  # of attention's projections
            kept[site.name] = sorted(set(range(len(parameters[site.name]))) - set(gone))
    return kept


def _nothing(network: nn.Module, how: str, left_out: Sequence[LeftOut]) -> UserError:
    others = ["name other layers"] if left_out else ["use how='l1'"] if how == "slim" else ["shrink another network"]
    if len(decouplable(network)) > 1:  # all but the first
        others.append("use how='decouple'")
    remedy = " or ".join(others)
    if left_out:
        return UserError(
            f"no channels of the {type(network).__name__} can be removed there: {_list(left_out)}; expected layers "
            f"that can do without some of theirs: {remedy}."
        )
    what = "no channels scaled by BatchNorm" if how == "slim" else "no channels that can be removed"
    return UserError(f"the {type(network).__name__} has {what}; expected some for how={how!r}: {remedy}.")


def _also(left_out: Sequence[LeftOut]) -> str:
    return f" (left whole: {_list(left_out)})." if left_out else "."


def _list(left_out: Sequence[LeftOut]) -> str:
    parts = together(left_out)
    more = f"; and {len(parts) - SHOWN} more" if len(parts) > SHOWN else ""
    return "; ".join(map(str, parts[:SHOWN])) + more
