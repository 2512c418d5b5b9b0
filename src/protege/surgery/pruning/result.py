"""What every way of shrinking shares: its result, and choosing layers by name."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from torch import nn

from ...errors import UserError, nearest, shown
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
    """A smaller network, for each layer by name which of the original's output channels it still has, in order, the
    layers that could not be pruned, and how many heads, channels of residual streams and hidden channels there were and
    are (before, after) among those that could be chosen, where there are any."""

    network: nn.Module = field(repr=False)
    kept: dict[str, list[int]] = field(repr=False)
    left_out: tuple[LeftOut, ...] = ()
    parts: dict[str, tuple[int, int]] = field(default_factory=dict)


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
                f"a layer is named {shown(pattern)}; expected the text of a name or pattern, such as 'layer3.*'."
            )
        fitting = [name for name in able if fnmatchcase(name, pattern)]
        if not fitting:
            if pattern in dict(network.named_modules()):
                raise UserError(
                    f"the layer {pattern!r} cannot be shrunk so (it gives the outputs, or its channels are fixed); "
                    f"expected some of {_some(able)}: name others."
                )
            raise UserError(f"there is no layer {pattern!r}; {nearest(pattern, able, f'expected {_some(able)}')}.")
        chosen += [name for name in fitting if name not in chosen]
    return chosen


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "") if names else "none"
