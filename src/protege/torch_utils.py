"""Small things about networks that torch has no word for."""

from __future__ import annotations

import copy
import random
import re
import sys
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from protege.modes import eval_mode

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


def device_of(network: nn.Module) -> torch.device:
    """Where a network's weights lie; the processor for one without any."""
    return next((parameter.device for parameter in network.parameters()), torch.device("cpu"))


def is_unmade(network: nn.Module) -> bool:
    """Whether a network has lazy layers that its first input will make."""
    lazy = any(map(is_lazy, [*network.parameters(), *network.buffers()]))
    return lazy or any(hasattr(module, "_initialize_hook") for module in network.modules())  # sizes known, not yet run


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
    devices = range(torch.cuda.device_count())
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
