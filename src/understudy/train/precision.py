"""In which precision networks run."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TypeGuard
from weakref import WeakSet

import torch
from torch import nn


def autocast_for(precision: str, device: torch.device) -> Callable[[], AbstractContextManager]:
    """The context in which networks run at this precision (``bf16`` or ``fp32``)."""
    if precision == "bf16":
        return lambda: torch.autocast(device.type, torch.bfloat16)
    return nullcontext


def resolve_precision(precision: str, device: torch.device) -> str:
    """``auto`` is bf16 where the processor computes in it natively, else fp32: emulated bf16 is far slower."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    native = any(
        getattr(torch.cpu, name, lambda: False)() for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )
    return "bf16" if native and device.type == "cpu" else "fp32"


def place(network: nn.Module, device: torch.device) -> None:
    """Move a network to the device, its image weights channels-last."""
    network.to(device)
    if getattr(network, "layout", "channels_last") != "channels_last":
        return  # a network that works on contiguous images only
    if not any(p.dim() == 5 for p in network.parameters()):  # torch refuses volumes in this layout
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if device.type == "cpu":
        for module in network.modules():
            if _fragile(module):
                module.weight.data = module.weight.detach().clone(memory_format=torch.contiguous_format)
                if module not in _SPARED:
                    _SPARED.add(module)
                    module.register_forward_pre_hook(lambda _module, inputs: tuple(x.contiguous() for x in inputs))


_SPARED: WeakSet[nn.Module] = WeakSet()


def _fragile(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether oneDNN writes beyond its memory in this layer's backward pass on channels-last images (torch 2.13 on
    CPU, 2 to 6 input channels, as thin or pruned residual networks have them)."""
    return (
        isinstance(module, nn.Conv2d)
        and module.kernel_size == (1, 1)
        and max(module.stride) > 1
        and module.in_channels < 8 * module.groups
    )
