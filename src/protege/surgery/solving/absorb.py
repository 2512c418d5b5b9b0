"""Absorbing a 1×1 layer into the layer before it (FSKD, arXiv 1812.01839, section 3): nothing is added to the network.

A matrix Q behind a convolution or a linear layer, ``y' = y·Q + c``, becomes part of its weight, ``W' = Q∘W`` and
``b' = Q∘b + c``. Where a BatchNorm stands between them (Q then sees the norm's output, before the nonlinearity), Q is
carried through it: the norm stays, and so do all names and shapes of the state dict. Beyond the paper, `folded` and
`settle` change the whole kernel in the same way.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..layers import SOLVABLE


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


def patches(layer: nn.Module, inputs: Tensor, room: int) -> Iterator[Tensor]:
    """What the layer's weight is multiplied with: rows ``[M, blocks·n]``, a row for each of its outputs' places.

    ``inputs`` are a batch as the layer takes it; n is the elements of the weight for one output channel, in its order.
    Rows come in parts of about ``room`` values.
    """
    if isinstance(layer, nn.Linear):
        rows = inputs.flatten(0, -2)
        yield from rows.split(max(1, room // rows.shape[1]))
        return
    assert isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    dims, pads = len(layer.kernel_size), list[int]()
    reach = [dilation * (size - 1) for size, dilation in zip(layer.kernel_size, layer.dilation, strict=True)]
    for dim in reversed(range(dims)):  # F.pad begins with the last
        if isinstance(layer.padding, str):
            total = reach[dim] if layer.padding == "same" else 0
            pads += [total // 2, total - total // 2]
        else:
            pads += 2 * [layer.padding[dim]]
    windows = F.pad(inputs, pads, "constant" if layer.padding_mode == "zeros" else layer.padding_mode)
    for dim in range(dims):
        windows = windows.unfold(2 + dim, reach[dim] + 1, layer.stride[dim])[..., :: layer.dilation[dim]]
    windows = windows.movedim(1, 1 + dims)  # [N, places, C, kernel], a view
    line = windows[0, 0].numel()
    for chunk in windows.split(max(1, room // (line * windows.shape[1]))):
        for part in chunk.split(max(1, room // line) if len(chunk) == 1 else windows.shape[1], dim=1):
            yield part.flatten(1 + dims).flatten(0, dims)


def folded(layer: nn.Module, norm: nn.Module | None) -> tuple[Tensor, Tensor]:
    """Weight and constant of the layer and the norm behind it as one, in eval mode and in float64.

    The weight is ``[blocks, n, m]``, input first: ``patches(layer, x)`` times it, plus the constant ``[blocks·m]``, is
    the norm's output.
    """
    assert isinstance(layer, SOLVABLE)
    old, bias = layer.weight, layer.bias
    weight = old.detach().double().reshape(blocks_of(layer), len(old) // blocks_of(layer), -1)
    constant = weight.new_zeros(len(old)) if bias is None else bias.detach().double()
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
    layer: nn.Module,
    norm: Any,
    weight: Tensor,
    constant: Tensor,
    statistics: tuple[Tensor, Tensor],
) -> None:
    """Make layer and norm compute this weight and constant (see `folded`), in eval mode.

    ``statistics`` are mean and variance (each ``[blocks·m]``) of what they then yield: the norm's running statistics
    become those of what it really gets, so that training can go on from there. No shape changes.
    """
    assert isinstance(layer, SOLVABLE)
    layer.weight.copy_(weight.mT.reshape(layer.weight.shape))
    if norm is None:
        if layer.bias is not None:
            layer.bias.copy_(constant)
        return
    if layer.bias is not None:
        layer.bias.zero_()
    if norm.weight is None:  # without γ and β the statistics are all there is to set
        norm.running_var.fill_(1 - norm.eps)
        norm.running_mean.copy_(-constant)
        return
    norm.running_mean.copy_(statistics[0].to(constant) - constant)
    norm.running_var.copy_(statistics[1].to(constant).clamp(min=0))
    # From what was stored, not from what was meant: rounding must not show in the output.
    norm.weight.copy_((norm.running_var.double() + norm.eps).sqrt())
    norm.bias.copy_(norm.running_mean.double() + constant)


def absorb(
    layer: nn.Module,
    q: Tensor,
    intercept: Tensor | None = None,
    norm: nn.Module | None = None,
    statistics: tuple[Tensor, Tensor] | None = None,
) -> None:
    """Change ``layer`` (and the ``norm`` behind it) so that their output ``y`` becomes ``y·Q + c``, in eval mode.

    ``q`` is ``[blocks, m, m]``, input channel first, with `blocks_of` the layer times m its output channels;
    ``intercept`` is ``[blocks·m]``. ``statistics`` are mean and variance (each ``[blocks·m]``) of the new output,
    where they are known (see `settle`). Otherwise they are carried over as if the channels were uncorrelated. Either
    way the output is exact. Raises ValueError for a q of another shape and for an intercept that has no place.

    >>> layer, rows, q = nn.Linear(3, 2), torch.randn(5, 3), torch.randn(1, 2, 2)
    >>> expected = layer(rows) @ q[0]
    >>> absorb(layer, q)
    >>> torch.allclose(layer(rows), expected, atol=1e-6)
    True
    """
    if not isinstance(layer, SOLVABLE) or type(layer) not in SOLVABLE:
        raise ValueError(f"a {type(layer).__name__} cannot absorb a 1×1 layer")
    blocks, channels = blocks_of(layer), len(layer.weight)
    if q.shape != (blocks, channels // blocks, channels // blocks):
        raise ValueError(f"q has shape {list(q.shape)}, but the layer has {channels} outputs in {blocks} groups")
    if intercept is not None and not has_intercept(layer, norm):
        raise ValueError("there is no bias and no norm to take an intercept")
    q = q.to(layer.weight.device, torch.float64)

    def mix(value: Tensor, by: Tensor = q) -> Tensor:
        return torch.einsum("bi,bio->bo", value.reshape(blocks, -1), by).flatten()

    weight, constant = folded(layer, norm)
    c = torch.zeros_like(constant) if intercept is None else intercept.to(constant)
    if statistics is None:
        _, variance, beta, scale = _of_norm(norm) if norm is not None else [torch.zeros_like(c)] * 4
        statistics = mix(beta) + c, mix(scale**2 * variance, q**2)
    settle(layer, norm, weight @ q, mix(constant) + c, statistics)
