"""Absorbing a 1×1 layer into the layer before it (FSKD, arXiv 1812.01839, section 3): nothing is added to the network.

A matrix Q behind a convolution or a linear layer, ``y' = y·Q + c``, becomes part of its weight, ``W' = Q∘W`` and
``b' = Q∘b + c``. Where a BatchNorm stands between them (Q then sees the norm's output, before the nonlinearity), Q is
carried through it: the norm stays, and so do all names and shapes of the state dict. Beyond the paper, `folded` and
`settle` change the whole kernel in the same way.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .linear import Linear, mixed, of_module


def fixed(norm: nn.Module) -> bool:
    """Whether the norm, in eval mode, may be a fixed scale and shift: a BatchNorm with running statistics."""
    return isinstance(norm, _BatchNorm) and norm.running_mean is not None and norm.running_var is not None


def scaled(norm: nn.Module, value: Tensor) -> Tensor:
    """A value ``[N, C, …]`` in the scale and shift of a norm: what one that does nothing else makes of it."""
    mean, _, beta, scale = _of_norm(norm)
    view = (-1, *[1] * (value.dim() - 2))
    return scale.view(view) * (value - mean.view(view)) + beta.view(view)


def folded(layer: Linear, norm: nn.Module | None) -> tuple[Tensor, Tensor]:
    """Weight and constant of the layer and the norm behind it as one, in eval mode and in float64.

    The weight is ``[blocks, n, m]``, input first: ``patches(layer, x)`` times it, plus the constant ``[blocks·m]``, is
    the norm's output.
    """
    old = layer.weight.read().detach().double().movedim(layer.side, 0)
    weight = old.reshape(layer.blocks, layer.channels // layer.blocks, -1)
    constant = weight.new_zeros(len(old)) if layer.bias is None else layer.bias.read().detach().double().flatten()
    if norm is not None:
        mean, _, beta, scale = _of_norm(norm)
        weight, constant = scale.view(*weight.shape[:2], 1) * weight, scale * (constant - mean) + beta
    return weight.mT, constant


def _of_norm(norm: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean, variance, β and scale of a BatchNorm, in float64."""
    mean, variance = norm.running_mean.double(), norm.running_var.double()
    gamma = torch.ones_like(mean) if norm.weight is None else norm.weight.detach().double()
    beta = torch.zeros_like(mean) if norm.bias is None else norm.bias.detach().double()
    return mean, variance, beta, gamma / (variance + norm.eps).sqrt()


@torch.no_grad()
def settle(
    layer: Linear,
    norm: Any,
    weight: Tensor,
    constant: Tensor,
    statistics: tuple[Tensor, Tensor],
) -> None:
    """Make layer and norm compute this weight and constant (see `folded`), in eval mode.

    ``statistics`` are mean and variance (each ``[blocks·m]``) of what they then yield: the norm's running statistics
    become those of what it really gets, so that training can go on from there. No shape changes.
    """
    assert layer.set_weight is not None
    shape = layer.weight.value.movedim(layer.side, 0).shape
    layer.set_weight.put(weight.mT.reshape(shape).movedim(0, layer.side))
    if layer.bias is not None and layer.set_bias is not None:
        new = constant if norm is None else torch.zeros_like(constant)
        layer.set_bias.put(new.view(layer.bias.value.shape))
    if norm is None:
        return
    if norm.weight is None:  # without γ and β the statistics are all there is to set
        norm.running_var.fill_(1 - norm.eps)
        norm.running_mean.copy_(-constant)
        return
    norm.running_mean.copy_(statistics[0].to(constant) - constant)
    norm.running_var.copy_(statistics[1].to(constant).clamp(min=0))
    # From what was stored, not from what was meant: rounding must not show in the output.
    norm.weight.copy_((norm.running_var.double() + norm.eps).sqrt())
    norm.bias.copy_(norm.running_mean.double() + constant)


def has_intercept(layer: Linear, norm: nn.Module | None) -> bool:
    """Whether there is a place for ``c``: a norm, or the layer's bias."""
    return norm is not None or layer.set_bias is not None


def absorb(
    layer: nn.Module | Linear,
    q: Tensor,
    intercept: Tensor | None = None,
    norm: nn.Module | None = None,
    statistics: tuple[Tensor, Tensor] | None = None,
) -> None:
    """Change ``layer`` (and the ``norm`` behind it) so that their output ``y`` becomes ``y·Q + c``, in eval mode.

    ``q`` is ``[blocks, m, m]``, input channel first: a block for each group of a convolution, and blocks times m its
    output channels; ``intercept`` is ``[blocks·m]``. A bias that cannot be set takes no part: ``y`` is then what is
    added to it. ``statistics`` are mean and variance (each ``[blocks·m]``) of the new output, where they are known (see
    `settle`). Otherwise they are carried over as if the channels were uncorrelated. Either way the output is exact.
    Raises ValueError for a q of another shape, for an intercept that has no place and for a layer that is not plain.

    >>> layer, rows, q = nn.Linear(3, 2), torch.randn(5, 3), torch.randn(1, 2, 2)
    >>> expected = layer(rows) @ q[0]
    >>> absorb(layer, q)
    >>> torch.allclose(layer(rows), expected, atol=1e-6)
    True
    """
    if isinstance(layer, nn.Module):
        layer = of_module(layer)
    blocks, channels = layer.blocks, layer.channels
    if q.shape != (blocks, channels // blocks, channels // blocks):
        raise ValueError(f"q has shape {list(q.shape)}, but the layer has {channels} outputs in {blocks} groups")
    if intercept is not None and not has_intercept(layer, norm):
        raise ValueError("there is no bias and no norm to take an intercept")
    q = q.to(layer.weight.value.device, torch.float64)
    weight, constant = folded(layer, norm)
    c = torch.zeros_like(constant) if intercept is None else intercept.to(constant)
    if statistics is None:
        _, variance, beta, scale = _of_norm(norm) if norm is not None else [torch.zeros_like(c)] * 4
        statistics = mixed(beta, q, 0) + c, mixed(scale**2 * variance, q**2, 0)
    fixed_bias = layer.bias is not None and layer.set_bias is None
    settle(layer, norm, weight @ q, constant if fixed_bias else mixed(constant, q, 0) + c, statistics)
