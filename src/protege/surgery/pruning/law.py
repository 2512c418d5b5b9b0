"""The law of pruning, checked by values: a pruned network is the original whose removed channels are zero.

Which channels depend on each other is seen call by call in one run (`watch`), which may overlook something. So the
pruned network is compared with the original in which all that writes the removed channels gives zeros: filters,
biases, scales and shifts. A norm that mixes channels (LayerNorm, GroupNorm) is there computed over the channels that
are left, as it is in the pruned network. Both are run on other content than was traced, in another batch size, and with
other weights too: trained ones may hide a fault behind a branch that counts for nothing.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from ...errors import UserError, told
from ...torch_utils import copy_network, eval_mode, seeded
from ..laws import other_samples, outputs_in
from ..layers import LAYERS
from ..tracing import first_outputs
from .removal import CannotRemove, Site, remove, renewed

Removal = Mapping[Site, Sequence[int]]


class Law:
    """Whether channels can be removed from a network without changing more than that they are gone."""

    def __init__(self, network: nn.Module, example: Tensor) -> None:
        # The original's own weights, as trained ones may go where drawn ones never do: behind a clip, say, at a large
        # value that is then an average over channels.
        self.references = list(filter(None, (_reference(weights, example) for weights in (_lively(network), network))))
        if self.references and self.references[0][1].is_floating_point():
            first, x, tolerance = self.references[0]  # a constant of a function is small beside large values
            self.references.append((first, 0.01 * x, tolerance))
        if not self.references:
            raise UserError(
                f"the {type(network).__name__} gives no finite numbers on the example; expected outputs that can be "
                "compared: check its weights and the example."
            )

    def faults(self, removals: Mapping[int, Removal]) -> dict[int, str]:
        """Which of the removals the network does not stand beside the others, with the reasons as ends of sentences: by
        halving, so that few cost little."""
        faults: dict[int, str] = {}

        def sound(reference: tuple[nn.Module, Tensor, float], settled: list[int], new: list[int]) -> list[int]:
            fault = _fault(*reference, _together([removals[n] for n in settled + new])) if new else None
            if fault is None:
                return settled + new
            if len(new) == 1:
                faults[new[0]] = fault
                return settled
            half = len(new) // 2
            return sound(reference, sound(reference, settled, new[:half]), new[half:])

        for reference in self.references:
            sound(reference, [], [number for number in removals if number not in faults])
        return faults


def _together(removals: Sequence[Removal]) -> Removal:
    removal: dict[Site, set[int]] = {}
    for part in removals:
        for site, gone in part.items():
            removal.setdefault(site, set()).update(gone)
    return {site: sorted(gone) for site, gone in removal.items()}


def _reference(network: nn.Module, example: Tensor) -> tuple[nn.Module, Tensor, float] | None:
    """The network and an input, in double precision where it can be run so, and how much its outputs shake; None where
    it gives no finite numbers."""
    for x in (other_samples(example, len(example) + 1), example):
        precise = x.double() if x.is_floating_point() else x
        for candidate, inputs in ((copy_network(network).double(), precise), (network, x)):
            try:
                outputs = _run(candidate, inputs)
            except Exception:
                continue
            if outputs and all(bool(tensor.isfinite().all()) for tensor in outputs):
                noise = torch.rand(inputs.shape, generator=torch.Generator().manual_seed(0)).to(inputs)
                again = _run(candidate, inputs * (1 + 1e-7 * noise) if inputs.is_floating_point() else inputs)
                # some compute parts in single precision whatever they are given
                return candidate, inputs, min(max(10 * _gap(again, outputs), 1e-6), 1e-3)
    return None


def _fault(network: nn.Module, x: Tensor, tolerance: float, removal: Removal) -> str | None:
    """Why this network does not stand the removal."""
    pruned = renewed(network, network.parameters())
    try:
        remove(pruned, removal)
    except CannotRemove as error:
        return str(error)
    except Exception as error:
        return f"its channels cannot be removed ({told(error)})"
    mixing = _mixing(pruned, removal)
    try:
        with first_outputs({name: pruned.get_submodule(name) for name in mixing}) as mixed:
            outputs = _run(pruned, x)
    except Exception as error:
        return f"{_place(error, pruned)} counts on all of its channels ({told(error)})"
    with _zeroed(network, pruned, removal, mixing, mixed) as masked:
        expected = _run(masked, x)
        if [tensor.shape for tensor in outputs] != [tensor.shape for tensor in expected]:
            return "the outputs get another shape"
        return None if _gap(outputs, expected) <= tolerance else _first_apart(pruned, masked, x, tolerance)


def _run(network: nn.Module, x: Tensor) -> list[Tensor]:
    """The tensors of numbers in the outputs."""
    with eval_mode(network), torch.no_grad(), seeded():  # as some networks draw numbers in eval mode, too
        outputs = network(x.clone())
    return [tensor for tensor in outputs_in(outputs) if tensor.is_floating_point()]


def _gap(outputs: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest difference, as a share of the largest value of its tensor."""
    gaps = [0.0]
    for a, b in zip(outputs, expected, strict=True):
        if b.numel():
            gap = float((a - b).abs().max() / b.abs().max().clamp_min(1e-30))
            gaps.append(math.inf if math.isnan(gap) else gap)
    return max(gaps)


def _place(error: Exception, network: nn.Module) -> str:
    """The innermost module in which a pass failed."""
    names = {module: name for name, module in network.named_modules()}
    selves = [frame.f_locals.get("self") for frame, _ in traceback.walk_tb(error.__traceback__)]
    running = [names[module] for module in selves if isinstance(module, nn.Module) and module in names]
    return repr(running[-1]) if running and running[-1] else "the network's forward"


@torch.no_grad()
def _lively(network: nn.Module) -> nn.Module:
    """A copy in which everything counts: no zero, no scale of one in a million, no two filters alike."""
    draws = torch.Generator().manual_seed(0)
    network = copy_network(network)

    def drawn(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=draws).to(like)

    for parameter in network.parameters():
        if not parameter.is_floating_point() or isinstance(parameter, nn.parameter.UninitializedParameter):
            continue
        if parameter.dim() > 1:
            parameter.copy_(drawn(parameter) * (2 * len(parameter) / max(parameter.numel(), 1)) ** 0.5)
        elif parameter.numel() and parameter.abs().max() < 0.1:
            parameter.copy_(0.5 * drawn(parameter))
        else:
            parameter.mul_(1 + 0.2 * drawn(parameter)).add_(0.1 * drawn(parameter))
    for module in network.modules():
        if isinstance(module, _NormBase) and module.running_mean is not None and module.running_var is not None:
            module.running_mean.copy_(0.2 * drawn(module.running_mean))
            module.running_var.copy_(0.5 + drawn(module.running_var).abs())
    return network


def _mixing(network: nn.Module, removal: Removal) -> dict[str, list[int]]:
    """What goes from modules that may mix channels: LayerNorm, GroupNorm, and modules of a user's own that are nothing
    but parameters and a function. The others give zeros for a removed channel without regard to the rest."""
    mixing: dict[str, list[int]] = {}
    for site, gone in removal.items():
        module = network.get_submodule(site.module)
        plain = site.side in ("both", "parameter") and not isinstance(module, (*LAYERS, nn.PReLU))
        affine = isinstance(module, _NormBase) and module.affine
        if plain and site.module and not affine and not list(module.children()):
            mixing[site.module] = sorted(gone)
    return mixing


@contextmanager
def _zeroed(
    network: nn.Module,
    pruned: nn.Module,
    removal: Removal,
    mixing: Mapping[str, Sequence[int]],
    mixed: Mapping[str, Any],
) -> Iterator[nn.Module]:
    """The network with zeros for the channels that go, whatever writes them; `mixed` is what the pruned network's
    modules of `mixing` gave."""
    filled: list[tuple[str, int, Tensor]] = []
    hooked: list[tuple[str, Any]] = []
    for site, gone in removal.items():
        index = torch.tensor(sorted(gone))
        if site.side == "parameter":
            filled.append((site.name, site.dim, index))
        elif site.side == "through":
            hooked.append((site.name, _zeros_along(site.dim, index)))
        elif site.side in ("out", "both") and site.name not in mixing:
            module = network.get_submodule(site.name)
            hooked.append((site.name, _zeros(module, index)))
            if isinstance(module, nn.Linear):  # some attentions take its weights and never call it
                filled += [(f"{site.name}.weight", 0, index), (f"{site.name}.bias", 0, index)]
    own = {id(_tensor(network, name)) for name, _, _ in filled}
    network = renewed(network, [parameter for parameter in network.parameters() if id(parameter) not in own])
    for name, dim, index in filled:
        if (tensor := _tensor(network, name)) is not None:  # a bias
            with torch.no_grad():
                tensor.index_fill_(dim, index.to(tensor.device), 0)
    hooks = [network.get_submodule(name).register_forward_hook(hook) for name, hook in hooked]
    for name, gone in mixing.items():
        if isinstance(mixed.get(name), Tensor):
            hook = _over_the_rest(pruned.get_submodule(name), gone, mixed[name].shape)
            hooks.append(network.get_submodule(name).register_forward_hook(hook, with_kwargs=True))
    try:
        yield network
    finally:
        for handle in hooks:
            handle.remove()


def _tensor(network: nn.Module, name: str) -> Tensor | None:
    """A parameter or buffer, or None in its place."""
    path, _, key = name.rpartition(".")
    return getattr(network.get_submodule(path), key)


def _zeros(module: Any, index: Tensor) -> Any:
    """A hook that fills channels of a module's output with zeros."""
    last = isinstance(module, nn.Linear | nn.Embedding)
    dim = -1 if last else -1 - len(module.kernel_size) if hasattr(module, "kernel_size") else 1
    return _zeros_along(dim, index)


def _zeros_along(dim: int, index: Tensor) -> Any:
    return lambda _module, _inputs, output: output.index_fill(dim, index.to(output.device), 0)


def _over_the_rest(part: nn.Module, gone: Sequence[int], shape: torch.Size) -> Any:
    """A hook that has a module's output computed by its pruned `part`, which gave this `shape`, with zeros between."""

    def hook(_module: nn.Module, inputs: tuple, named: dict[str, Any], output: Any) -> Any:
        x = next((value for value in (*inputs, *named.values()) if isinstance(value, Tensor)), None)
        if x is None or x.dim() != len(shape):
            return output
        dims = [dim for dim in range(x.dim()) if x.shape[dim] != shape[dim]]
        if len(dims) != 1 or x.shape[dims[0]] - len(gone) != shape[dims[0]]:
            return output
        left = torch.tensor(sorted(set(range(x.shape[dims[0]])) - set(gone)), device=x.device)
        return output.new_zeros(output.shape).index_copy(dims[0], left, part(x.index_select(dims[0], left)))

    return hook


def _first_apart(pruned: nn.Module, masked: nn.Module, x: Tensor, tolerance: float) -> str:
    """Which layer is the first to compute something else: by the length of its output, which zeros do not change."""
    lengths: list[dict[str, Tensor]] = []
    for network in (pruned, masked):
        layers = {name: module for name, module in network.named_modules() if isinstance(module, LAYERS)}
        with first_outputs(layers) as outputs:
            _run(network, x)
        lengths.append({name: y.double().norm() for name, y in outputs.items() if isinstance(y, Tensor)})
    for name, length in lengths[0].items():
        if name in lengths[1] and _gap([length], [lengths[1][name]]) > tolerance:
            return f"without them {name!r} computes something else than with zeros in their place"
    return "without them the network computes something else than with zeros in their place"
