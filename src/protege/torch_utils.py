"""Modes, copies, names and plain tensors of any network: what PyTorch itself does not have."""

from __future__ import annotations

import copy
import hashlib
import random
import re
import sys
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib import import_module
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from .errors import UserError

SEED = 0x5EED_0F_A_F01D  # no seed that anybody sets
GROWING = (list, dict, set, deque, OrderedDict, defaultdict)


def tensors_of(network: nn.Module) -> dict[str, Tensor]:
    """The tensors of a network's state; what else there is came from a module's `get_extra_state`."""
    return {name: value for name, value in network.state_dict().items() if isinstance(value, Tensor)}


def unwrapped(network: nn.Module) -> nn.Module:
    """The network inside `torch.compile`'s, `DataParallel`'s and `DistributedDataParallel`'s wrappers."""
    while (inner := _inner(network)) is not None:
        network = network.get_submodule(inner)
    return network


def plain_names(network: nn.Module) -> dict[str, str]:
    """Each key of the network's state without what wrappers inside it add, such as `_orig_mod.`."""
    wrappers = {name: inner for name, m in network.named_modules(remove_duplicate=False) if (inner := _inner(m))}
    added = sorted((f"{name}.{inner}." if name else f"{inner}." for name, inner in wrappers.items()), key=len)
    plain = {}
    for key in network.state_dict():
        short = key
        for prefix in reversed(added):  # the innermost first: what comes before it still has its full name
            if short.startswith(prefix):
                owner = prefix[: prefix[:-1].rfind(".") + 1]
                short = owner + short.removeprefix(prefix)
        plain[key] = short
    return plain


def _inner(module: nn.Module) -> str | None:
    """Under which name a wrapper keeps the network that it only calls; None for what is no wrapper."""
    dynamo = sys.modules.get("torch._dynamo.eval_frame")  # imported by then, and slow to import
    if dynamo is not None and isinstance(module, dynamo.OptimizedModule):
        return "_orig_mod"
    return "module" if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel) else None


def admit_torchvision() -> None:
    """Import torchvision, if there is one, so that what stands on it can be imported.

    One built for another torch lacks its operators and fails on the first that it mentions, and timm and
    transformers with it, though they need none. So what it mentions is declared, without being there to be called: its
    Python parts then work, and who calls an operator is told by torchvision that the two do not fit.
    """
    for _ in range(32):  # more operators than it has
        try:
            import_module("torchvision")
        except RuntimeError as error:
            missing = re.search(r"operator (torchvision::\w+) does not exist", str(error))
            if missing:
                torch.library.define(missing[1], "() -> ()")
                continue
        except Exception:  # missing, or broken otherwise: who needs it will say so
            pass
        return


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Within it tensors of the device keep their own precision."""
    known = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if known else nullcontext()


def device_of(network: nn.Module) -> torch.device:
    """Where a network's weights lie; the processor for one without any."""
    return next((parameter.device for parameter in network.parameters()), torch.device("cpu"))


def is_unmade(network: nn.Module) -> bool:
    """Whether a network has lazy layers that its first input will make."""
    lazy = any(map(is_lazy, [*network.parameters(), *network.buffers()]))
    return lazy or any(hasattr(module, "_initialize_hook") for module in network.modules())  # sizes known, not yet run


def mix(*numbers: int) -> int:
    """A seed of 63 bits made of whole numbers, of which each one counts."""
    digest = hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@contextmanager
def seeded(seed: int = SEED) -> Iterator[None]:
    """Random numbers (torch's, NumPy's, Python's) from this seed; afterwards they go on where they stood."""
    with same_numbers():
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        yield


@contextmanager
def same_numbers() -> Iterator[None]:
    """Afterwards the random numbers of torch, NumPy and Python go on where they stood."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


@contextmanager
def as_it_was(network: nn.Module) -> Iterator[Callable[[], None]]:
    """Inside, passes may change what they like. Gives what brings the network's attributes (modes, counters, what was
    put into lists and dictionaries) and buffers back to what they were, and does so at the end; random numbers come
    back then, too. Of a network whose lazy layers are still to be made only the random numbers do."""
    modules = [] if is_unmade(network) else [vars(module) for module in network.modules()]
    attributes = [(values, dict(values)) for values in modules]
    containers: dict[int, tuple[Any, Any]] = {}
    tensors: dict[Tensor, Tensor] = {}
    for _, values in attributes:
        _note(tuple(values.values()), containers, tensors)

    def restore() -> None:
        for now, before in attributes:
            now.clear()
            now.update(before)
        for container, before in containers.values():
            container.clear()
            (container.update if isinstance(container, dict | set) else container.extend)(before)
        with torch.no_grad():
            for tensor, value in tensors.items():
                if not torch.equal(tensor, value):
                    tensor.copy_(value)

    with same_numbers():
        try:
            yield restore
        finally:
            restore()


def _note(value: Any, containers: dict[int, tuple[Any, Any]], tensors: dict[Tensor, Tensor]) -> None:
    """Copies of all that can change among values, and inside of what can; parameters are not changed by passes."""
    if isinstance(value, Tensor):
        if not isinstance(value, nn.Parameter) and value not in tensors:
            tensors[value] = value.detach().clone()
        return
    if type(value) in GROWING and id(value) not in containers:
        containers[id(value)] = value, copy.copy(value)
    elif type(value) is not tuple:
        return
    for item in list(value.values()) if isinstance(value, dict) else value:
        if isinstance(item, (Tensor, tuple, *GROWING)):
            _note(item, containers, tensors)


@contextmanager
def untouched(network: nn.Module) -> Iterator[None]:
    """Inside, the network is in eval mode and gives no gradients; afterwards it is as it was, in its modes too."""
    with as_it_was(network), eval_mode(network), torch.no_grad():
        yield


@contextmanager
def eval_mode(*networks: nn.Module) -> Iterator[None]:
    """Inside, the networks are in eval mode, with nothing remembered of former weights; afterwards each of their
    modules is in the mode that it was in before."""
    modes = [(module, module.training) for network in networks for module in network.modules()]
    for module in filter(_switches, [module for module, _ in modes]):
        module.train()
    _put([(module, False) for module, _ in modes])
    try:
        yield
    finally:
        _put(modes)


def follow(network: nn.Module, modes: Iterable[bool]) -> None:
    """Put each module into a mode, in the order of `modules`."""
    _put(list(zip(network.modules(), modes, strict=True)))


def forget(network: nn.Module) -> None:
    """Have a network drop what it remembers of its weights (timm's LeViT its biases), in the same modes."""
    with eval_mode(network):
        pass


def _put(modes: Sequence[tuple[nn.Module, bool]]) -> None:
    """Put modules into modes, by their own ``train`` where they have one, which may drop or make what they remember."""
    for module, training in modes:
        if module.training != training and _switches(module):
            module.train(training)
    for module, training in modes:  # one that lies in two places, or whose ``train`` holds others back
        module.training = training


def _switches(module: nn.Module) -> bool:
    """Whether a module does more than others when its mode is switched."""
    return type(module).train is not nn.Module.train


def trained_by(network: nn.Module) -> set[nn.Module]:
    """The modules that are in training mode after the network's ``train()``, in which its author may hold some (such as
    BatchNorm) in eval mode. Modes are left as they were."""
    before = [(module, module.training) for module in network.modules()]
    network.train()
    learning = {module for module, _ in before if module.training}
    for module, training in before:
        module.training = training
    return learning


Network = TypeVar("Network", bound=nn.Module)


def copy_network(network: Network, shared: Iterable[Tensor] = ()) -> Network:
    """A network of its own with the same weights, buffers and modes; tensors that are ``shared`` are in both.

    Unlike `copy.deepcopy` it takes networks that were just run with gradients: of a tensor that a forward pass left
    behind (an attention map, a loss, the weight that `weight_norm` computed) the copy has the value, without what it
    was computed from. What cannot be copied at all, such as a lock or an open file, both networks share.
    """
    common: dict[int, Any] = {id(tensor): tensor for tensor in shared}
    for value in [value for module in network.modules() for value in vars(module).values()]:
        if type(value) is OrderedDict and not value:  # hooks that there are not: most of what there is to copy
            common[id(value)] = OrderedDict()
    with _Detached():
        try:
            return copy.deepcopy(network, {**common})
        except TypeError:
            return copy.deepcopy(network, common | {id(value): value for value in _uncopyable(network, set())})


class _Detached(TorchFunctionMode):
    """Copies of tensors that were computed hold their values only, where `copy.deepcopy` would refuse them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            tensor, memo = args
            memo[id(tensor)] = tensor.detach().clone()
            return memo[id(tensor)]
        return func(*args, **(kwargs or {}))


def _uncopyable(value: Any, seen: set[int]) -> Iterator[Any]:
    """The attributes in a network, in rows and tables of these too, of which there are no copies."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, nn.Module):
        parts = list(vars(value).values())
    elif isinstance(value, dict):
        parts = list(value.values())
    elif isinstance(value, list | tuple):
        parts = list(value)
    else:
        try:
            copy.deepcopy(value)
        except Exception:
            yield value
        return
    for part in parts:
        yield from _uncopyable(part, seen)


def plain_parts(value: Any) -> Iterator[tuple[Tensor, str]]:
    """The plain tensors that a value of a `state_dict` holds, and what else tells how to read each of them.

    Those are a quantised tensor's integers with its scales, the parts of a wrapped one (as of torchao), and the
    elements of what is packed for a kernel.
    """
    if isinstance(value, Tensor):
        if hasattr(value, "__tensor_flatten__"):
            names, context = value.__tensor_flatten__()
            for name in names:
                for part, told in plain_parts(getattr(value, name)):
                    yield part, f"{type(value).__name__}.{name} {told}"
            yield torch.empty(0), repr(context)
        elif value.is_quantized:
            per_channel = value.qscheme() in (torch.per_channel_affine, torch.per_channel_symmetric)
            yield value.int_repr(), f"{value.dtype}"
            if per_channel:
                yield value.q_per_channel_scales(), "scales"
                yield value.q_per_channel_zero_points(), "zero points"
            else:
                yield torch.empty(0), f"{value.q_scale()} {value.q_zero_point()}"
        else:
            yield value, f"{tuple(value.shape)}{value.dtype}"
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield torch.empty(0), repr(key)
            yield from plain_parts(part)
    elif isinstance(value, tuple | list):
        for part in value:
            yield from plain_parts(part)
    elif hasattr(value, "unpack"):  # a kernel's own object
        yield from plain_parts(value.unpack())
    elif isinstance(value, torch.ScriptObject) and hasattr(value, "__getstate__"):
        yield from plain_parts(value.__getstate__())
    else:  # of other objects nothing is known that is the same in another process
        same = isinstance(value, int | float | complex | str | bytes | torch.dtype | None)
        yield torch.empty(0), repr(value) if same else type(value).__name__


def has_own_precision(network: nn.Module) -> bool:
    """Whether a network computes in a precision of its own: its numbers are not all whole or in single precision, or it
    holds tensors that are quantised or wrapped."""
    return any(_is_own(value) for value in network.state_dict().values())


def is_quantised(value: Any) -> bool:
    """Whether a value of a `state_dict` is, or holds, a tensor that is quantised or wrapped."""
    if isinstance(value, tuple | list):
        return any(map(is_quantised, value))
    if isinstance(value, Tensor):
        return value.is_quantized or (hasattr(value, "__tensor_flatten__") and hasattr(value, "dequantize"))
    return isinstance(value, torch.ScriptObject) or (isinstance(value, torch.dtype) and value in _QUANTISED)


def _is_own(value: Any) -> bool:
    if isinstance(value, Tensor) and not is_quantised(value):
        return value.is_floating_point() and value.dtype != torch.float32
    return is_quantised(value)


def own_dtype(network: nn.Module) -> torch.dtype | None:
    """The one type of all of a network's floating parameters and buffers, where that is not single precision."""
    tensors = [*network.parameters(), *network.buffers()]
    kinds = {tensor.dtype for tensor in tensors if tensor.is_floating_point()}
    return kinds.pop() if len(kinds) == 1 and kinds != {torch.float32} else None


_QUANTISED = (torch.qint8, torch.quint8, torch.qint32)


# ---- what a network's outputs are read from --------------------------------------------------------------------------


def logits_in(outputs: Any) -> Any:
    """The ``logits`` of outputs that are a mapping or an object with them (``out`` of a mapping, as torchvision's have
    it), and the only tensor of those that hold one; all other outputs as they are."""
    if isinstance(outputs, Tensor):
        return outputs
    named = outputs if isinstance(outputs, Mapping) else {}
    for name in ("logits", "out"):
        if name in named:
            return named[name]
    if (logits := getattr(outputs, "logits", None)) is not None:
        return logits
    held = list(named.values()) if named else list(outputs) if isinstance(outputs, tuple | list) else []
    return held[0] if len(held) == 1 and isinstance(held[0], Tensor) else outputs


def refuse_odd(outputs: Tensor, who: str, traced: bool = False) -> None:
    """Raise `UserError` for outputs that are no dense tensor of real numbers: meta, sparse, quantised, integers.
    ``traced``: nothing has values here, on the meta device."""
    kinds = ("quantized", "nested", "mkldnn", *(() if traced else ("meta",)))
    kind = next((kind for kind in kinds if getattr(outputs, f"is_{kind}")), "")
    if not kind and outputs.layout != torch.strided:
        kind = str(outputs.layout).removeprefix("torch.")
    if not kind and not (outputs.is_floating_point() and outputs.dtype.itemsize > 1):
        kind = str(outputs.dtype).removeprefix("torch.")
    if kind:
        raise UserError(
            f"{who} gives a tensor of kind {kind}; expected a dense one of real numbers, in training as well: wrap the "
            "network in a module that returns such logits."
        )
