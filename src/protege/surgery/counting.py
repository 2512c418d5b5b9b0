"""How big a network is: parameters and multiply-adds, of all and of each layer."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ..torch_utils import eval_mode
from .layers import LAYERS, outputs_of


def count_parameters(network: nn.Module) -> int:
    """The number of parameter values, shared ones once; buffers do not count."""
    return sum(parameter.numel() for parameter in network.parameters())


def count_macs(network: nn.Module, example_input: Tensor) -> int:
    """Multiply-adds of the convolutions, linear and recurrent layers and attention products for one sample.

    `example_input` [B, …] is what `forward` takes, on the network's device; only its first sample is run, in
    eval mode and without gradients. Modes, buffers and gradients are left as they were.
    """
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.mkldnn_rnn_layer: _recurrence})
    # the fused kernels of some devices have no count; the plain ones are made of counted products
    with eval_mode(network), torch.no_grad(), _without_cudnn(), sdpa_kernel(SDPBackend.MATH), counter:
        network(example_input[:1])
    return counter.get_total_flops() // 2


@contextmanager
def _without_cudnn() -> Iterator[None]:
    """The switch alone: `torch.backends.cudnn.flags` would set all others as well."""
    before = torch.backends.cudnn.enabled
    torch.backends.cudnn.enabled = False
    try:
        yield
    finally:
        torch.backends.cudnn.enabled = before


def _recurrence(inputs, w_ih, w_hh, *_args, out_shape=None, **_others) -> int:
    """Operations of one layer of oneDNN's LSTM, from the shapes of its inputs [L, B, I] and weights."""
    return 2 * math.prod(inputs[:2]) * (math.prod(w_ih) + math.prod(w_hh))


def profile(network: nn.Module, example: Tensor) -> tuple[int, dict[str, int]]:
    """`count_macs`, and those of each of `LAYERS` by name."""
    names = {module: name for name, module in network.named_modules() if isinstance(module, LAYERS)}
    layers: dict[str, int] = {}

    def note(layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        transposed = getattr(layer, "transposed", False)
        places = inputs[0].numel() // layer.in_channels if transposed else output.numel() // outputs_of(layer)
        layers[names[layer]] = layers.get(names[layer], 0) + places * layer.weight.numel()

    hooks = [module.register_forward_hook(note) for module in names]
    try:
        return count_macs(network, example), layers
    finally:
        for hook in hooks:
            hook.remove()
