"""A network as runnable stages that share its modules: what Stagewise KD teaches one after the other.

Kulkarni et al. 2020, arXiv 1911.06786, section 3. A stage takes all that is alive at the cut before it (one tensor
in a plain network, the skip connections too in a U-Net), so classification and segmentation need no code of their own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from ...errors import UserError
from ...numerics import exact
from ...torch_utils import as_it_was, trained_by
from ..laws import close, other_samples, others_for, random_state
from ..tracing.graph import Trace, Untraceable, around, memory_of, set_training, trace
from ..tracing.taps import feature, first_outputs
from ..tracing.tracer import ROOT, storage
from .cuts import Pair, outputs_at
from .pieces import Piece, Uncarried, divide

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

    def __init__(self, name: str, pieces: Sequence[Piece]) -> None:
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


@exact()
def split(network: nn.Module, cuts: Sequence[str], example: Tensor) -> list[Stage]:
    """Divide a network at the first outputs of named modules, in forward order, into len(cuts) + 1 stages.

    `example` [N, …] is what `forward` takes (prepared, not raw), on the network's device. In eval mode the stages in
    a row are the network, bit for bit; the network is not changed. Raises `UserError` for cuts that do not exist, are
    not called in this order or give no single tensor; for code around a cut that cannot be traced; for parameters or
    running statistics that two stages use; and where something crosses a cut that is not one tensor a sample.

    >>> stages = split(network, ["1", "3"], x)
    >>> [stage.name for stage in stages], torch.equal(Chain(stages)(x), network(x))
    (['1', '3', 'head'], True)
    """
    outputs_at(network, cuts, example, "network")
    modules = dict(network.named_modules(remove_duplicate=False))
    targets = [modules[name] for name in cuts]
    inside = {network, *around(network, set(targets))}
    example = example if len(example) > 1 else others_for(network, example)  # one is apart: it may be broadcast
    samples = [example, others_for(network, example, len(example) + 1)]
    while True:
        with as_it_was(network):
            learning = inside & trained_by(network)
        try:
            pieces = _pieces(network, samples, inside, learning, cuts, targets)
            break
        except Uncarried as error:
            makers = {module for module in error.makers - inside if not type(module).__module__.startswith("torch.nn")}
            if not makers:
                raise
            inside |= makers | around(network, makers)
    stages = [Stage(name, parts) for name, *parts in zip([*cuts, HEAD], *pieces, strict=True)]
    _check_shared(stages, pieces)
    _check_composed(network, stages, [*samples, others_for(network, example, 1)], learning)
    return stages


def _pieces(
    network: nn.Module,
    samples: Sequence[Tensor],
    inside: set[nn.Module],
    learning: set[nn.Module],
    cuts: Sequence[str],
    targets: Sequence[nn.Module],
) -> list[list[Piece]]:
    """What the stages are in evaluation and, where the code that stands around the cuts asks for it, in training."""
    still, twin = _traces(network, samples, inside, set(), cuts)
    train, other = _traces(network, samples, inside, learning, cuts)
    pieces = [divide(still, twin, cuts, targets)]
    if train.code != still.code:
        pieces.append(divide(train, other, cuts, targets))
        if [p.inputs for p in pieces[0]] != [p.inputs for p in pieces[1]]:
            raise UserError(
                f"other values cross {_listed(cuts)} in training than in evaluation; expected the same: cut elsewhere."
            )
    return pieces


def describe(pairs: Sequence[Pair], stages: Sequence[Stage] = ()) -> list[dict[str, Any]]:
    """A row for each stage of the student, the head last: `stage`, `teacher` (module), `student_shape`,
    `teacher_shape` (of one sample), `adapter` (whether one is needed) and, if the student is cut into `stages`, their
    `parameters`.

    >>> [row["stage"] for row in describe(pair(network, network, x, x))]
    ['1', '3', 'head']
    """
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


def _traces(
    network: nn.Module, samples: Sequence[Tensor], inside: set[nn.Module], training: set[nn.Module], cuts: Sequence[str]
) -> list[Trace]:
    """The network's graph on an example and on other samples, after it has run on each: where it is not
    the same, stages would hold what belongs to the example. Raises `UserError` there."""
    holders: dict[nn.Parameter, list[nn.Module]] = defaultdict(list)
    for module in network.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                holders[parameter].append(module)
    tied = {module for modules in holders.values() if len(modules) > 1 for module in modules}
    tied |= around(network, tied)
    traced = []
    try:
        with as_it_was(network):
            for batch in samples:
                traced.append(trace(network, batch, inside, welcome=tied, training=training))
                set_training(network, training)
                with torch.no_grad():
                    network(batch.clone())  # what the network counts goes on from one to the other
    except Untraceable as error:
        raise UserError(
            f"the network cannot be cut at {_listed(cuts)}, as the code of {error.place or 'it'} cannot be traced "
            f"({error.reason}); cut outside of it or take a method without stages."
        ) from error
    if memory := memory_of(*traced):
        alike = [samples[0], other_samples(samples[0], len(samples[0]))]
        if len(samples[1]) != len(alike[1]):
            _traces(network, alike, inside, training, cuts)
            raise UserError(
                f"the network's code around {_listed(cuts)} depends on the batch size (it holds {memory}); expected "
                "the same for any: cut elsewhere or take another method."
            )
        raise UserError(
            f"the network's code around {_listed(cuts)} goes on with {memory} kept by an earlier pass or by a hook, "
            "which stages would repeat for all samples; expected values that modules hand to each other: cut elsewhere "
            "or take a method without stages."
        )
    return traced


def _listed(cuts: Sequence[str]) -> str:
    return ", ".join(map(repr, cuts))


def _compiled(graph: fx.Graph) -> Callable[..., Any]:
    graph.lint()
    code = graph.python_code("self")
    namespace: dict[str, Any] = dict(code.globals)
    exec(compile(code.src, "<stage>", "exec"), namespace)
    return namespace["forward"]


def _install(stage: Stage, piece: Piece) -> None:
    """Give the stage the network's own modules, parameters and buffers under the names that its code uses."""
    targets = {str(n.target): n.op for n in piece.graph.nodes if n.op in ("call_module", "get_attr")}
    constants = {str(node.target): value for node, value in piece.trace.constants.items()}
    for target, _ in sorted(targets.items(), key=lambda item: (item[1] != "call_module", item[0])):
        *path, last = target.split(".")
        owner: nn.Module = piece.trace.entry
        holder: nn.Module = stage
        for part in path:
            owner = getattr(owner, part)
            if part not in holder._modules:
                holder.add_module(part, nn.Module())
            holder = getattr(holder, part)
        value: Any = constants[target] if target in constants else getattr(owner, last)
        if target in piece.held:
            vars(holder)[last] = value  # not registered: it learns in an earlier stage
        elif isinstance(value, nn.Module):
            holder.add_module(last, value)
        elif isinstance(value, nn.Parameter):
            holder.register_parameter(last, value)
        elif last in owner._buffers:  # one dictionary, so that a buffer moved to a device is moved in the network too
            holder._buffers, holder._non_persistent_buffers_set = owner._buffers, owner._non_persistent_buffers_set
        elif last not in holder._buffers:
            holder.register_buffer(last, value, persistent=False)


def _check_shared(stages: Sequence[Stage], pieces: Sequence[Sequence[Piece]]) -> None:
    owners: dict[Tensor, Stage] = {}
    for stage in stages:
        statistics = [(name, b) for name, b in stage.named_buffers() if name.rsplit(".", 1)[-1].startswith("running_")]
        for name, value in [*stage.named_parameters(), *statistics]:
            if (first := owners.setdefault(value, stage)) is not stage:
                raise _shared(name, f"both stages {first.name!r} and {stage.name!r}")
    for number, stage in enumerate(stages):  # what a later stage writes would change a frozen one
        later = set().union(*(piece.written for parts in pieces for piece in parts[number + 1 :]))
        for name, value in stage.named_buffers():
            if storage(value) in later:
                raise _shared(name, f"stage {stage.name!r} and changed in a later one")


def _shared(name: str, where: str) -> UserError:
    return UserError(
        f"{name.removeprefix(ROOT)!r} is used in {where}, so that they cannot learn one after the other; choose cuts "
        "that keep its uses in one stage."
    )


def _check_composed(
    network: nn.Module, stages: Sequence[Stage], samples: Sequence[Tensor], learning: set[nn.Module]
) -> None:
    """What cannot be seen in a trace (a type asked for, or what a module keeps for another one) shows in the numbers:
    of stages that take turns on an example and on other samples, in evaluation and in the modes they were traced in."""
    names = [stage.name for stage in stages[:-1]]
    for training in (set[nn.Module](), learning):
        before = random_state(samples[0])
        with as_it_was(network), torch.no_grad():
            set_training(network, training)
            taps = {name: network.get_submodule(name) for name in names}
            expected = []
            for batch in samples:
                with first_outputs(taps) as features:
                    outputs = network(batch.clone())
                expected.append([*(feature(features[name]) for name in names), outputs])
            buffers = [buffer.clone() for buffer in network.buffers()]
            draws = random_state(samples[0]) != before
        if draws:  # no two passes are alike
            continue
        with as_it_was(network), torch.no_grad():
            set_training(network, training)
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
