"""Small things about networks that torch has no word for."""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

SEED = 0x5EED_0F_A_F01D  # no seed that anybody sets


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

    One built for another torch lacks its operators and fails on the first that it mentions, and torchmetrics, timm and
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


@contextmanager
def seeded(seed: int = SEED) -> Iterator[None]:
    """Random numbers (torch's, NumPy's, Python's) from this seed; afterwards they go on where they stood."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


@contextmanager
def untouched(network: nn.Module) -> Iterator[None]:
    """Inside, the network is in eval mode; afterwards its modes, buffers and the attributes of its modules are what
    they were, whatever its forward pass leaves behind."""
    modes = {module: module.training for module in network.modules()}
    places = [place for module in modes for place in (vars(module), module._buffers) if type(place) is dict]
    before = [(place, place.copy()) for place in places]
    buffers = [(b, b.clone()) for b in network.buffers() if not (b.is_meta or is_lazy(b))]
    for module in modes:
        module.training = False
    try:
        with torch.no_grad():
            yield
    finally:
        for place, entries in before:
            place.clear()
            place.update(entries)
        for module, training in modes.items():
            module.training = training
        with torch.no_grad():
            for buffer, value in buffers:
                if not torch.equal(buffer, value):
                    buffer.copy_(value)
