"""A network's graph, recorded beside a real pass: every node is known by its value on an example.

torch.fx alone stops where code asks for a shape. Here each operation also runs on the example, so that control flow
on shapes is followed as the example goes; only control flow on the numbers inside tensors cannot be recorded.
"""

from __future__ import annotations

import operator
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

ROOT = "network."  # a node's target begins so: the network is traced as the only child of `Entry`


class Entry(nn.Module):
    """The network as a submodule with one input: what tracing leaves on its root stays off the user's module."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Any:
        return self.network(x)


class Untraceable(Exception):
    """The code of `module` (its name in the network) cannot be recorded."""

    def __init__(self, module: nn.Module, name: str, reason: str) -> None:
        super().__init__(reason)
        self.module, self.name, self.reason = module, name, reason


@dataclass(frozen=True)
class Trace:
    """Nodes in the order in which they ran, their values on the example, and what each module's first call gave.

    `writes` holds, for a node that changes tensors in place, the storages it changes. `first` has None for a module
    whose first call gave something else than one traced value.
    """

    entry: Entry
    nodes: list[fx.Node]
    values: dict[fx.Node, Any]
    writes: dict[fx.Node, set[int]]
    first: dict[nn.Module, fx.Node | None]
    code: str


def trace(network: nn.Module, example: Tensor, opens: Callable[[nn.Module], bool], training: bool = False) -> Trace:
    """Record the network on `example` [N, …], going into the modules that `opens` accepts; others are one node.

    `training` sets the flag of the opened modules only, so that their own code is seen as in training while norms
    and dropout run in eval mode. Modes, buffers and random numbers are left as they were. Raises `Untraceable`.
    """
    modes = [(module, module.training) for module in network.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in network.buffers()] if training else []
    entry, tracer = Entry(network), _Tracer(example, opens, training)
    devices = [example.device] if example.is_cuda else []
    try:
        for module, _ in modes:
            module.training = training and opens(module)
        with torch.enable_grad(), torch.random.fork_rng(devices):
            try:
                graph = tracer.trace(entry)
            except Exception as error:
                module = network if tracer.failed is None else tracer.failed
                names = {found: name for name, found in network.named_modules()}
                reason = str(error).split("\n")[0] or repr(error)
                if _Known.__name__ in reason:
                    reason = "it makes tensors of the input's sizes"
                raise Untraceable(module, names.get(module, ""), reason) from error
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)
    finally:
        for module, mode in modes:
            module.training = mode
    code = graph.python_code("self").src
    return Trace(entry, list(graph.nodes), tracer.values, tracer.writes, tracer.first, code)


class _Known(fx.Proxy):
    """A traced value that answers Python's questions about sizes with what the example has."""

    tracer: _Tracer

    def _number(self) -> Any:
        value = self.tracer.values[self.node]
        if isinstance(value, Tensor):
            raise fx.proxy.TraceError("its code asks for a number inside a tensor")
        return value

    def __getattr__(self, name: str) -> Any:
        if callable(getattr(self.tracer.values[self.node], name)):
            return super().__getattr__(name)
        return self.tracer.create_proxy("call_function", getattr, (self, name), {})

    def __setitem__(self, key: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, key, value), {})

    def __int__(self) -> int:
        return int(self._number())

    def __index__(self) -> int:
        return operator.index(self._number())

    def __float__(self) -> float:
        return float(self._number())

    def __len__(self) -> int:
        return len(self.tracer.values[self.node])


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True

    def __init__(self, example: Tensor, opens: Callable[[nn.Module], bool], training: bool) -> None:
        super().__init__()
        self.example, self.opens, self.training = example, opens, training
        self.drawn = _random_state(example)  # after the last node; nothing else may draw
        self.values: dict[fx.Node, Any] = {}
        self.writes: dict[fx.Node, set[int]] = {}
        self.first: dict[nn.Module, fx.Node | None] = {}
        self.failed: nn.Module | None = None
        self.running = False  # a real pass is going on inside the recorded one

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return not isinstance(module, Entry) and not self.opens(module)

    def call_module(self, module: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        if self.running:
            return forward(*args, **kwargs)
        try:
            result = super().call_module(module, forward, args, kwargs)
        except Exception:
            if self.failed is None and not self.is_leaf_module(module, ""):
                self.failed = module
            raise
        self.first.setdefault(module, result.node if isinstance(result, fx.Proxy) else None)
        return result

    def getattr(self, attr: str, value: Any, cache: dict[str, fx.Proxy]) -> Any:
        return value if self.running else super().getattr(attr, value, cache)

    def create_node(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **named: Any) -> fx.Node:
        if self.drawn != _random_state(self.example):
            raise fx.proxy.TraceError("it draws random numbers by itself, which would never change")
        if self.training and not torch.is_grad_enabled():
            raise fx.proxy.TraceError("it switches gradients off")
        node = super().create_node(kind, target, args, kwargs, *rest, **named)
        self.running = True
        try:
            with torch.no_grad():
                self.values[node] = self._evaluate(node)
        finally:
            self.running = False
        self.drawn = _random_state(self.example)
        return node

    def _evaluate(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            return self.example.clone()
        target: Any = node.target
        if node.op == "get_attr":
            return reduce(getattr, target.split("."), self.root)
        args, kwargs = self._given(node.args), self._given(node.kwargs)
        if node.op == "output":
            return args[0]
        given = [tensor for source in node.all_input_nodes for tensor in tensors_in(self.values[source])]
        versions = [tensor._version for tensor in given]
        if node.op == "call_method":
            value = getattr(args[0], target)(*args[1:], **kwargs)
        elif node.op == "call_module":
            value = self.root.get_submodule(target)(*args, **kwargs)
        else:
            value = target(*args, **kwargs)
        changed = {storage(t) for t, version in zip(given, versions, strict=True) if t._version != version}
        if changed:
            self.writes[node] = changed
        return value

    def _given(self, argument: Any) -> Any:
        """The values of an argument's nodes, in ordinary containers: a module may change a list it is given."""
        if isinstance(argument, fx.Node):
            return self.values[argument]
        if isinstance(argument, dict):
            return {key: self._given(value) for key, value in argument.items()}
        if isinstance(argument, list):
            return [self._given(item) for item in argument]
        if type(argument) is tuple:
            return tuple(self._given(item) for item in argument)
        return map_arg(argument, self.values.__getitem__)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Known(node, self)

    def to_bool(self, obj: fx.Proxy) -> bool:
        value = self.values[obj.node]
        if isinstance(value, Tensor):
            raise fx.proxy.TraceError("its code branches on the numbers inside a tensor")
        return bool(value)

    def iter(self, obj: Any) -> Iterator[Any]:
        return iter([obj[index] for index in range(len(self.values[obj.node]))])


def _random_state(example: Tensor) -> tuple[Any, ...]:
    """Where the random numbers of torch, Python and NumPy stand."""
    states = [torch.get_rng_state(), *([torch.cuda.get_rng_state(example.device)] if example.is_cuda else [])]
    _, keys, place, *_ = np.random.get_state(legacy=True)
    return *(state.numpy().tobytes() for state in states), random.getstate(), np.asarray(keys).tobytes(), place


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors of a value: itself, or those in its tuples, lists and dictionaries."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [t for item in value for t in tensors_in(item)] if isinstance(value, tuple | list) else []


def storage(tensor: Tensor) -> int:
    """What tensors that share memory have in common."""
    return tensor.untyped_storage().data_ptr()
