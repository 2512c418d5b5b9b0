"""How big a network is: parameters and multiply-adds."""

import math

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ..torch_utils import eval_mode


def count_parameters(network: nn.Module) -> int:
    """The number of parameter values, shared ones once; buffers do not count."""
    return sum(parameter.numel() for parameter in network.parameters())


def _recurrence(inputs, w_ih, w_hh, *_args, out_shape=None, **_others) -> int:
    """Operations of one layer of oneDNN's LSTM, from the shapes of its inputs [L, B, I] and weights."""
    return 2 * math.prod(inputs[:2]) * (math.prod(w_ih) + math.prod(w_hh))


def count_macs(network: nn.Module, example_input: Tensor) -> int:
    """Multiply-adds of the convolutions, linear and recurrent layers and attention products for one sample.

    `example_input` [B, …] is what `forward` takes, on the network's device; only its first sample is run, in
    eval mode and without gradients. Modes, buffers and gradients are left as they were.
    """
    with eval_mode(network):
        counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.mkldnn_rnn_layer: _recurrence})
        # the fused kernels of some devices have no count; the plain ones are made of counted products
        plain = torch.backends.cudnn.flags(enabled=False)
        with torch.no_grad(), plain, sdpa_kernel(SDPBackend.MATH), counter:
            network(example_input[:1])
        return counter.get_total_flops() // 2
