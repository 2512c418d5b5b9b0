"""The layers whose channels surgery counts, cuts and solves for."""

from typing import Any

from torch import Tensor, nn

SOLVABLE = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)  # a matrix behind it can become part of its weight
LAYERS = (*SOLVABLE, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)  # it can lose channels


def outputs_of(layer: Any) -> int:
    """The output channels of one of `LAYERS`."""
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels


def inputs_of(layer: Any) -> int:
    """The input channels of one of `LAYERS`."""
    return layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels


def let_learn(network: nn.Module) -> None:
    """Let all weights learn: those of a frozen network must be recovered, too, once it is smaller."""
    for parameter in network.parameters():
        parameter.requires_grad_(parameter.is_floating_point() or parameter.is_complex())
        parameter.grad = None


def put(network: nn.Module, name: str, tensor: Tensor) -> None:
    """Set a parameter or buffer by its name."""
    path, _, key = name.rpartition(".")
    setattr(network.get_submodule(path), key, tensor)
