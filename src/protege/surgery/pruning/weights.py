"""Calls with weights: where channels begin, what reads them, and what scales them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..nests import tensors_in
from ..tracing.calls import RECURRENT, Product, product_in
from .channels import Channels, Known
from .probe import Replay
from .removal import kind_of
from .sizes import Number
from .ties import Tags, along, lined, varying

BY_CHANNEL = (F.batch_norm, torch.batch_norm, F.instance_norm, torch.instance_norm, F.group_norm, torch.prelu, F.prelu)
BY_LAST = (F.layer_norm, torch.layer_norm, F.rms_norm, torch.rms_norm)


def weighted(state: Channels, call: Replay, results: list[Tensor]) -> list[Known] | None:
    """What a call gives that multiplies by weights; None for any other call."""
    func, args, kwargs = call.func, call.args, call.kwargs
    if func is F.multi_head_attention_forward:
        return _attention(state, args, results)
    if func in RECURRENT:
        return _recurrent(state, state.look(call.operands[0]), results)
    if func in BY_CHANNEL or func in BY_LAST:
        return [_norm(state, func, args, kwargs, state.look(call.operands[0]))]
    product = product_in(func, args, kwargs)
    known = None if product is None else _product(state, product)
    return None if known is None else [known]


def _computed_from(state: Channels, weight: Tensor) -> str | None:
    """The one parameter of a weight's shape in the module that is running."""
    prefix = state.path + "." if state.path else ""
    names = [n for n, p in state.tensors.items() if n.startswith(prefix) and p.shape == weight.shape]
    return names[0] if len(names) == 1 else None


def _product(state: Channels, product: Product) -> Known | None:
    """What a product with one of the network's parameters gives; None where it is none that is known."""
    weight, out, into = product.weight, product.out, product.into
    known = state.look(weight)
    name = known.parameter or _computed_from(state, weight)
    if name is None:
        return None
    shape = tuple(state.tensors[name].shape)
    if known.moved is not None:
        plain = np.arange(known.tensor.numel()).reshape(shape)
        if weight.dim() == 2 and into is not None and np.array_equal(known.moved, plain.T):
            out, into = into, out
        elif not np.array_equal(known.moved, plain):
            return None
    elif shape != tuple(weight.shape):
        return None
    x, groups, channel = state.look(product.x), product.groups, product.channel
    dims = product.x.dim() + (into is None)
    state.makers.setdefault(name.rpartition(".")[0], (name, out))
    leaving = state.of(name, out)
    place, at = state.place(), channel % dims
    passing, entering = [], None
    for tags in x.tags if into is not None else []:
        if channel != -1 and at in varying(tags):
            tags = state.ties.tie_along(tags, [dim for dim in varying(tags) if dim > at])
        places = varying(tags)
        if at in places and len(places) > 1:
            tags = state.ties.tie_along(tags, [at])
            passing.append(tags)
        elif at in places:
            entering = lined(tags, at)
        elif channel == -1 or places == (0,):
            passing.append(tags)
        else:
            state.ties.fix(tags, f"{place} sums over neighbouring ones")
    if known.parameter is None and into is not None:
        state.ties.fix(state.of(name, into), f"{place} computes its weight from all of it")
    if into is None:
        passing = [tags.reshape(*tags.shape, 1) for tags in x.tags]
    elif groups == 1:
        reading = state.of(name, into)
        _enter(state, reading, entering, place)
    else:
        leaving = _grouped(state, name, out, into, entering, int(groups), x.tensor.shape[at], place)
        if isinstance(groups, Number) and groups.place and groups == len(leaving):
            state.counts.setdefault(groups.place, (leaving, 0))
    _biased(state, product.bias, leaving)
    for tags in passing:
        state.passing.append((state.path, tags))
    return Known(x.tensor, [*passing, along(leaving, at, dims)])


def _biased(state: Channels, bias: Any, leaving: Tags) -> None:
    if not isinstance(bias, Tensor):
        return
    known = state.look(bias)
    for tags in known.tags:
        state.ties.tie(tags.reshape(-1), leaving)
    if known.parameter and known.elements is not None:
        state.ties.tie(state.of(known.parameter, 0)[known.elements.reshape(-1)], leaving)


def _enter(state: Channels, reading: Tags, entering: Tags | None, place: str) -> None:
    if entering is None:
        state.ties.fix(reading, f"{place} reads what is no channel")
    else:
        state.ties.tie(reading, entering)


def _grouped(
    state: Channels, name: str, out: int, into: int, entering: Tags | None, groups: int, inputs: int, place: str
) -> Tags:
    """The channels that leave a layer in groups: of a depthwise one each goes with the one that it is made of; else the
    same places of all groups go together."""
    weight, transposed = state.tensors[name], out == 1
    if inputs == groups and (weight.shape[1] == 1 or not transposed):
        leaving = state.of(name, 0)
        by_group = leaving.reshape(groups, -1)
        state.ties.tie_along(by_group, [1])
        _enter(state, by_group[:, 0], entering, place)
        return leaving
    leaving, reading = (
        np.tile(channels, groups) if dim == 1 else channels
        for dim, channels in ((out, state.of(name, out)), (into, state.of(name, into)))
    )
    _enter(state, reading, entering, place)
    for channels in (leaving, reading):
        state.ties.tie_along(channels.reshape(groups, -1), [0])
    return leaving


def _attention(state: Channels, args: tuple, results: list[Tensor]) -> list[Known]:
    """`nn.MultiheadAttention` has one width outside and inside: heads go whole, with as much of what is read."""
    heads, joint, joint_bias, out, out_bias = (args[n] for n in (4, 5, 6, 11, 12))
    place, path = state.place(), state.path
    read = [state.look(operand) for operand in args[:3]]
    first, last = (state.look(w).parameter if isinstance(w, Tensor) else None for w in (joint, out))
    entering = [next((lined(t, t.ndim - 1) for t in k.tags if varying(t) == (t.ndim - 1,)), None) for k in read]
    if first is None or last is None or args[7] is not None:  # inputs of several widths, or a bias of keys
        for tags in [tags for known in read for tags in known.tags]:
            state.ties.fix(tags, f"{place} is an attention of another kind")
        return [Known(x) for x in results]
    state.makers.setdefault(last.rpartition(".")[0], (last, 0))
    leaving, width = state.of(last, 0), state.of(first, 1)
    by_head = width.reshape(heads, -1)
    state.ties.tie_along(by_head, [1])
    for channels in entering:
        _enter(state, width, channels, place)
    inside = state.of(first, 0).reshape(3, heads, -1)
    for part in (inside[0], inside[1], inside[2], state.of(last, 1).reshape(heads, -1)):
        state.ties.tie(part, by_head)
    _biased(state, joint_bias, inside.reshape(-1))
    _biased(state, out_bias, leaving)
    state.heads.append(width)
    state.counts |= {(f"{path}.{key}".lstrip("."), 0): (width, 0) for key in ("embed_dim", "kdim", "vdim")}
    state.counts[f"{path}.num_heads".lstrip("."), 0] = by_head, 0
    return [Known(x, [along(leaving, -1, x.dim())] if n == 0 else []) for n, x in enumerate(results)]


def _recurrent(state: Channels, x: Known, results: list[Tensor]) -> list[Known]:
    """A recurrent layer loses what it reads, and keeps what it gives."""
    for tags in x.tags:
        if isinstance(state.modules[state.path], nn.RNNBase) and varying(tags) == (tags.ndim - 1,):
            state.ties.tie(state.read.setdefault(state.path, state.ties.fresh(tags.size)), tags.reshape(-1))
        else:
            state.ties.fix(tags, f"{state.place()} reads them in another order")
    return [Known(tensor) for tensor in results]


def _norm(state: Channels, func: Any, args: tuple, kwargs: dict, x: Known) -> Known:
    """What scales each channel: norms, which mix them or do not, and PReLU."""
    dims = x.tensor.dim()
    path, place = state.path, state.place()
    if func in BY_LAST:
        shape = args[1] if len(args) > 1 else kwargs["normalized_shape"]
        at, wide = dims - 1, 1 if isinstance(shape, int) else len(shape)
    else:
        at, wide = min(1, dims - 1), 1
    scaled = [tensor for tensor in tensors_in((args[1:], kwargs)) if tensor.numel() == x.tensor.shape[at]]
    channels = _scaled(state, path, scaled, x.tensor.shape[at])
    kept, entered = [], False
    for tags in x.tags:
        places = varying(tags)
        if at in places and len(places) > 1:
            tags = state.ties.tie_along(tags, [at])
        elif at in places:
            entered = True
            for part in channels:
                state.ties.tie(part, lined(tags, at))
        if wide > 1 and set(varying(tags)) & set(range(dims - wide, dims)):
            state.ties.fix(tags, f"{place} normalises several dimensions")
        kept.append(tags)
    groups = state.modules[path].num_groups if isinstance(state.modules[path], nn.GroupNorm) else 1
    if func in (F.group_norm, torch.group_norm):
        groups = args[1] if len(args) > 1 else kwargs["num_groups"]
    for tags in kept if groups > 1 and entered else []:
        if varying(tags) == (at,):
            state.ties.tie_along(lined(tags, at).reshape(int(groups), -1), [0])
    if not entered:
        for part in channels:
            state.ties.fix(part, f"{place} reads what is no channel")
    return Known(x.tensor, kept)


def _scaled(state: Channels, path: str, tensors: list[Tensor], size: int) -> list[Tags]:
    """The channels of a norm: of the module as a whole where its kind is known, else of its parameters."""
    kind = kind_of(state.modules[path])
    if kind is not None and "both" in kind.sides and kind.sides["both"] != ("in_channels", "out_channels", "groups"):
        return [state.norms.setdefault(path, state.ties.fresh(size))]
    names = [state.look(tensor).parameter for tensor in tensors]
    return [state.of(name, 0) for name in names if name is not None]
