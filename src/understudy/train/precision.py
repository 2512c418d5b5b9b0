"""In which precision networks run."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

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
