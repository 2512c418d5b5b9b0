"""Running a network node by node, so that it can be stopped in the middle, changed there, and gone on with.

What is alive at a node is a plain dict, name of a node → its value; a `Frontier` keeps those
of many chunks of samples, in memory as far as a budget goes and in temporary files beyond it.
"""

from __future__ import annotations

import copy
import itertools
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...errors import UserError, told
from ...numerics import exact
from ...torch_utils import as_it_was, eval_mode
from ..laws import close, other_samples, others_for, outputs_in
from ..nests import tensors_in
from .graph import Untraceable, trace
from .tracer import ROOT, call_unhooked
from .watch import Listening

Live = dict[str, Any]


class _Interpreter(fx.Interpreter):
    """Runs nodes on values that are known by the names of nodes, so that they can be stored."""

    live: Live
    bare: Mapping[nn.Module, Collection[int]]

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        module = self.fetch_attr(target)
        return call_unhooked(module, self.bare.get(module, ()), *args, **kwargs)

    def map_nodes_to_values(self, args: Any, n: fx.Node) -> Any:
        return fx.node.map_arg(args, lambda node: self.live[node.name])


class Walk:
    """A network as a list of nodes in the order in which they run.

    ``who`` names it in errors; ``example`` holds a few prepared inputs, for which ``shapes`` tells what each node
    gives. A module without a layer to align inside, or whose code cannot be recorded, is one node: what it does stays
    its affair. Raises `UserError` for a network that cannot run on the example, or not alike on any samples. The
    network's modules are shared, not copied: a change to their weights shows in what runs afterwards.
    """

    @exact()
    def __init__(self, network: nn.Module, who: str, example: Tensor) -> None:
        self.who, self.example = who, example
        self.modules = dict(network.named_modules())
        with eval_mode(network):
            opened = set(filter(_opens, network.modules()))
            if not self._trace(network, opened):
                self._trace(network, set())  # as a whole

    def _trace(self, network: nn.Module, opened: set[nn.Module]) -> bool:
        """Whether the network could be recorded with these modules opened, and computes as it does by itself. Raises
        `UserError` where that can hold for none."""
        try:
            traced = trace(network, self.example, (), opened)
        except Untraceable as error:
            if opened and error.place:
                return False
            raise UserError(
                f"the {self.who} cannot run on samples of shape {list(self.example.shape[1:])} ({error.reason}); "
                "expected samples like those it was trained on: choose others, or set their size with "
                "image_size=…."
            ) from None
        self.nodes = traced.nodes
        self._interpreter = _Interpreter(traced.entry, garbage_collect_values=False, graph=self.nodes[0].graph)
        self._interpreter.bare = traced.bare
        self.shapes = {
            node.name: tuple(value.shape) for node, value in traced.values.items() if isinstance(value, Tensor)
        }
        self.index = {node.name: i for i, node in enumerate(self.nodes)}
        self._dead: list[list[str]] = [[] for _ in self.nodes]  # what nobody needs after each node
        for i, node in enumerate(self.nodes[:-1]):
            self._dead[max((self.index[user.name] for user in node.users), default=i)].append(node.name)
        return self._as_by_itself(network, whole=not opened)

    @torch.no_grad()
    def _as_by_itself(self, network: nn.Module, whole: bool) -> bool:
        """Whether the nodes compute what the network does for any samples and any number of them, not for the example
        only, and while they take turns on several batches. Raises `UserError` where the network itself does not."""
        example = self.example
        rows = torch.arange(len(example) + 1, device=example.device) % len(example)
        with as_it_was(network):
            expected = network(example.clone())
            if not close(network(example.clone()), expected):
                raise UserError(
                    f"the {self.who} gives other outputs each time it runs on the same images; expected none of its "
                    "numbers to be random in eval mode: use nn.Dropout for F.dropout, say."
                )
            if not whole:
                batches = [example[rows], other_samples(example, len(example)), example, others_for(network, example)]
                return self._follow(network, batches[:1]) and self._follow(network, batches[1:])
            try:
                same = close(outputs_in(network(example[rows].clone())), _rows_of(expected, rows))
                reason = None if same else "its outputs differ"
            except Exception as error:
                reason = told(error)
        if reason:
            raise UserError(
                f"the {self.who}'s forward computes with the number of its samples ({reason}); expected code that "
                "treats each sample alike: rewrite that part (x.flatten(1) for x.view(len(x), -1), say), or use "
                "another method, such as kd."
            )
        return True

    def _follow(self, network: nn.Module, batches: Sequence[Tensor]) -> bool:
        """Whether the nodes give what the network does on batches between which they take turns."""
        try:
            outputs = [network(batch.clone()) for batch in batches]
            lives: list[Live] = [{} for _ in batches]
            for i in range(len(self.nodes)):
                for live, batch in zip(lives, batches, strict=True):
                    self.advance(live, i, i + 1, batch.clone() if i == 0 else None)
        except Exception:
            return False
        return all(close(live["output"], output) for live, output in zip(lives, outputs, strict=True))

    def name(self, node: fx.Node) -> str | None:
        """The name of the module that a node calls, if it calls one."""
        return str(node.target)[len(ROOT) :] if node.op == "call_module" else None

    def module(self, node: fx.Node) -> nn.Module | None:
        """The module that a node calls, if it calls one."""
        name = self.name(node)
        return None if name is None else self.modules[name]

    @torch.no_grad()
    def advance(
        self,
        live: Live,
        start: int,
        stop: int,
        inputs: Tensor | None = None,
        watched: Mapping[int, Collection[Call]] = MappingProxyType({}),
    ) -> None:
        """Run the nodes ``[start, stop)``, from and into ``live``; ``inputs`` are needed from the first node on.

        The input of a call that is ``watched`` in a node lives on, under the name that `input_name` gives it, until it
        is popped.
        """
        self._interpreter.live, self._interpreter.args_iter = live, iter((inputs,))
        for i in range(start, stop):
            node = self.nodes[i]
            with _watching(live, watched[i], {}) if i in watched else nullcontext():
                live[node.name if node.op != "output" else "output"] = self._interpreter.run_node(node)
            for dead in self._dead[i]:
                live.pop(dead, None)

    @torch.no_grad()
    def look(self, live: Live, i: int, call: Call) -> None:
        """Put what a call inside the node ``i`` takes and gives into ``live``, without going on: the node runs on
        copies of what it takes, and is as it was."""
        node = self.nodes[i]
        taken: Live = copy.deepcopy({other.name: live[other.name] for other in node.all_input_nodes})
        self._interpreter.live, module = taken, self.module(node)
        with as_it_was(module) if module is not None else nullcontext(), _watching(live, [call], live):
            self._interpreter.run_node(node)

    def run(self, inputs: Tensor) -> Any:
        """The network's output for prepared inputs."""
        live: Live = {}
        self.advance(live, 0, len(self.nodes), inputs)
        return live["output"]


class Frontier:
    """The live values of chunks of samples: up to ``budget`` bytes where they are, up to ``beside`` bytes in the
    processor's memory, the rest in temporary files.

    Used as a context; the files are gone afterwards.
    """

    def __init__(self, budget: int, beside: int = 0) -> None:
        self.budget, self.used, self.beside = budget, 0, beside
        self._held: dict[int, tuple[int, tuple[Live, ...]]] = {}
        self._written: dict[int, BytesIO] = {}  # as in a file, which keeps what shares its storage together
        self._folder: tempfile.TemporaryDirectory | None = None

    def __enter__(self) -> Frontier:
        return self

    def __exit__(self, *_: object) -> None:
        self._held.clear()
        self._written.clear()
        if self._folder is not None:
            self._folder.cleanup()

    def _file(self, chunk: int) -> Path:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="protege-")
        return Path(self._folder.name) / str(chunk)

    def put(self, chunk: int, *lives: Live) -> None:
        """Keep a chunk's values until `take` asks for them."""
        size = sum(tensor.untyped_storage().nbytes() for tensor in tensors_in(lives))
        if self.used + size <= self.budget:
            self._held[chunk] = size, lives
            self.used += size
        elif size <= self.beside:
            self._written[chunk] = BytesIO()
            torch.save(lives, self._written[chunk])
            self.beside -= self._written[chunk].tell()
        else:
            torch.save(lives, self._file(chunk))

    def take(self, chunk: int) -> tuple[Live, ...]:
        """The values of a chunk, which are the caller's from now on."""
        if chunk in self._held:
            size, lives = self._held.pop(chunk)
            self.used -= size
            return lives
        if chunk in self._written:
            written = self._written.pop(chunk)
            self.beside += written.tell()
            written.seek(0)
            return torch.load(written, weights_only=True)
        return torch.load(self._file(chunk), weights_only=True)


@dataclass(frozen=True)
class Call:
    """The ``number``-th call of a torch function in a node, which is that of a ``layer``; ``argument`` is the number of
    the layer's input among the tensors that it takes."""

    layer: str
    number: int
    argument: int


def input_name(layer: str) -> str:
    """Under which name the input of a watched layer lives."""
    return f"input of {layer}"


def output_name(layer: str) -> str:
    """Under which name the output of a watched layer lives."""
    return f"output of {layer}"


@contextmanager
def _watching(inputs: Live, calls: Collection[Call], outputs: Live) -> Iterator[None]:
    """Keep what calls take and what they give; copies, as what runs later may change them in place."""
    wanted, count = {call.number: call for call in calls}, itertools.count()

    def heard(_function: Any, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        call = wanted.get(next(count))
        if call is not None:
            inputs[input_name(call.layer)] = tensors_in((args, kwargs))[call.argument].clone()
            outputs[output_name(call.layer)] = output.clone()

    with Listening(heard):
        yield


def _rows_of(value: Any, rows: Tensor) -> list[Tensor]:
    """The outputs for some of the samples, by those for all."""
    most = int(rows.max())
    return [tensor[rows] if tensor.dim() and len(tensor) > most else tensor for tensor in outputs_in(value)]


def _opens(module: nn.Module) -> bool:
    """Whether to look into a module: one of other code than torch's, or a row of modules, with layers or norms inside;
    or a norm that may do more than norms do."""
    if type(module).__module__.startswith("torch.nn") and not isinstance(module, nn.Sequential):
        return False
    inside = [part for part in module.modules() if part is not module and not isinstance(part, nn.Embedding)]
    weights = [weight for part in inside for weight in part._parameters.values() if weight is not None]
    return any(weight.dim() > 1 for weight in weights) or any(
        isinstance(part, _BatchNorm) for part in (module, *inside)
    )
