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
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import UserError
from ...torch_utils import forget, logits_in
from ..tracing.calls import CONVOLUTIONS, FAILURES, RECURRENT, TRANSPOSED
from .calls import CallMode
from .copies import CallEdit, Copies, Layout, Placement, counts_of, leaves, same, spread, view_sizes
from .search import Search
from .trial import Attempts, Known, Trial, parts_of

PASSES = 60  # runs of the example until the layouts agree; most networks need three
UNSAFE = (torch._weight_norm, torch._weight_norm_interface)  # they abort the process on sizes that do not fit


class _Again(Exception):
    """Something was learned that makes the rest of this run pointless."""


class LayoutMode(CallMode):
    """Finds the layouts of a network in eval mode. After `run`: ``placements``, ``edits`` and ``modules``."""

    def __init__(self, network: nn.Module, ratio: int) -> None:
        super().__init__()
        self.network, self.ratio = network, ratio
        named = [*network.named_parameters(), *network.named_buffers()]
        self.names = {id(tensor): name for name, tensor in named}
        self.tensors = dict(named)
        self._reset()

    def run(self, example: Tensor) -> None:
        """Run the network until every layout agrees with every other."""
        with torch.no_grad():
            self.ends = leaves(logits_in(self.network(example)), Tensor)
        self.costs = False
        try:
            self._settle(example)
        except UserError:  # not by the order of weights alone
            self._reset()
            self.costs = True
            self._settle(example)

    def _reset(self) -> None:
        """Forget what was learned."""
        self.orders: dict[str, int] = {}  # order of a weight's copies; 0: not copied
        self.bare: dict[tuple[str, int], Copies] = {}
        self.kept: dict[str, str] = {}  # parameters that are not copied, and why
        self.undivided: set[str] = set()  # weights that are both embedding and layer
        self.demanded: set[tuple[str, int]] = set()
        self.search = Search()

    def _settle(self, example: Tensor) -> None:
        for _ in range(PASSES):
            self.changed = False
            self.learned: dict[str, int] = {}  # in this run, so not yet in effect
            self.known: dict[int, Known] = {id(example): Known(example, (None,) * example.dim(), None)}
            self.placements: dict[str, Placement] = {}
            self.edits: dict[str, dict[tuple[Callable, int], CallEdit]] = {}
            self.modules: dict[str, dict[str, Any]] = {}  # module → attributes that grow with its calls
            self.noise = torch.Generator().manual_seed(0)
            forget(self.network)
            try:
                with torch.no_grad(), self.watch(self.network):
                    outputs = self.network(example)
            except _Again:
                continue
            self._keep_outputs(outputs)
            if not self.changed:
                return
        raise UserError(
            f"no order of copies was found for the channels of {type(self.network).__name__} in {PASSES} tries; "
            "expected a network whose layers agree: use another student."
        )

    # ---- every call -----------------------------------------------------------------------------------------

    def seen(self, func: Any, args: tuple, kwargs: dict[str, Any], out: Any) -> None:
        results = leaves(out, Tensor)
        if results:
            layouts, origins = self._layouts(func, args, kwargs, results)
            for tensor, layout in zip(results, layouts, strict=True):
                self.known[id(tensor)] = Known(tensor, layout, origins)

    def _layouts(self, func: Any, args: tuple, kwargs: dict, results: list[Tensor]) -> tuple[list[Layout], Any]:
        if func in RECURRENT:  # their weights are shared by all steps
            raise self._fail(func)
        if func is F.multi_head_attention_forward:
            return self._attention(args, kwargs, results), None
        if weighted := self._weight_of(func, args, kwargs):
            return [self._weighted(func, args, kwargs, results[0], **weighted)], None
        operands = [self._look(tensor) for tensor in leaves((args, kwargs), Tensor)]
        known = [operand.origins for operand in operands]
        origins = None if None in known else tuple(dict.fromkeys(itertools.chain(*known)))  # type: ignore[arg-type]
        if not any(copies for operand in operands for copies in operand.layout):
            return [(None,) * tensor.dim() for tensor in results], origins
        try:
            return self._tried(func, args, kwargs, results, operands), origins
        except UserError as error:
            if not origins or self.kept.keys() & set(origins):
                raise
            self._keep(origins, str(error))
            raise _Again from None

    def _keep(self, names: Iterable[str], why: str) -> None:
        """Let weights as they are that something is computed of which copies would change, such as their norm."""
        self.kept |= dict.fromkeys(names, why)
        self.bare = {key: copies for key, copies in self.bare.items() if key[0] not in self.kept}

    def _look(self, tensor: Tensor) -> Known:
        if id(tensor) in self.known:
            return self.known[id(tensor)]
        name = self.names.get(id(tensor))
        if name is None:  # a constant, such as an index that a module or a cache keeps
            return Known(tensor, (None,) * tensor.dim(), ())
        layout = tuple(self.bare.get((name, dim)) for dim in range(tensor.dim()))
        if any(layout):
            self._place(name, layout, None)
        return Known(tensor, layout, (name,))

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
        return UserError(
            f"{self.place} calls {getattr(func, '__name__', func)} in a way that cannot be widened{why}; expected a "
            "function that treats copies of a channel alike: replace it, or use another student."
        )

    def _edit(self, func: Any, edit: CallEdit) -> None:
        path, func, count = self.call(func)
        self.edits.setdefault(path, {})[func, count] = edit

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
        layout = self._look(x).layout
        if id(weight) not in self.names:
            source = self._source(weight)
            if source in self.kept and any(layout):
                raise UserError(self.kept[source])
            if source is None or source in self.kept:
                return None
        channel = 1 if func in CONVOLUTIONS or func in TRANSPOSED else -1
        if func in CONVOLUTIONS and layout[1] is None and any(layout[2:]):  # channels lie where pixels do
            return None
        return {"x": x, "weight": weight, "bias": bias, "out": out, "into": into, "groups": groups, "channel": channel}

    def _weighted(
        self, func: Any, args: tuple, kwargs: dict, result: Tensor, *, x, weight, bias, out, into, groups, channel
    ) -> Layout:
        name, layout = self.names.get(id(weight)) or self._source(weight), list(self._look(x).layout)
        assert name is not None
        if into is None:
            layout, entering = [*layout, None], None
        else:
            entering = layout[channel]
        others = [copies for dim, copies in enumerate(layout) if copies and dim not in (channel % len(layout), 0)]
        if others and func is not F.linear and func not in (torch.matmul, Tensor.matmul, Tensor.__matmul__):
            raise self._fail(func)
        if groups > 1:
            leaving = self._grouped(func, args, kwargs, weight, entering, x.shape[1], result.shape[1], groups)
        else:
            leaving = self._fresh(f"{name}:{out}", weight.shape[out])
            dims: list[Copies | None] = [None] * weight.dim()
            dims[out] = leaving
            if into is not None:
                dims[into] = entering
            shared = into if entering is not None else None
            if entering is not None and shared is not None and (name in self.undivided or id(weight) not in self.names):
                shared = None
                after = (1,) * (len(layout) - 1 - channel % len(layout))
                self._edit(func, CallEdit(divide=counts_of(entering).view(-1, *after).to(weight.device)))
            if not self._demand(weight, tuple(dims), shared):
                leaving = self._disagree(func, name, tuple(dims), out)
        if isinstance(bias, Tensor):
            self._demand(bias, (leaving,), None)
        layout[channel] = leaving
        return tuple(layout)

    def _source(self, tensor: Tensor) -> str | None:
        """The parameter of the same shape that a weight is computed from."""
        origins = self._look(tensor).origins or ()
        return next((name for name in origins if self.tensors[name].shape == tensor.shape), None)

    def _demand(self, tensor: Tensor, layout: Layout, shared: int | None) -> bool:
        """Have a weight or bias grow; one that is computed (standardised, put together) by what it is made of. False
        where another use of it wants otherwise."""
        if id(tensor) in self.names:
            return self._place(self.names[id(tensor)], layout, shared)
        known = self._look(tensor)
        if known.origins and not all(map(same, known.layout, layout)):
            made_of = {name: self.tensors[name] for name in known.origins}
            for dim, (have, want) in enumerate(zip(known.layout, layout, strict=True)):
                if want is not None and not same(have, want):
                    self._learn({}, parts_of(want, made_of, dim if tensor.dim() > 1 else None))
                elif want is None and have is not None:
                    self.bare = {key: copies for key, copies in self.bare.items() if key[0] not in made_of}
                    self.changed = True
        return True

    def _grouped(self, func, args, kwargs, weight, entering, inputs, outputs, groups) -> Copies | None:
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
            name = self.names.get(id(weight))
            leaving = self._fresh(f"{name}:0", outputs)  # as many groups as before, each with copies inside
            if name and leaving is not None and out_size % self.orders.get(leaving.maker or "", 1) == 0:
                self._place(name, (leaving, Copies(within[0]), *(None,) * (weight.dim() - 2)), 1)
                return leaving
        if not whole:
            raise self._fail(func)
        index = (blocks[:, :1] // size * out_size + torch.arange(out_size)).flatten()
        leaving = Copies(index, entering.maker if size == out_size else None, entering.choice)
        rest: Layout = (None,) * (weight.dim() - 1)
        first = Copies(blocks.flatten()) if func in TRANSPOSED else leaving
        if not self._demand(weight, (first, *rest), None):
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
        if func in UNSAFE:
            raise self._fail(func)
        frame = self.stack[-1]
        choice = (frame.kind, func, frame.counts[func])  # layers of one kind decide alike
        try:
            trial = Trial(func, args, kwargs, operands, self.noise)
        except FAILURES:  # it is particular about its inputs
            raise self._fail(func) from None
        retried = False
        for attempt in Attempts(self.ratio, self._askable, self.tensors)(func, args, kwargs, results, operands):
            if attempt.costs and not self.costs:
                continue
            if 0 in attempt.inner.values() and not retried:
                self._advance(func, choice, operands)  # raises, where another way to split is left
                retried = True
            if self.search.is_refused(choice, attempt.label) or (layouts := trial(attempt, choice)) is None:
                continue
            self.search.take(choice, attempt.label)
            self._learn(attempt.inner, attempt.bare)
            if attempt.sizes is not None:
                asked = view_sizes(func, args[0], args[1:], kwargs)
                if attempt.fixed or attempt.orders or any(asked[dim] != -1 for dim in attempt.grown):
                    fixed = {dim: attempt.sizes[dim] for dim in attempt.fixed}
                    self._edit(func, CallEdit(view=(fixed, attempt.groups), orders=attempt.orders))
            elif attempt.numbers or attempt.costs:
                self._edit(func, CallEdit(attempt.numbers, orders=attempt.orders, factor=attempt.factor))
            return layouts
        makers = {copies.maker for operand in operands for copies in operand.layout if copies and copies.maker}
        if makers and all(self._askable(maker, 0) for maker in makers) and any(map(self._ends_in, results)):
            self._learn(dict.fromkeys(makers, 0), {})  # outputs have no copies, as those of a log-softmax
            raise _Again
        self._advance(func, choice, operands)
        blame = self.search.blame(choice)
        raise UserError(blame) if blame else self._fail(func)

    def _ends_in(self, result: Tensor) -> bool:
        """Whether a result is what the network returns."""
        return any(result.shape == end.shape and torch.equal(result, end) for end in self.ends)

    def _advance(self, func: Any, choice: tuple, operands: list[Known]) -> None:
        """Let an earlier call split channels another way, and run again, where there is one."""
        choices = {copies.choice for operand in operands for copies in operand.layout if copies and copies.choice}
        if self.search.advance(choice, choices, str(self._fail(func))):
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
