"""Absorbing a 1×1 layer into the layer before it (FSKD, arXiv 1812.01839, section 3): nothing is added to the network.

A matrix Q behind a convolution or a linear layer, ``y' = y·Q + c``, becomes part of its weight, ``W' = Q∘W`` and
``b' = Q∘b + c``. Where a BatchNorm stands between them (Q then sees the norm's output, before the nonlinearity), Q is
carried through it: the norm stays, and so do all names and shapes of the state dict.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def blocks_of(layer: nn.Module) -> int:
    """Blocks on the diagonal of a Q that the layer can absorb: 1 is a full matrix, one a channel a mere scale.

    The groups of a convolution read different inputs, so outputs mix within a group only.
    """
    return int(getattr(layer, "groups", 1))


def fixed(norm: nn.Module) -> bool:
    """Whether the norm, in eval mode, is a fixed scale and shift: a BatchNorm with running statistics."""
    return isinstance(norm, _BatchNorm) and norm.running_mean is not None and norm.running_var is not None


def has_intercept(layer: nn.Module, norm: nn.Module | None) -> bool:
    """Whether there is a place for ``c``: a norm, or the layer's own bias."""
    return norm is not None or getattr(layer, "bias", None) is not None


@torch.no_grad()
def absorb(
    layer: nn.Module,
    q: Tensor,
    intercept: Tensor | None = None,
    norm: nn.Module | None = None,
    statistics: tuple[Tensor, Tensor] | None = None,
) -> None:
    """Change ``layer`` (and the ``norm`` behind it) so that their output ``y`` becomes ``y·Q + c``, in eval mode.

    ``q`` is ``[blocks, n, n]``, input channel first, with `blocks_of` the layer times n its output channels;
    ``intercept`` is ``[blocks·n]``. ``statistics`` are mean and variance (each ``[blocks·n]``) of the new output,
    where they are known: the norm's running statistics become those of what it really gets, so that training can go
    on from there. Otherwise they are carried over as if the channels were uncorrelated. Either way the output is
    exact. Raises ValueError for a q of another shape and for an intercept that has no place.
    """
    if not isinstance(layer, LAYERS) or type(layer) not in LAYERS:
        raise ValueError(f"a {type(layer).__name__} cannot absorb a 1×1 layer")
    old_weight, old_bias = layer.weight, layer.bias
    blocks, channels = blocks_of(layer), len(old_weight)
    if q.shape != (blocks, channels // blocks, channels // blocks):
        raise ValueError(f"q has shape {list(q.shape)}, but the layer has {channels} outputs in {blocks} groups")
    q = q.to(old_weight.device, torch.float64)

    def mix(value: Tensor) -> Tensor:
        """Q applied to the output channels, the first dimension."""
        return torch.einsum("bio,bik->bok", q, value.reshape(blocks, channels // blocks, -1)).reshape(value.shape)

    weight = old_weight.double()
    bias = weight.new_zeros(channels) if old_bias is None else old_bias.double()
    c = torch.zeros_like(bias) if intercept is None else intercept.to(bias)
    if norm is None:
        if old_bias is None and intercept is not None:
            raise ValueError("there is no bias and no norm to take an intercept")
        old_weight.copy_(mix(weight))
        if old_bias is not None:
            old_bias.copy_(mix(bias) + c)
        return

    assert isinstance(norm, _BatchNorm)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    mean, variance = norm.running_mean.double(), norm.running_var.double()
    gamma = torch.ones_like(mean) if norm.weight is None else norm.weight.double()
    beta = torch.zeros_like(mean) if norm.bias is None else norm.bias.double()
    scale = gamma / (variance + norm.eps).sqrt()
    # The layer yields z' = Q∘(scale·z); what is still missing to y·Q + c is a constant, which the norm adds.
    old_weight.copy_(mix(scale.view(-1, *[1] * (weight.dim() - 1)) * weight))
    if old_bias is not None:
        old_bias.copy_(mix(scale * bias))
    constant = mix(beta - scale * mean) + c
    if norm.weight is None:  # without γ and β the statistics are all there is to set
        norm.running_var.fill_(1 - norm.eps)
        norm.running_mean.copy_(-constant)
        return
    if statistics is None:
        new_mean = mix(scale * mean)
        spread = torch.einsum("bio,bi->bo", q**2, (scale**2 * variance).reshape(blocks, -1)).flatten()
    else:
        new_mean, spread = statistics[0].to(constant) - constant, statistics[1].to(constant).clamp(min=0)
    norm.running_mean.copy_(new_mean)
    norm.running_var.copy_(spread)
    # From what was stored, not from what was meant: rounding must not show in the output.
    norm.weight.copy_((norm.running_var.double() + norm.eps).sqrt())
    norm.bias.copy_(norm.running_mean.double() + constant)
