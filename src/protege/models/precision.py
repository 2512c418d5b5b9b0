"""In which precision networks run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn

from ..numerics import exact, is_exact
from ..torch_utils import copy_network, without_autocast


def on_cpu() -> bool:
    """Whether runs go on the processor: there is no accelerator, or only Apple's, which has no float64."""
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return device is None or device.type == "mps"


def autocast_for(precision: str, device: torch.device) -> Callable[[], AbstractContextManager]:
    """The context in which networks run at this precision (``bf16`` or ``fp32``, which is not TF32). What runs backward
    outside of it has to be inside of `exact` as well."""
    if precision == "bf16":
        return lambda: torch.autocast(device.type, torch.bfloat16)
    return lambda: nullcontext() if is_exact() else exact()


@contextmanager
def single_precision(device: torch.device) -> Iterator[None]:
    """Inside, networks run in float32 on the device, whatever surrounds it: no autocast, no TF32."""
    with without_autocast(device), exact():
        yield


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


def cast_once(network: nn.Module, kind: torch.dtype) -> nn.Module:
    """A copy of a network whose convolutions and linear layers have their weights in the precision to which autocast
    casts them in each pass. It need not do the same: weights may be used elsewhere."""
    copy = copy_network(network)
    for module in copy.modules():
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.to(kind)
    return copy
