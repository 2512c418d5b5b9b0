"""What a run of a network shows of its channels: which are tied, where they lie, and what counts them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from torch import Tensor, nn

from ..layers import LAYERS
from ..nests import leaves
from ..tracing.calls import VIEWS, view_sizes
from ..tracing.watch import Frame
from .probe import NOTHING, Replay
from .removal import Site, kind_of
from .sizes import Number
from .ties import Tags, Ties, along, lined, varying


@dataclass
class Known:
    """A tensor with the channels it has, and, of one moved from a parameter, which elements of that it holds."""

    tensor: Tensor  # kept, so that its id stays its own
    tags: list[Tags] = field(default_factory=list)  # on dimensions of their own each
    parameter: str | None = None
    moved: np.ndarray | None = None  # its elements, where it is not the parameter as it is

    @cached_property
    def elements(self) -> np.ndarray | None:
        """Which of the parameter's elements it holds."""
        if self.moved is not None or self.parameter is None:
            return self.moved
        return np.arange(self.tensor.numel()).reshape(tuple(self.tensor.shape))


@dataclass(frozen=True)
class Split:
    """A dimension that was split into those along which ``tags`` vary, with the ``sizes`` in the code, if any."""

    tags: Tags
    sizes: list[Any]


class Channels:
    """All that is known of a network's channels. After the run, `sites` says which channels lie where."""

    def __init__(self, network: nn.Module) -> None:
        self.ties = Ties()
        self.modules = dict(network.named_modules())
        self.names: dict[int, list[str]] = {}  # of parameters and buffers
        self.tensors: dict[str, Tensor] = {}  # by the first of their names
        for path, module in self.modules.items():
            for key, tensor in [*module._parameters.items(), *module._buffers.items()]:
                if tensor is not None and not isinstance(tensor, nn.parameter.UninitializedParameter):
                    names = self.names.setdefault(id(tensor), [])
                    names.append(f"{path}.{key}".lstrip("."))
                    self.tensors.setdefault(names[0], tensor)
        self.stack: list[Frame] = []  # the modules that run
        self.known: dict[int, Known] = {}
        self.channels: dict[tuple[str, int], Tags] = {}  # of a parameter's dimension
        self.norms: dict[str, Tags] = {}  # of a module that has as many in as out
        self.read: dict[str, Tags] = {}  # of a recurrent layer's input
        self.makers: dict[str, tuple[str, int]] = {}  # module that begins channels: its weight, and their dimension
        self.counts: dict[tuple[str, int], tuple[Tags, int]] = {}  # attribute: tags, and the dimension it counts
        self.totals: dict[tuple[str, int], Tags] = {}  # attribute that seems to count all channels that are split
        self.passing: list[tuple[str, Tags]] = []  # module that does not mix them: they go on in its outputs
        self.splits: list[Split] = []
        self.heads: list[Tags] = []  # of attentions

    @property
    def path(self) -> str:
        """The module that runs."""
        return self.stack[-1].name

    def place(self, func: Any = None) -> str:
        """Where in the code the network is, as the beginning of a reason."""
        place = str(self.stack[-1])
        return place if func is None else f"{place} calls {getattr(func, '__name__', func)}, which"

    def look(self, tensor: Tensor) -> Known:
        """What is known of a tensor: of what no call has given yet, at most that it is a parameter."""
        if id(tensor) in self.known:
            return self.known[id(tensor)]
        for name in self.names.get(id(tensor), [])[:1]:
            return Known(tensor, [], name)
        return Known(tensor)

    # ---- parameters --------------------------------------------------------------------------------------------------

    def of(self, name: str, dim: int) -> Tags:
        """The channels of a parameter's dimension, [size]."""
        if (name, dim) not in self.channels:
            self.channels[name, dim] = self.ties.fresh(self.tensors[name].shape[dim])
        return self.channels[name, dim]

    def dimension(self, name: str, elements: np.ndarray) -> tuple[int, np.ndarray] | None:
        """Along which of its dimensions a parameter's ``elements`` [n, …] go, and the n positions there."""
        shape = tuple(self.tensors[name].shape)
        used = elements != NOTHING
        places = np.unravel_index(np.where(used, elements, 0), shape) if shape else ()
        for dim in reversed(range(len(shape))):
            low = np.where(used, places[dim], shape[dim]).min(1)
            high = np.where(used, places[dim], -1).max(1)
            if (low == high).all() and len(np.unique(low)) > 1:
                return dim, low
        return None

    def cut(self, name: str, elements: np.ndarray, channels: Tags) -> None:
        """Tie a parameter's dimension to channels [n]: ``elements`` [n, …] are the parameter's that lie there."""
        lying = self.dimension(name, elements)
        if lying is not None:
            self.ties.tie(self.of(name, lying[0])[lying[1]], channels)
        else:
            self.ties.fix(channels, f"the parameter {name!r} has none of its own for them")

    def begun(self, name: str, elements: np.ndarray, plain: set[int]) -> list[Tags]:
        """A parameter's channels along the dimensions of a result that are its alone."""
        begun = []
        for dim in range(elements.ndim):
            if dim in plain or elements.shape[dim] < 2:
                continue
            lying = self.dimension(name, np.moveaxis(elements, dim, 0).reshape(elements.shape[dim], -1))
            if lying is not None:
                begun.append(along(self.of(name, lying[0])[lying[1]], dim, elements.ndim))
        return begun

    # ---- numbers -----------------------------------------------------------------------------------------------------

    def sizes_in(self, call: Replay, dims: int) -> list[Any]:
        """The sizes that a view asks for; [] of any other call."""
        sizes = view_sizes(call.func, call.args[0], call.args[1:], call.kwargs) if call.func in VIEWS else []
        return sizes if len(sizes) == dims else []

    def note_count(self, call: Replay, tags: Tags, shape: Sequence[int], operands: list[Known]) -> None:
        """Note the attributes among a call's numbers that count the channels of a result or an operand."""
        sizes = self.sizes_in(call, tags.ndim)
        for dim in varying(tags) if sizes else ():
            number = sizes[dim]
            if not isinstance(number, Number) or number != shape[dim]:
                continue
            if number.place:
                self.counts.setdefault(number.place, (tags, dim))
            elif number.channels is not None and not number.made and len(varying(tags)) == 1:
                self.as_many(lined(tags, dim), number.channels)
        for number in [] if sizes else _attributes_in(call):
            lying = [(tags, shape), *((t, known.tensor.shape) for known in operands for t in known.tags)]
            for channels, extents in lying:
                for dim in reversed(varying(channels)):
                    if extents[dim] == number:
                        self.counts.setdefault(number.place, (channels, dim))

    def note_view(self, call: Replay, name: str, elements: np.ndarray) -> None:
        """Note the attributes by which a parameter is viewed."""
        for dim, number in enumerate(self.sizes_in(call, elements.ndim)):
            if isinstance(number, Number) and number.place and number == elements.shape[dim]:
                lying = self.dimension(name, np.moveaxis(elements, dim, 0).reshape(elements.shape[dim], -1))
                if lying is not None and len(lying[1]) == self.tensors[name].shape[lying[0]]:
                    self.counts.setdefault(number.place, (self.of(name, lying[0]), 0))

    def note_totals(self, tags: Tags) -> None:
        """Note the attributes of the module that runs that are as large as the channels that were split."""
        for value in vars(self.modules[self.path]).values():
            if isinstance(value, Number) and value.place and value == tags.size:
                self.totals.setdefault(value.place, tags)

    def as_many(self, channels: Tags, others: Tags) -> None:
        """Channels that must stay as many as others, as the code takes these for their number."""
        if not np.array_equal(np.sort(self.ties.classes(channels)), np.sort(self.ties.classes(others))):
            self.ties.tie(channels, others)

    def settle(self, split: Split) -> None:
        """Let split channels go along one dimension only: where none is given yet, one whose size in the code follows
        them, or else the largest."""
        tags = self.ties.settled(split.tags)
        if tags is None:
            return
        numbers = {dim: split.sizes[dim] for dim in varying(split.tags) if split.sizes}

        def preference(dim: int) -> tuple[bool, bool, int]:
            number = numbers.get(dim)
            follows = number == -1 or getattr(number, "channels", None) is not None
            return follows, isinstance(number, Number), shape[dim]

        shape = tags.shape
        kept = max(varying(tags), key=preference)
        tags = self.ties.tie_along(tags, [dim for dim in varying(tags) if dim != kept])
        for dim, number in numbers.items():
            size = tags.shape[kept]
            if dim == kept or not isinstance(number, Number) or number.channels is None:
                continue
            if len(number.channels) == size * number:  # computed from other channels, which must stay as many
                table = number.channels.reshape(size, -1) if kept < dim else number.channels.reshape(-1, size).T
                self.ties.tie_along(table, [1])
                self.ties.tie(table[:, 0], lined(tags, kept))

    # ---- what lies where ---------------------------------------------------------------------------------------------

    def sites(self) -> dict[Site, Tags]:
        """The channel at each position of each site."""
        lying: list[tuple[Site, Tags]] = []
        for (name, dim), channels in self.channels.items():
            for alias in self.names[id(self.tensors[name])]:
                lying += self.site(alias, dim, channels)
        lying += [(Site(path, "both"), channels) for path, channels in self.norms.items()]
        lying += [(Site(path, "in"), channels) for path, channels in self.read.items()]
        sites: dict[Site, Tags] = {}
        for site, channels in lying:
            if site in sites:
                self.ties.tie(sites[site], channels)
            else:
                sites[site] = channels
        for split in self.splits:
            self.settle(split)
        for place, (tags, dim) in self.counts.items():
            settled = self.ties.settled(tags)
            if settled is not None and varying(settled) == (dim,):
                sites[Site(place[0], "number", place[1])] = lined(settled, dim)
        for path, tags in self.passing:
            settled = self.ties.settled(tags)
            if path and settled is not None and len(varying(settled)) == 1:
                (dim,) = varying(settled)
                sites[Site(path, "through", dim - settled.ndim)] = lined(settled, dim)
        for place, tags in self.totals.items():
            if place not in self.counts:
                sites[Site(place[0], "number", place[1])] = tags.reshape(-1)
        return {site: self.ties.classes(channels) for site, channels in sites.items()}

    def site(self, name: str, dim: int, channels: Tags) -> list[tuple[Site, Tags]]:
        """Where in the network the channels of a parameter's dimension lie."""
        path, _, leaf = name.rpartition(".")
        module: Any = self.modules[path]
        kind = kind_of(module)
        if kind is None or leaf not in ("weight", "bias"):
            return [(Site(name, "parameter", dim), channels)]
        if isinstance(module, nn.Embedding):
            if dim == 1:
                return [(Site(path, "out"), channels)]
            self.ties.fix(channels, f"{path!r} has one for each token")
            return []
        if not isinstance(module, LAYERS):
            return [(Site(path, "both"), channels)] if "both" in kind.sides else []
        if dim > 1:
            self.ties.fix(channels, f"{path!r} has a place of its kernel for each")
            return []
        transposed, groups = getattr(module, "transposed", False), getattr(module, "groups", 1)
        if groups > 1 and groups == module.in_channels and (groups == module.out_channels or not transposed):
            return [(Site(path, "both"), channels)] if dim == 0 else []
        if dim == 1 and leaf == "weight":
            channels = np.tile(channels, groups)
        return [(Site(path, "out" if leaf == "bias" or (dim == 0) != transposed else "in"), channels)]


def varies(array: np.ndarray, dim: int) -> bool:
    """Whether neighbours along a dimension differ, where both are anything."""
    a = array.take(range(1, array.shape[dim]), dim)
    b = array.take(range(array.shape[dim] - 1), dim)
    return bool(((a != b) & (a >= 0) & (b >= 0)).any())


def _attributes_in(call: Replay) -> list[Any]:
    """The numbers of a call that are attributes of modules."""
    return [leaf for leaf in leaves((call.args, call.kwargs)) if getattr(leaf, "place", None)]
