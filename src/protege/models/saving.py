"""What is written of a network, so that what loads is what was saved.

A network is named by how to build it: its source, or its class without arguments. Whether that makes the same network
is tried out: it is built, given the weights, and compared by what it computes. Where that differs, the folder says that
the network must be given again; and it keeps a few outputs, by which a network that is given later is judged.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from types import FunctionType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from ..errors import told
from ..lookup import place_of
from ..surgery import rebuild, record
from ..surgery.laws import close, tensors_in
from ..torch_utils import copy_network, device_of, logits_in, plain_names, seeded, untouched, unwrapped
from . import sources, storage
from .description import Check
from .language import Reader
from .placing import channels_last, is_channels_last

if TYPE_CHECKING:
    from .model import Model

Probes = Sequence[tuple[Tensor, list[Tensor]]]  # inputs as a network takes them, and its outputs

SIZES = (32, 224, 28, 8, 64, 16, 96, 128, 256, 299, 384, 512)  # tried where nothing tells the size of the images
LENGTHS = (16, 8, 4, 2, 32, 64, 128)
WORDS = 2  # every vocabulary has so many
KEPT = 12  # outputs that a folder keeps
BLANK = frozenset(vars(nn.Module())) | {"_compiled_call_impl"}


@dataclass(frozen=True)
class Described:
    """How `config.json` names the network: `source` and `structure` as in `Model`; where "model" is None, `why`, and
    `call`, the Python that builds the user's own. `check` is what `checked` compares by, if anything."""

    source: dict[str, Any]
    structure: list[dict[str, Any]]
    why: str = ""
    call: str = ""
    check: dict[str, Any] | None = None


def described(model: Model) -> Described:
    """How the model's network can be built again, tried out. Never fails, and leaves the network and all
    random numbers as they are."""
    try:
        with _as_saved(model.network):
            probes = _probes(model)
            return dataclasses.replace(_named(model, probes), check=_check(model, probes))
    except Exception as error:  # the weights matter more than their name
        return _unnamed(model, f"trying to build it again fails with {told(error)}")


def checked(model: Model, check: Check | None, rounded: bool) -> str:
    """In which way a loaded model computes something else than the saved one did; "" where it does not.

    `rounded` weights, as bfloat16 ones are, may be further off than other machines and versions of torch compute.
    """
    if check is None:
        return ""
    expected = torch.tensor(check.outputs, dtype=torch.float64)
    raw = _noise(check.shape, 1, check.values, model)
    try:
        with _as_saved(model.network), seeded(), _precisely():
            outputs = _some(model(raw))
    except Exception:  # such as one that runs on another device only
        return ""
    scale = max(check.scale, 1e-30)
    off = float((outputs - expected).abs().max()) / scale if outputs.shape == expected.shape else math.inf
    if off <= (0.2 if rounded else 1e-3):
        return ""
    return "outputs of another shape" if math.isinf(off) else f"outputs that are {off:.2g} of the largest away"


@contextmanager
def _as_saved(network: nn.Module) -> Iterator[None]:
    """Inside, the network is in eval mode and answers to all tokens; nothing that happens to it lasts."""
    with untouched(network):
        if isinstance(network, Reader):
            network.context = 0
        yield


# ---- naming ------------------------------------------------------------------------------------------------------


def _named(model: Model, probes: Probes) -> Described:
    """What builds the network again: its source, else its class without arguments, else with those that its attributes
    tell, which is for people to read only."""
    kind, name = type(model.network), str(model.source["model"])
    if model.source["model"] is not None:
        why, structure = _tried(model, partial(sources.build, name, model.source["arguments"]), probes)
        return _unnamed(model, f"{name} {why}") if why else Described(dict(model.source), structure)
    why, structure = _tried(model, kind, probes)
    if not why and (place := place_of(kind)):
        return Described({"model": place, "arguments": {}}, structure)
    if not why:
        return _unnamed(model, "its class cannot be imported from a file", f"{kind.__name__}()", structure)
    arguments = _arguments_of(model.network)
    if arguments:
        other, structure = _tried(model, partial(kind, **arguments), probes)
        if not other:
            given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
            return _unnamed(model, f"{kind.__name__}() {why}", f"{kind.__name__}({given})", structure)
    if kind.__module__.startswith("torch."):
        return _unnamed(model, f"the class {kind.__name__} does not tell what it is made of")
    return _unnamed(model, f"{kind.__name__}() {why}")


def _tried(model: Model, build: Callable[[], nn.Module], probes: Probes) -> tuple[str, list[dict[str, Any]]]:
    """Why what `build` gives is not the model's network once it has the weights ("" where it is), and the edits of its
    structure that it takes."""
    network, structure = model.network, []
    state = network.state_dict()
    state = {plain: state[key] for key, plain in plain_names(network).items()}
    try:
        with seeded():  # of a seed that the network was not built with, should it draw numbers that are no weights
            again = unwrapped(build())
    except Exception as error:
        return f"cannot be built again ({told(error)})", []
    try:
        if model.structure or storage.misfits_of(again, state):
            structure = record(again, network)
            again = rebuild(again, structure)
        storage.load(again, state)
    except Exception as error:
        return f"makes another network ({told(error)})", []
    if difference := _difference(model, again, probes):
        return f"makes another network, with {difference}", []
    return ("" if probes else "cannot be compared with it, which runs on no input that was tried"), structure


def _unnamed(model: Model, why: str, call: str = "", structure: Sequence[dict[str, Any]] = ()) -> Described:
    kind = type(model.network)
    call = call or ("my_network" if kind.__module__.startswith("torch.") else f"{kind.__name__}(...)")
    return Described({"model": None, "arguments": {}}, list(structure) or _still_true(model), why, call)


def _arguments_of(network: nn.Module) -> dict[str, Any]:
    """The plain values that the network keeps under the names of its class's arguments, other than their defaults."""
    try:
        parameters = inspect.signature(type(network)).parameters.values()
    except (TypeError, ValueError):
        return {}
    kept = {p.name: (vars(network)[p.name], p.default) for p in parameters if p.name in vars(network)}
    return {key: value for key, (value, default) in kept.items() if _is_plain(value) and _differ(value, default)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return value is None or type(value) in (int, float, str, bool)


def _still_true(model: Model) -> list[dict[str, Any]]:
    """The structure that the model came with, where the network still has the sizes that it tells."""
    try:
        again = rebuild(copy_network(model.network), model.structure)
        return [] if storage.misfits_of(again, model.network.state_dict()) else model.structure
    except Exception:
        return []


def _difference(model: Model, again: nn.Module, probes: Probes) -> str:
    """In what the network built again differs from the model's own; "" where in nothing that can be seen."""
    library = str(model.source["model"]).startswith("transformers:")  # it keeps notes, such as a name or a path
    if setting := _other_setting(again, model.network, library):
        return f"another {setting}"
    device = next((tensor.device for tensor in model.network.state_dict().values() if isinstance(tensor, Tensor)), None)
    again.eval().to(device)
    if is_channels_last(model.network):
        channels_last(again)
    for ready, expected in probes:
        try:
            with seeded():
                outputs = tensors_in(logits_in(again(ready)))
        except Exception as error:
            return f"an error where this one runs ({told(error)})"
        if not close(outputs, expected):
            return "other outputs"
    return ""


# ---- what networks are compared on -----------------------------------------------------------------------------------


def _probes(model: Model) -> Probes:
    """Inputs as the network takes them and its outputs, for two batch sizes and for values beyond the usual ones; none
    where no input can be found that it runs on."""
    for shape, values in _shapes(model):
        probes: list[tuple[Tensor, list[Tensor]]] = []
        for count, scale in ((3, 1), (1, 1), (2, 8)):
            with suppress(Exception):  # of a size that it does not take, or of a single sample
                ready = model.prepared(_noise(shape, count, values, model))
                ready = ready * scale if ready.is_floating_point() else ready
                with seeded():
                    outputs = tensors_in(logits_in(model.network(ready)))
                probes += [(ready, outputs)] if outputs else []
        if probes:
            return probes
    return []


def _shapes(model: Model) -> list[tuple[tuple[int, ...], int]]:
    """Shapes of a raw input that the network may take, the likeliest first, each with how many values there are."""
    spec, known = model.input, [tuple(model.shape)] if model.shape else []
    if spec.kind == "tokens":
        words = len(model.classes) if len(model.classes) > 1 else WORDS
        return [(shape, count) for count in (words, WORDS) for shape in [*known, *((n,) for n in LENGTHS)]]
    sizes = [spec.size] if spec.size else [(side, side) for side in SIZES]
    return [(shape, 256) for shape in [*known, *((spec.channels, *size) for size in sizes)]]


def _noise(shape: Sequence[int], count: int, values: int, model: Model) -> Tensor:
    """Raw input [count, *shape] of whole numbers below `values`, the same in every version of torch."""
    numbers = torch.arange(count * math.prod(shape), dtype=torch.int64)
    for _ in range(2):
        numbers = (numbers * 2654435761 + 1013904223) % 2**32
        numbers = numbers ^ (numbers >> 15)
    tokens = model.input.kind == "tokens"
    return (numbers % values).view(count, *shape).to(device_of(model), torch.int64 if tokens else torch.uint8)


def _check(model: Model, probes: Probes) -> dict[str, Any] | None:
    """A few outputs of the network on one input, for the folder; None where they depend on chance or cannot be told."""
    for shape, values in _shapes(model) if probes else []:
        raw, outputs = _noise(shape, 1, values, model), []
        with suppress(Exception):
            for seed in (1, 2):
                with seeded(seed), _precisely():
                    outputs.append(model(raw))
        if len(outputs) < 2:
            continue
        scale = float(outputs[0].abs().max()) if isinstance(outputs[0], Tensor) and torch.equal(*outputs) else 0.0
        if not math.isfinite(scale) or not scale:
            return None
        numbers = [float(f"{value:.6g}") for value in _some(outputs[0]).tolist()]
        return {"shape": list(shape), "values": values, "outputs": numbers, "scale": float(f"{scale:.6g}")}
    return None


def _precisely() -> Any:
    """Without the ten bits of TF32, which other devices do not have."""
    return torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, allow_tf32=False)


def _some(outputs: Tensor) -> Tensor:
    flat = outputs.detach().flatten().double().cpu()
    return flat[:: max(1, len(flat) // KEPT)][:KEPT]


# ---- settings, which training may depend on though outputs do not ---------------------------------------------------


def _other_setting(first: nn.Module, second: nn.Module, layers_only: bool) -> str:
    """The first setting in which two networks differ: a module's type or a plain value among its attributes; with
    ``layers_only``, among those of torch's own layers."""
    ours, theirs = (dict(network.named_modules()) for network in (first, second))
    for name, module in ours.items():
        if name not in theirs or isinstance(module, LazyModuleMixin):  # it becomes another with its first input
            continue
        other = unwrapped(theirs[name])
        where = f" of {name}" if name else ""
        kinds = [(kind.__module__, kind.__qualname__) for kind in (type(module), type(other))]
        if kinds[0] != kinds[1]:  # by name: what is parametrized has a class of its own in every network
            return f"type{where}"
        if layers_only and not type(module).__module__.startswith("torch."):
            continue
        for key in vars(module).keys() & vars(other).keys() - BLANK:
            if _differ(vars(module)[key], vars(other)[key]):
                return f"{key}{where}"
    return ""


def _differ(first: Any, second: Any) -> bool:
    """Whether two values are surely different settings; of tensors and other objects the outputs tell."""
    if isinstance(first, Tensor | nn.Module) or isinstance(second, Tensor | nn.Module):
        return False
    if type(first) is not type(second):
        return True
    if isinstance(first, int | float | str | bytes | torch.dtype):
        return bool(first != second) and not (first != first and second != second)
    if isinstance(first, tuple | list):
        return len(first) != len(second) or any(map(_differ, first, second))
    if isinstance(first, set | frozenset):
        return first != second if all(isinstance(item, int | str) for item in (*first, *second)) else False
    if isinstance(first, Mapping):
        return first.keys() != second.keys() or any(_differ(first[key], second[key]) for key in first)
    if dataclasses.is_dataclass(first):
        return _differ(vars(first), vars(second)) if hasattr(first, "__dict__") else False
    if isinstance(first, partial):
        return _differ((first.func, first.args, first.keywords), (second.func, second.args, second.keywords))
    if isinstance(first, FunctionType):
        return first.__code__ is not second.__code__
    return False
