"""What is written of a network, so that what loads is what was saved.

A network is named by how to build it: its source, or its class with the arguments that it keeps. Whether that makes
the same network is tried out: it is built, given the weights as they are written, and compared by what it computes.
Where it takes tensors that are no weights, these are written, too. Where it still differs, the folder says that the
network must be given again; and it keeps a few outputs, by which a network that is given later is judged.
"""

from __future__ import annotations

import dataclasses
import json
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
from ..surgery.laws import close
from ..surgery.nests import tensors_in
from ..torch_utils import copy_network, device_of, logits_in, own_dtype, plain_names, seeded, untouched, unwrapped
from . import sources, storage
from .description import Check
from .given import sources_of
from .language import Reader
from .parts import BLANK, NotPlain, assembled, parts_of
from .placing import channels_last, is_channels_last

if TYPE_CHECKING:
    from .model import Model

NOTES = {"_model_args", "pretrained_cfg", "default_cfg"}  # that timm keeps of what a network was made of
Probes = Sequence[tuple[Tensor, list[Tensor]]]  # inputs as a network takes them, and its outputs

SIZES = (32, 224, 28, 8, 64, 16, 96, 128, 256, 299, 384, 512)  # tried where nothing tells the size of the images
LENGTHS = (16, 8, 4, 2, 32, 64, 128)
WORDS = 2  # every vocabulary has so many
KEPT = 12  # outputs that a folder keeps
LONGEST = 300  # characters of a call in a sentence
ROUGH = 0.2  # how far the outputs of rounded weights may be off, as a share of the largest


@dataclass(frozen=True)
class Described:
    """How `config.json` names the network: `source` and `structure` as in `Model`; where "model" is None, `why`, and
    `call`, the Python that builds the user's own. `check` is what `checked` compares by, if anything. `beside` are the
    tensors by name that it computes with and that are none of its state. `parts`: of what `assembled` makes it."""

    source: dict[str, Any]
    structure: list[dict[str, Any]]
    why: str = ""
    call: str = ""
    check: dict[str, Any] | None = None
    beside: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    parts: list[dict[str, Any]] = dataclasses.field(default_factory=list)


def described(model: Model) -> Described:
    """How the model's network can be built again, tried out. Never fails, and leaves the network and all
    random numbers as they are."""
    try:
        with _as_saved(model.network):
            probes = _probes(model)
            return dataclasses.replace(_named(model, probes), check=_check(model, probes))
    except Exception as error:  # the weights matter more than their name
        return _unnamed(model, f"trying to build it again fails with {told(error)}")


def rounding(model: Model, state: Mapping[str, Any]) -> float:
    """How far outputs are off, as a share of the largest, once the network has a state in which weights are rounded; 0
    where it runs on no input that was tried."""
    network = copy_network(model.network)
    storage.load(network, state)
    far = 0.0
    with _as_saved(model.network), _as_saved(network):
        for ready, expected in _probes(model):
            with seeded():
                rounded = tensors_in(logits_in(network(ready)))
            for ours, theirs in zip(rounded, expected, strict=True):
                scale = float(theirs.abs().max()) if theirs.is_floating_point() and theirs.numel() else 0.0
                far = max(far, float((ours - theirs).abs().max()) / scale if scale else 0.0)
    return far


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
    if off <= (ROUGH if rounded else 1e-3):
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
    """What builds the network again: its source, or else the first of `sources_of` that does."""
    known, kind = model.source["model"], type(model.network)
    first, call = "", ""
    for source in [model.source] if known is not None else sources_of(model.network):
        build = partial(sources.build, source["model"], source["arguments"])
        if source["model"] is None:  # a class that cannot be imported
            build = partial(kind, **source["arguments"])
        why, structure, beside = _tried(model, build, probes, str(source["model"]))
        if not why and source["model"] is not None:
            return Described(dict(source), structure, beside=beside)
        given = ", ".join(f"{key}={value!r}" for key, value in source["arguments"].items())
        called = known or f"{kind.__name__}({given})"
        if len(called) > LONGEST:
            called = f"{kind.__name__}(…)"
        if not why:
            return _unnamed(model, _unimportable(kind), called, structure)
        first = first or f"{called} {why}"
        call = call or ("my_network" if kind.__module__.startswith("torch.") else "")
    with suppress(NotPlain):
        parts = json.loads(json.dumps(parts_of(model.network)))
        why, _, beside = _tried(model, partial(assembled, parts), probes, blank=True)
        if not why:
            return Described({"model": parts[0]["class"], "arguments": {}}, [], beside=beside, parts=parts)
    if known is None and place_of(kind) is None:
        return _unnamed(model, _unimportable(kind), call)
    if known is None and kind.__module__.startswith("torch."):
        return _unnamed(model, f"the class {kind.__name__} does not tell what it is made of")
    return _unnamed(model, first or f"the class {kind.__name__} cannot be called", call)


def _unimportable(kind: type) -> str:
    if kind.__module__ == "__main__":
        return f"its class {kind.__name__} stands in the program itself, and not in a file that others can import"
    return f"its class {kind.__name__} cannot be imported from a file"


def _tried(
    model: Model, build: Callable[[], nn.Module], probes: Probes, name: str = "", blank: bool = False
) -> tuple[str, list[dict[str, Any]], dict[str, Tensor]]:
    """Why what `build` gives is not the model's network once it has the weights ("" where it is), the edits of its
    structure that it takes, and the tensors beside its state, which are those of `build` unless these are ``blank``."""
    network, structure = model.network, []
    state = network.state_dict()
    state = {plain: state[key] for key, plain in plain_names(network).items()}
    try:
        with seeded():  # of a seed that the network was not built with, should it draw numbers that are no weights
            again = unwrapped(build())
    except Exception as error:
        return f"cannot be built again ({told(error)})", [], {}
    try:
        if model.structure or storage.misfits_of(again, state):
            structure = record(again, network)
            again = rebuild(again, structure)
        storage.load(again, state)
    except Exception as error:
        return f"makes another network ({told(error)})", [], {}
    beside = storage.unlike(network, again)
    difference = "" if blank else _difference(model, again, probes, name)
    if blank or (difference and beside):
        storage.put(again, beside)
        difference = _difference(model, again, probes, name)
    elif not difference:
        beside = {}
    if difference:
        return f"makes another network, with {difference}", [], {}
    return ("" if probes else "cannot be compared with it, which runs on no input that was tried"), structure, beside


def _unnamed(model: Model, why: str, call: str = "", structure: Sequence[dict[str, Any]] = ()) -> Described:
    kind = type(model.network)
    call = call or ("my_network" if kind.__module__.startswith("torch.") else f"{kind.__name__}(...)")
    source: dict[str, Any] = {"model": None, "arguments": {}}
    return Described(source, list(structure) or _still_true(model), why, call, beside=storage.beside(model.network))


def _still_true(model: Model) -> list[dict[str, Any]]:
    """The structure that the model came with, where the network still has the sizes that it tells."""
    try:
        again = rebuild(copy_network(model.network), model.structure)
        return [] if storage.misfits_of(again, model.network.state_dict()) else model.structure
    except Exception:
        return []


def _difference(model: Model, again: nn.Module, probes: Probes, name: str) -> str:
    """In what the network built again of the source of this name differs from the model's own; "" where in nothing that
    can be seen."""
    library = name.startswith("transformers:")  # it keeps notes, such as a name or a path
    if setting := _other_setting(again, model.network, library):
        return f"another {setting}"
    device = next((tensor.device for tensor in model.network.state_dict().values() if isinstance(tensor, Tensor)), None)
    again.eval().to(device, own_dtype(model.network))
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
    kind = own_dtype(model.network)
    for shape, values in _shapes(model):
        probes: list[tuple[Tensor, list[Tensor]]] = []
        for count, scale in ((3, 1), (1, 1), (2, 8)):
            with suppress(Exception):  # of a size that it does not take, or of a single sample
                ready = model.prepared(_noise(shape, count, values, model))
                ready = (ready * scale).to(kind or ready.dtype) if ready.is_floating_point() else ready
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
        for key in vars(module).keys() & vars(other).keys() - BLANK - NOTES:
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
        if any(isinstance(value, Tensor) for value in (*first.values(), *second.values())):  # what it has computed
            return False
        return first.keys() != second.keys() or any(_differ(first[key], second[key]) for key in first)
    if dataclasses.is_dataclass(first):
        return _differ(vars(first), vars(second)) if hasattr(first, "__dict__") else False
    if isinstance(first, partial):
        return _differ((first.func, first.args, first.keywords), (second.func, second.args, second.keywords))
    if isinstance(first, FunctionType):
        return first.__code__ is not second.__code__
    return False
