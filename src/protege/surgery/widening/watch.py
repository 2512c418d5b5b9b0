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
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import UserError
from ...torch_utils import forget, logits_in
from ..nests import tensors_in
from ..tracing.calls import FAILURES, view_sizes
from ..tracing.watch import watching
from .attempts import Attempts
from .copies import CallEdit, Known, Layout
from .layout import Layouts
from .trial import Trial
from .weights import weighted

PASSES = 60  # runs of the example until the layouts agree; most networks need three
UNSAFE = (torch._weight_norm, torch._weight_norm_interface)  # they abort the process on sizes that do not fit


class _Again(Exception):
    """Something was learned that makes the rest of this run pointless."""


@torch.no_grad()
def layouts_of(network: nn.Module, ratio: int, example: Tensor) -> Layouts:
    """The layouts of a network in eval mode: it is run until every one agrees with every other."""
    ends = tensors_in(logits_in(network(example)))
    try:
        return _settled(Layouts(network, ratio, ends, costs=False), example)
    except UserError:  # not by the order of weights alone
        return _settled(Layouts(network, ratio, ends, costs=True), example)


def _settled(state: Layouts, example: Tensor) -> Layouts:
    for _ in range(PASSES):
        state.begin(example)
        forget(state.network)
        try:
            with watching(state.network, partial(_heard, state), state.stack):
                outputs = state.network(example)
        except _Again:
            continue
        _keep_outputs(state, outputs)
        if not state.changed:
            return state
    raise UserError(
        f"no order of copies was found for the channels of {type(state.network).__name__} in {PASSES} tries; "
        "expected a network whose layers agree: use another student."
    )


def _heard(state: Layouts, func: Any, args: tuple, kwargs: dict[str, Any], out: Any) -> None:
    """Note the layouts of what a call gives."""
    if results := tensors_in(out):
        layouts, origins = _layouts(state, func, args, kwargs, results)
        for tensor, layout in zip(results, layouts, strict=True):
            state.known[id(tensor)] = Known(tensor, layout, origins)


def _layouts(
    state: Layouts, func: Any, args: tuple, kwargs: dict, results: list[Tensor]
) -> tuple[list[Layout], tuple[str, ...] | None]:
    if (by_weights := weighted(state, func, args, kwargs, results)) is not None:
        return by_weights, None
    operands = [state.look(tensor) for tensor in tensors_in((args, kwargs))]
    known = [operand.origins for operand in operands]
    origins = None if None in known else tuple(dict.fromkeys(itertools.chain(*known)))  # type: ignore[arg-type]
    if not any(copies for operand in operands for copies in operand.layout):
        return [(None,) * tensor.dim() for tensor in results], origins
    try:
        return _tried(state, func, args, kwargs, results, operands), origins
    except UserError as error:
        if not origins or state.kept.keys() & set(origins):
            raise
        state.keep(origins, str(error))
        raise _Again from None


def _tried(
    state: Layouts, func: Any, args: tuple, kwargs: dict, results: list[Tensor], operands: list[Known]
) -> list[Layout]:
    if func in UNSAFE:
        raise state.failure(func)
    frame = state.stack[-1]
    choice = (type(frame.module), func, frame.counts[func])  # layers of one kind decide alike
    try:
        trial = Trial(func, args, kwargs, operands, state.noise)
    except FAILURES:  # it is particular about its inputs
        raise state.failure(func) from None
    retried = False
    for attempt in Attempts(state.ratio, state.askable, state.tensors)(func, args, kwargs, results, operands):
        if attempt.costs and not state.costs:
            continue
        if 0 in attempt.inner.values() and not retried:
            _advance(state, func, choice, operands)  # raises, where another way to split is left
            retried = True
        if state.search.is_refused(choice, attempt.label) or (layouts := trial(attempt, choice)) is None:
            continue
        state.search.take(choice, attempt.label)
        state.learn(attempt.inner, attempt.bare)
        if attempt.sizes is not None:
            asked = view_sizes(func, args[0], args[1:], kwargs)
            if attempt.fixed or attempt.orders or any(asked[dim] != -1 for dim in attempt.grown):
                fixed = {dim: attempt.sizes[dim] for dim in attempt.fixed}
                state.edit(func, CallEdit(view=(fixed, attempt.groups), orders=attempt.orders))
        elif attempt.numbers or attempt.costs:
            state.edit(func, CallEdit(attempt.numbers, orders=attempt.orders, factor=attempt.factor))
        return layouts
    makers = {copies.maker for operand in operands for copies in operand.layout if copies and copies.maker}
    is_end = any(x.shape == end.shape and torch.equal(x, end) for x in results for end in state.ends)
    if makers and is_end and all(state.askable(maker, 0) for maker in makers):
        state.learn(dict.fromkeys(makers, 0), {})  # outputs have no copies, as those of a log-softmax
        raise _Again
    _advance(state, func, choice, operands)
    blame = state.search.blame(choice)
    raise UserError(blame) if blame else state.failure(func)


def _advance(state: Layouts, func: Any, choice: tuple, operands: list[Known]) -> None:
    """Let an earlier call split channels another way, and run again, where there is one."""
    choices = {copies.choice for operand in operands for copies in operand.layout if copies and copies.choice}
    if state.search.advance(choice, choices, str(state.failure(func))):
        raise _Again


def _keep_outputs(state: Layouts, outputs: Any) -> None:
    """What the network returns is not copied."""
    for tensor in tensors_in(logits_in(outputs)):
        for copies in state.look(tensor).layout:
            if copies is None:
                continue
            if copies.maker is None or state.orders.get(copies.maker) == 0:
                raise UserError(
                    f"the outputs of {type(state.network).__name__} are not made by a last layer of their own; "
                    "expected logits out of a linear layer or convolution: use another student."
                )
            state.learn({copies.maker: 0}, {})
