"""A network's graph, recorded beside a real pass: every node is known by its value on an example.

torch.fx alone stops where code asks for a shape. Here each operation also runs on the example, so that control flow
on shapes is followed as the example goes; only control flow on the numbers inside tensors cannot be recorded.

All that looks inside a network asks `trace`, which gives a graph or the one reason why there is none. It looks into the
modules that its caller needs opened and, as far as their code allows, into those that it would like to; any other
module is one node, whatever it does.
"""

from __future__ import annotations

import operator
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from ...errors import told
from ...torch_utils import as_it_was
from .tracer import ROOT, Entry, SizedProxy, Tracer, hooks_of


class Untraceable(Exception):
    """Why a network has no graph: the code of a `module` at `place` (its type and name) cannot be recorded, for a
    `reason`; or, without a place, the network fails on the example as it is."""

    def __init__(self, reason: str, place: str = "", module: nn.Module | None = None) -> None:
        super().__init__(reason)
        self.reason, self.place, self.module = reason, place, module


@dataclass(frozen=True)
class Trace:
    """Nodes in the order in which they ran, their values on the example, and what each module's first call gave.

    `writes` holds, for a node that changes tensors in place, the storages it changes. `constants` has the values of
    those that are neither parameters nor buffers nor computed from the input. `first` has None for a module whose first
    call gave something else than a traced value, or several that begin with one. `content` are the nodes whose values
    depend on what is inside the input, not on its sizes alone, or are drawn anew in each pass. `bare` are modules whose
    hooks (by number) were recorded beside them, so that whoever calls the node of one must do it `unhooked`.
    """

    entry: Entry
    nodes: list[fx.Node]
    values: dict[fx.Node, Any]
    writes: dict[fx.Node, set[int]]
    constants: dict[fx.Node, Tensor]
    first: dict[nn.Module, fx.Node | None]
    content: set[fx.Node]
    bare: dict[nn.Module, set[int]]
    code: str


def trace(
    network: nn.Module,
    example: Tensor,
    needed: Collection[nn.Module],
    welcome: Collection[nn.Module] = frozenset(),
    training: Collection[nn.Module] = frozenset(),
) -> Trace:
    """Record the network on `example` [N, …], going into the modules that are `needed` and into the `welcome` ones
    whose code can be recorded; others are one node.

    What is recorded is a second pass, as all later ones are: what the first keeps for the next is there. The modules in
    `training`, opened ones, are seen as in training; norms and dropout run in eval mode. Modes, buffers and random
    numbers are left as they were. Raises `Untraceable`.

    Hooks run on what is recorded, as far as they can, for the code around them may go on with what they keep: those of
    a module that stays one node too, and what stands around such a module is welcome.
    """
    closed: set[nn.Module | None] = set()
    while True:
        with as_it_was(network):
            set_training(network, training)
            try:
                with torch.no_grad():
                    network(example.clone())
            except Exception as error:
                raise Untraceable(told(error)) from error
            wished = {*welcome, *around(network, set(filter(hooks_of, network.modules())))}
            try:
                return _recorded(network, example, {*needed, *wished} - closed, bool(training))
            except Untraceable as error:
                if error.module is network or error.module in needed or error.module not in wished:
                    raise
                closed.add(error.module)


def around(network: nn.Module, modules: Collection[nn.Module]) -> set[nn.Module]:
    """The modules of a network in which some of `modules` are, at any depth."""
    named = dict(network.named_modules(remove_duplicate=False))
    return {
        named[name[:at]]
        for name, module in named.items()
        if name and module in modules
        for at in (0, *(n for n, letter in enumerate(name) if letter == "."))
    }


def set_training(network: nn.Module, training: Collection[nn.Module]) -> None:
    """Put the modules in `training` into training mode and all others into eval mode."""
    for module in network.modules():
        module.training = module in training


def _recorded(network: nn.Module, example: Tensor, opened: Collection[nn.Module], training: bool) -> Trace:
    entry, tracer = Entry(network), Tracer(example, opened, training)
    with torch.enable_grad(), tracer.assigning(), tracer.making():
        try:
            graph = tracer.trace(entry)
        except Exception as error:
            reason = str(error).split("\n")[0] or repr(error)
            if SizedProxy.__name__ in reason:
                reason = "it makes tensors of the input's sizes"
            module = tracer.failed or network
            name = next((name for name, other in network.named_modules() if other is module), "")
            raise Untraceable(reason, type(module).__name__ + (f" {name!r}" if name else ""), module) from error
    for called, node in tracer.first.items():
        if node is not None and isinstance(tracer.values[node], tuple | list):  # of several values the first, if used
            firsts = [user for user in node.users if user.target is operator.getitem and user.args[1] == 0]
            tracer.first[called] = min(firsts, key=list(graph.nodes).index, default=node)
    code = graph.python_code("self").src
    return Trace(
        entry,
        list(graph.nodes),
        tracer.values,
        tracer.writes,
        tracer.constants,
        tracer.first,
        tracer.content,
        tracer.bare,
        code,
    )


def memory_of(traced: Trace, twin: Trace) -> str | None:
    """What a trace holds of its samples, where ``twin`` is the same network's on others: a tensor or number that its
    code did not compute from its input as it ran. None where nothing shows."""
    for node, other in zip(traced.nodes, twin.nodes, strict=False):
        constant, counterpart = traced.constants.get(node), twin.constants.get(other)
        if constant is not None and not (counterpart is not None and torch.equal(constant, counterpart)):
            attribute = str(node.target).removeprefix(ROOT)
            if attribute != node.target:
                return f"a tensor (its attribute {attribute!r})"
            return "a tensor" + "".join(f" (which {_described(user)} takes)" for user in list(node.users)[:1])
    return None if traced.code == twin.code else "a number, a choice or a list"


def _described(node: fx.Node) -> str:
    """A node by its function and the module in whose code it stands."""
    path, kind = list(node.meta.get("nn_module_stack", {"": ("", nn.Module)}).values())[-1]
    name = path.removeprefix(ROOT.rstrip(".")).removeprefix(".")
    function = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", node.name)
    return f"{function!r} of {getattr(kind, '__name__', kind)}" + (f" {name!r}" if name else "")
