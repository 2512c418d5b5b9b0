"""For which image size a network was made, where it is made for one: asked of the network itself, by trying."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from ..torch_utils import device_of, is_unmade, seeded, untouched

Size = tuple[int, int]
NAMED = re.compile(r"(img|image|input).*(size|resolution)")
LEAST = 4  # pixels: a smaller number counts something else


def fitting_size(network: nn.Module, channels: int, sizes: Iterable[Size]) -> Size | None:
    """The first of the sizes that the network runs at; None where it runs at none, or may not be run yet."""
    if is_unmade(network):  # the first size would be its size for good
        return None
    return next((size for size in dict.fromkeys(sizes) if _runs(network, channels, size)), None)


def own_sizes(network: nn.Module) -> list[Size]:
    """The image sizes, (height, width), that attributes of the network's modules or of its `config` name, the outermost
    module's first."""
    found = [size for module in network.modules() for size in _named_in(vars(module))]
    config = getattr(network, "config", None)
    found += _named_in(vars(config)) if hasattr(config, "__dict__") else []
    return list(dict.fromkeys(found))


def _named_in(values: Mapping[str, Any]) -> Iterator[Size]:
    for name, value in values.items():
        if NAMED.search(name):
            pair = (value, value) if type(value) is int else tuple(value) if isinstance(value, tuple | list) else ()
            pair = pair[-2:]
            if len(pair) == 2 and all(type(side) is int and side >= LEAST for side in pair):
                yield pair


def _runs(network: nn.Module, channels: int, size: Size) -> bool:
    example = torch.zeros((2, channels, *size), device=device_of(network))
    try:
        with untouched(network), seeded():
            network(example)
    except Exception:  # of whatever kind a network fails with on images of another size
        return False
    return True
