"""The layers whose channels surgery counts, cuts and solves for."""

from typing import Any

from torch import nn

SOLVABLE = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)  # a matrix behind it can become part of its weight
LAYERS = (*SOLVABLE, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)  # it can lose channels


def outputs_of(layer: Any) -> int:
    """The output channels of one of `LAYERS`."""
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels


def inputs_of(layer: Any) -> int:
    """The input channels of one of `LAYERS`."""
    return layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
