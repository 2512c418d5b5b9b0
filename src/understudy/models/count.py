"""How big a network is: parameters and multiply-adds."""

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def count_parameters(network: nn.Module) -> int:
    """The number of parameter values, shared ones once; buffers do not count."""
    return sum(parameter.numel() for parameter in network.parameters())


def count_macs(network: nn.Module, example_input: Tensor) -> int:
    """Multiply-adds of the convolutions, linear layers and attention products for one sample.

    `example_input` [B, …] is what `forward` takes, on the network's device; only its first sample is run, in
    eval mode and without gradients. Modes, buffers and gradients are left as they were.
    """
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        counter = FlopCounterMode(display=False)
        # the fused attention kernels of some devices have no count; the plain one is made of counted products
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
            network(example_input[:1])
        return counter.get_total_flops() // 2
    finally:
        for module, training in modes:
            module.training = training
