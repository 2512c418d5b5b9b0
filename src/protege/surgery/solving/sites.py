"""Where a network's layers stand in a walk: each call of it that multiplies with a weight, heard as the walk runs.

A layer is named after the module whose ``weight`` it is, or, where it is none's, after its parameter. What it gives may
be what its node gives, and can then be changed there as the walk stands still; or it is inside a node (of attention,
say), which then runs again for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...numerics import exact
from ...torch_utils import as_it_was, eval_mode
from ..nests import tensors_in
from ..tracing import Call, Live, Walk
from ..tracing.calls import Weight, Weights
from ..tracing.watch import Listening
from .linear import Linear, linear_in, role_in

Span = tuple[int, int]  # addresses of the first byte of a tensor and of the one behind it


@dataclass(frozen=True)
class Site:
    """A layer in a walk: the ``call`` in the node number ``node``, with a weight of the ``shape`` [output channels
    somewhere, …].

    ``gives`` is the shape of what it gives. Where that is what its node gives, ``dim`` is the dimension of the
    channels there, and None where it is inside. ``linear`` is None where it is not linear in its weight, and ``twice``
    tells whether the weight is used elsewhere, too.
    """

    name: str
    node: int
    call: Call
    linear: Linear | None
    gives: tuple[int, ...]
    dim: int | None
    twice: bool


@dataclass(frozen=True)
class Sites:
    """The layers of a walk by name, in the order in which they run, and the nodes that hand on what they take, at most
    in another shape with the same last dimension."""

    layers: dict[str, Site]
    passes: frozenset[str]


@exact()
@torch.no_grad()
def sites_of(walk: Walk) -> Sites:
    """What is heard as a walk runs on its example."""
    network = walk.modules[""]
    weights, passes, live = Weights(network), set[str](), Live()
    sites: list[tuple[Site, list[Span], Tensor]] = []
    others: list[Span] = []  # of weights that what is no layer uses
    counts = [0, 0]  # the node, and calls in it

    def heard(function: Callable[..., Any], args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        number, counts[1] = counts[1], counts[1] + 1
        known = weights.among((args, kwargs))
        if not known or weights.note(function, args, kwargs, output):
            return
        given = tensors_in((args, kwargs))
        inputs = [i for i, tensor in enumerate(given) if id(tensor) not in known and tensor.is_floating_point()]
        matrices = [weight for weight in known.values() if weight.value.dim() > 1 and weight.value.is_floating_point()]
        if len(inputs) == len(given) - len(known) and not inputs:
            return  # asks about weights
        layer = linear_in(function, args, kwargs, known) if inputs and matrices else None
        if layer is None:
            role = role_in(function, args, kwargs, known) if inputs and matrices else "spread"
            if role != "layer":
                others.extend(span for weight in known.values() for span in _spans(weight) if role != "none")
                return
        weight = matrices[0] if layer is None else layer.weight
        name = _name(weight)
        name += f" ({1 + again})" if (again := sum(site.name.partition(" (")[0] == name for site, *_ in sites)) else ""
        tensor = output if isinstance(output, Tensor) else tensors_in(output)[0]
        site = Site(name, counts[0], Call(name, number, inputs[0]), layer, tuple(tensor.shape), None, False)
        sites.append((site, _spans(weight), tensor.clone()))

    with as_it_was(network), eval_mode(network):
        for i, node in enumerate(walk.nodes):
            counts[:] = i, 0
            taken = [live[other.name] for other in node.all_input_nodes if isinstance(live[other.name], Tensor)]
            versions = [tensor._version for tensor in taken]
            with Listening(heard):
                walk.advance(live, i, i + 1, walk.example.clone() if i == 0 else None)
            value = live.get(node.name)
            if len(taken) == 1 and taken[0]._version == versions[0] and _same(taken[0], value):
                passes.add(node.name)
            for number, (site, spans, tensor) in enumerate(sites):
                if site.node == i:
                    sites[number] = replace(site, dim=_dim(site, tensor, value)), spans, tensor[:0]
    layers = {}
    for number, (site, spans, _) in enumerate(sites):
        rest = [*others, *(span for other, (_, s, _) in enumerate(sites) if other != number for span in s)]
        twice = any(a < end and start < b for start, end in spans for a, b in rest)
        layers[site.name] = replace(site, twice=twice)
    return Sites(layers, frozenset(passes))


def _same(taken: Tensor, value: Any) -> bool:
    """Whether a value lies where another does, element by element in the same order."""
    if not isinstance(value, Tensor) or (value.data_ptr(), value.numel()) != (taken.data_ptr(), taken.numel()):
        return False
    if value.shape == taken.shape:
        return value.stride() == taken.stride()
    return value.is_contiguous() and taken.is_contiguous() and value.shape[-1:] == taken.shape[-1:]


def _dim(site: Site, tensor: Tensor, value: Any) -> int | None:
    """The dimension of a layer's channels in what its node gives; None where that is something else."""
    if site.linear is None or not isinstance(value, Tensor) or value.numel() != tensor.numel() or not value.dim():
        return None
    dim = site.linear.dim
    if value.shape == tensor.shape:
        return dim if torch.equal(value, tensor) else None
    same = dim == -1 and value.shape[-1] == tensor.shape[-1] and torch.equal(value.flatten(), tensor.flatten())
    return dim if same else None


def _name(weight: Weight) -> str:
    names = list(weight.origins)
    owner, _, key = names[0].rpartition(".")
    if "parametrizations" in owner.split("."):
        return owner.partition("parametrizations")[0].rstrip(".")
    return owner if key == "weight" or len(names) > 1 else names[0]


def _spans(weight: Weight) -> list[Span]:
    """Where the parameters lie that a weight consists of, or the part of one that it is a view of."""
    now = weight.read()
    sources: Iterable[Tensor] = weight.origins.values()
    storages = {source.untyped_storage().data_ptr() for source in sources}
    parts = [now] if now.untyped_storage().data_ptr() in storages else list(sources)
    return [
        (part.data_ptr(), part.data_ptr() + part.element_size() * (1 + _reach(part))) for part in parts if part.numel()
    ]


def _reach(tensor: Tensor) -> int:
    return sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
