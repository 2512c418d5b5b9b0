"""Calls that compute: sums, products, norms, softmax, and whatever else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from ..tracing.calls import FAILURES
from .channels import Channels, Known, varies
from .probe import Flow, Replay
from .ties import Tags, aligned, lined, merged, varying


def elementwise(state: Channels, call: Replay, operands: list[Known], result: Tensor) -> Known:
    """What a call gives whose result depends, at each place, on what its operands have there."""
    if len(operands) == 1:
        return Known(result, operands[0].tags, operands[0].parameter, operands[0].moved)
    shape = tuple(result.shape)
    tags = [aligned(tags, len(shape)) for known in operands for tags in known.tags]
    parameters, plain = [], []
    for known in operands:
        sizes = (1,) * (len(shape) - known.tensor.dim()) + tuple(known.tensor.shape)
        if known.elements is not None and known.parameter:
            parameters.append((known.parameter, np.broadcast_to(known.elements, shape)))
        else:
            tagged = {dim for t in known.tags for dim in varying(aligned(t, len(shape)))}
            plain.append({dim for dim, size in enumerate(sizes) if size > 1} - tagged)
    return _joined(state, call, tags, parameters, plain)


def computed(state: Channels, call: Replay, results: list[Tensor], operands: list[Known]) -> list[Known]:
    """What any other call that computes gives: channels go on along the dimensions whose positions stay apart, and what
    meets at one place is tied. Where it cannot be run on other numbers, its channels stay."""
    flows: list[dict[int, list[Flow | None]]] = []
    try:
        for n, known in enumerate(operands):
            lying = {dim for tags in known.tags for dim in varying(tags)}
            dims = [
                dim for dim, size in enumerate(known.tensor.shape) if size > 1 and (len(operands) > 1 or dim in lying)
            ]
            flows.append({dim: call.flows(n, dim, results, dim in lying) for dim in dims})
    except FAILURES:
        for tags in [tags for known in operands for tags in known.tags]:
            state.ties.fix(tags, f"{state.place(call.func)} cannot be followed")
        return [Known(tensor) for tensor in results]
    _summed(state, call, operands, flows)
    made = []
    for number, result in enumerate(results):
        factors, parameters, plain = [], [], []
        for known, going in zip(operands, flows, strict=True):
            there = {dim: flow for dim, each in going.items() if (flow := each[number]) is not None}
            tagged: set[int] = set()
            for tags in known.tags:
                lost = [dim for dim in varying(tags) if dim not in there]
                if lost and len(lost) < len(varying(tags)):
                    tags = state.ties.tie_along(tags, lost)
                    state.heads.append(tags)
                elif lost:
                    continue
                for dim in varying(tags):
                    state.ties.tie(tags, tags.take(there[dim].first, dim))
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
        made.append(_joined(state, call, factors, parameters, plain))
    return made


def _summed(
    state: Channels, call: Replay, operands: list[Known], flows: Sequence[dict[int, list[Flow | None]]]
) -> None:
    """Tie the dimensions of two operands that are summed over together."""
    lost = [(n, dim) for n, going in enumerate(flows) for dim, each in going.items() if not any(each)]
    for n, dim in lost:
        one = _line(state, operands[n], dim)
        for m, at in lost:
            if one is None or m == n or operands[m].tensor.shape[at] != operands[n].tensor.shape[dim]:
                continue
            other = _line(state, operands[m], at)
            if len(varying(one)) > 1 or (other is not None and len(varying(other)) > 1):
                break  # tied along it by `_computed`
            if other is not None:
                state.ties.tie(lined(one, dim), lined(other, at))
            elif (name := operands[m].parameter) and (elements := operands[m].elements) is not None:
                state.cut(name, np.moveaxis(elements, at, 0).reshape(one.size, -1), one.reshape(-1))
            else:
                state.ties.fix(one, f"{state.place(call.func)} takes what is no channel with them")
            break


def _line(state: Channels, known: Known, dim: int) -> Tags | None:
    return next((tags for tags in known.tags if dim in varying(tags)), None)


def _joined(
    state: Channels,
    call: Replay,
    factors: list[Tags],
    parameters: list[tuple[str, np.ndarray]],
    plain: Sequence[set[int]],
) -> Known:
    """The channels of one result of several operands, at whose places ``parameters`` have these elements, and
    others, along some dimensions, what is no channel."""
    if not factors and parameters:
        factors = state.begun(*parameters[0], set().union(*plain))
    result = merged(state.ties, factors)
    for n, tags in enumerate(result):
        for dims in plain:
            both = set(varying(tags)) & dims
            if both and both == set(varying(tags)):
                state.ties.fix(tags, f"{state.place(call.func)} takes what is no channel with them")
            elif both:
                tags = state.ties.tie_along(tags, sorted(both))
        for name, elements in parameters:
            along_these = {dim for dim in range(elements.ndim) if elements.shape[dim] > 1 and varies(elements, dim)}
            both = set(varying(tags)) & along_these
            if not both:
                continue
            if not set(varying(tags)) <= along_these:
                tags = state.ties.tie_along(tags, varying(tags)[1:])
                if not set(varying(tags)) <= along_these:
                    continue
            places = varying(tags)
            rest = [dim for dim in range(elements.ndim) if dim not in places]
            state.cut(name, elements.transpose(*places, *rest).reshape(tags.size, -1), tags.reshape(-1))
        result[n] = tags
    return Known(call.operands[0], result)


def _carried(tags: Tags, flows: Mapping[int, Flow], dims: int) -> Tags:
    """Tags as they lie in a result of so many dimensions."""
    going = sorted((flows[dim].dim, dim) for dim in varying(tags))
    for _, dim in going:
        tags = tags.take(flows[dim].source, dim)
    rest = [dim for dim in range(tags.ndim) if dim not in {old for _, old in going}]
    sizes = {new: tags.shape[old] for new, old in going}
    return tags.transpose([old for _, old in going] + rest).reshape([sizes.get(dim, 1) for dim in range(dims)])
