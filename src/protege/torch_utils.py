"""Small things about networks that torch has no word for."""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from protege.modes import eval_mode

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
def as_it_was(network: nn.Module) -> Iterator[Callable[[], None]]:
    """Gives what brings buffers and plain attributes of all modules back to what they were, and does so at the end;
    torch's random numbers come back, too. Nothing is done with a network whose lazy layers are still to be made."""
    if any(map(is_lazy, [*network.parameters(), *network.buffers()])):
        yield lambda: None
        return
    attributes = [(module, dict(vars(module)), dict(module._buffers)) for module in network.modules()]
    values = [(buffer, buffer.clone()) for buffer in network.buffers()]

    def restore() -> None:
        for module, known, buffers in attributes:
            state = vars(module)
            for key in state.keys() - known.keys():
                del state[key]
            state.update(known)
            module._buffers.clear()
            module._buffers.update(buffers)
        with torch.no_grad():
            for buffer, value in values:
                buffer.copy_(value)

    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            yield restore
        finally:
            restore()


@contextmanager
def untouched(network: nn.Module) -> Iterator[None]:
    """Inside, the network is in eval mode and gives no gradients; afterwards it is as it was, in its modes too."""
    with as_it_was(network), eval_mode(network), torch.no_grad():
        yield
