"""Running a network node by node, so that it can be stopped in the middle, changed there, and gone on with.

What is alive at a node is a plain dict, name of a node → its value; a `Frontier` keeps those
of many chunks of samples, in memory as far as a budget goes and in temporary files beyond it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from ...errors import UserError, told
from ...numerics import exact
from ...torch_utils import as_it_was, eval_mode
from ..laws import close, other_samples, others_for, tensors_in
from ..layers import SOLVABLE
from .graph import ROOT, Untraceable, trace

Live = dict[str, Any]


class _Interpreter(fx.Interpreter):
    """Runs nodes on values that are known by the names of nodes, so that they can be stored."""

    live: Live

    def map_nodes_to_values(self, args: Any, n: fx.Node) -> Any:
        return fx.node.map_arg(args, lambda node: self.live[node.name])


class Walk:
    """A network as a list of nodes in the order in which they run.

    ``who`` names it in errors; ``example`` holds a few prepared inputs, for which ``shapes`` tells what each node
    gives. A module without a layer to align inside is one node: what it does stays its own affair. Raises `UserError`
    for a network whose forward cannot be recorded. The network's modules are shared, not copied: a change to their
    weights shows in what runs afterwards.
    """

    @exact()
    def __init__(self, network: nn.Module, who: str, example: Tensor) -> None:
        self.who = who
        with eval_mode(network):
            try:
                traced = trace(network, example, set(filter(_opens, network.modules())))
            except Untraceable as error:
                if not error.place:
                    raise UserError(
                        f"the {who} cannot run on samples of shape {list(example.shape[1:])} ({error.reason}); "
                        "expected samples like those it was trained on: choose others, or set their size with "
                        "image_size=…."
                    ) from None
                raise UserError(
                    f"the {who}'s forward cannot be traced in {error.place} ({error.reason}); expected code without "
                    "branches on the values of tensors, and sizes given together, as in torch.zeros((n, c)): rewrite "
                    "that part, or put it into a module of its own without layers."
                ) from None
            self.nodes = traced.nodes
            self._interpreter = _Interpreter(traced.entry, garbage_collect_values=False, graph=self.nodes[0].graph)
            self.shapes = {
                node.name: tuple(value.shape) for node, value in traced.values.items() if isinstance(value, Tensor)
            }
            self.modules = dict(network.named_modules())
            self.index = {node.name: i for i, node in enumerate(self.nodes)}
            self._dead: list[list[str]] = [[] for _ in self.nodes]  # what nobody needs after each node
            for i, node in enumerate(self.nodes[:-1]):
                self._dead[max((self.index[user.name] for user in node.users), default=i)].append(node.name)
            self._check(network, example)

    @torch.no_grad()
    def _check(self, network: nn.Module, example: Tensor) -> None:
        """The nodes must compute what the network does for any samples and any number of them, not for the example
        only, and while they take turns on several batches."""
        rows = torch.arange(len(example) + 1, device=example.device) % len(example)
        with as_it_was(network):
            expected = network(example.clone())
            if not close(network(example.clone()), expected):
                raise UserError(
                    f"the {self.who} gives other outputs each time it runs on the same images; expected none of its "
                    "numbers to be random in eval mode: use nn.Dropout for F.dropout, say."
                )
            reason = self._apart(network, [example[rows]])
            if reason:
                raise UserError(
                    f"the {self.who}'s forward computes with the number of its samples ({reason}); expected code that "
                    "treats each sample alike: rewrite that part (x.flatten(1) for x.view(len(x), -1), say), or use "
                    "another method, such as kd."
                )
            reason = self._apart(network, [other_samples(example, len(example)), example, others_for(network, example)])
        if reason:
            raise UserError(
                f"the {self.who}'s forward keeps numbers of the samples it was traced with or hands them on unseen "
                f"({reason}), as by a hook or an attribute; expected values that modules hand to each other: rewrite "
                "that part, or use method='kd'."
            )

    def _apart(self, network: nn.Module, batches: Sequence[Tensor]) -> str | None:
        """How the nodes differ from the network on batches between which they take turns; None where they do not."""
        try:
            outputs = [network(batch.clone()) for batch in batches]
            lives: list[Live] = [{} for _ in batches]
            for i in range(len(self.nodes)):
                for live, batch in zip(lives, batches, strict=True):
                    self.advance(live, i, i + 1, batch.clone() if i == 0 else None)
        except Exception as error:
            return told(error)
        same = all(close(live["output"], output) for live, output in zip(lives, outputs, strict=True))
        return None if same else "its outputs differ"

    def name(self, node: fx.Node) -> str | None:
        """The name of the module that a node calls, if it calls one."""
        return str(node.target)[len(ROOT) :] if node.op == "call_module" else None

    def module(self, node: fx.Node) -> nn.Module | None:
        """The module that a node calls, if it calls one."""
        name = self.name(node)
        return None if name is None else self.modules[name]

    @torch.no_grad()
    def advance(
        self, live: Live, start: int, stop: int, inputs: Tensor | None = None, watched: Collection[str] = ()
    ) -> None:
        """Run the nodes ``[start, stop)``, from and into ``live``; ``inputs`` are needed from the first node on.

        The input of a ``watched`` layer lives on, under the name `input_name` gives it, until it is popped.
        """
        self._interpreter.live, self._interpreter.args_iter = live, iter((inputs,))
        for i in range(start, stop):
            node, layer = self.nodes[i], self.name(self.nodes[i])
            with _watching(self.modules[layer], live, layer) if layer and layer in watched else nullcontext():
                live[node.name if node.op != "output" else "output"] = self._interpreter.run_node(node)
            for dead in self._dead[i]:
                live.pop(dead, None)

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


def input_name(layer: str) -> str:
    """Under which name the input of a watched layer lives."""
    return f"input of {layer}"


@contextmanager
def _watching(layer: nn.Module, live: Live, name: str) -> Iterator[None]:
    """Keep what the layer's forward takes, behind any other hook; a copy, as what runs later may change it in place."""

    def watch(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        live[input_name(name)] = (*args, *kwargs.values())[0].clone()

    handle = layer.register_forward_pre_hook(watch, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _opens(module: nn.Module) -> bool:
    """Whether to look into a module: one of other code than torch's, or a row of modules, with layers to align."""
    openable = not type(module).__module__.startswith("torch.nn") or isinstance(module, nn.Sequential)
    return (
        openable and not isinstance(module, SOLVABLE) and any(isinstance(part, SOLVABLE) for part in module.modules())
    )
