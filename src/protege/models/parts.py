"""A network as plain data: of each module its class, by which it can be imported, its settings and its tensors' shapes.

So a network loads again whose class does not tell how it was called, or whose parts were changed since. Nothing is
called but what a class is called with when it runs: modules are made empty, and given what they had.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.rnn import RNNBase

from ..errors import UserError, shown
from ..lookup import find_callable, place_of

Part = dict[str, Any]

BLANK = frozenset(vars(nn.Module())) | {"_compiled_call_impl"}
MOST_NUMBERS = 4096  # of an array among the settings
_STATE = ("__reduce_ex__", "__reduce__", "__getstate__", "__setstate__")
_MADE_ANEW = {RNNBase: ("_flat_weights", "_flat_weight_refs")}  # of an RNN's own parameters, as it lists them


class NotPlain(Exception):
    """A network, or a value in it, that this cannot tell as data."""


def parts_of(network: nn.Module) -> list[Part]:
    """What `assembled` makes a network like this of, but for the values of its tensors. Raises `NotPlain`."""
    places: dict[int, str] = {}
    for name, module in network.named_modules(remove_duplicate=False):
        places.setdefault(id(module), name)
    owners: dict[int, str] = {}
    parts = []
    for name, module in network.named_modules(remove_duplicate=False):
        first = places[id(module)]
        parts.append(_part(name, module, places, owners) if first == name else {"name": name, "same": first})
    return parts


def _part(name: str, module: nn.Module, places: Mapping[int, str], owners: dict[int, str]) -> Part:
    place = place_of(type(module))
    if place is None:
        raise NotPlain(f"the class {type(module).__name__} cannot be imported")
    hooks = [hook for key, table in vars(module).items() if "ward" in key and table for hook in _values(table)]
    if any(not str(getattr(hook, "__module__", "")).startswith("protege.") for hook in hooks):
        raise NotPlain(f"the module {name!r} has hooks")
    part: Part = {"name": name, "class": place}
    skipped = {key for kind, keys in _MADE_ANEW.items() if isinstance(module, kind) for key in keys}
    for group in ("parameters", "buffers"):
        tensors: dict[str, Any] = {}
        for key, value in getattr(module, f"_{group}").items():
            where = f"{name}.{key}".lstrip(".")
            if value is None:
                tensors[key] = None
                continue
            first = owners.setdefault(id(value), where)
            tensors[key] = _form(value) if first == where else {"same": first}
        part |= {group: tensors} if tensors else {}
    if fleeting := sorted(module._non_persistent_buffers_set):
        part["fleeting"] = fleeting
    if None in module._modules.values():
        part["children"] = list(module._modules)  # in their order, with those that are none
    settings = {
        key: {"tensor": _form(value)} if _is_constant(value) else _as_json(value, places)
        for key, value in vars(module).items()
        if key not in BLANK and key not in skipped
    }
    return part | ({"settings": settings} if settings else {})


def _values(table: Any) -> Iterator[Any]:
    return iter(table.values()) if isinstance(table, Mapping) else iter(())


def _is_constant(value: Any) -> bool:
    """Whether a setting is a tensor that `protege.models.storage.beside` keeps; one inside of a list it does not."""
    return type(value) is Tensor and value.grad_fn is None and bool(value.numel())


def _form(value: Tensor) -> list[Any]:
    if type(value) not in (Tensor, nn.Parameter) or value.layout != torch.strided or value.is_quantized:
        raise NotPlain(f"a {type(value).__name__} is no dense tensor")
    return [list(value.shape), str(value.dtype).removeprefix("torch."), value.requires_grad]


def _as_json(value: Any, places: Mapping[int, str]) -> Any:
    """A value as JSON: what JSON has no form of is a table of one kind and its content."""
    plain = partial(_as_json, places=places)
    if value is None or type(value) in (bool, int, str) or (type(value) is float and math.isfinite(value)):
        return value
    if type(value) is float:
        return {"float": str(value)}
    if type(value) is list:
        return [plain(item) for item in value]
    if type(value) in (tuple, set, frozenset, torch.Size):
        items = sorted(value) if type(value) in (set, frozenset) else value
        return {type(value).__name__: [plain(item) for item in items]}
    if isinstance(value, Mapping):
        return {"dict": [[plain(key), plain(item)] for key, item in value.items()]}
    if isinstance(value, torch.dtype | torch.device):
        return {type(value).__name__: str(value).removeprefix("torch.")}
    if isinstance(value, Enum) and (place := place_of(type(value))):
        return {"enum": [{"import": place}, value.name]}
    if isinstance(value, nn.Module) and id(value) in places:
        return {"module": places[id(value)]}
    if type(value) is partial:
        return {"partial": [plain(value.func), [plain(item) for item in value.args], plain(value.keywords)]}
    if callable(value) and (place := place_of(value) or _place_in_torch(value)):
        return {"import": place}
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf" and value.size <= MOST_NUMBERS:
        return {"array": [value.tolist(), str(value.dtype)]}
    if _is_record(value) and (place := place_of(type(value))):
        return {"object": [{"import": place}, {key: plain(item) for key, item in vars(value).items()}]}
    raise NotPlain(f"a {type(value).__name__} is no plain value")


def _place_in_torch(value: Any) -> str | None:
    """Where torch has a function of its own that does not know its module."""
    name = getattr(value, "__name__", "")
    return next((f"{held.__name__}:{name}" for held in (torch, F) if vars(held).get(name) is value), None)


def _is_record(value: Any) -> bool:
    """Whether an object is no more than its attributes."""
    usual = all(getattr(type(value), key, None) is getattr(object, key, None) for key in _STATE)
    return usual and hasattr(value, "__dict__") and not isinstance(value, type)


def places_in(parts: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """All that is imported to make the network of some parts."""
    for part in parts:
        if "class" in part:
            yield str(part["class"])
        yield from _imports(part.get("settings"))


def _imports(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        if set(value) == {"import"}:
            yield str(value["import"])
        for item in value.values():
            yield from _imports(item)
    elif isinstance(value, list):
        for item in value:
            yield from _imports(item)


def assembled(parts: Sequence[Mapping[str, Any]]) -> nn.Module:
    """The network of some parts, with zeros for weights. Raises `UserError` for what are none, and for a class or
    function that cannot be imported."""
    try:
        return _assembled(parts)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"the parts of a network cannot be put together ({type(error).__name__}: {error}); save the model again."
        ) from error


def _assembled(parts: Sequence[Mapping[str, Any]]) -> nn.Module:
    modules: dict[str, nn.Module] = {}
    for part in parts:
        if "same" not in part:
            modules[part["name"]] = _empty(part["class"])
            modules[part["name"]]._modules.update(dict.fromkeys(part.get("children", ())))
    tensors: dict[str, Tensor] = {}
    for part in parts:
        owner, _, child = part["name"].rpartition(".")
        module = modules.setdefault(part["name"], modules[part["same"]] if "same" in part else modules[part["name"]])
        if part["name"]:
            modules[owner]._modules[child] = module
        for group in ("parameters", "buffers"):
            for key, form in part.get(group, {}).items():
                where = f"{part['name']}.{key}".lstrip(".")
                tensor = None if form is None else _tensor(form, tensors, group == "parameters")
                getattr(module, f"_{group}")[key] = tensor
                if tensor is not None:
                    tensors[where] = tensor
        module._non_persistent_buffers_set.update(part.get("fleeting", ()))
    for part in parts:
        if "same" not in part:
            module, settings = modules[part["name"]], part.get("settings", {})
            for key in settings:
                if key in BLANK or hasattr(nn.Module, key):
                    raise UserError(f"{shown(key)} is no setting of a {type(module).__name__}; save the model again.")
            vars(module).update({key: _read(value, modules) for key, value in settings.items()})
            if isinstance(module, RNNBase):
                module._init_flat_weights()
    return modules[""]


def _empty(place: str) -> nn.Module:
    kind: Any = find_callable(place, "model", "makes a network")
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise UserError(f"{shown(place)}, a part of a network, is no class of modules; save the model again.")
    module = kind.__new__(kind)
    nn.Module.__init__(module)
    return module


def _tensor(form: Any, tensors: Mapping[str, Tensor], learned: bool) -> Tensor:
    if isinstance(form, Mapping):
        return tensors[form["same"]]
    shape, dtype, learns = form
    value = torch.zeros(shape, dtype=getattr(torch, dtype))
    return nn.Parameter(value, learns) if learned else value


def _dtype(name: str) -> torch.dtype:
    kind = getattr(torch, name)
    if not isinstance(kind, torch.dtype):  # a stranger's folder may name any attribute of torch, `load` among them
        raise TypeError(f"torch.{name} is no dtype")
    return kind


def _read(value: Any, modules: Mapping[str, nn.Module]) -> Any:
    read: Callable[[Any], Any] = partial(_read, modules=modules)
    if isinstance(value, list):
        return [read(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    ((kind, content),) = value.items()
    if kind == "dict":
        return {read(key): read(item) for key, item in content}
    if kind == "partial":
        return partial(read(content[0]), *read(content[1]), **read(content[2]))
    if kind == "enum":
        return read(content[0])[content[1]]
    if kind == "array":
        return np.array(content[0], content[1])
    if kind == "object":
        record = object.__new__(read(content[0]))
        vars(record).update({key: read(item) for key, item in content[1].items()})
        return record
    simple: dict[str, Callable[[Any], Any]] = {
        "float": float,
        "tuple": lambda items: tuple(read(items)),
        "set": lambda items: set(read(items)),
        "frozenset": lambda items: frozenset(read(items)),
        "Size": torch.Size,
        "dtype": _dtype,
        "device": torch.device,
        "module": modules.__getitem__,
        "tensor": lambda form: _tensor(form, {}, learned=False),
        "import": lambda place: find_callable(place, "model", "is a part of a network"),
    }
    return simple[kind](content)
