"""A traced network divided into pieces at the outputs of its modules: what `stages` makes modules of."""

from __future__ import annotations

import operator
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from ...errors import UserError
from ...torch_utils import as_it_was, eval_mode
from ..laws import other_samples, tensors_in
from ..tracing.graph import ROOT, Trace, Untraceable, memory_of, storage, trace


@dataclass(frozen=True)
class Piece:
    """What one stage computes, from shapes of `inputs` to shapes of `outputs` (of one sample)."""

    trace: Trace
    inputs: tuple[tuple[int, ...], ...]
    outputs: tuple[tuple[int, ...], ...]
    written: set[int] = field(default_factory=set)  # storages
    graph: fx.Graph = field(default_factory=fx.Graph)


def divide(traced: Trace, twin: Trace, cuts: Sequence[str], targets: Sequence[nn.Module]) -> list[Piece]:
    """One graph for each stage. `twin` is the same trace with another batch size: what differs is not a constant."""
    nodes, values = traced.nodes, traced.values
    index = {node: number for number, node in enumerate(nodes)}
    other = {node: twin.values[pair] for node, pair in zip(nodes, twin.nodes, strict=True)}
    ends = _ends(traced, cuts, targets, index)
    batch, other_batch = len(values[nodes[0]]), len(twin.values[twin.nodes[0]])
    touched = _touched(traced)
    changed = {place: index[node] for node, places in traced.writes.items() for place in places}  # the last time
    free: set[fx.Node] = set()  # what does not depend on the input: made again wherever it is used
    for node in nodes:
        inputs = node.all_input_nodes
        derived = inputs and node.op != "output" and node not in traced.writes and all(n in free for n in inputs)
        if node.op == "get_attr" or (derived and not any(changed.get(s, -1) > index[node] for s in touched[node])):
            free.add(node)
    at = _places(traced, cuts, ends, index, touched)

    def plain(node: fx.Node) -> Any:
        """The Python value that stands for a number of an earlier stage, or None where it must be computed again."""
        if tensors_in(values[node]) or isinstance(values[node], Tensor):
            return None
        return values[node] if values[node] == other[node] else None

    def is_batch(node: fx.Node) -> bool:
        return type(values[node]) is int and (values[node], other[node]) == (batch, other_batch)

    def needs(node: fx.Node, stage: int, into: dict[fx.Node, None]) -> None:
        """Note the earlier stages' tensors of which `node` is made in `stage`."""
        for source in node.all_input_nodes:
            if source in free or at[source] >= stage:
                continue
            if tensors_in(values[source]):
                into[source] = None
            elif plain(source) is None and not is_batch(source):
                needs(source, stage, into)

    live: list[list[fx.Node]] = [[] for _ in range(len(ends) + 1)]
    after: list[fx.Node] = []
    for stage in range(len(ends), -1, -1):
        wanted = {node: None for node in after if at[node] < stage}
        for node in nodes:
            if at[node] == stage and node not in free and node.op != "placeholder":
                needs(node, stage, wanted)
        cut = [nodes[ends[stage - 1]]] if stage else [nodes[0]]
        live[stage] = after = cut + sorted((n for n in wanted if n is not cut[0]), key=index.__getitem__)

    pieces = []
    for stage, inputs in enumerate(live):
        outputs = live[stage + 1] if stage < len(ends) else []
        for node in outputs:
            value, others = values[node], other[node]
            if not isinstance(value, Tensor) or not value.dim() or (len(value), len(others)) != (batch, other_batch):
                raise UserError(
                    f"what crosses the cut at {cuts[stage]!r} is not one tensor a sample (the value "
                    f"{node.name!r}); expected its first dimension to be the batch: cut elsewhere."
                )
        inside = [node for node in nodes if at[node] == stage and node not in free and node.op != "placeholder"]
        written = set().union(*(traced.writes.get(node, set()) for node in inside))
        piece = Piece(traced, _shapes(values, inputs), _shapes(values, outputs), written)
        graph, copies = piece.graph, {node: piece.graph.placeholder(node.name) for node in inputs}
        for node in inputs:
            if storage(values[node]) in written:  # the caller's tensor, such as a cut's feature, stays as it was
                copies[node] = graph.call_method("clone", (copies[node],))

        def copy(node: fx.Node, stage: int = stage, copies: dict = copies, graph: fx.Graph = graph) -> Any:
            if node not in copies:
                if at[node] < stage and node not in free:
                    if plain(node) is not None:
                        return plain(node)
                    if is_batch(node):
                        copies[node] = graph.call_method("size", (copies[live[stage][0]], 0))
                        return copies[node]
                for source in node.all_input_nodes:
                    copy(source)
                copies[node] = graph.node_copy(node, copy)
            return copies[node]

        for node in inside:
            if node.op != "output":
                copy(node)
        graph.output(tuple(map(copy, outputs)) if outputs else map_arg(nodes[-1].args[0], copy))
        pieces.append(piece)
    return pieces


def _touched(traced: Trace) -> dict[fx.Node, set[int]]:
    """The storages of the tensors that each node takes or gives."""
    storages = {node: {storage(tensor) for tensor in tensors_in(value)} for node, value in traced.values.items()}
    return {node: storages[node].union(*(storages[source] for source in node.all_input_nodes)) for node in traced.nodes}


def _places(
    traced: Trace,
    cuts: Sequence[str],
    ends: Sequence[int],
    index: Mapping[fx.Node, int],
    touched: Mapping[fx.Node, set[int]],
) -> dict[fx.Node, int]:
    """The stage of each node: the first one whose end depends on it, so that all that a stage holds bears on what it
    learns, also what the code runs before an earlier cut (a lateral convolution of a U-Net).

    What is read or written before a tensor is changed in place stays before that. Numbers and items of several
    outputs are taken where what they are of is made.
    """
    nodes, values = traced.nodes, traced.values
    at: dict[fx.Node, int] = {}
    alone: dict[fx.Node, int] = {}  # if nothing were changed in place
    later: dict[int, int] = {}  # by storage: the first stage in which a later node touches it
    written: dict[int, int] = {}  # ... writes to it
    for node in reversed(nodes):
        after, last = [at[user] for user in node.users], bisect_left(ends, index[node])
        alone[node] = min((alone[user] for user in node.users), default=last)
        writes = traced.writes.get(node, set())
        after += [written[s] for s in touched[node] & written.keys()] + [later[s] for s in writes & later.keys()]
        at[node] = min(after, default=last)
        if node.op == "placeholder":
            at[node] = 0
        elif index[node] in ends:
            at[node] = alone[node] = last
        if node.op == "call_module" and at[node] < alone[node] and _learns(traced, node):
            raise UserError(
                f"{str(node.target).removeprefix(ROOT)!r} does not bear on the cut {cuts[at[node]]!r} but reads what is"
                " changed in place before it, so that it fits in no stage; expected one where it learns: cut elsewhere "
                "or take a method without stages."
            )
        for s in touched[node]:
            later[s] = min(later.get(s, at[node]), at[node])
        for s in writes:
            written[s] = min(written.get(s, at[node]), at[node])
    for node in nodes:
        sources = node.all_input_nodes
        item = node.target is operator.getitem and len(sources) == 1 and not isinstance(values[sources[0]], Tensor)
        if sources and node.op != "output" and (item or not tensors_in(values[node])):
            at[node] = max(at[source] for source in sources)
    return at


def _learns(traced: Trace, node: fx.Node) -> bool:
    return any(True for _ in traced.entry.get_submodule(str(node.target)).parameters())


def _ends(traced: Trace, cuts: Sequence[str], targets: Sequence[nn.Module], index: dict[fx.Node, int]) -> list[int]:
    """Where in the trace each cut's module returns for the first time."""
    ends: list[int] = []
    for name, module in zip(cuts, targets, strict=True):
        if module not in traced.first:
            raise UserError(f"the module {name!r} is never called in a forward pass; name one that is.")
        node = traced.first[module]
        if node is None or not isinstance(traced.values[node], Tensor):
            raise UserError(f"the module {name!r} does not return a single tensor; cut at one that does.")
        if ends and index[node] <= ends[-1]:
            raise UserError(
                f"the cut {name!r} does not come after {cuts[len(ends) - 1]!r} in a forward pass; "
                "name cuts once each and in order."
            )
        ends.append(index[node])
    return ends


def traces(
    network: nn.Module, samples: Sequence[Tensor], around: set[nn.Module], training: set[nn.Module], cuts: Sequence[str]
) -> list[Trace]:
    """The network's graph on an example and on other samples, after it has run on each: where it is not
    the same, stages would hold what belongs to the example. Raises `UserError` there."""
    traced = []
    try:
        with as_it_was(network):
            for batch in samples:
                traced.append(trace(network, batch, around, training=training))
                with modes(network, training), torch.no_grad():
                    network(batch.clone())  # what the network counts goes on from one to the other
    except Untraceable as error:
        if not error.place:
            raise UserError(
                f"the network fails on samples of shape {list(samples[0].shape[1:])} ({error.reason}); expected some "
                "that its forward takes, prepared and not raw: give others."
            ) from error
        raise UserError(
            f"the network cannot be cut at {listed(cuts)}, as the code of {error.place} cannot be traced "
            f"({error.reason}); cut outside of it or take a method without stages."
        ) from error
    if memory := memory_of(*traced):
        alike = [samples[0], other_samples(samples[0], len(samples[0]))]
        if len(samples[1]) != len(alike[1]):
            traces(network, alike, around, training, cuts)
            raise UserError(
                f"the network's code around {listed(cuts)} depends on the batch size (it holds {memory}); expected "
                "the same for any: cut elsewhere or take another method."
            )
        raise UserError(
            f"the network's code around {listed(cuts)} goes on with {memory} kept by an earlier pass or by a hook, "
            "which stages would repeat for all samples; expected values that modules hand to each other: cut elsewhere "
            "or take a method without stages."
        )
    return traced


@contextmanager
def modes(network: nn.Module, training: set[nn.Module]) -> Iterator[None]:
    """Inside, the network is in eval mode, but for some modules."""
    with eval_mode(network):
        for module in training:
            module.training = True
        try:
            yield
        finally:
            for module in training:
                module.training = False


def _shapes(values: dict[fx.Node, Any], nodes: Sequence[fx.Node]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(values[node].shape[1:]) for node in nodes)


def parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(len(parts))]


def listed(cuts: Sequence[str]) -> str:
    return ", ".join(map(repr, cuts))
