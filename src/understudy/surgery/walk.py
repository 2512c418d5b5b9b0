"""Running a network node by node, so that it can be stopped in the middle, changed there, and gone on with.

The graph is torch.fx's. What is alive at a node is a plain dict, name of a node → its value; a `Frontier` keeps those
of many chunks of samples, in memory as far as a budget goes and in temporary files beyond it.
"""

from __future__ import annotations

import operator
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..errors import UserError, told
from .absorb import LAYERS

Live = dict[str, Any]


class _Tracer(fx.Tracer):
    """Looks into a module only where there is a layer to align inside; what else it does stays its own affair."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return super().is_leaf_module(m, module_qualified_name) or not any(
            isinstance(part, LAYERS) for part in m.modules()
        )


class Walk:
    """A network as a list of nodes in the order in which they run.

    ``who`` names it in errors. Raises `UserError` for a network whose forward cannot be traced. The network's modules
    are shared, not copied: a change to their weights shows in what runs afterwards.
    """

    def __init__(self, network: nn.Module, who: str) -> None:
        self.network, self.who = network, who
        try:
            self.nodes = list(_Tracer().trace(network).nodes)
        except Exception as error:
            raise UserError(
                f"the {who}'s forward cannot be traced by torch.fx ({told(error)}); expected no branches on the values "
                "of tensors: rewrite that part, or put it into a module of its own without layers."
            ) from None
        self.modules = dict(network.named_modules())
        self.index = {node.name: i for i, node in enumerate(self.nodes)}
        self._dead: list[list[str]] = [[] for _ in self.nodes]  # what nobody needs after each node
        for i, node in enumerate(self.nodes):
            self._dead[max((self.index[user.name] for user in node.users), default=i)].append(node.name)

    def module(self, node: fx.Node) -> nn.Module | None:
        """The module that a node calls, if it calls one."""
        return self.modules[str(node.target)] if node.op == "call_module" else None

    @torch.no_grad()
    def advance(self, live: Live, start: int, stop: int, inputs: Tensor | None = None) -> None:
        """Run the nodes ``[start, stop)``, from and into ``live``; ``inputs`` are needed from the first node on."""
        for i in range(start, stop):
            node = self.nodes[i]
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: live[n.name])  # type: ignore[misc]
            if node.op == "placeholder":
                live[node.name] = inputs if i == 0 else args[0]
            elif node.op == "get_attr":
                live[node.name] = operator.attrgetter(str(node.target))(self.network)
            elif node.op == "call_module":
                live[node.name] = self.modules[str(node.target)](*args, **kwargs)
            elif node.op == "call_method":
                live[node.name] = getattr(args[0], str(node.target))(*args[1:], **kwargs)
            elif node.op == "call_function":
                live[node.name] = node.target(*args, **kwargs)  # type: ignore[operator]
            else:
                live["output"] = args[0]
            for name in self._dead[i]:
                if name != "output":
                    live.pop(name, None)

    def run(self, inputs: Tensor) -> Any:
        """The network's output for prepared inputs."""
        live: Live = {}
        self.advance(live, 0, len(self.nodes), inputs)
        return live["output"]


class Frontier:
    """The live values of chunks of samples: up to ``budget`` bytes in memory, the rest in temporary files.

    Used as a context; the files are gone afterwards.
    """

    def __init__(self, budget: int) -> None:
        self.budget, self.used = budget, 0
        self._held: dict[int, tuple[int, tuple[Live, ...]]] = {}
        self._folder: tempfile.TemporaryDirectory | None = None

    def __enter__(self) -> Frontier:
        return self

    def __exit__(self, *_: object) -> None:
        self._held.clear()
        if self._folder is not None:
            self._folder.cleanup()

    def _file(self, chunk: int) -> Path:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="understudy-")
        return Path(self._folder.name) / str(chunk)

    def put(self, chunk: int, *lives: Live) -> None:
        """Keep a chunk's values until `take` asks for them."""
        size = sum(_bytes(value) for live in lives for value in live.values())
        if self.used + size <= self.budget:
            self._held[chunk] = size, lives
            self.used += size
        else:
            torch.save(lives, self._file(chunk))

    def take(self, chunk: int) -> tuple[Live, ...]:
        """The values of a chunk, which are the caller's from now on."""
        if chunk in self._held:
            size, lives = self._held.pop(chunk)
            self.used -= size
            return lives
        return torch.load(self._file(chunk), weights_only=True)


def _bytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.untyped_storage().nbytes()
    return sum(map(_bytes, value)) if isinstance(value, tuple | list) else 0
