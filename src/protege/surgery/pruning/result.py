"""What every way of shrinking shares: its result, choosing layers by name, and counting multiply-adds by layer."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ...errors import UserError, nearest
from ...torch_utils import eval_mode
from ..layers import LAYERS, outputs_of


@dataclass(frozen=True)
class LeftOut:
    """Layers whose channels are tied, or one alone, that stay whole, and why (the end of a sentence)."""

    layers: tuple[str, ...]
    why: str

    def __str__(self) -> str:
        more = f" and {len(self.layers) - 3} more" if len(self.layers) > 3 else ""
        return f"{', '.join(map(repr, self.layers[:3]))}{more} ({self.why})"


def together(left_out: Sequence[LeftOut]) -> list[LeftOut]:
    """The same with one entry for each reason."""
    layers: dict[str, list[str]] = {}
    for part in left_out:
        layers.setdefault(part.why, []).extend(part.layers)
    return [LeftOut(tuple(dict.fromkeys(names)), why) for why, names in layers.items()]


@dataclass(frozen=True)
class Shrunk:
    """A smaller network, for each layer by name which of the original's output channels it still has, in order, and
    the layers that could not be pruned."""

    network: nn.Module = field(repr=False)
    kept: dict[str, list[int]] = field(repr=False)
    left_out: tuple[LeftOut, ...] = ()


def kept_whole(network: nn.Module) -> dict[str, list[int]]:
    """All output channels of every convolution and linear layer, by the layer's name."""
    return {name: list(range(outputs_of(m))) for name, m in network.named_modules() if isinstance(m, LAYERS)}


def compose(first: dict[str, list[int]], second: dict[str, list[int]]) -> dict[str, list[int]]:
    """What two shrinkings in a row kept, in the channels of the network before both.

    >>> compose({"0": [0, 2, 5]}, {"0": [1, 2]})
    {'0': [2, 5]}
    """
    return {
        name: [first[name][channel] for channel in channels] if name in first else channels
        for name, channels in second.items()
        if name in first or not any(name.startswith(f"{owner}.") for owner in first)
    }


def matching(patterns: Sequence[str], able: Sequence[str], network: nn.Module) -> list[str]:
    """The names in `able` that fit any of the patterns (`fnmatch`'s); `UserError` for one that fits none."""
    if isinstance(patterns, str):
        patterns = [patterns]
    chosen: list[str] = []
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise UserError(
                f"a layer is named {pattern!r}; expected the text of a name or pattern, such as 'layer3.*'."
            )
        fitting = [name for name in able if fnmatchcase(name, pattern)]
        if not fitting:
            raise _no_such(pattern, able, dict(network.named_modules()))
        chosen += [name for name in fitting if name not in chosen]
    return chosen


def _no_such(pattern: str, able: Sequence[str], modules: Iterable[str]) -> UserError:
    if pattern in modules:
        return UserError(
            f"the layer {pattern!r} cannot be shrunk so (it gives the outputs, or its channels are fixed); expected "
            f"some of {_some(able)}: name others."
        )
    return UserError(f"there is no layer {pattern!r}; {nearest(pattern, able, f'expected {_some(able)}')}.")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "") if names else "none"


def profile(network: nn.Module, example: Tensor) -> tuple[int, dict[str, int]]:
    """Multiply-adds for one sample of the prepared `example`: of the whole network, and of each layer by name."""
    names = {module: name for name, module in network.named_modules() if isinstance(module, LAYERS)}
    layers: dict[str, int] = {}

    def note(layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        places = inputs[0].numel() // layer.in_channels if getattr(layer, "transposed", False) else None
        places = output.numel() // outputs_of(layer) if places is None else places
        layers[names[layer]] = layers.get(names[layer], 0) + places * layer.weight.numel()

    hooks = [module.register_forward_hook(note) for module in names]
    counter = FlopCounterMode(display=False)
    try:
        with eval_mode(network), torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
            network(example[:1])
    finally:
        for hook in hooks:
            hook.remove()
    return counter.get_total_flops() // 2, layers
