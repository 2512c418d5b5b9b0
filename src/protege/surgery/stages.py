"""A network as runnable stages that share its modules: what Stagewise KD teaches one after the other.

Kulkarni et al. 2020, arXiv 1911.06786, section 3. A stage takes all that is alive at the cut before it (one tensor
in a plain network, the skip connections too in a U-Net), so classification and segmentation need no code of their own.
"""

from __future__ import annotations

import operator
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from ..errors import UserError, nearest, told
from ..modes import eval_mode, trained_by
from ..torch_utils import as_it_was
from .cuts import Pair
from .laws import close, other_samples, others_for, random_state, tensors_in
from .tap import first_outputs
from .tracing import ROOT, Trace, Untraceable, memory_of, storage, trace

HEAD = "head"


class Stage(nn.Module):
    """A piece of a network. Parameters, norms and dropout are the network's own: training it trains the network.

    Called on a tuple of tensors [N, …], shaped as `inputs`; returns the tuple that the next stage takes, shaped as
    `outputs`, whose first is the output of the module `name`. The last stage, `head`, returns the network's outputs.
    Parameters are named as in a `Model`: `network.` and the name in the network. The stage is made for inputs of the
    example's size.
    """

    name: str
    inputs: tuple[tuple[int, ...], ...]  # shapes for one sample
    outputs: tuple[tuple[int, ...], ...]  # () for the head

    def __init__(self, name: str, pieces: Sequence[_Piece]) -> None:
        super().__init__()
        self.name, self.inputs, self.outputs = name, pieces[0].inputs, pieces[0].outputs
        for piece in pieces:
            _install(self, piece)
        self._eval, self._train = _compiled(pieces[0].graph), _compiled(pieces[-1].graph)

    def forward(self, live: tuple[Tensor, ...]) -> Any:
        return (self._train if self.training else self._eval)(self, *live)

    def extra_repr(self) -> str:
        return f"{self.name}: {list(self.inputs)} → {list(self.outputs) or 'outputs'}"


class Chain(nn.Module):
    """Stages one after the other. Takes a prepared input [N, …] or the tuple that its first stage takes; returns
    what the last returns; with no stage, the tuple itself."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)

    def forward(self, live: Tensor | tuple[Tensor, ...]) -> Any:
        live = (live,) if isinstance(live, Tensor) else live
        for stage in self.stages:
            live = stage(live)
        return live


def split(network: nn.Module, cuts: Sequence[str], example: Tensor) -> list[Stage]:
    """Divide a network at the first outputs of named modules, in forward order, into len(cuts) + 1 stages.

    `example` [N, …] is what `forward` takes (prepared, not raw), on the network's device. In eval mode the stages in
    a row are the network, bit for bit; the network is not changed. Raises `UserError` for cuts that do not exist, are
    not called in this order or give no single tensor; for code around a cut that cannot be traced; for parameters or
    running statistics that two stages use; and where something crosses a cut that is not one tensor a sample.
    """
    modules = dict(network.named_modules(remove_duplicate=False))
    for name in cuts:
        if not name or name not in modules:
            raise UserError(f"the network has no module {name!r} to cut at; {nearest(name, modules)}.")
    around = {modules[name] for cut in cuts for name in _parents(cut)} if cuts else set()
    with as_it_was(network):
        learning = around & trained_by(network)
    samples = [example, others_for(network, example)]
    still, twin = _traces(network, samples, around, set(), cuts)
    train, other = _traces(network, samples, around, learning, cuts)
    targets = [modules[name] for name in cuts]
    pieces = [_divide(still, twin, cuts, targets)]
    if train.code != still.code:  # its own code asks for `self.training`
        pieces.append(_divide(train, other, cuts, targets))
        if [p.inputs for p in pieces[0]] != [p.inputs for p in pieces[1]]:
            raise UserError(
                f"other values cross {_listed(cuts)} in training than in evaluation; expected the same: cut elsewhere."
            )
    stages = [Stage(name, parts) for name, *parts in zip([*cuts, HEAD], *pieces, strict=True)]
    _check_shared(stages, pieces)
    _check_composed(network, stages, samples, learning)
    return stages


def describe(pairs: Sequence[Pair], stages: Sequence[Stage] = ()) -> list[dict[str, Any]]:
    """A row for each stage of the student, the head last: `stage`, `teacher` (module), `student_shape`,
    `teacher_shape` (of one sample), `adapter` (whether one is needed) and, if the student is cut into `stages`, their
    `parameters`."""
    rows: list[dict[str, Any]] = []
    for number, pair in enumerate([*pairs, None]):
        size = {"parameters": sum(p.numel() for p in stages[number].parameters())} if stages else {}
        rows.append(
            {
                "stage": pair.student.name if pair else HEAD,
                "teacher": pair and pair.teacher.name,
                "student_shape": pair and pair.student.shape,
                "teacher_shape": pair and pair.teacher.shape,
                **size,
                "adapter": bool(pair and pair.adapter),
            }
        )
    return rows


# ---- the graph in pieces ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Piece:
    trace: Trace
    inputs: tuple[tuple[int, ...], ...]
    outputs: tuple[tuple[int, ...], ...]
    written: set[int] = field(default_factory=set)  # storages
    graph: fx.Graph = field(default_factory=fx.Graph)


def _divide(found: Trace, twin: Trace, cuts: Sequence[str], targets: Sequence[nn.Module]) -> list[_Piece]:
    """One graph for each stage. `twin` is the same trace with another batch size: what differs is not a constant."""
    nodes, values = found.nodes, found.values
    index = {node: number for number, node in enumerate(nodes)}
    other = {node: twin.values[pair] for node, pair in zip(nodes, twin.nodes, strict=True)}
    ends = _ends(found, cuts, targets, index)
    batch, other_batch = len(values[nodes[0]]), len(twin.values[twin.nodes[0]])
    touched = _touched(found)
    changed = {place: index[node] for node, places in found.writes.items() for place in places}  # the last time
    free: set[fx.Node] = set()  # what does not depend on the input: made again wherever it is used
    for node in nodes:
        inputs = node.all_input_nodes
        made = inputs and node.op != "output" and node not in found.writes and all(n in free for n in inputs)
        if node.op == "get_attr" or (made and not any(changed.get(s, -1) > index[node] for s in touched[node])):
            free.add(node)
    at = _places(found, cuts, ends, index, touched)

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
        own = [node for node in nodes if at[node] == stage and node not in free and node.op != "placeholder"]
        written = set().union(*(found.writes.get(node, set()) for node in own))
        piece = _Piece(found, _shapes(values, inputs), _shapes(values, outputs), written)
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

        for node in own:
            if node.op != "output":
                copy(node)
        graph.output(tuple(map(copy, outputs)) if outputs else map_arg(nodes[-1].args[0], copy))
        pieces.append(piece)
    return pieces


def _touched(found: Trace) -> dict[fx.Node, set[int]]:
    """The storages of the tensors that each node takes or gives."""
    seen = {node: {storage(tensor) for tensor in tensors_in(value)} for node, value in found.values.items()}
    return {node: seen[node].union(*(seen[source] for source in node.all_input_nodes)) for node in found.nodes}


def _places(
    found: Trace,
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
    nodes, values = found.nodes, found.values
    at: dict[fx.Node, int] = {}
    alone: dict[fx.Node, int] = {}  # if nothing were changed in place
    later: dict[int, int] = {}  # by storage: the first stage in which a later node touches it
    written: dict[int, int] = {}  # ... writes to it
    for node in reversed(nodes):
        after, last = [at[user] for user in node.users], bisect_left(ends, index[node])
        alone[node] = min((alone[user] for user in node.users), default=last)
        writes = found.writes.get(node, set())
        after += [written[s] for s in touched[node] & written.keys()] + [later[s] for s in writes & later.keys()]
        at[node] = min(after, default=last)
        if node.op == "placeholder":
            at[node] = 0
        elif index[node] in ends:
            at[node] = alone[node] = last
        if node.op == "call_module" and at[node] < alone[node] and _learns(found, node):
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


def _learns(found: Trace, node: fx.Node) -> bool:
    return any(True for _ in found.entry.get_submodule(str(node.target)).parameters())


def _ends(found: Trace, cuts: Sequence[str], targets: Sequence[nn.Module], index: dict[fx.Node, int]) -> list[int]:
    """Where in the trace each cut's module returns for the first time."""
    ends: list[int] = []
    for name, module in zip(cuts, targets, strict=True):
        if module not in found.first:
            raise UserError(f"the module {name!r} is never called in a forward pass; name one that is.")
        node = found.first[module]
        if node is None or not isinstance(found.values[node], Tensor):
            raise UserError(f"the module {name!r} does not return a single tensor; cut at one that does.")
        if ends and index[node] <= ends[-1]:
            raise UserError(
                f"the cut {name!r} does not come after {cuts[len(ends) - 1]!r} in a forward pass; "
                "name cuts once each and in order."
            )
        ends.append(index[node])
    return ends


def _traces(
    network: nn.Module, samples: Sequence[Tensor], around: set[nn.Module], training: set[nn.Module], cuts: Sequence[str]
) -> list[Trace]:
    """The network's graph on an example and on other samples, after it has run on each: where it is not
    the same, stages would hold what belongs to the example. Raises `UserError` there."""
    found = []
    with as_it_was(network):
        for batch in samples:
            try:
                with _modes(network, training), torch.no_grad():
                    network(batch.clone())
            except Exception as error:
                raise UserError(
                    f"the network fails on samples of shape {list(batch.shape[1:])} ({told(error)}); expected some "
                    "that its forward takes, prepared and not raw: give others."
                ) from error
            try:
                found.append(trace(network, batch, around.__contains__, training))
            except Untraceable as error:
                kind = type(error.module).__name__
                where = f"{kind} {error.name!r}" if error.name else kind
                raise UserError(
                    f"the network cannot be cut at {_listed(cuts)}, as the code of {where} cannot be traced "
                    f"({error.reason}); cut outside of it or take a method without stages."
                ) from error
    if memory := memory_of(*found):
        alike = [samples[0], other_samples(samples[0], len(samples[0]))]
        if len(samples[1]) != len(alike[1]):
            _traces(network, alike, around, training, cuts)
            raise UserError(
                f"the network's code around {_listed(cuts)} depends on the batch size (it holds {memory}); expected "
                "the same for any: cut elsewhere or take another method."
            )
        raise UserError(
            f"the network's code around {_listed(cuts)} goes on with {memory} kept by an earlier pass or by a hook, "
            "which stages would repeat for all samples; expected values that modules hand to each other: cut elsewhere "
            "or take a method without stages."
        )
    return found


@contextmanager
def _modes(network: nn.Module, training: set[nn.Module]) -> Iterator[None]:
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


def _parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(len(parts))]


def _listed(cuts: Sequence[str]) -> str:
    return ", ".join(map(repr, cuts))


# ---- making stages ----------------------------------------------------------------------------------------------


def _compiled(graph: fx.Graph) -> Callable[..., Any]:
    graph.lint()
    code = graph.python_code("self")
    made: dict[str, Any] = dict(code.globals)
    exec(compile(code.src, "<stage>", "exec"), made)
    return made["forward"]


def _install(stage: Stage, piece: _Piece) -> None:
    """Give the stage the network's own modules, parameters and buffers under the names that its code uses."""
    targets = {str(n.target): n.op for n in piece.graph.nodes if n.op in ("call_module", "get_attr")}
    constants = {str(node.target): value for node, value in piece.trace.constants.items()}
    for target, op in sorted(targets.items(), key=lambda item: (item[1] != "call_module", item[0])):
        *path, last = target.split(".")
        owner: nn.Module = piece.trace.entry
        holder: nn.Module = stage
        for part in path:
            owner = getattr(owner, part)
            if part not in holder._modules:
                holder.add_module(part, nn.Module())
            holder = getattr(holder, part)
        value: Any = constants[target] if target in constants else getattr(owner, last)
        if op == "call_module":
            holder.add_module(last, value)
        elif isinstance(value, nn.Parameter):
            holder.register_parameter(last, value)
        elif last in owner._buffers:  # one dictionary, so that a buffer moved to a device is moved in the network too
            holder._buffers, holder._non_persistent_buffers_set = owner._buffers, owner._non_persistent_buffers_set
        elif last not in holder._buffers:
            holder.register_buffer(last, value, persistent=False)


def _check_shared(stages: Sequence[Stage], pieces: Sequence[Sequence[_Piece]]) -> None:
    seen: dict[Tensor, Stage] = {}
    for stage in stages:
        statistics = [(name, b) for name, b in stage.named_buffers() if name.rsplit(".", 1)[-1].startswith("running_")]
        for name, value in [*stage.named_parameters(), *statistics]:
            if (first := seen.setdefault(value, stage)) is not stage:
                raise UserError(
                    f"{name.removeprefix(ROOT)!r} is used in both stages {first.name!r} and {stage.name!r}, so that "
                    "they cannot learn one after the other; choose cuts that keep its uses in one stage."
                )
    for number, stage in enumerate(stages):  # what a later stage writes would change a frozen one
        later = set().union(*(piece.written for parts in pieces for piece in parts[number + 1 :]))
        for name, value in stage.named_buffers():
            if storage(value) in later:
                raise UserError(
                    f"{name.removeprefix(ROOT)!r} is used in stage {stage.name!r} and changed in a later one, so that "
                    "they cannot learn one after the other; choose cuts that keep its uses in one stage."
                )


def _check_composed(
    network: nn.Module, stages: Sequence[Stage], samples: Sequence[Tensor], learning: set[nn.Module]
) -> None:
    """What cannot be seen in a trace (a type asked for, or what a module keeps for another one) shows in the numbers:
    of stages that take turns on an example and on other samples, in evaluation and in the modes they were traced in."""
    names = [stage.name for stage in stages[:-1]]
    for training in (set[nn.Module](), learning):
        before = random_state(samples[0])
        with as_it_was(network), _modes(network, training), torch.no_grad():
            taps = {name: network.get_submodule(name) for name in names}
            expected = []
            for batch in samples:
                with first_outputs(taps) as heard:
                    outputs = network(batch.clone())
                expected.append([*(heard[name] for name in names), outputs])
            buffers = [buffer.clone() for buffer in network.buffers()]
            draws = random_state(samples[0]) != before
        if draws:  # no two passes are alike
            continue
        with as_it_was(network), _modes(network, training), torch.no_grad():
            for stage in stages:
                stage.training = bool(training)
            live: list[Any] = [(batch.clone(),) for batch in samples]
            try:
                same = True
                for number, stage in enumerate(stages):
                    for turn, values in enumerate(expected):
                        live[turn] = stage(live[turn])
                        first = live[turn][0] if stage is not stages[-1] else live[turn]
                        same = same and close(first, values[number])
                same = same and all(map(close, network.buffers(), buffers))
            except Exception:
                same = False
        if not same:
            raise UserError(
                f"the stages at {_listed(names)} do not compute what the network does, as its code hides something "
                "from tracing; cut elsewhere or take a method without stages."
            )
    for stage in stages:
        stage.training = network.training
