"""Which channels of which tensor are copied when a network is widened.

A network is run once on an example, in its own code, while every function it calls on tensors is watched. A tensor's
*layout* says for each of its dimensions whether it is copied and in which order: wide position → student's channel.

- Weights (linear, convolution, embedding, attention) begin a layout: their outputs are new channels, each copied
  ``ratio`` times, by default next to one another.
- Every other function is *tried*: on random numbers and on copies of them. Where the second result is a copy of the
  first, that copy is the result's layout; so no list of functions is needed. Where it is not, what the program says in
  numbers (``view(…, heads, …)``, groups, split sizes) may have to grow, which is written down as a `CallEdit`; or a
  weight may have to order its copies differently (heads are copied whole); or a bare parameter (position and class
  tokens, the scale of a norm) has to be copied too. The latter two are learned, and the network is run again.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ...errors import UserError
from ...torch_utils import logits_in
from .copies import (
    CallEdit,
    Copies,
    Layout,
    Placement,
    counts_of,
    leaves,
    same,
    spread,
    view_groups,
    view_sizes,
)
from .trial import FAILURES, Attempts, Known, Trial

PASSES = 60  # runs of the example until the layouts agree; most networks need three
CONVOLUTIONS = (torch.conv1d, torch.conv2d, torch.conv3d)
RECURRENT = (torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu)  # their weights are shared by all steps
TRANSPOSED = (torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d)


class _Again(Exception):
    """Something was learned that makes the rest of this run pointless."""


@dataclass
class _Frame:
    path: str
    kind: type
    counts: Counter = field(default_factory=Counter)


class LayoutMode(TorchFunctionMode):
    """Finds the layouts of a network in eval mode. After `run`: ``placements``, ``edits`` and ``modules``."""

    def __init__(self, network: nn.Module, ratio: int) -> None:
        super().__init__()
        self.network, self.ratio = network, ratio
        named = [*network.named_parameters(), *network.named_buffers()]
        self.names = {id(tensor): name for name, tensor in named}
        self.tensors = dict(named)
        self.orders: dict[str, int] = {}  # order of a weight's copies; 0: not copied
        self.bare: dict[tuple[str, int], Copies] = {}
        self.undivided: set[str] = set()  # weights that are both embedding and layer
        self.taken: dict[tuple, tuple] = {}  # call that splits channels → where it puts copies
        self.refused: dict[tuple, set[tuple]] = {}  # … and where it must not
        self.blame: dict[tuple, str] = {}
        self.demanded: set[tuple[str, int]] = set()

    def run(self, example: Tensor) -> None:
        """Run the network until every layout agrees with every other."""
        with torch.no_grad():
            self.ends = leaves(logits_in(self.network(example)), Tensor)
        for _ in range(PASSES):
            self.changed = False
            self.learned: dict[str, int] = {}  # in this run, so not yet in effect
            self.known: dict[int, Known] = {}
            self.placements: dict[str, Placement] = {}
            self.edits: dict[str, dict[tuple[Callable, int], CallEdit]] = {}
            self.modules: dict[str, dict[str, Any]] = {}  # module → attributes that grow with its calls
            self.stack = [_Frame("", type(self.network))]
            hooks = [h for name, module in self.network.named_modules() for h in self._hooks(name, module)]
            self.noise = torch.Generator().manual_seed(0)
            try:
                with torch.no_grad(), self:
                    outputs = self.network(example)
            except _Again:
                continue
            finally:
                for hook in hooks:
                    hook.remove()
            self._keep_outputs(outputs)
            if not self.changed:
                return
        raise UserError(
            f"no order of copies was found for the channels of {type(self.network).__name__} in {PASSES} tries; "
            "expected a network whose layers agree: use another student."
        )

    def _hooks(self, path: str, module: nn.Module) -> list[Any]:
        def enter(module: nn.Module, args: Any) -> None:
            self.stack.append(_Frame(path, type(module)))

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            self.stack.pop()

        return [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]

    # ---- every call -----------------------------------------------------------------------------------------

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        for frame in self.stack:
            frame.counts[func] += 1
        results = leaves(out, Tensor)
        if results:
            layouts, origins = self._layouts(func, args, kwargs, results)
            for tensor, layout in zip(results, layouts, strict=True):
                self.known[id(tensor)] = Known(tensor, layout, origins)
        return out

    def _layouts(self, func: Any, args: tuple, kwargs: dict, results: list[Tensor]) -> tuple[list[Layout], Any]:
        if func in RECURRENT:
            raise self._fail(func)
        if func is F.multi_head_attention_forward:
            return self._attention(args, kwargs, results), None
        if weighted := self._weight_of(func, args, kwargs):
            return [self._weighted(func, args, kwargs, results[0], **weighted)], None
        operands = [self._look(tensor) for tensor in leaves((args, kwargs), Tensor)]
        if not any(copies for operand in operands for copies in operand.layout):
            known = [operand.origins for operand in operands]
            origins = None if None in known else frozenset().union(*known)  # type: ignore[arg-type]
            return [(None,) * tensor.dim() for tensor in results], origins
        return self._tried(func, args, kwargs, results, operands), None

    def _look(self, tensor: Tensor) -> Known:
        if id(tensor) in self.known:
            return self.known[id(tensor)]
        name = self.names.get(id(tensor))
        if name is None:
            return Known(tensor, (None,) * tensor.dim(), None)
        layout = tuple(self.bare.get((name, dim)) for dim in range(tensor.dim()))
        if any(layout):
            self._place(name, layout, None)
        return Known(tensor, layout, frozenset([name]))

    def _learn(self, inner: dict[str, int], bare: dict[tuple[str, int], Copies]) -> None:
        for maker, value in inner.items():
            if self.orders.get(maker, 1) != value:
                self.orders[maker], self.learned[maker], self.changed = value, value, True
                self.demanded.add((maker, value))
                self.bare = {key: copies for key, copies in self.bare.items() if copies.maker != maker}
        for key, copies in bare.items():
            self.bare[key], self.changed = copies, True

    def _askable(self, maker: str, inner: int) -> bool:
        """Whether a weight can be asked for this order of copies: newly, or again within this run."""
        if maker in self.learned:
            return self.learned[maker] == inner
        return (maker, inner) not in self.demanded and self.orders.get(maker, 1) != inner

    def _fail(self, func: Any, why: str = "") -> UserError:
        frame = self.stack[-1]
        place = f"module {frame.path!r} ({frame.kind.__name__})" if frame.path else f"{frame.kind.__name__}.forward"
        return UserError(
            f"{place} calls {getattr(func, '__name__', func)} in a way that cannot be widened{why}; expected a "
            "function that treats copies of a channel alike: replace it, or use another student."
        )

    def _edit(self, func: Any, edit: CallEdit) -> None:
        frame = self.stack[-1]
        self.edits.setdefault(frame.path, {})[func, frame.counts[func]] = edit

    # ---- weights --------------------------------------------------------------------------------------------

    def _weight_of(self, func: Any, args: tuple, kwargs: dict) -> dict[str, Any] | None:
        """Where a call multiplies by a parameter of the network: its parts; None for any other call."""

        def part(position: int, name: str) -> Any:
            return args[position] if len(args) > position else kwargs.get(name)

        bias = None
        if func is F.linear or func in CONVOLUTIONS or func in TRANSPOSED:
            x, weight, bias = part(0, "input"), part(1, "weight"), part(2, "bias")
            out, into = (1, 0) if func in TRANSPOSED else (0, 1)
            groups = 1 if func is F.linear else part(6, "groups") or 1
        elif func is F.embedding:
            x, weight, out, into, groups = part(0, "input"), part(1, "weight"), 1, None, 1
        elif func is torch.addmm:
            bias, x, weight, out, into, groups = args[0], args[1], args[2], 1, 0, 1
        elif func in (torch.matmul, Tensor.matmul, Tensor.__matmul__) and args[1].dim() == 2:
            x, weight, out, into, groups = args[0], args[1], 1, 0, 1
        else:
            return None
        if id(weight) not in self.names:
            return None
        channel = 1 if func in CONVOLUTIONS or func in TRANSPOSED else -1
        return {"x": x, "weight": weight, "bias": bias, "out": out, "into": into, "groups": groups, "channel": channel}

    def _weighted(
        self, func: Any, args: tuple, kwargs: dict, result: Tensor, *, x, weight, bias, out, into, groups, channel
    ) -> Layout:
        name, layout = self.names[id(weight)], list(self._look(x).layout)
        if into is None:
            layout, entering = [*layout, None], None
        else:
            entering = layout[channel]
        others = [copies for dim, copies in enumerate(layout) if copies and dim not in (channel % len(layout), 0)]
        if others and func is not F.linear and func not in (torch.matmul, Tensor.matmul, Tensor.__matmul__):
            raise self._fail(func)
        if groups > 1:
            leaving = self._grouped(func, args, kwargs, name, entering, x.shape[channel], result.shape[channel], groups)
        else:
            leaving = self._fresh(f"{name}:{out}", weight.shape[out])
            dims: list[Copies | None] = [None] * weight.dim()
            dims[out] = leaving
            if into is not None:
                dims[into] = entering
            shared = into if entering is not None else None
            if entering is not None and shared is not None and name in self.undivided:
                shared = None
                self._edit(func, CallEdit(divide=counts_of(entering).to(weight.device)))
            if not self._place(name, tuple(dims), shared):
                leaving = self._disagree(func, name, tuple(dims), out)
        if bias is not None and id(bias) in self.names:
            self._place(self.names[id(bias)], (leaving,), None)
        layout[channel] = leaving
        return tuple(layout)

    def _grouped(self, func, args, kwargs, name, entering, inputs, outputs, groups) -> Copies | None:
        """Groups are copied whole: each copy's group reads its own copy of the inputs, so nothing is shared out."""
        if entering is None:
            return None
        size, out_size = inputs // groups, outputs // groups
        rows = entering.index.view(groups, -1) if len(entering.index) % groups == 0 else entering.index[None]
        within = rows - torch.arange(len(rows))[:, None] * size
        blocks = entering.index.view(-1, size) if len(entering.index) % size == 0 else entering.index[None]
        whole = blocks.shape[1] == size and bool((blocks == blocks[:, :1] // size * size + torch.arange(size)).all())
        if not whole and entering.maker and self._askable(entering.maker, size):
            self._learn({entering.maker: size}, {})
            blocks, whole = spread(inputs, self.ratio, size).view(-1, size), True
        if not whole and len(rows) == groups and (within == within[0]).all() and func not in TRANSPOSED:
            leaving = self._fresh(f"{name}:0", outputs)  # as many groups as before, each with copies inside
            if leaving is not None and out_size % self.orders.get(leaving.maker or "", 1) == 0:
                self._place(name, (leaving, Copies(within[0]), *(None,) * (self.tensors[name].dim() - 2)), 1)
                return leaving
        if not whole:
            raise self._fail(func)
        index = (blocks[:, :1] // size * out_size + torch.arange(out_size)).flatten()
        leaving = Copies(index, entering.maker if size == out_size else None, entering.choice)
        weight = self.tensors[name]
        rest: Layout = (None,) * (weight.dim() - 1)
        first = Copies(blocks.flatten()) if func in TRANSPOSED else leaving
        if not self._place(name, (first, *rest), None):
            raise self._fail(func)
        if issubclass(self.stack[-1].kind, nn.modules.conv._ConvNd):
            self.modules.setdefault(self.stack[-1].path, {})["groups"] = len(blocks)
        else:
            before = {key: kwargs[key] for key in itertools.takewhile(lambda key: key != "groups", kwargs)}
            self._edit(func, CallEdit({len(leaves((args[:6], before), int)): (groups, len(blocks))}))
        return leaving

    def _fresh(self, maker: str, channels: int) -> Copies | None:
        inner = self.orders.get(maker, 1)
        return Copies(spread(channels, self.ratio, inner), maker) if inner else None

    def _place(self, name: str, layout: Layout, shared: int | None) -> bool:
        """Note how a tensor grows; False where another use of it wants otherwise."""
        there = self.placements.setdefault(name, Placement(layout, shared))
        return there.shared == shared and all(map(same, there.layout, layout))

    def _disagree(self, func: Any, name: str, layout: Layout, out: int) -> Copies | None:
        """One weight in two roles (tied embeddings): the output stays as it is, or the input is divided instead."""
        there = self.placements[name]
        if (
            not same(there.layout[out], layout[out])
            and there.layout[out] is None
            and self.orders.get(f"{name}:{out}", 1)
        ):
            self._learn({f"{name}:{out}": 0}, {})
        elif name not in self.undivided and all(map(same, there.layout, layout)):
            self.undivided.add(name)
            self.changed = True
        else:
            raise self._fail(func, f" with {name!r}, which is used twice")
        return there.layout[out]

    def _attention(self, args: tuple, kwargs: dict, results: list[Tensor]) -> list[Layout]:
        """`nn.MultiheadAttention`: heads are copied whole, so that each attends as before."""
        func = F.multi_head_attention_forward
        x, embed, heads, joint, joint_bias = args[0], args[3], args[4], args[5], args[6]
        out, out_bias = args[11], args[12]
        known = [self._look(operand).layout[-1] for operand in args[:3]]
        if joint is None or args[7] is not None or not all(same(known[0], other) for other in known):
            raise self._fail(func)
        size = embed // heads
        inside = Copies(spread(embed, self.ratio, size))
        three = Copies(spread(3 * embed, self.ratio, size))
        leaving = self._fresh(f"{self.names[id(out)]}:0", embed)
        for tensor, layout, shared in (
            (joint, (three, known[0]), 1 if known[0] else None),
            (joint_bias, (three,), None),
            (out, (leaving, inside), 1),
            (out_bias, (leaving,), None),
        ):
            if tensor is not None and not self._place(self.names[id(tensor)], layout, shared):
                raise self._fail(func)
        wide = embed * self.ratio
        if leaving is None or known[0] is None:  # the module has one width for its input, inside and output
            raise self._fail(func)
        attributes = {"num_heads": heads * self.ratio, "embed_dim": wide, "kdim": wide, "vdim": wide}
        self.modules.setdefault(self.stack[-1].path, {}).update(attributes)
        layouts: list[Layout] = [(*(None,) * (x.dim() - 1), leaving)]
        for weights in results[1:]:
            per_head = weights.dim() == 4
            layouts.append(
                (None, Copies(spread(heads, self.ratio)), None, None) if per_head else (None,) * weights.dim()
            )
        return layouts

    # ---- everything else ------------------------------------------------------------------------------------

    def _tried(
        self, func: Any, args: tuple, kwargs: dict, results: list[Tensor], operands: list[Known]
    ) -> list[Layout]:
        frame = self.stack[-1]
        choice = (frame.kind, func, frame.counts[func])  # layers of one kind decide alike
        try:
            trial = Trial(func, args, kwargs, operands, self.noise)
        except FAILURES:  # it is particular about its inputs
            raise self._fail(func) from None
        retried = False
        for attempt in Attempts(self.ratio, self._askable, self.tensors)(func, args, kwargs, results, operands):
            if 0 in attempt.inner.values() and not retried:
                self._advance(func, operands)  # raises, where another way to split is left
                retried = True
            if attempt.label in self.refused.get(choice, ()) or (layouts := trial(attempt, choice)) is None:
                continue
            self.taken[choice] = attempt.label
            self._learn(attempt.inner, attempt.bare)
            if attempt.sizes is not None:
                narrow = list(results[0].shape)
                asked = view_sizes(func, args[0], args[1:], kwargs)
                grown = next(dim for dim, size in enumerate(attempt.sizes) if size != narrow[dim])
                if attempt.fixed or asked[grown] != -1:
                    groups = [
                        (i, o, grown if grown in o else None) for i, o in view_groups(args[0].shape, results[0].shape)
                    ]
                    self._edit(func, CallEdit(view=({dim: attempt.sizes[dim] for dim in attempt.fixed}, groups)))
            elif attempt.numbers:
                self._edit(func, CallEdit(attempt.numbers))
            return layouts
        makers = {copies.maker for operand in operands for copies in operand.layout if copies and copies.maker}
        if makers and all(self._askable(maker, 0) for maker in makers) and any(map(self._ends_in, results)):
            self._learn(dict.fromkeys(makers, 0), {})  # outputs have no copies, as those of a log-softmax
            raise _Again
        self._advance(func, operands)
        raise UserError(self.blame[choice]) if choice in self.blame else self._fail(func)

    def _ends_in(self, result: Tensor) -> bool:
        """Whether a result is what the network returns."""
        return any(result.shape == end.shape and torch.equal(result, end) for end in self.ends)

    def _advance(self, func: Any, operands: list[Known]) -> None:
        """Let the calls that split the operands' channels split them another way, and run again."""
        choices = {copies.choice for operand in operands for copies in operand.layout if copies and copies.choice}
        left = [choice for choice in choices if self.taken[choice] not in self.refused.get(choice, ())]
        for choice in left:
            self.refused.setdefault(choice, set()).add(self.taken[choice])
            self.blame.setdefault(choice, str(self._fail(func)))
        if left:
            raise _Again

    def _keep_outputs(self, outputs: Any) -> None:
        """What the network returns is not copied."""
        for tensor in leaves(logits_in(outputs), Tensor):
            for copies in self._look(tensor).layout:
                if copies is None:
                    continue
                if copies.maker is None or self.orders.get(copies.maker) == 0:
                    raise UserError(
                        f"the outputs of {type(self.network).__name__} are not made by a last layer of their own; "
                        "expected logits out of a linear layer or convolution: use another student."
                    )
                self._learn({copies.maker: 0}, {})
