"""Modes: eval mode for a while, and what a network's own ``train()`` makes of it."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def eval_mode(*networks: nn.Module) -> Iterator[None]:
    """Inside, the networks are in eval mode; afterwards each of their modules is in the mode that it was in before."""
    training = [module for network in networks for module in network.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def trained_by(network: nn.Module) -> set[nn.Module]:
    """The modules that are in training mode after the network's ``train()``, in which its author may hold some (such as
    BatchNorm) in eval mode. Modes are left as they were."""
    before = [(module, module.training) for module in network.modules()]
    network.train()
    learning = {module for module, _ in before if module.training}
    for module, training in before:
        module.training = training
    return learning
