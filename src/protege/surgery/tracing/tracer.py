"""How a network is recorded: torch.fx's tracer, with each operation run on the example as it is recorded."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import cache, reduce, wraps
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg
from torch.utils._pytree import tree_leaves, tree_map_only

from ..laws import random_state
from ..nests import tensors_in

CALLS = ("call_function", "call_method", "call_module")
FACTORIES = (
    *("arange", "as_tensor", "empty", "eye", "full", "linspace", "logspace", "normal", "ones", "rand", "randint"),
    *("randn", "randperm", "scalar_tensor", "tensor", "tril_indices", "triu_indices", "zeros"),
)  # of tensors: torch.fx does not see their calls, which have no tensors among their arguments
PLAIN = (int, float, bool, str, tuple, list, dict, torch.Size)
ROOT = "network."  # a node's target begins so: the network is traced as the only child of `Entry`


class Entry(nn.Module):
    """The network as a submodule with one input: what tracing leaves on its root stays off the user's module."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Any:
        return self.network(x)


def hooks_of(module: nn.Module) -> dict[int, Callable[..., Any]]:
    """A module's hooks before and after its forward, by their numbers, which no two of them share."""
    return {**module._forward_pre_hooks, **module._forward_hooks}


@contextmanager
def unhooked(module: nn.Module, hooks: Collection[int]) -> Iterator[None]:
    """Within it a call of the module does not run those of its hooks that have these numbers."""
    both: list[Any] = [module._forward_pre_hooks, module._forward_hooks]
    kept = [dict(registered) for registered in both]
    try:
        for registered in both:
            for number in hooks:
                registered.pop(number, None)
        yield
    finally:
        for registered, before in zip(both, kept, strict=True):
            registered.clear()
            registered.update(before)


def call_unhooked(module: nn.Module, hooks: Collection[int], *args: Any, **kwargs: Any) -> Any:
    """What a module gives `unhooked`."""
    with unhooked(module, hooks):
        return module(*args, **kwargs)


class SizedProxy(fx.Proxy):
    """A traced value that answers Python's questions about sizes and types with what the example has."""

    tracer: Tracer

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """What `isinstance` asks for. A tensor's would be taken for one by torch's own C++, which does the same."""
        kind = type(self.tracer.values.get(self.node)) if "node" in vars(self) else None
        return kind if kind in PLAIN else SizedProxy

    def _number(self) -> Any:
        value = self.tracer.values[self.node]
        if isinstance(value, Tensor) or self.node in self.tracer.data_dependent:
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


class Tracer(fx.Tracer):
    """Records a network on an example. ``opened`` are the modules that it goes into; others are one node."""

    proxy_buffer_attributes = True

    def __init__(self, example: Tensor, opened: Collection[nn.Module], training: bool) -> None:
        super().__init__()
        self.example, self.opened, self.training = example, opened, training
        self.bare: dict[nn.Module, set[int]] = {}
        self.drawn = random_state(example)  # after the last node; nothing else may draw
        self.values: dict[fx.Node, Any] = {}
        self.writes: dict[fx.Node, set[int]] = {}
        self.constants: dict[fx.Node, Tensor] = {}
        self.content: set[fx.Node] = set()
        self.data_dependent: set[fx.Node] = set()  # numbers and the like that depend on what is inside a tensor
        self.proxies: dict[str, fx.Proxy] = {}  # of parameters and buffers, torch.fx's own
        self.first: dict[nn.Module, fx.Node | None] = {}
        self.failed: nn.Module | None = None
        self.running = False  # a real pass is going on inside the recorded one
        self.known: set[nn.Module] = set()

    def trace(self, root: Any, concrete_args: Any = None) -> fx.Graph:
        self.known = set(root.modules())
        return super().trace(root, concrete_args)

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return not isinstance(module, Entry) and module not in self.opened

    def create_arg(self, a: Any) -> Any:
        return a.node if issubclass(type(a), fx.Proxy) else super().create_arg(a)

    def call_module(self, module: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        if self.running or module not in self.known:  # made as the code runs, such as nn.ReLU()(x)
            return forward(*args, **kwargs)
        try:
            if hooks_of(module):
                result = self._call_hooked(module, forward, args, kwargs)
            else:
                result = super().call_module(module, forward, args, kwargs)
        except Exception:
            if self.failed is None and not self.is_leaf_module(module, ""):
                self.failed = module
            raise
        value = result[0] if type(result) in (tuple, list) and result else result
        self.first.setdefault(module, value.node if issubclass(type(value), fx.Proxy) else None)
        return result

    def _call_hooked(self, module: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        """A module between its hooks, which run on the traced values in the way in which torch runs them."""
        ran = self.bare[module] = set[int]()
        for number, hook in list(module._forward_pre_hooks.items()):
            named = number in module._forward_pre_hooks_with_kwargs
            changed = self._hook(module, number, hook, (args, kwargs) if named else (args,))
            if named and changed is not None:
                args, kwargs = changed
            elif changed is not None:
                args = changed if isinstance(changed, tuple) else (changed,)
        after = dict(module._forward_hooks)
        with unhooked(module, ran | after.keys()) if not self.is_leaf_module(module, "") else nullcontext():
            result = super().call_module(module, forward, args, kwargs)
        for number, hook in after.items():
            known = (args, kwargs) if number in module._forward_hooks_with_kwargs else (args,)
            changed = self._hook(module, number, hook, (*known, result))
            result = result if changed is None else changed
        return result

    def _hook(self, module: nn.Module, number: int, hook: Callable[..., Any], known: tuple[Any, ...]) -> Any:
        """What a hook makes of traced values. One that cannot do with them, such as one that makes a layer's weights
        anew, belongs to its module, which is called with it; or, if that is opened, sees what the example has."""
        leaf, before, nodes = self.is_leaf_module(module, ""), dict(vars(module)), len(self.graph.nodes)
        try:
            changed = hook(module, *known)
            if leaf and any(issubclass(type(value), fx.Proxy) for value in vars(module).values()):
                raise fx.proxy.TraceError("it sets an attribute of its module")
            self.bare[module].add(number)
            return changed
        except Exception:
            vars(module).update(before)
            for node in reversed(list(self.graph.nodes)[nodes:]):
                self.graph.erase_node(node)
                self.values.pop(node, None)
            self.failed = None
        if not leaf or number in module._forward_hooks:
            self.running = True
            try:
                if hook(module, *map(self._plain, known)) is not None:
                    raise fx.proxy.TraceError("a hook that cannot be recorded changes its values")
            finally:
                self.running = False
        return None

    def _plain(self, value: Any) -> Any:
        """What traced values are on the example."""
        if issubclass(type(value), fx.Proxy):
            return self.values[value.node]
        if type(value) in (tuple, list):
            return type(value)(map(self._plain, value))
        return {key: self._plain(item) for key, item in value.items()} if type(value) is dict else value

    def getattr(self, attr: str, value: Any, cache: dict[str, fx.Proxy]) -> Any:
        self.proxies = cache
        return value if self.running else super().getattr(attr, value, cache)

    @contextmanager
    def assigning(self) -> Iterator[None]:
        """Inside, a traced value that a module sets as its buffer goes into that buffer."""
        plain = nn.Module.__setattr__

        def assign(module: nn.Module, name: str, value: Any) -> None:
            if isinstance(value, SizedProxy) and isinstance(module.__dict__.get("_buffers", {}).get(name), Tensor):
                self._replace(module, name, value)
            else:
                plain(module, name, value)

        nn.Module.__setattr__ = assign  # type: ignore[method-assign,assignment]
        try:
            yield
        finally:
            nn.Module.__setattr__ = plain  # type: ignore[method-assign]

    @contextmanager
    def making(self) -> Iterator[None]:
        """Inside, a tensor that code makes of a traced size, or for a traced device, is a traced value too."""
        plain = {name: getattr(torch, name) for name in FACTORIES}

        def recorded(function: Callable[..., Any]) -> Callable[..., Any]:
            @wraps(function)
            def make(*args: Any, **kwargs: Any) -> Any:
                if any(issubclass(type(leaf), fx.Proxy) for leaf in tree_leaves((args, kwargs))):
                    return self.create_proxy("call_function", function, args, kwargs)
                return function(*args, **kwargs)

            return make

        limits: dict[str, Any] = {name: getattr(torch, name) for name in ("finfo", "iinfo")}  # of a traced dtype
        for name, function in plain.items():
            setattr(torch, name, recorded(function))
        for name, kind in limits.items():
            setattr(torch, name, lambda *args, kind=kind: kind(*map(self._plain, args)))
        try:
            yield
        finally:
            for name, function in {**plain, **limits}.items():
                setattr(torch, name, function)

    def _replace(self, module: nn.Module, name: str, value: SizedProxy) -> None:
        buffer, new = module._buffers[name], self.values[value.node]
        assert isinstance(buffer, Tensor)
        if new is buffer:
            return
        if not isinstance(new, Tensor) or (new.shape, new.dtype) != (buffer.shape, buffer.dtype):
            raise fx.proxy.TraceError(f"it replaces its buffer {name!r} by one of another shape or kind")
        self.create_proxy("call_method", "copy_", (getattr(module, name), value), {})
        for attribute, proxy in list(self.proxies.items()):  # what is read from here on is another node
            if self.values[proxy.node] is buffer:
                del self.proxies[attribute]

    def create_node(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **named: Any) -> fx.Node:
        if self.drawn != random_state(self.example):
            raise fx.proxy.TraceError("it draws random numbers by itself, which would never change")
        if self.training and not torch.is_grad_enabled() and kind in CALLS:
            if kind == "call_module":
                raise fx.proxy.TraceError("it switches gradients off around modules")
            kind, target = "call_function", without_gradients(kind, target)
        node = super().create_node(kind, target, args, kwargs, *rest, **named)
        self.running = True
        try:
            with torch.no_grad():
                self.values[node] = self._evaluate(node)
                if node.op in CALLS and self._depends_on_data(node):
                    self.data_dependent.add(node)
        finally:
            self.running = False
        drawn, self.drawn = self.drawn, random_state(self.example)
        sized = kind in CALLS and not tensors_in(self.values[node]) and node not in self.data_dependent
        if (
            kind == "placeholder"
            or drawn != self.drawn
            or (not sized and not self.content.isdisjoint(node.all_input_nodes))
        ):
            self.content.add(node)
            changed = self.writes.get(node, set())
            self.content |= {
                n for n in self.values if changed and changed & set(map(storage, tensors_in(self.values[n])))
            }
        return node

    def _evaluate(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            return self.example.clone()
        target: Any = node.target
        if node.op == "get_attr":
            value = reduce(getattr, target.split("."), self.root)
            owner = reduce(getattr, target.split(".")[:-1], self.root)
            if isinstance(value, Tensor) and target.split(".")[-1] not in {**owner._parameters, **owner._buffers}:
                self.constants[node] = value.detach().clone()
            return value
        if node.op == "output":
            return self._arguments(node.args, self.values)[0]
        inputs = [tensor for source in node.all_input_nodes for tensor in tensors_in(self.values[source])]
        versions = [tensor._version for tensor in inputs]
        value = self._call(node, self.values)
        changed = {storage(t) for t, version in zip(inputs, versions, strict=True) if t._version != version}
        if changed:
            self.writes[node] = changed
        return value

    def _call(self, node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
        target: Any = node.target
        args, kwargs = self._arguments(node.args, values), self._arguments(node.kwargs, values)
        if node.op == "call_method":
            return getattr(args[0], target)(*args[1:], **kwargs)
        if node.op == "call_function":
            return target(*args, **kwargs)
        module = self.root.get_submodule(target)
        return call_unhooked(module, {*self.bare.get(module, ()), *module._forward_hooks}, *args, **kwargs)

    def _depends_on_data(self, node: fx.Node) -> bool:
        """Whether numbers and the like in a value depend on what is inside tensors rather than on their sizes and
        kinds: they would be others if the tensors were all zeros or all ones."""
        plain, sources = _numbers(self.values[node]), node.all_input_nodes
        if not plain or any(source in self.data_dependent for source in sources):
            return bool(plain)
        if not any(tensors_in(self.values[source]) for source in sources):
            return False
        for fill in (torch.zeros_like, torch.ones_like):
            try:
                other = _numbers(self._call(node, tree_map_only(Tensor, fill, {s: self.values[s] for s in sources})))
                same = len(other) == len(plain) and all(np.all(a == b) for a, b in zip(other, plain, strict=True))
            except Exception:
                same = False
            if not same:
                return True
        return False

    def _arguments(self, argument: Any, values: Mapping[fx.Node, Any]) -> Any:
        """The values of an argument's nodes, in ordinary containers: a module may change a list it is given."""
        if isinstance(argument, fx.Node):
            return values[argument]
        if isinstance(argument, dict):
            return {key: self._arguments(value, values) for key, value in argument.items()}
        if isinstance(argument, list):
            return [self._arguments(item, values) for item in argument]
        if type(argument) is tuple:
            return tuple(self._arguments(item, values) for item in argument)
        return map_arg(argument, values.__getitem__)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return SizedProxy(node, self)

    def to_bool(self, obj: fx.Proxy) -> bool:
        value = self.values[obj.node]
        if isinstance(value, Tensor) or obj.node in self.data_dependent:
            raise fx.proxy.TraceError("its code branches on the numbers inside a tensor")
        return bool(value)

    def iter(self, obj: Any) -> Iterator[Any]:
        return iter([obj[index] for index in range(len(self.values[obj.node]))])


@cache
def without_gradients(kind: str, target: Any) -> Callable[..., Any]:
    """A function, or a method by its name, as it is called where gradients are switched off."""

    def quietly(*args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            return getattr(args[0], target)(*args[1:], **kwargs) if kind == "call_method" else target(*args, **kwargs)

    quietly.__name__ = quietly.__qualname__ = f"quietly_{target if kind == 'call_method' else target.__name__}"
    return quietly


def _numbers(value: Any) -> list[Any]:
    """What there is in a value besides tensors."""
    return [leaf for leaf in tree_leaves(value) if not isinstance(leaf, Tensor)]


def storage(tensor: Tensor) -> int:
    """What tensors that share memory have in common."""
    return tensor.untyped_storage().data_ptr()
