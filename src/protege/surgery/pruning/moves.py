"""Calls that move numbers: views, slices, concatenations, paddings."""

from __future__ import annotations

import numpy as np

from .channels import Channels, Known, Split, varies
from .probe import NOTHING, Replay
from .ties import FIXED, Tags, lined, varying


def moved(state: Channels, call: Replay, operands: list[Known], sources: list[np.ndarray]) -> list[Known]:
    """What a call gives that moves numbers; ``sources`` say from where, as `Replay.moved` does."""
    if len(operands) > 1 and not any(known.tags for known in operands):  # parameters put together
        operands = [
            Known(known.tensor, [state.of(known.parameter, 0)[known.elements]])
            if known.parameter and known.elements is not None and known.elements.ndim == 1
            else known
            for known in operands
        ]
    made = [_moved(state, call, operands, source) for source in sources]
    for known in made[1:]:  # parts of equal size stay of equal size: the same places of all go together
        for first, other in zip(made[0].tags, known.tags, strict=False):
            if first.shape == other.shape:
                state.ties.tie(first, other)
    return made


def _moved(state: Channels, call: Replay, operands: list[Known], source: np.ndarray) -> Known:
    """The channels of a result whose elements are some of the operands'."""
    if len(operands) == 1 and operands[0].elements is not None and not operands[0].tags:
        elements = np.where(source == NOTHING, NOTHING, operands[0].elements.reshape(-1)[source])
        state.note_view(call, operands[0].parameter or "", elements)
        return Known(operands[0].tensor, [], operands[0].parameter, elements)
    starts = np.cumsum([0, *(known.tensor.numel() for known in operands)])
    parts: list[np.ndarray] = []  # of each of the operands' tags: the channel at each element of the result
    others: list[tuple[Known, np.ndarray]] = []  # what is no channel, and which elements of it lie there
    for known, start, stop in zip(operands, starts, starts[1:], strict=False):
        here = np.where((source >= start) & (source < stop), source - start, NOTHING)
        for tags in known.tags:
            every = np.broadcast_to(tags, tuple(known.tensor.shape)).reshape(-1)
            parts.append(np.where(here == NOTHING, NOTHING, every[here]))
            _sliced(state, known, tags, here)
        if not known.tags and (here != NOTHING).any():
            others.append((known, here))
    joined: list[tuple[set[int], list[np.ndarray]]] = []
    for there in parts:
        dims = {dim for dim in range(source.ndim) if varies(there, dim)}
        if not dims:
            state.ties.fix(there[there != NOTHING], f"{state.place(call.func)} takes single ones")
            continue
        overlapping = [group for group in joined if group[0] & dims]
        joined = [group for group in joined if not group[0] & dims]
        joined.append((dims.union(*(g[0] for g in overlapping)), [there, *(t for g in overlapping for t in g[1])]))
    result = []
    for dims, arrays in joined:
        tags = _one_each(state, call, arrays, sorted(dims), others)
        if len(dims) > max(len(varying(t)) for known in operands for t in known.tags):
            state.splits.append(Split(tags, state.sizes_in(call, tags.ndim)))
            state.note_totals(tags)
        state.note_count(call, tags, source.shape, operands)
        result.append(tags)
    return Known(operands[0].tensor, result)


def _sliced(state: Channels, known: Known, tags: Tags, here: np.ndarray) -> None:
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
    state.note_totals(tags)
    if count < 2 or size % count:
        return
    channels = lined(tags, places[0])
    if np.array_equal(taken, taken[0] + np.arange(count)) and taken[0] % count == 0:
        state.ties.tie_along(channels.reshape(-1, count), [0])
    elif np.array_equal(taken, taken[0] + np.arange(count) * (size // count)):
        state.ties.tie_along(channels.reshape(count, -1), [1])


def _one_each(
    state: Channels, call: Replay, arrays: list[np.ndarray], dims: list[int], others: list[tuple[Known, np.ndarray]]
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
        state.ties.tie(table[apart], np.broadcast_to(first[:, None], table.shape)[apart])
    tagged = first != NOTHING
    for known, here in others:
        table = rows(here)
        touched = (table != NOTHING).any(1) & tagged
        if touched.any() and known.parameter and known.elements is not None:
            elements = np.where(table == NOTHING, NOTHING, known.elements.reshape(-1)[table])
            state.cut(known.parameter, elements[touched], first[touched])
        elif touched.any():
            state.ties.fix(first[touched], f"{state.place(call.func)} puts what is no channel beside them")
    if len(dims) > 1:  # constants beside channels of two dimensions go with what they lie beside, or are no channels
        first[~tagged] = state.ties.fresh(int((~tagged).sum()))
    return np.where(first == NOTHING, FIXED, first).reshape(
        [size if dim in dims else 1 for dim, size in enumerate(shape)]
    )
