"""How many channels a network that does not say it takes: found by running it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from ..outputs import refuse_odd
from ..torch_utils import copy_network, device_of, is_unmade, own_dtype, untouched
from .inputs import InputSpec
from .model import Model


def channels_taken(
    network: nn.Module, shape: tuple[int, ...], classes: int, spec_for: Callable[[int], InputSpec]
) -> int:
    """With how many channels a network runs on images of ``shape`` (channels, height, width).

    As many as the images have are tried first, and others only where the network fails on those, or answers with
    another number of samples: what its convolutions take, in order. Of several that run, one that gives ``classes``
    outputs is preferred. Weights, buffers and modes stay as they are; a network with lazy layers is copied.
    """
    ran: list[int] = []
    for channels in _candidates(network, shape[0]):
        given = _outputs_given(network, spec_for(channels), shape)
        if given == classes or (given is not None and not classes):
            return channels
        ran += [channels] if given is not None else []
    return ran[0] if ran else next(_candidates(network, shape[0]))


def _candidates(network: nn.Module, own: int) -> Iterator[int]:
    """Channels that images of ``own`` channels can be given with: grey as any number, colour as grey."""
    wanted = [module.in_channels for module in network.modules() if isinstance(module, nn.Conv2d)]
    for channels in dict.fromkeys([own, *wanted, 3, 1]):
        if channels > 0 and (own in (1, channels) or (own, channels) == (3, 1)):
            yield channels


def _outputs_given(network: nn.Module, spec: InputSpec, shape: tuple[int, ...]) -> int | None:
    """The size of the class dimension on two blank images; None where the network fails or mixes samples."""
    lazy = is_unmade(network)
    raw = torch.zeros((2, *shape), dtype=torch.uint8, device=device_of(network))
    for dtype in (torch.float32, None if lazy else own_dtype(network)):
        if dtype is None:
            continue
        try:
            model = Model(copy_network(network) if lazy else network, spec)
            model.dtype = dtype
            model.layout = "contiguous"
            with untouched(model.network):
                outputs = model(raw)
            if isinstance(outputs, Tensor):
                refuse_odd(outputs, "it")
        except Exception:
            continue
        sane = isinstance(outputs, Tensor) and outputs.dim() > 1 and len(outputs) == 2
        return outputs.shape[1] if sane else None
    return None
