"""Calls with weights: their outputs are new channels, which are copied, and their inputs are shared out over copies."""

from __future__ import annotations

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import UserError
from ..tracing.calls import CONVOLUTIONS, MATMULS, RECURRENT, TRANSPOSED, Product, product_in
from .copies import CallEdit, Copies, Layout, counts_of, same, spread, whole_numbers_in
from .layout import Layouts


def weighted(state: Layouts, func: Any, args: tuple, kwargs: dict, results: list[Tensor]) -> list[Layout] | None:
    """The layouts of what a call gives that multiplies by weights; None for any other call."""
    if func in RECURRENT:  # their weights are shared by all steps
        raise state.failure(func)
    if func is F.multi_head_attention_forward:
        return _attention(state, args, results)
    product = product_in(func, args, kwargs)
    if product is None:
        return None
    name, layout = state.source(product.weight), state.look(product.x).layout
    if name is None:
        return None
    if name in state.kept and id(product.weight) not in state.names:
        if any(layout):
            raise UserError(state.kept[name])
        return None
    if func in CONVOLUTIONS and layout[product.channel] is None and any(layout[product.channel + 1 :]):
        return None  # channels lie where pixels do
    return [_product(state, func, args, kwargs, name, product, results[0])]


def _product(
    state: Layouts, func: Any, args: tuple, kwargs: dict, name: str, product: Product, result: Tensor
) -> Layout:
    weight, out, into = product.weight, product.out, product.into
    layout = [*state.look(product.x).layout, *([None] if into is None else [])]
    at = product.channel % len(layout)
    entering = None if into is None else layout[at]
    others = [copies for dim, copies in enumerate(layout) if copies and dim not in (at, 0)]
    if others and func is not F.linear and func not in MATMULS:
        raise state.failure(func)
    if product.groups > 1:
        leaving = _grouped(state, func, args, kwargs, product, entering, result.shape[at])
    else:
        leaving = state.fresh(f"{name}:{out}", weight.shape[out])
        dims: list[Copies | None] = [None] * weight.dim()
        dims[out] = leaving
        if into is not None:
            dims[into] = entering
        shared = into if entering is not None else None
        if entering is not None and shared is not None and (name in state.undivided or id(weight) not in state.names):
            shared = None
            after = (1,) * (len(layout) - 1 - at)
            state.edit(func, CallEdit(divide=counts_of(entering).view(-1, *after).to(weight.device)))
        if not state.demand(weight, tuple(dims), shared):
            leaving = _disagreed(state, func, name, tuple(dims), out)
    if isinstance(product.bias, Tensor):
        state.demand(product.bias, (leaving,), None)
    layout[at] = leaving
    return tuple(layout)


def _grouped(
    state: Layouts, func: Any, args: tuple, kwargs: dict, product: Product, entering: Copies | None, outputs: int
) -> Copies | None:
    """Groups are copied whole: each copy's group reads its own copy of the inputs, so nothing is shared out."""
    if entering is None:
        return None
    weight, groups, inputs = product.weight, product.groups, product.x.shape[product.channel]
    size, out_size = inputs // groups, outputs // groups
    rows = entering.index.view(groups, -1) if len(entering.index) % groups == 0 else entering.index[None]
    within = rows - torch.arange(len(rows))[:, None] * size
    blocks = entering.index.view(-1, size) if len(entering.index) % size == 0 else entering.index[None]
    whole = blocks.shape[1] == size and bool((blocks == blocks[:, :1] // size * size + torch.arange(size)).all())
    if not whole and entering.maker and state.askable(entering.maker, size):
        state.learn({entering.maker: size}, {})
        blocks, whole = spread(inputs, state.ratio, size).view(-1, size), True
    if not whole and len(rows) == groups and (within == within[0]).all() and func not in TRANSPOSED:
        name = state.names.get(id(weight))
        leaving = state.fresh(f"{name}:0", outputs)  # as many groups as before, each with copies inside
        if name and leaving is not None and out_size % state.orders.get(leaving.maker or "", 1) == 0:
            state.place(name, (leaving, Copies(within[0]), *(None,) * (weight.dim() - 2)), 1)
            return leaving
    if not whole:
        raise state.failure(func)
    index = (blocks[:, :1] // size * out_size + torch.arange(out_size)).flatten()
    leaving = Copies(index, entering.maker if size == out_size else None, entering.choice)
    rest: Layout = (None,) * (weight.dim() - 1)
    first = Copies(blocks.flatten()) if func in TRANSPOSED else leaving
    if not state.demand(weight, (first, *rest), None):
        raise state.failure(func)
    if isinstance(state.stack[-1].module, nn.modules.conv._ConvNd):
        state.grow({"groups": len(blocks)})
    else:
        before = {key: kwargs[key] for key in itertools.takewhile(lambda key: key != "groups", kwargs)}
        state.edit(func, CallEdit({len(whole_numbers_in((args[:6], before))): (groups, len(blocks))}))
    return leaving


def _disagreed(state: Layouts, func: Any, name: str, layout: Layout, out: int) -> Copies | None:
    """One weight in two roles (tied embeddings): the output stays as it is, or the input is divided instead."""
    there = state.placements[name]
    maker = f"{name}:{out}"
    if not same(there.layout[out], layout[out]) and there.layout[out] is None and state.orders.get(maker, 1):
        state.learn({maker: 0}, {})
    elif name not in state.undivided and all(map(same, there.layout, layout)):
        state.undivided.add(name)
        state.changed = True
    else:
        raise state.failure(func, f" with {name!r}, which is used twice")
    return there.layout[out]


def _attention(state: Layouts, args: tuple, results: list[Tensor]) -> list[Layout]:
    """`nn.MultiheadAttention`: heads are copied whole, so that each attends as before."""
    x, embed, heads, joint, joint_bias, out, out_bias = (args[n] for n in (0, 3, 4, 5, 6, 11, 12))
    known = [state.look(operand).layout[-1] for operand in args[:3]]
    failure = state.failure(F.multi_head_attention_forward)
    if joint is None or args[7] is not None or not all(same(known[0], other) for other in known):
        raise failure
    size = embed // heads
    inside = Copies(spread(embed, state.ratio, size))
    three = Copies(spread(3 * embed, state.ratio, size))
    leaving = state.fresh(f"{state.names[id(out)]}:0", embed)
    for tensor, layout, shared in (
        (joint, (three, known[0]), 1 if known[0] else None),
        (joint_bias, (three,), None),
        (out, (leaving, inside), 1),
        (out_bias, (leaving,), None),
    ):
        if tensor is not None and not state.place(state.names[id(tensor)], layout, shared):
            raise failure
    if leaving is None or known[0] is None:  # the module has one width for its input, inside and output
        raise failure
    wide = embed * state.ratio
    state.grow({"num_heads": heads * state.ratio, "embed_dim": wide, "kdim": wide, "vdim": wide})
    layouts: list[Layout] = [(*(None,) * (x.dim() - 1), leaving)]
    for weights in results[1:]:
        by_head = weights.dim() == 4
        layouts.append((None, Copies(spread(heads, state.ratio)), None, None) if by_head else (None,) * weights.dim())
    return layouts
