"""Which channels of which weights go together: seen by running a network once and watching the calls it makes.

Weights begin channels: each output of a convolution, linear layer or embedding is one. Where they go from there is
seen call by call (`probe`): what moves numbers moves their channels; what computes ties the channels that meet at one
place (a residual sum, a gate), and those that are summed over with the same places of another operand (queries and
keys). A dimension that is split (in heads, in the groups of a shuffle) can only shrink along one of its parts: along
which, the calls that follow tell, or else the largest. Whatever this overlooks is found by the `law`.

Numbers in the code that must follow (``self.num_heads``, ``x.shape[1] // 2``) are known by where they come from.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ...torch_utils import logits_in, seeded
from ..nests import tensors_in
from ..tracing.watch import watching
from .channels import Channels, Known
from .computes import computed, elementwise
from .moves import moved
from .probe import Replay
from .sizes import Number, knowing
from .ties import lined, varying
from .weights import weighted

SIZES = (Tensor.shape.__get__, Tensor.size)  # type: ignore[attr-defined]
OUTPUTS = "it gives the outputs"


@torch.no_grad()
def channels_of(network: nn.Module, example: Tensor) -> Channels:
    """The channels of a network in eval mode, which runs on the example [B, …]."""
    state = Channels(network)
    with seeded(), knowing(network), watching(network, partial(_heard, state), state.stack):
        outputs = network(example)
    for tensor in tensors_in(logits_in(outputs)):
        for tags in state.look(tensor).tags:
            state.ties.fix(tags, OUTPUTS)
    for _ in range(2):  # one may tie what another splits
        for split in state.splits:
            state.settle(split)
    return state


def _heard(state: Channels, func: Any, args: tuple, kwargs: dict[str, Any], out: Any) -> Any:
    """Notes what a call does with channels; sizes that it gives know the channels that they count."""
    if func in SIZES and isinstance(args[0], Tensor):
        return _counted(state, args[0], out, args, kwargs)
    results = tensors_in(args[0] if out is None and args else out)
    if any(tensor.is_floating_point() for tensor in results):
        call = Replay(func, args, kwargs)
        operands = [state.look(tensor) for tensor in call.operands]
        for tensor, known in zip(results, _known(state, call, results, operands), strict=True):
            known.tensor = tensor
            state.known[id(tensor)] = known
    return None


def _counted(state: Channels, tensor: Tensor, out: Any, args: tuple, kwargs: dict) -> Any:
    """A tensor's sizes, which know the channels that they count."""
    sizes: list[Any] = list(tensor.shape)
    for tags in state.known[id(tensor)].tags if id(tensor) in state.known else []:
        settled = state.ties.settled(tags)
        if settled is not None and len(varying(settled)) == 1:
            (dim,) = varying(settled)
            sizes[dim] = Number.of(sizes[dim], channels=lined(settled, dim))
    if isinstance(out, int):
        return sizes[args[1] if len(args) > 1 else kwargs["dim"]]
    return torch.Size(sizes)


def _known(state: Channels, call: Replay, results: list[Tensor], operands: list[Known]) -> list[Known]:
    for known in operands:
        known.tags = [tags for tags in map(state.ties.settled, known.tags) if tags is not None]
    if (by_weights := weighted(state, call, results)) is not None:
        return by_weights
    if not any(known.tags or known.parameter for known in operands):
        return [Known(tensor) for tensor in results]
    if len(results) == 1 and call.elementwise(results[0]):
        return [elementwise(state, call, operands, results[0])]
    if (sources := call.moved()) is not None:
        return moved(state, call, operands, sources)
    if not any(known.tags for known in operands):
        return [Known(tensor) for tensor in results]
    return computed(state, call, results, operands)
