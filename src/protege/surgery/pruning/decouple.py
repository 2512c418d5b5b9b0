"""Network decoupling (Guo et al. 2018, arXiv 1808.05517): a k×k convolution as a sum of depthwise + pointwise pairs.

For each input channel c the kernels of a convolution form a matrix [out, k²]; its singular value decomposition
Σ_i s_i u_i v_iᵀ gives k² depthwise kernels v_i and pointwise columns s_i u_i (section 3.2). The first `rank` of them
are the best approximation of that rank; all of them are the convolution itself. The pairs of one layer are one module:
a depthwise convolution with `rank` outputs a channel, then one 1×1 convolution that also does the summing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import UserError, shown
from ...numerics import exact
from ...torch_utils import copy_network
from ..counting import profile
from ..layers import let_learn
from .result import Shrunk, kept_whole, matching


class Decoupled(nn.Module):
    """A depthwise convolution with `rank` outputs a channel, then a 1×1 convolution, in the place of a k×k one.

    [B, in_channels, H, W] → [B, out_channels, H', W'] with the stride, padding and dilation of the depthwise one; the
    bias is the pointwise one's.
    """

    def __init__(self, depthwise: nn.Conv2d, pointwise: nn.Conv2d) -> None:
        super().__init__()
        self.depthwise, self.pointwise = depthwise, pointwise

    @classmethod
    def shaped(cls, like: nn.Conv2d, inputs: int, outputs: int, rank: int, bias: bool) -> Decoupled:
        """An untrained pair with the kernel, stride, padding and dilation, type and device of `like`."""
        made: dict[str, Any] = {"dtype": like.weight.dtype, "device": like.weight.device}
        window: dict[str, Any] = {
            "kernel_size": like.kernel_size,
            "stride": like.stride,
            "padding": like.padding,
            "dilation": like.dilation,
            "padding_mode": like.padding_mode,
        }
        depthwise = nn.utils.skip_init(nn.Conv2d, inputs, inputs * rank, groups=inputs, bias=False, **window, **made)
        return cls(depthwise, nn.utils.skip_init(nn.Conv2d, inputs * rank, outputs, 1, bias=bias, **made))

    @property
    def in_channels(self) -> int:
        return self.depthwise.in_channels

    @property
    def out_channels(self) -> int:
        return self.pointwise.out_channels

    @property
    def rank(self) -> int:
        """Depthwise kernels for each input channel."""
        return self.depthwise.out_channels // self.depthwise.in_channels

    @property
    def bias(self) -> bool:
        return self.pointwise.bias is not None

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(self.depthwise(x))


@exact()
def decouple(
    network: nn.Module,
    rank: int | None = None,
    *,
    macs: float | None = None,
    example: Tensor | None = None,
    layers: Sequence[str] | None = None,
) -> Shrunk:
    """A copy of `network` whose k×k convolutions (k > 1, groups 1) are `Decoupled`, with all channels kept.

    `rank` pairs replace each convolution, at most k² or its outputs (more are never needed). With `macs` instead, a
    share of the network's multiply-adds on the prepared `example` [B, …], each layer gets its own rank: those pairs
    first that keep the most energy for their cost. The first convolution stays, as it has few channels to
    share kernels among, unless `layers` (names, or patterns such as "layer3.*") names it. Raises `UserError` for a
    rank or share out of range, unknown layers, and where there is nothing to decouple.

    >>> decouple(network, rank=2).network[2].depthwise.weight.shape
    torch.Size([16, 1, 3, 3])
    """
    if (rank is None) == (macs is None):
        raise UserError(
            f"decouple got rank = {shown(rank)} and macs = {shown(macs)}; expected one: give rank=… or macs=…."
        )
    every = [name for name, module in network.named_modules() if isinstance(module, nn.Conv2d)]
    able = decouplable(network)
    chosen = [name for name in able if name != every[0]] if layers is None else matching(layers, able, network)
    if not chosen:
        raise UserError(
            "there is nothing to decouple; expected convolutions larger than 1×1 that are not grouped and not the "
            "first: use how='l1', or name the layers."
        )
    factors = {name: _factors(network.get_submodule(name)) for name in chosen}  # type: ignore[arg-type]
    most = max(len(values[1]) for values in factors.values())
    if rank is not None:
        if type(rank) is not int or not 1 <= rank <= most:
            raise UserError(f"the rank is {shown(rank)}; expected a whole number from 1 to {most}: change rank=….")
        ranks = {name: min(rank, len(values[1])) for name, values in factors.items()}
    else:
        ranks = _ranks_for(network, macs, example, factors)
    changed = copy_network(network)
    for name, count in ranks.items():
        changed.set_submodule(name, _pair(network.get_submodule(name), factors[name], count))
    let_learn(changed)
    kept = kept_whole(network)
    kept |= {f"{name}.pointwise": kept[name] for name in ranks}  # by which one who shrinks it again knows them
    return Shrunk(changed, kept)


def decouplable(network: nn.Module) -> list[str]:
    """The names of the convolutions that can be decoupled."""
    return [
        name
        for name, module in network.named_modules()
        if type(module) is nn.Conv2d
        and module.groups == 1
        and math.prod(module.kernel_size) > 1
        and "weight" in module._parameters  # not computed on each call, as by `weight_norm`
    ]


def _factors(conv: nn.Conv2d) -> tuple[Tensor, Tensor, Tensor]:
    """Pointwise columns [in, out, n] with the singular values in them, energies [n], kernels [in, n, k²]; float64."""
    kernels = conv.weight.detach().double().flatten(2).transpose(0, 1)  # [in, out, k²]
    u, s, v = torch.linalg.svd(kernels, full_matrices=False)
    return u * s.unsqueeze(1), s.square().sum(0), v


def _pair(conv: Any, factors: tuple[Tensor, Tensor, Tensor], rank: int) -> Decoupled:
    pair = Decoupled.shaped(conv, conv.in_channels, conv.out_channels, rank, conv.bias is not None)
    columns, _, kernels = factors
    # both weights share a scale: a pair is free in it, and one-sided weights are hard to train and to quantise
    scale = columns[..., :rank].norm(dim=1).clamp_min(1e-30).sqrt()  # [in, rank]
    with torch.no_grad():
        pair.depthwise.weight.copy_((kernels[:, :rank] * scale.unsqueeze(-1)).reshape(pair.depthwise.weight.shape))
        pointwise = (columns[..., :rank] / scale.unsqueeze(1)).permute(1, 0, 2)  # [out, in, rank]
        pair.pointwise.weight.copy_(pointwise.reshape(pair.pointwise.weight.shape))
        if conv.bias is not None:
            pair.pointwise.bias.copy_(conv.bias)  # type: ignore[union-attr]
    pair.train(conv.training)
    return pair


def _ranks_for(
    network: nn.Module, share: float | None, example: Tensor | None, factors: dict[str, tuple[Tensor, Tensor, Tensor]]
) -> dict[str, int]:
    """A rank for each layer; those are left out that would cost as much decoupled as they do now."""
    if not isinstance(share, int | float) or not 0 < share < 1:
        raise UserError(f"macs is {shown(share)}; expected a share above 0 and below 1: change macs=….")
    if example is None:
        raise UserError("decouple with macs got no example; expected a batch to count multiply-adds on: give example.")
    total, layers = profile(network, example)
    layers = {name: macs for name, macs in layers.items() if name in factors}
    costs, gains = {}, []
    for name, macs in layers.items():
        conv: Any = network.get_submodule(name)
        window = math.prod(conv.kernel_size)
        costs[name] = macs * (window + conv.out_channels) / (window * conv.out_channels)  # of one pair
        energies = factors[name][1]
        share_of = energies / energies.sum().clamp_min(1e-30)
        gains += [(float(share_of[n]) / costs[name], name, n + 1) for n in range(1, len(energies))]
    left = total * share - (total - sum(layers.values()) + sum(costs.values()))
    if left < 0:
        least = (total - sum(layers.values()) + sum(costs.values())) / total
        raise UserError(
            f"macs = {share:g} is out of reach of decoupling; expected at least {least:.2f}, which rank 1 in "
            "every layer gives: raise macs=… or use how='l1'."
        )
    ranks = dict.fromkeys(layers, 1)
    for _, name, rank in sorted(gains, reverse=True):
        if ranks[name] == rank - 1 and costs[name] <= left:
            ranks[name], left = rank, left - costs[name]
    return {name: rank for name, rank in ranks.items() if rank * costs[name] < layers[name]}
