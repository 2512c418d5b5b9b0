"""A pruned network against the original whose removed channels are zero, by what lies in their weights alone.

Which channels are left is not asked of the package: every tensor of the pruned network is looked for in the original's
by its values. The original is then run with zeros for all that is not there. Norms over channels see fewer of them, so
the pruned network's own stand there, on the channels that are left.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

LOOKED_AT = 256  # values by which a slice is found; of as many as large layers have, some are the same


def slices(part: Tensor, whole: Tensor, dim: int) -> Tensor:
    """Which slices of ``whole`` along ``dim`` those of ``part`` were cut out of, by their values."""
    if part.shape[dim] == whole.shape[dim]:
        return torch.arange(whole.shape[dim])
    values, order = whole.flatten().sort()
    wanted = part.movedim(dim, 0).reshape(part.shape[dim], -1)[:, :LOOKED_AT]
    where = order[torch.searchsorted(values, wanted.contiguous()).clamp(max=len(values) - 1)]
    return torch.unravel_index(where, whole.shape)[dim].mode(1).values


def left(part: Tensor, whole: Tensor, groups: int = 1) -> Tensor:
    """A mask of the elements of ``whole`` that ``part`` consists of, in its shape.

    Each of ``groups`` of rows is cut in its own way, as in a convolution in groups. Raises `ValueError` where it is no
    such part."""
    mask = torch.zeros(whole.shape, dtype=torch.bool)
    rows = slices(part, whole, 0) if part.dim() else torch.arange(0)
    for some in torch.arange(len(part)).chunk(groups):
        block = part[some]
        index = [rows[some], *(slices(block, whole[rows[some]], dim) for dim in range(1, part.dim()))]
        at = torch.meshgrid(*index, indexing="ij")
        if not torch.equal(whole[at], block):
            raise ValueError(f"weights {list(part.shape)} are no part of the original's {list(whole.shape)}")
        mask[at] = True
    return mask


class _Left(nn.Module):
    """A pruned norm in the place of the original: on the channels that are left, with zeros for the others."""

    def __init__(self, norm: nn.Module, channels: Tensor, dim: int) -> None:
        super().__init__()
        self.norm, self.channels, self.dim = norm, channels, dim

    def forward(self, x: Tensor, *rest: object, **named: object) -> Tensor:
        some = self.norm(x.index_select(self.dim, self.channels), *rest, **named)
        return torch.zeros_like(x).index_copy(self.dim, self.channels, some)


def shapes(network: nn.Module, x: Tensor) -> dict[str, torch.Size]:
    """The shape of what each module is given first."""
    seen: dict[str, torch.Size] = {}

    def look(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, given: tuple[object, ...]) -> None:
            if given and isinstance(given[0], Tensor):
                seen.setdefault(name, given[0].shape)

        return hook

    hooks = [module.register_forward_pre_hook(look(name)) for name, module in network.named_modules()]
    with torch.no_grad():
        network.eval()(x.clone())
    for hook in hooks:
        hook.remove()
    return seen


def zeroed(original: nn.Module, pruned: nn.Module, x: Tensor) -> nn.Module:
    """A copy of the original that has zeros for what the pruned network has not; both run on ``x``.

    Raises `ValueError` where the pruned network's weights are not the original's."""
    network, smaller = copy.deepcopy(original), dict(pruned.named_modules())
    seen, before = shapes(pruned, x), shapes(original, x)
    with torch.no_grad():
        for name, module in list(network.named_modules()):
            masks: dict[str, Tensor] = {}
            tensors = {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}
            for key in sorted(tensors, key=lambda key: -tensors[key].dim()):  # rows of a matrix differ most
                whole, part = tensors[key], getattr(smaller[name], key, None)
                if not isinstance(part, Tensor) or part.shape == whole.shape:
                    continue
                groups = getattr(smaller[name], "groups", 1) if part.shape[1:2] != (1,) else 1
                alike = (mask.flatten(1).any(1) if mask.dim() > 1 else mask for mask in masks.values())
                alike = (mask for mask in alike if mask.shape == whole.shape and torch.equal(whole[mask], part))
                mask = next(alike, None)
                masks[key] = left(part, whole, groups if part.dim() > 1 else 1) if mask is None else mask
                whole.mul_(masks[key])
            kind = type(module).__name__.lower()
            if masks and "norm" in kind and "batch" not in kind and name in seen:
                (mask, *_) = masks.values()
                dim = next(n for n, (a, b) in enumerate(zip(seen[name], before[name], strict=True)) if a != b)
                owner, _, key = name.rpartition(".")
                norm = _Left(smaller[name], mask.flatten().nonzero().flatten(), dim)
                setattr(network.get_submodule(owner), key, norm)
    return network.eval()
