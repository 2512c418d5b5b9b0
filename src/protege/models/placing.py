"""Where a network's weights lie: on which device and in which memory layout."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeGuard
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils.hooks import RemovableHandle

from ..torch_utils import device_of


def place(network: nn.Module, device: torch.device) -> None:
    """Move a network to the device, its image weights channels-last."""
    network.to(device)
    if getattr(network, "layout", "channels_last") == "channels_last":  # else it works on contiguous images only
        channels_last(network)


def leave(network: nn.Module) -> Callable[[], None]:
    """Move a network to the processor until it, or a module in it, is called, or what is returned here: then it goes
    back to its device."""
    device, hooks = device_of(network), list[RemovableHandle]()

    def come_back(*_: object) -> None:
        if hooks:
            place(network, device)
        while hooks:
            hooks.pop().remove()

    hooks += [module.register_forward_pre_hook(come_back, prepend=True) for module in network.modules()]
    network.to("cpu")
    return come_back


def channels_last(network: nn.Module) -> None:
    """Lay image weights so that their channels are neighbours, as convolutions are fastest."""
    if not any(p.dim() == 5 for p in network.parameters()):  # torch refuses volumes in this layout
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for module in network.modules():
        if not any(p.device.type == "cpu" for p in module.parameters(recurse=False)):
            continue
        # any width: a narrow network may run on slices of a wide one's weights; None: they come with each call
        if _strided_pointwise(module) and module.weight is not None:
            module.weight.data = module.weight.detach().clone(memory_format=torch.contiguous_format)
        fragile = _strided_pointwise(module) and module.in_channels < 8 * module.groups
        if (fragile or isinstance(module, nn.GroupNorm)) and module not in _SPARED:
            _SPARED.add(module)
            module.register_forward_pre_hook(_spare)


def is_channels_last(network: nn.Module) -> bool:
    """Whether image weights lie as `channels_last` lays them. Their strides tell: a single channel or pixel lies both
    ways, but not to every kernel."""
    for weight in network.parameters():
        if weight.dim() == 4 and weight.numel():
            _, c, h, w = weight.shape
            if weight.stride() == (h * w * c, 1, w * c, c) != (c * h * w, h * w, w, 1):
                return True
    return False


def make_writable(network: nn.Module) -> None:
    """Replace by equal ordinary ones weights and buffers made under `torch.inference_mode`, which autograd refuses, and
    expanded ones, whose numbers lie in one place and cannot be loaded."""
    made: dict[int, Tensor] = {}  # what was tied stays tied
    for module in network.modules():
        for name, value in (*module._parameters.items(), *module._buffers.items()):
            if value is None or is_lazy(value):
                continue
            steps = zip(value.stride(), value.shape, strict=True) if value.layout == torch.strided else ()
            if not value.is_inference() and not any(step == 0 and size > 1 for step, size in steps):
                continue
            if id(value) not in made:
                with torch.inference_mode(False):
                    fresh = value.detach().clone()
                    learns = isinstance(value, nn.Parameter)
                    made[id(value)] = nn.Parameter(fresh, value.requires_grad) if learns else fresh
            setattr(module, name, made[id(value)])


_SPARED: WeakSet[nn.Module] = WeakSet()


def _spare(module: nn.Module, inputs: tuple) -> tuple:
    """Contiguous images where torch 2.13 fails on a CPU: for fragile convolutions, and for GroupNorm on images that
    need no gradient, whose backward pass is a segmentation fault."""
    return tuple(x if isinstance(module, nn.GroupNorm) and x.requires_grad else x.contiguous() for x in inputs)


def _strided_pointwise(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    """The layers in whose backward pass oneDNN writes beyond its memory on channels-last images or weights (torch 2.13
    on CPU, 2 to 6 input channels, as thin or pruned residual networks have them)."""
    return isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and max(module.stride) > 1
