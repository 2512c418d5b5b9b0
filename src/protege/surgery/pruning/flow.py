"""Which channels of which weights go together: found by running a network once and watching the calls it makes.

Weights begin channels: each output of a convolution, linear layer or embedding is one. Where they go from there is
seen call by call (`probe`): what moves numbers moves their channels; what computes ties the channels that meet at one
place (a residual sum, a gate), and those that are summed over with the same places of another operand (queries and
keys). A dimension that is split (in heads, in the groups of a shuffle) can only shrink along one of its parts: along
which, the calls that follow tell, or else the largest. Whatever this overlooks is found by the `law`.

Numbers in the code that must follow (``self.num_heads``) are known by who holds them: while the network runs, whole
numbers among a module's attributes remember whose they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ...torch_utils import logits_in, seeded
from ..layers import LAYERS
from ..widening.copies import VIEWS, leaves, map_leaves, view_sizes
from .probe import FAILURES, NOTHING, Call, Flow
from .removal import Site, kind_of
from .sizes import Number, knowing
from .ties import FIXED, Tags, Ties, aligned, along, lined, merged, varying

CONVOLUTIONS = (torch.conv1d, torch.conv2d, torch.conv3d)
TRANSPOSED = (torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d)
PRODUCTS = (torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.mm, Tensor.mm)
RECURRENT = (torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu)
BY_CHANNEL = (F.batch_norm, torch.batch_norm, F.instance_norm, torch.instance_norm, F.group_norm, torch.prelu, F.prelu)
BY_LAST = (F.layer_norm, torch.layer_norm, F.rms_norm, torch.rms_norm)
SIZES = (Tensor.shape.__get__, Tensor.size)  # type: ignore[attr-defined]
OUTPUTS = "it gives the outputs"


@dataclass
class Known:
    """A tensor with the channels it has, and, of one moved from a parameter, which elements of that it holds."""

    tensor: Tensor  # kept, so that its id stays its own
    tags: list[Tags] = field(default_factory=list)  # on dimensions of their own each
    parameter: str | None = None
    elements: np.ndarray | None = None


@dataclass(frozen=True)
class Split:
    """A dimension that was split into those along which ``tags`` vary, with the ``sizes`` in the code, if any."""

    tags: Tags
    sizes: list[Any]


class Watch(TorchFunctionMode):
    """Watches a network in eval mode. After `run`, `sites` says which channels lie where."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.ties = network, Ties()
        self.modules = dict(network.named_modules())
        self.names: dict[int, list[str]] = {}  # of parameters and buffers
        self.tensors: dict[str, Tensor] = {}  # by the first of their names
        for path, module in self.modules.items():
            for key, tensor in [*module._parameters.items(), *module._buffers.items()]:
                if tensor is not None and not isinstance(tensor, nn.parameter.UninitializedParameter):
                    names = self.names.setdefault(id(tensor), [])
                    names.append(f"{path}.{key}".lstrip("."))
                    self.tensors.setdefault(names[0], tensor)
        self.channels: dict[tuple[str, int], Tags] = {}  # of a parameter's dimension
        self.norms: dict[str, Tags] = {}  # of a module that has as many in as out
        self.read: dict[str, Tags] = {}  # of a recurrent layer's input
        self.makers: dict[
            str, tuple[str, int]
        ] = {}  # of a module that begins channels: its weight, and their dimension
        self.counts: dict[tuple[str, int], tuple[Tags, int]] = {}  # of an attribute: tags, and the dimension it counts
        self.totals: dict[tuple[str, int], Tags] = {}  # of one that seems to count all channels that are split
        self.passing: list[
            tuple[str, Tags]
        ] = []  # what modules do not mix: their outputs have them on other dimensions
        self.splits: list[Split] = []
        self.heads: list[Tags] = []
        self.stack: list[str] = [""]
        self.known: dict[int, Known] = {}

    def run(self, example: Tensor) -> None:
        with torch.no_grad(), seeded(), knowing(self.network), self._entered(), self:
            outputs = self.network(example)
        for tensor in leaves(logits_in(outputs), Tensor):
            for tags in self._look(tensor).tags:
                self.ties.fix(tags, OUTPUTS)
        for _ in range(2):  # one may tie what another splits
            for split in self.splits:
                self._settle(split)

    @contextmanager
    def _entered(self) -> Iterator[None]:
        hooks = []
        for name, module in self.modules.items():

            def enter(_module: nn.Module, _args: Any, name: str = name) -> None:
                self.stack.append(name)

            def leave(_module: nn.Module, _args: Any, _output: Any) -> None:
                self.stack.pop()

            hooks += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
        fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
            for hook in hooks:
                hook.remove()

    def _place(self, func: Any = None) -> str:
        """Where in the code the network is, as the beginning of a reason."""
        name = self.stack[-1]
        kind = type(self.modules[name]).__name__
        place = f"{name!r} ({kind})" if name else f"{kind}.forward"
        return place if func is None else f"{place} calls {getattr(func, '__name__', func)}, which"

    # ---- every call --------------------------------------------------------------------------------------------------

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        call = Call(func, args, kwargs)
        out = func(*args, **kwargs)
        if func in SIZES and isinstance(args[0], Tensor):
            return self._counted(args[0], out, args, kwargs)
        results = leaves(args[0] if out is None and args else out, Tensor)
        if results and any(tensor.is_floating_point() for tensor in results):
            operands = [self._look(tensor) for tensor in call.operands]
            for tensor, known in zip(results, self._known(call, results, operands), strict=True):
                known.tensor = tensor
                self.known[id(tensor)] = known
        return out

    def _counted(self, tensor: Tensor, out: Any, args: tuple, kwargs: dict) -> Any:
        """A tensor's sizes, which know the channels that they count."""
        sizes: list[Any] = list(tensor.shape)
        for tags in self.known[id(tensor)].tags if id(tensor) in self.known else []:
            settled = self.ties.settled(tags)
            if settled is not None and len(varying(settled)) == 1:
                (dim,) = varying(settled)
                sizes[dim] = Number.of(sizes[dim], channels=lined(settled, dim))
        if isinstance(out, int):
            return sizes[args[1] if len(args) > 1 else kwargs["dim"]]
        return torch.Size(sizes)

    def _look(self, tensor: Tensor) -> Known:
        if id(tensor) in self.known:
            return self.known[id(tensor)]
        for name in self.names.get(id(tensor), [])[:1]:
            return Known(tensor, [], name, np.arange(tensor.numel()).reshape(tuple(tensor.shape)))
        return Known(tensor)

    def _known(self, call: Call, results: list[Tensor], operands: list[Known]) -> list[Known]:
        for known in operands:
            known.tags = [tags for tags in map(self.ties.settled, known.tags) if tags is not None]
        func, args, kwargs = call.func, call.args, call.kwargs
        if func is F.multi_head_attention_forward:
            return self._attention(args, kwargs, results)
        if func in RECURRENT:
            return self._recurrent(operands[0], results)
        if func in BY_CHANNEL or func in BY_LAST:
            return [self._norm(func, args, kwargs, operands[0])]
        if weighted := self._weight_of(func, args, kwargs):
            return [self._weighted(**weighted)]
        if not any(known.tags or known.parameter for known in operands):
            return [Known(tensor) for tensor in results]
        if len(results) == 1 and call.elementwise(results[0]):
            if len(operands) == 1:
                return [Known(results[0], operands[0].tags, operands[0].parameter, operands[0].elements)]
            shape = results[0].shape
            tags = [aligned(tags, len(shape)) for known in operands for tags in known.tags]
            parameters, plain = [], []
            for known in operands:
                sizes = (1,) * (len(shape) - known.tensor.dim()) + tuple(known.tensor.shape)
                if known.elements is not None and known.parameter:
                    parameters.append((known.parameter, np.broadcast_to(known.elements, tuple(shape))))
                else:
                    tagged = {dim for t in known.tags for dim in varying(aligned(t, len(shape)))}
                    plain.append({dim for dim, size in enumerate(sizes) if size > 1} - tagged)
            return [self._joined(call, tags, parameters, plain)]
        if (sources := call.moved()) is not None:
            return self._all_moved(call, operands, sources)
        if not any(known.tags for known in operands):
            return [Known(tensor) for tensor in results]
        return self._computed(call, results, operands)

    # ---- weights -----------------------------------------------------------------------------------------------------

    def _of(self, name: str, dim: int) -> Tags:
        """The channels of a parameter's dimension, [size]."""
        if (name, dim) not in self.channels:
            self.channels[name, dim] = self.ties.fresh(self.tensors[name].shape[dim])
        return self.channels[name, dim]

    def _weight_of(self, func: Any, args: tuple, kwargs: dict) -> dict[str, Any] | None:
        """Where a call multiplies by a parameter: its parts; None for any other call."""

        def part(position: int, name: str) -> Any:
            return args[position] if len(args) > position else kwargs.get(name)

        bias, groups, channel = None, 1, -1
        if func is F.linear or func in CONVOLUTIONS or func in TRANSPOSED:
            x, weight, bias = part(0, "input"), part(1, "weight"), part(2, "bias")
            out, into = (1, 0) if func in TRANSPOSED else (0, 1)
            if func is not F.linear:
                groups, channel = int(part(6, "groups") or 1), -weight.dim() + 1
        elif func is F.embedding:
            x, weight, out, into = part(0, "input"), part(1, "weight"), 1, None
        elif func is torch.addmm:
            bias, x, weight, out, into = part(0, "input"), part(1, "mat1"), part(2, "mat2"), 1, 0
        elif func in PRODUCTS and isinstance(args[1], Tensor) and args[1].dim() == 2:
            x, weight, out, into = args[0], args[1], 1, 0
        else:
            return None
        known = self._look(weight)
        name = known.parameter or self._computed_from(weight)
        if name is None:
            return None
        shape = tuple(self.tensors[name].shape)
        if known.elements is not None:
            plain = np.arange(known.tensor.numel()).reshape(shape)
            if weight.dim() == 2 and into is not None and np.array_equal(known.elements, plain.T):
                out, into = into, out
            elif not np.array_equal(known.elements, plain):
                return None
        elif shape != tuple(weight.shape):
            return None
        return {"x": self._look(x), "name": name, "bias": bias, "out": out, "into": into, "groups": groups, "channel": channel,
                "dims": x.dim() + (into is None), "computed": known.parameter is None}  # fmt: skip

    def _computed_from(self, weight: Tensor) -> str | None:
        """The one parameter of a weight's shape in the module that is running."""
        prefix = self.stack[-1] + "." if self.stack[-1] else ""
        names = [n for n, p in self.tensors.items() if n.startswith(prefix) and p.shape == weight.shape]
        return names[0] if len(names) == 1 else None

    def _weighted(
        self,
        *,
        x: Known,
        name: str,
        bias: Any,
        out: int,
        into: int | None,
        groups: int,
        channel: int,
        dims: int,
        computed: bool,
    ) -> Known:
        self.makers.setdefault(name.rpartition(".")[0], (name, out))
        leaving = self._of(name, out)
        place, at = self._place(), channel % dims
        passing, entering = [], None
        for tags in x.tags if into is not None else []:
            if channel != -1 and at in varying(tags):
                tags = self.ties.tie_along(tags, [dim for dim in varying(tags) if dim > at])
            places = varying(tags)
            if at in places and len(places) > 1:
                tags = self.ties.tie_along(tags, [at])
                passing.append(tags)
            elif at in places:
                entering = lined(tags, at)
            elif channel == -1 or places == (0,):
                passing.append(tags)
            else:
                self.ties.fix(tags, f"{place} sums over neighbouring ones")
        if computed and into is not None:
            self.ties.fix(self._of(name, into), f"{place} computes its weight from all of it")
        if into is None:
            passing = [tags.reshape(*tags.shape, 1) for tags in x.tags]
        elif groups == 1:
            reading = self._of(name, into)
            self._enter(reading, entering, place)
        else:
            leaving = self._grouped(name, out, into, entering, groups, x.tensor.shape[at], place)
        self._biased(bias, leaving)
        for tags in passing:
            self.passing.append((self.stack[-1], tags))
        return Known(x.tensor, [*passing, along(leaving, at, dims)])

    def _biased(self, bias: Any, leaving: Tags) -> None:
        if not isinstance(bias, Tensor):
            return
        known = self._look(bias)
        for tags in known.tags:
            self.ties.tie(tags.reshape(-1), leaving)
        if known.parameter and known.elements is not None:
            self.ties.tie(self._of(known.parameter, 0)[known.elements.reshape(-1)], leaving)

    def _enter(self, reading: Tags, entering: Tags | None, place: str) -> None:
        if entering is None:
            self.ties.fix(reading, f"{place} reads what is no channel")
        else:
            self.ties.tie(reading, entering)

    def _grouped(
        self, name: str, out: int, into: int, entering: Tags | None, groups: int, inputs: int, place: str
    ) -> Tags:
        """The channels that leave a layer in groups: of a depthwise one each goes with the one it reads; else the same
        places of all groups go together."""
        weight, transposed = self.tensors[name], out == 1
        if inputs == groups == (groups * weight.shape[1] if transposed else len(weight)):
            leaving = self._of(name, 0)
            self._enter(leaving, entering, place)
            return leaving
        leaving, reading = (
            np.tile(channels, groups) if dim == 1 else channels
            for dim, channels in ((out, self._of(name, out)), (into, self._of(name, into)))
        )
        self._enter(reading, entering, place)
        for channels in (leaving, reading):
            self.ties.tie_along(channels.reshape(groups, -1), [0])
        return leaving

    def _attention(self, args: tuple, kwargs: dict, results: list[Tensor]) -> list[Known]:
        """`nn.MultiheadAttention` has one width outside and inside: heads go whole, with as much of what is read."""
        heads, joint, joint_bias, out, out_bias = (args[n] for n in (4, 5, 6, 11, 12))
        place, path = self._place(), self.stack[-1]
        read = [self._look(operand) for operand in args[:3]]
        weights = [self._look(w).parameter if isinstance(w, Tensor) else None for w in (joint, out)]
        entering = [next((lined(t, t.ndim - 1) for t in k.tags if varying(t) == (t.ndim - 1,)), None) for k in read]
        leaving = self._of(weights[1], 0) if weights[1] else None
        if weights[0] is None or leaving is None or args[7] is not None or path not in self.modules:
            for tags in [tags for known in read for tags in known.tags]:
                self.ties.fix(tags, f"{place} is an attention of another kind")
            return [Known(x, [along(leaving, -1, x.dim())] if n == 0 and leaving is not None else [])
                    for n, x in enumerate(results)]  # fmt: skip
        self.makers.setdefault(weights[1].rpartition(".")[0], (weights[1], 0))
        width = self._of(weights[0], 1)
        by_head = width.reshape(heads, -1)
        self.ties.tie_along(by_head, [1])
        for channels in entering:
            self._enter(width, channels, place)
        inside = self._of(weights[0], 0).reshape(3, heads, -1)
        for part in (inside[0], inside[1], inside[2], self._of(weights[1], 1).reshape(heads, -1)):
            self.ties.tie(part, by_head)
        self._biased(joint_bias, inside.reshape(-1))
        self._biased(out_bias, leaving)
        self.heads.append(width)
        self.counts |= {(f"{path}.{key}".lstrip("."), 0): (width, 0) for key in ("embed_dim", "kdim", "vdim")}
        self.counts[f"{path}.num_heads".lstrip("."), 0] = by_head, 0
        return [Known(x, [along(leaving, -1, x.dim())] if n == 0 else []) for n, x in enumerate(results)]

    def _recurrent(self, x: Known, results: list[Tensor]) -> list[Known]:
        path = self.stack[-1]
        module = self.modules[path]
        for tags in x.tags:
            last = varying(tags) == (tags.ndim - 1,)
            if isinstance(module, nn.LSTM) and last:
                self.ties.tie(self.read.setdefault(path, self.ties.fresh(tags.size)), tags.reshape(-1))
            else:
                self.ties.fix(tags, f"{path!r} is a {type(module).__name__}, which cannot be pruned")
        return [Known(tensor) for tensor in results]

    def _norm(self, func: Any, args: tuple, kwargs: dict, x: Known) -> Known:
        """What scales each channel: norms, which mix them or do not, and PReLU."""
        dims = x.tensor.dim()
        path, place = self.stack[-1], self._place()
        if func in BY_LAST:
            shape = args[1] if len(args) > 1 else kwargs["normalized_shape"]
            at, wide = dims - 1, len(leaves(list(shape), int)) if not isinstance(shape, int) else 1
        else:
            at, wide = min(1, dims - 1), 1
        scaled = [tensor for tensor in leaves((args[1:], kwargs), Tensor) if tensor.numel() == x.tensor.shape[at]]
        channels = self._scaled(path, scaled, x.tensor.shape[at])
        kept, entered = [], False
        for tags in x.tags:
            places = varying(tags)
            if at in places and len(places) > 1:
                tags = self.ties.tie_along(tags, [at])
            elif at in places:
                entered = True
                for part in channels:
                    self.ties.tie(part, lined(tags, at))
            if wide > 1 and set(varying(tags)) & set(range(dims - wide, dims)):
                self.ties.fix(tags, f"{place} normalises several dimensions")
            kept.append(tags)
        groups = self.modules[path].num_groups if isinstance(self.modules[path], nn.GroupNorm) else 1
        if func in (F.group_norm, torch.group_norm):
            groups = args[1] if len(args) > 1 else kwargs["num_groups"]
        for tags in kept if groups > 1 and entered else []:
            if varying(tags) == (at,):
                self.ties.tie_along(lined(tags, at).reshape(int(groups), -1), [0])
        if not entered:
            for part in channels:
                self.ties.fix(part, f"{place} reads what is no channel")
        return Known(x.tensor, kept)

    def _scaled(self, path: str, tensors: list[Tensor], size: int) -> list[Tags]:
        """The channels of a norm: of the module as a whole where its kind is known, else of its parameters."""
        kind = kind_of(self.modules[path])
        if (
            kind is not None
            and "both" in kind.sides
            and kind.sides["both"] != ("in_channels", "out_channels", "groups")
        ):
            return [self.norms.setdefault(path, self.ties.fresh(size))]
        names = [self._look(tensor).parameter for tensor in tensors]
        return [self._of(name, 0) for name in names if name is not None]

    # ---- moving ------------------------------------------------------------------------------------------------------

    def _all_moved(self, call: Call, operands: list[Known], sources: list[np.ndarray]) -> list[Known]:
        if len(operands) > 1 and not any(known.tags for known in operands):  # parameters put together
            operands = [
                Known(known.tensor, [self._of(known.parameter, 0)[known.elements]])
                if known.parameter and known.elements is not None and known.elements.ndim == 1
                else known
                for known in operands
            ]
        made = [self._moved(call, operands, source) for source in sources]
        for known in made[1:]:  # parts of equal size stay of equal size: the same places of all go together
            for first, other in zip(made[0].tags, known.tags, strict=False):
                if first.shape == other.shape:
                    self.ties.tie(first, other)
        return made

    def _moved(self, call: Call, operands: list[Known], source: np.ndarray) -> Known:
        """The channels of a result whose elements are some of the operands'."""
        if len(operands) == 1 and operands[0].elements is not None and not operands[0].tags:
            elements = np.where(source == NOTHING, NOTHING, operands[0].elements.reshape(-1)[source])
            self._count_parameter(call, operands[0].parameter or "", elements)
            return Known(operands[0].tensor, [], operands[0].parameter, elements)
        starts = np.cumsum([0, *(known.tensor.numel() for known in operands)])
        parts: list[np.ndarray] = []  # of each of the operands' tags: the channel at each element of the result
        others: list[tuple[Known, np.ndarray]] = []  # what is no channel, and which elements of it lie there
        for known, start, stop in zip(operands, starts, starts[1:], strict=False):
            here = np.where((source >= start) & (source < stop), source - start, NOTHING)
            for tags in known.tags:
                every = np.broadcast_to(tags, tuple(known.tensor.shape)).reshape(-1)
                parts.append(np.where(here == NOTHING, NOTHING, every[here]))
                self._sliced(known, tags, here)
            if not known.tags and (here != NOTHING).any():
                others.append((known, here))
        joined: list[tuple[set[int], list[np.ndarray]]] = []
        for there in parts:
            dims = {dim for dim in range(source.ndim) if _varies(there, dim)}
            if not dims:
                self.ties.fix(there[there != NOTHING], f"{self._place(call.func)} takes single ones")
                continue
            overlapping = [group for group in joined if group[0] & dims]
            joined = [group for group in joined if not group[0] & dims]
            joined.append((dims.union(*(g[0] for g in overlapping)), [there, *(t for g in overlapping for t in g[1])]))
        result = []
        for dims, arrays in joined:
            tags = self._one_each(call, arrays, sorted(dims), others)
            if len(dims) > max(len(varying(t)) for known in operands for t in known.tags):
                self.splits.append(Split(tags, self._sizes(call, tags.ndim)))
                self._totals(tags)
            self._count(call, tags, source.shape, operands)
            result.append(tags)
        return Known(operands[0].tensor, result)

    def _sliced(self, known: Known, tags: Tags, here: np.ndarray) -> None:
        """Channels of which some are taken, by their number: so that a half stays a half, those of all parts that are
        as large go together."""
        places = varying(tags)
        if len(places) != 1:
            return
        size = tags.size
        taken = np.unique(here[here != NOTHING] // int(np.prod(known.tensor.shape[places[0] + 1 :])) % size)
        count = len(taken)
        if not 0 < count < size:
            return
        self._totals(tags)
        if count < 2 or size % count:
            return
        channels = lined(tags, places[0])
        if np.array_equal(taken, taken[0] + np.arange(count)) and taken[0] % count == 0:
            self.ties.tie_along(channels.reshape(-1, count), [0])
        elif np.array_equal(taken, taken[0] + np.arange(count) * (size // count)):
            self.ties.tie_along(channels.reshape(count, -1), [1])

    def _one_each(
        self, call: Call, arrays: list[np.ndarray], dims: list[int], others: list[tuple[Known, np.ndarray]]
    ) -> Tags:
        """Tags along some dimensions: whatever lies at one place of these is tied; what is no channel stays, unless it
        is of a parameter, which is cut too."""
        shape = arrays[0].shape
        rest = [dim for dim in range(len(shape)) if dim not in dims]

        def rows(array: np.ndarray) -> np.ndarray:
            return array.transpose(*dims, *rest).reshape(int(np.prod([shape[dim] for dim in dims])), -1)

        first = np.full(len(rows(arrays[0])), NOTHING)
        for there in arrays:
            table = rows(there)
            first = np.where(first == NOTHING, table.max(1), first)
            apart = (table != NOTHING) & (table != first[:, None])
            self.ties.tie(table[apart], np.broadcast_to(first[:, None], table.shape)[apart])
        tagged = first != NOTHING
        for known, here in others:
            table = rows(here)
            touched = (table != NOTHING).any(1) & tagged
            if touched.any() and known.parameter and known.elements is not None:
                elements = np.where(table == NOTHING, NOTHING, known.elements.reshape(-1)[table])
                self._cut(known.parameter, elements[touched], first[touched])
            elif touched.any():
                self.ties.fix(first[touched], f"{self._place(call.func)} puts what is no channel beside them")
        return np.where(tagged, first, FIXED).reshape([size if dim in dims else 1 for dim, size in enumerate(shape)])

    def _totals(self, tags: Tags) -> None:
        """Note the attributes of the module that runs that are as large as the channels that were split."""
        for value in vars(self.modules[self.stack[-1]]).values():
            if isinstance(value, Number) and value == tags.size:
                self.totals.setdefault(value.place, tags)

    def _count_parameter(self, call: Call, name: str, elements: np.ndarray) -> None:
        """Note the attributes by which a parameter is viewed."""
        for dim, number in enumerate(self._sizes(call, elements.ndim)):
            if isinstance(number, Number) and number.place and number == elements.shape[dim]:
                lying = self._dimension(name, np.moveaxis(elements, dim, 0).reshape(elements.shape[dim], -1))
                if lying is not None and len(lying[1]) == self.tensors[name].shape[lying[0]]:
                    self.counts.setdefault(number.place, (self._of(name, lying[0]), 0))

    def _dimension(self, name: str, elements: np.ndarray) -> tuple[int, np.ndarray] | None:
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

    def _cut(self, name: str, elements: np.ndarray, channels: Tags) -> None:
        """Tie a parameter's dimension to channels [n]: ``elements`` [n, …] are the parameter's that lie there."""
        lying = self._dimension(name, elements)
        if lying is not None:
            self.ties.tie(self._of(name, lying[0])[lying[1]], channels)
        else:
            self.ties.fix(channels, f"the parameter {name!r} has none of its own for them")

    def _sizes(self, call: Call, dims: int) -> list[Any]:
        """The sizes that a view asks for; [] of any other call."""
        sizes = view_sizes(call.func, call.args[0], call.args[1:], call.kwargs) if call.func in VIEWS else []
        return sizes if len(sizes) == dims else []

    def _count(self, call: Call, tags: Tags, shape: Sequence[int], operands: list[Known]) -> None:
        """Note the attributes among a call's numbers that count the channels of a result or an operand."""
        sizes = self._sizes(call, tags.ndim)
        for dim in varying(tags) if sizes else ():
            number = sizes[dim]
            if not isinstance(number, Number) or number != shape[dim]:
                continue
            if number.place:
                self.counts.setdefault(number.place, (tags, dim))
            elif not number.made and len(varying(tags)) == 1:
                self._as_many(lined(tags, dim), number.channels)
        for number in [] if sizes else _attributes_in(call):
            lying = [(tags, shape), *((t, known.tensor.shape) for known in operands for t in known.tags)]
            for channels, extents in lying:
                for dim in reversed(varying(channels)):
                    if extents[dim] == number:
                        self.counts.setdefault(number.place, (channels, dim))

    def _as_many(self, channels: Tags, others: Tags) -> None:
        """Channels that must stay as many as others, as the code takes these for their number."""
        if not np.array_equal(np.sort(self.ties.classes(channels)), np.sort(self.ties.classes(others))):
            self.ties.tie(channels, others)

    def _settle(self, split: Split) -> None:
        """Let split channels go along one dimension only: where none is given yet, one whose size in the code follows
        them, or else the largest."""
        tags = self.ties.settled(split.tags)
        if tags is None:
            return
        numbers = {dim: split.sizes[dim] for dim in varying(split.tags) if split.sizes}

        def preference(dim: int) -> tuple[bool, bool, int]:
            number = numbers.get(dim)
            counts = isinstance(number, Number)
            return number == -1 or (counts and number.channels is not None), counts, tags.shape[dim]

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

    # ---- computing ---------------------------------------------------------------------------------------------------

    def _joined(
        self, call: Call, factors: list[Tags], parameters: list[tuple[str, np.ndarray]], plain: Sequence[set[int]]
    ) -> Known:
        """The channels of one result of several operands, at whose places ``parameters`` have these elements, and
        others, along some dimensions, what is no channel."""
        if not factors and len(parameters) == 1:
            factors = self._begun(*parameters[0], set().union(*plain))
        result = merged(self.ties, factors)
        for n, tags in enumerate(result):
            for dims in plain:
                both = set(varying(tags)) & dims
                if both and both == set(varying(tags)):
                    self.ties.fix(tags, f"{self._place(call.func)} takes what is no channel with them")
                elif both:
                    tags = self.ties.tie_along(tags, sorted(both))
            for name, elements in parameters:
                along_these = {
                    dim for dim in range(elements.ndim) if elements.shape[dim] > 1 and _varies(elements, dim)
                }
                both = set(varying(tags)) & along_these
                if not both:
                    continue
                if not set(varying(tags)) <= along_these:
                    tags = self.ties.tie_along(tags, varying(tags)[1:])
                    if not set(varying(tags)) <= along_these:
                        continue
                dims = varying(tags)
                rest = [dim for dim in range(elements.ndim) if dim not in dims]
                self._cut(name, elements.transpose(*dims, *rest).reshape(tags.size, -1), tags.reshape(-1))
            result[n] = tags
        return Known(call.operands[0], result)

    def _begun(self, name: str, elements: np.ndarray, plain: set[int]) -> list[Tags]:
        """A parameter's channels along the dimensions of a result that are its alone."""
        begun = []
        for dim in range(elements.ndim):
            if dim in plain or elements.shape[dim] < 2:
                continue
            lying = self._dimension(name, np.moveaxis(elements, dim, 0).reshape(elements.shape[dim], -1))
            if lying is not None:
                begun.append(along(self._of(name, lying[0])[lying[1]], dim, elements.ndim))
        return begun

    def _computed(self, call: Call, results: list[Tensor], operands: list[Known]) -> list[Known]:
        flows: list[dict[int, list[Flow | None]]] = []
        try:
            for n, known in enumerate(operands):
                dims = [dim for dim, size in enumerate(known.tensor.shape) if size > 1]
                if len(operands) == 1:
                    dims = sorted({dim for tags in known.tags for dim in varying(tags)})
                flows.append({dim: call.flows(n, dim, results) for dim in dims})
        except FAILURES:
            for tags in [tags for known in operands for tags in known.tags]:
                self.ties.fix(tags, f"{self._place(call.func)} cannot be followed")
            return [Known(tensor) for tensor in results]
        self._summed(call, operands, flows)
        made = []
        for number, result in enumerate(results):
            factors, parameters, plain = [], [], []
            for known, going in zip(operands, flows, strict=True):
                there = {dim: flow for dim, each in going.items() if (flow := each[number]) is not None}
                tagged: set[int] = set()
                for tags in known.tags:
                    lost = [dim for dim in varying(tags) if dim not in there]
                    if lost and len(lost) < len(varying(tags)):
                        tags = self.ties.tie_along(tags, lost)
                        self.heads.append(tags)
                    elif lost:
                        continue
                    for dim in varying(tags):
                        self.ties.tie(tags, tags.take(there[dim].first, dim))
                    tagged |= {there[dim].dim for dim in varying(tags)}
                    factors.append(_carried(tags, there, result.dim()))
                if known.parameter and known.elements is not None:
                    lost = [dim for dim in range(known.elements.ndim) if dim not in there]
                    elements = known.elements[
                        tuple(slice(0, 1) if d in lost else slice(None) for d in range(known.elements.ndim))
                    ]
                    parameters.append((known.parameter, _carried(elements, there, result.dim())))
                else:
                    plain.append({flow.dim for flow in there.values()} - tagged)
            made.append(self._joined(call, factors, parameters, plain))
        return made

    def _summed(self, call: Call, operands: list[Known], flows: Sequence[dict[int, list[Flow | None]]]) -> None:
        """Tie the dimensions of two operands that are summed over together."""
        lost = [(n, dim) for n, going in enumerate(flows) for dim, each in going.items() if not any(each)]
        for n, dim in lost:
            one = self._line(operands[n], dim)
            for m, at in lost:
                if one is None or m == n or operands[m].tensor.shape[at] != operands[n].tensor.shape[dim]:
                    continue
                other = self._line(operands[m], at)
                if len(varying(one)) > 1 or (other is not None and len(varying(other)) > 1):
                    break  # tied along it by `_computed`
                if other is not None:
                    self.ties.tie(lined(one, dim), lined(other, at))
                elif operands[m].parameter and (elements := operands[m].elements) is not None:
                    self._cut(
                        operands[m].parameter, np.moveaxis(elements, at, 0).reshape(one.size, -1), one.reshape(-1)
                    )
                else:
                    self.ties.fix(one, f"{self._place(call.func)} takes what is no channel with them")
                break

    def _line(self, known: Known, dim: int) -> Tags | None:
        return next((tags for tags in known.tags if dim in varying(tags)), None)

    # ---- what lies where ---------------------------------------------------------------------------------------------

    def sites(self) -> dict[Site, Tags]:
        """The channel at each position of each site."""
        lying: list[tuple[Site, Tags]] = []
        for (name, dim), channels in self.channels.items():
            for alias in self.names[id(self.tensors[name])]:
                lying += self._site(alias, dim, channels)
        lying += [(Site(path, "both"), channels) for path, channels in self.norms.items()]
        lying += [(Site(path, "in"), channels) for path, channels in self.read.items()]
        sites: dict[Site, Tags] = {}
        for site, channels in lying:
            if site in sites:
                self.ties.tie(sites[site], channels)
            else:
                sites[site] = channels
        for split in self.splits:
            self._settle(split)
        for place, (tags, dim) in self.counts.items():
            settled = self.ties.settled(tags)
            if settled is not None and varying(settled) == (dim,):
                sites[Site(place[0], "number", place[1])] = lined(settled, dim)
        for path, tags in self.passing:
            settled = self.ties.settled(tags)
            for dim in varying(settled) if settled is not None else ():
                if path and len(varying(settled)) == 1:
                    sites[Site(path, "through", dim - settled.ndim)] = lined(settled, dim)
        for place, tags in self.totals.items():
            if place not in self.counts:
                sites[Site(place[0], "number", place[1])] = tags.reshape(-1)
        return {site: self.ties.classes(channels) for site, channels in sites.items()}

    def _site(self, name: str, dim: int, channels: Tags) -> list[tuple[Site, Tags]]:
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
        if groups > 1 and groups == module.in_channels == module.out_channels:
            return [(Site(path, "both"), channels)] if dim == 0 else []
        if dim == 1 and leaf == "weight":
            channels = np.tile(channels, groups)
        return [(Site(path, "out" if leaf == "bias" or (dim == 0) != transposed else "in"), channels)]


def _carried(tags: Tags, flows: Mapping[int, Flow], dims: int) -> Tags:
    """Tags as they lie in a result of so many dimensions."""
    going = sorted((flows[dim].dim, dim) for dim in varying(tags))
    for _, dim in going:
        tags = tags.take(flows[dim].source, dim)
    rest = [dim for dim in range(tags.ndim) if dim not in {old for _, old in going}]
    sizes = {new: tags.shape[old] for new, old in going}
    return tags.transpose([old for _, old in going] + rest).reshape([sizes.get(dim, 1) for dim in range(dims)])


def _varies(array: np.ndarray, dim: int) -> bool:
    """Whether neighbours along a dimension differ, where both are anything."""
    a = array.take(range(1, array.shape[dim]), dim)
    b = array.take(range(array.shape[dim] - 1), dim)
    return bool(((a != b) & (a >= 0) & (b >= 0)).any())


def _attributes_in(call: Call) -> list[Any]:
    """The numbers of a call that are attributes of modules."""
    numbers: list[Any] = []
    map_leaves((call.args, call.kwargs), lambda leaf: numbers.append(leaf) if getattr(leaf, "place", None) else None)
    return numbers
