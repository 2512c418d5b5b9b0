"""A traced network divided into pieces at the outputs of its modules: what `split` makes modules of."""

from __future__ import annotations

import operator
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from ...errors import UserError
from ..nests import tensors_in
from ..tracing.graph import Trace
from ..tracing.tracer import ROOT, call_unhooked, storage

UNKNOWN, BATCH, DEVICE = object(), object(), object()  # of numbers: the number of samples, the device they are on
NUMBERS = (int, float, bool, str, type(None), torch.dtype, torch.layout, torch.memory_format)


def call_held(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """What a module gives, without a gradient to its parameters."""
    with torch.no_grad():
        return module(*args, **kwargs)


class Uncarried(UserError):
    """Something crosses a cut that is not one tensor a sample. If the `makers` of it were opened, more might be seen:
    that it depends on the input's sizes only, say, as the rotations of a language model do."""

    def __init__(self, sentence: str, makers: set[nn.Module]) -> None:
        super().__init__(sentence)
        self.makers = makers


@dataclass(frozen=True)
class Piece:
    """What one stage computes, from shapes of `inputs` to shapes of `outputs` (of one sample)."""

    trace: Trace
    inputs: tuple[tuple[int, ...], ...]
    outputs: tuple[tuple[int, ...], ...]
    written: set[int] = field(default_factory=set)  # storages
    held: set[str] = field(default_factory=set)  # parameters, and modules of them, that learn in an earlier stage
    graph: fx.Graph = field(default_factory=fx.Graph)


def divide(traced: Trace, twin: Trace, cuts: Sequence[str], targets: Sequence[nn.Module]) -> list[Piece]:
    """One graph for each stage. `twin` is the same trace with another batch size: what differs is not a constant.

    Raises `UserError` for cuts that are no single tensors or out of order, and for what crosses a cut but is not one
    tensor a sample.
    """
    division = _Division(traced, twin, cuts, targets)
    live = division.live()
    return [division.piece(stage, live) for stage in range(len(live))]


class _Division:
    """The stage of each node of a traced network, and what the stages hand on.

    `free` are the nodes that do not depend on the input, or by its sizes only: they are made again wherever they are
    used. `known` are numbers, or tuples of them, that any stage can tell: constants, and what is the batch's own.
    `owners`: in which stage a parameter is used first, and learns.
    """

    def __init__(self, traced: Trace, twin: Trace, cuts: Sequence[str], targets: Sequence[nn.Module]) -> None:
        self.traced, self.cuts, self.nodes, self.values = traced, cuts, traced.nodes, traced.values
        self.index = {node: number for number, node in enumerate(self.nodes)}
        self.other = {node: twin.values[pair] for node, pair in zip(self.nodes, twin.nodes, strict=True)}
        self.batch = len(self.values[self.nodes[0]]), len(self.other[self.nodes[0]])
        self.ends = self._ends(targets)
        self.owners: dict[nn.Parameter, int] = {}
        self.known: dict[fx.Node, Any] = {}
        for node, value in self.values.items():
            if node.op != "output" and node not in traced.content and not tensors_in(value):
                known = self._known(value, self.other[node])
                if known is not UNKNOWN:
                    self.known[node] = known
        storages = {node: {storage(t) for t in tensors_in(value)} for node, value in self.values.items()}
        self.touched = {node: storages[node].union(*(storages[n] for n in node.all_input_nodes)) for node in self.nodes}
        changed = {place: self.index[node] for node, places in traced.writes.items() for place in places}  # at last
        self.free: set[fx.Node] = set()
        for node in self.nodes:
            sources, since = node.all_input_nodes, max((changed.get(s, -1) for s in self.touched[node]), default=-1)
            derived = sources and node.op != "output" and node not in traced.writes and since <= self.index[node]
            given = node not in traced.content and all(
                source in self.free or source in self.known for source in sources
            )
            if node.op == "get_attr" or (derived and given):
                self.free.add(node)
        self.stage = self._stages()

    def _ends(self, targets: Sequence[nn.Module]) -> list[int]:
        """Where in the trace each cut's module returns for the first time."""
        ends: list[int] = []
        for name, module in zip(self.cuts, targets, strict=True):
            node = self.traced.first.get(module)
            if node is None or (ends and self.index[node] <= ends[-1]):
                raise UserError(
                    f"the module {name!r} gives no tensor that its code computes, once the cut before it is made; "
                    "expected one in training and in evaluation: cut elsewhere."
                )
            if not isinstance(self.values[node], Tensor):
                raise UserError(f"the module {name!r} does not return a single tensor; name one that does.")
            ends.append(self.index[node])
        return ends

    def _stages(self) -> dict[fx.Node, int]:
        """The stage of each node: the first one whose end depends on it, so that all that a stage holds bears on what
        it learns, also what the code runs before an earlier cut (a lateral convolution of a U-Net).

        What is read or written before a tensor is changed in place stays before that. Numbers and items of several
        outputs are taken where what they are of is made.
        """
        stages: dict[fx.Node, int] = {}
        alone: dict[fx.Node, int] = {}  # if nothing were changed in place
        later: dict[int, int] = {}  # by storage: the first stage in which a later node touches it
        written: dict[int, int] = {}  # ... writes to it
        for node in reversed(self.nodes):
            after, last = [stages[user] for user in node.users], bisect_left(self.ends, self.index[node])
            alone[node] = min((alone[user] for user in node.users), default=last)
            writes = self.traced.writes.get(node, set())
            after += [written[s] for s in self.touched[node] & written.keys()] + [
                later[s] for s in writes & later.keys()
            ]
            stages[node] = min(after, default=last)
            if node.op == "placeholder":
                stages[node] = 0
            elif self.index[node] in self.ends:
                stages[node] = alone[node] = last
            if node.op == "call_module" and stages[node] < alone[node] and self._learns(node):
                raise UserError(
                    f"{str(node.target).removeprefix(ROOT)!r} does not bear on the cut {self.cuts[stages[node]]!r} but "
                    "reads what is changed in place before it, so that it fits in no stage; expected one where it "
                    "learns: cut elsewhere or take a method without stages."
                )
            for s in self.touched[node]:
                later[s] = min(later.get(s, stages[node]), stages[node])
            for s in writes:
                written[s] = min(written.get(s, stages[node]), stages[node])
        for node in self.nodes:
            sources = node.all_input_nodes
            item = node.target is operator.getitem and len(sources) == 1
            if sources and node.op != "output":
                of_several = item and not isinstance(self.values[sources[0]], Tensor)
                if of_several or not tensors_in(self.values[node]):
                    stages[node] = max(stages[source] for source in sources)
        return stages

    def _learns(self, node: fx.Node) -> bool:
        return any(True for _ in self.traced.entry.get_submodule(str(node.target)).parameters())

    def inside(self, stage: int) -> list[fx.Node]:
        """The nodes that belong to a stage alone."""
        return [n for n in self.nodes if self.stage[n] == stage and n not in self.free and n.op != "placeholder"]

    def _known(self, value: Any, other: Any) -> Any:
        """What stands for a value that is `other` on the twin's samples; `UNKNOWN` where it must be computed again."""
        if isinstance(value, torch.device):
            return DEVICE
        if isinstance(value, tuple | list) and isinstance(other, tuple | list) and len(value) == len(other):
            items = tuple(map(self._known, value, other))
            return UNKNOWN if UNKNOWN in items else items
        if type(value) is int and value != other and (value, other) == self.batch:
            return BATCH
        return value if isinstance(value, NUMBERS) and value == other else UNKNOWN

    def live(self) -> list[list[fx.Node]]:
        """What each stage takes: the cut before it, then what else of earlier stages it or a later one needs."""
        live: list[list[fx.Node]] = [[] for _ in range(len(self.ends) + 1)]
        after: list[fx.Node] = []
        for stage in range(len(self.ends), -1, -1):
            wanted = {node for node in after if self.stage[node] < stage}
            for node in self.inside(stage):
                wanted |= self._needed(node, stage)
            cut = self.nodes[self.ends[stage - 1]] if stage else self.nodes[0]
            live[stage] = after = [cut, *sorted(wanted - {cut}, key=self.index.__getitem__)]
        return live

    def _needed(self, node: fx.Node, stage: int) -> set[fx.Node]:
        """The earlier stages' tensors of which a node is made in a stage."""
        needed: set[fx.Node] = set()
        for source in node.all_input_nodes:
            if source in self.free or source in self.known or self.stage[source] >= stage:
                continue
            if tensors_in(self.values[source]):
                needed.add(source)
            else:
                needed |= self._needed(source, stage)
        return needed

    def piece(self, stage: int, live: Sequence[Sequence[fx.Node]]) -> Piece:
        """The graph of a stage, of what is `live` at its ends."""
        inputs, outputs = live[stage], live[stage + 1] if stage < len(self.ends) else []
        for node in outputs:
            value, other = self.values[node], self.other[node]
            if not isinstance(value, Tensor) or not value.dim() or (len(value), len(other)) != self.batch:
                raise Uncarried(
                    f"what crosses the cut at {self.cuts[stage]!r} is not one tensor a sample (the value "
                    f"{node.name!r}); expected its first dimension to be the batch: cut elsewhere.",
                    self._makers(node),
                )
        written = set[int]().union(*(self.traced.writes.get(node, set()) for node in self.inside(stage)))
        taken, given = (tuple(tuple(self.values[node].shape[1:]) for node in nodes) for nodes in (inputs, outputs))
        piece = Piece(self.traced, taken, given, written)
        graph, copies = piece.graph, {node: piece.graph.placeholder(node.name) for node in inputs}
        for node in inputs:
            if storage(self.values[node]) in written:  # the caller's tensor, such as a cut's feature, stays as it was
                copies[node] = graph.call_method("clone", (copies[node],))

        def tell(known: Any) -> Any:
            if isinstance(known, tuple):
                return tuple(map(tell, known))
            if known is BATCH:
                return graph.call_method("size", (copies[inputs[0]], 0))
            return graph.call_function(getattr, (copies[inputs[0]], "device")) if known is DEVICE else known

        def copy(node: fx.Node) -> Any:
            if node not in copies and node in self.known and (self.stage[node] < stage or node in self.free):
                copies[node] = tell(self.known[node])
            if node not in copies:
                for source in node.all_input_nodes:
                    copy(source)
                copies[node] = self._copied(node, stage, piece, copy)
            return copies[node]

        for node in self.inside(stage):
            if node.op != "output":
                copy(node)
        graph.output(tuple(map(copy, outputs)) if outputs else map_arg(self.nodes[-1].args[0], copy))
        return piece

    def _makers(self, node: fx.Node) -> set[nn.Module]:
        """The modules without parameters, taken whole, that a value is made by."""
        seen, rest = {node}, [node]
        while rest:
            sources = set(rest.pop().all_input_nodes) - seen
            seen |= sources
            rest += sources
        called = [self.traced.entry.get_submodule(str(n.target)) for n in seen if n.op == "call_module"]
        return {module for module in called if not any(True for _ in module.parameters())}

    def _copied(self, node: fx.Node, stage: int, piece: Piece, copy: Callable[[fx.Node], Any]) -> fx.Node:
        """A node in the graph of a stage."""
        graph, value = piece.graph, self.values[node]
        if node.op == "call_module":
            module = self.traced.entry.get_submodule(str(node.target))
            for parameter in module.parameters():
                self.owners.setdefault(parameter, stage)
            if hooks := self.traced.bare.get(module):
                args, kwargs = map_arg(node.args, copy), map_arg(node.kwargs, copy)
                alone = hooks >= {*module._forward_pre_hooks, *module._forward_hooks}
                called = graph.get_attr(str(node.target))
                if alone:
                    return graph.call_method("forward", (called, *args), kwargs)
                return graph.call_function(call_unhooked, (called, tuple(hooks), *args), kwargs)
            if node in self.free and any(self.owners[parameter] < stage for parameter in module.parameters()):
                piece.held.add(str(node.target))
                args, kwargs = map_arg(node.args, copy), map_arg(node.kwargs, copy)
                return graph.call_function(call_held, (graph.get_attr(str(node.target)), *args), kwargs)
        copied = graph.node_copy(node, copy)
        if isinstance(value, nn.Parameter) and node.op == "get_attr" and self.owners.setdefault(value, stage) < stage:
            piece.held.add(str(node.target))
            return graph.call_method("detach", (copied,))
        return copied
