"""The law of pruning, checked by values: a pruned network is the original whose removed channels are zero.

Which channels depend on each other is told by a graph that knows little of views, permutations, chunks and gates. So
the pruned network is compared with the original in which all that writes the removed channels gives zeros: filters,
biases, scales and shifts. A norm that mixes channels (LayerNorm, GroupNorm) is there computed over the channels that
are left, as it is in the pruned network. Both are run on other content than was traced, in another batch size, and with
other weights too: trained ones may hide a fault behind a branch that counts for nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from ...copying import copy_network
from ...errors import UserError, told
from ...modes import eval_mode
from ...outputs import logits_in
from ...torch_utils import seeded
from ..laws import tensors_in
from ..layers import LAYERS
from .removal import CannotRemove, Site, remove

Removal = Mapping[Site, Sequence[int]]
Run = Callable[[nn.Module], Any]


class Law:
    """Whether channels can be removed from a network without changing more than that they are gone."""

    def __init__(self, network: nn.Module, example: Tensor) -> None:
        self.example, self.other = example, _other(example)
        self.trials = []
        for weights in (_lively(network), network):
            trial = _Trial.of(weights, self.other) or _Trial.of(weights, example)
            if trial is not None:
                self.trials.append(trial)
        if not self.trials:
            raise UserError(
                f"the {type(network).__name__} gives no finite numbers on the example; expected outputs that can be "
                "compared: check its weights and the example."
            )

    def fault(self, removal: Removal) -> str | None:
        """Why the removal is none that the network stands, as the end of a sentence; None where all is well."""
        return next((fault for trial in self.trials if (fault := trial.fault(removal)) is not None), None)


class _Trial:
    """A network and an input, in double precision where it can be run so, and how much its outputs shake."""

    def __init__(self, network: nn.Module, x: Tensor, outputs: list[Tensor]) -> None:
        self.network, self.x = network, x
        shaken = x * (1 + 1e-7 * torch.rand(x.shape, generator=torch.Generator().manual_seed(0)).to(x))
        again = _run(network, shaken if x.is_floating_point() else x)
        # some compute parts in single precision whatever they are given
        self.tolerance = min(max(10 * _apart(again, outputs), 1e-6), 1e-3)

    @classmethod
    def of(cls, network: nn.Module, x: Tensor) -> _Trial | None:
        """None where the network does not give finite numbers, or does not run on such input."""
        precise = copy_network(network).double(), x.double() if x.is_floating_point() else x
        for runner, inputs in (precise, (network, x)):
            try:
                outputs = _run(runner, inputs)
            except Exception:
                continue
            if outputs and all(bool(tensor.isfinite().all()) for tensor in outputs):
                return cls(runner, inputs, outputs)
        return None

    def fault(self, removal: Removal) -> str | None:
        pruned = copy_network(self.network)
        try:
            remove(pruned, removal)
        except CannotRemove as error:
            return str(error)
        except Exception as error:
            return f"its channels cannot be removed ({told(error)})"
        running: list[str] = []
        with _watched(pruned, lambda name, *_: running.append(name), lambda *_: running.pop()):
            try:
                with _inputs_of(pruned, _mixing(pruned, removal)) as shapes:
                    found = _run(pruned, self.x)
            except Exception as error:
                where = repr(running[-1]) if running and running[-1] else "the network's forward"
                return f"{where} counts on all of its channels ({told(error)})"
        with _zeroed(self.network, pruned, removal, shapes) as masked:
            expected = _run(masked, self.x)
            if [tensor.shape for tensor in found] != [tensor.shape for tensor in expected]:
                return "the outputs get another shape"
            if _apart(found, expected) <= self.tolerance:
                return None
            return _first_apart(pruned, masked, self.x, self.tolerance)


def _run(network: nn.Module, x: Tensor) -> list[Tensor]:
    """The tensors of numbers in the outputs."""
    with eval_mode(network), torch.no_grad(), seeded():  # as some networks draw numbers in eval mode, too
        outputs = network(x.clone())
    tensors = tensors_in(outputs) or tensors_in(logits_in(outputs))
    return [tensor for tensor in tensors if tensor.is_floating_point()]


def _apart(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest difference, as a share of the largest value of its tensor."""
    gaps = [0.0]
    for one, other in zip(found, expected, strict=True):
        if other.numel():
            gap = float((one - other).abs().max() / other.abs().max().clamp_min(1e-30))
            gaps.append(math.inf if math.isnan(gap) else gap)
    return max(gaps)


def _other(example: Tensor) -> Tensor:
    """One sample more than the example, of values like its own."""
    draws = torch.Generator().manual_seed(0)
    flat = example.detach().flatten()
    shape = (len(example) + 1, *example.shape[1:])
    drawn = flat[torch.randint(len(flat), (math.prod(shape),), generator=draws).to(flat.device)].reshape(shape)
    if not example.is_floating_point():
        return drawn
    noise = torch.randn(shape, generator=draws).to(drawn)
    spread = float(flat.double().std()) if len(flat) > 1 else 0.0
    return drawn + noise * (0.1 * spread if spread > 0 else 1.0)


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
    found: dict[str, list[int]] = {}
    for site, gone in removal.items():
        name = site.name.rpartition(".")[0] if site.side == "parameter" else site.name
        module = network.get_submodule(name)
        plain = site.side in ("both", "parameter") and not isinstance(module, (*LAYERS, nn.PReLU))
        if plain and name and not list(module.children()):
            affine = isinstance(module, _NormBase) and module.affine
            if not affine:
                found[name] = sorted(gone)
    return found


@contextmanager
def _inputs_of(network: nn.Module, names: Mapping[str, Any]) -> Iterator[dict[str, torch.Size]]:
    """The shapes of what the modules get, filled in while the network runs."""
    shapes: dict[str, torch.Size] = {}

    def note(name: str, args: tuple) -> None:
        if args and isinstance(args[0], Tensor):
            shapes[name] = args[0].shape

    hooks = [
        network.get_submodule(name).register_forward_pre_hook(lambda _m, args, name=name: note(name, args))
        for name in names
    ]
    try:
        yield shapes
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _zeroed(
    network: nn.Module, pruned: nn.Module, removal: Removal, shapes: Mapping[str, torch.Size]
) -> Iterator[nn.Module]:
    """The network with zeros for the channels that go, whatever writes them."""
    if any(site.side == "parameter" for site in removal):
        network = copy_network(network)
    mixing = _mixing(network, removal)
    hooks = []
    for site, gone in removal.items():
        if site.side == "in":
            continue
        index = torch.tensor(sorted(gone))
        if site.side == "parameter":
            with torch.no_grad():
                network.get_parameter(site.name).index_fill_(site.dim, index, 0)
            continue
        module: Any = network.get_submodule(site.name)
        if site.name in mixing:
            continue
        last = isinstance(module, nn.Linear | nn.Embedding)
        spatial = len(module.kernel_size) if hasattr(module, "kernel_size") else None

        def zero(_m: Any, _i: Any, y: Tensor, index: Tensor = index, last: bool = last, n: int | None = spatial) -> Any:
            dim = -1 if last else 1 if n is None else -1 - n
            return y.index_fill(dim, index.to(y.device), 0)

        hooks.append(module.register_forward_hook(zero))
    for name, gone in mixing.items():
        if name not in shapes:
            continue

        def over_the_rest(
            _m: Any, args: tuple, y: Any, gone: Sequence[int] = gone, shape: torch.Size = shapes[name], name: str = name
        ) -> Any:
            x = args[0]
            dims = [dim for dim in range(x.dim()) if x.shape[dim] != shape[dim]] if x.dim() == len(shape) else []
            if len(dims) != 1 or x.shape[dims[0]] - len(gone) != shape[dims[0]]:
                return y
            left = torch.tensor(sorted(set(range(x.shape[dims[0]])) - set(gone)), device=x.device)
            part = pruned.get_submodule(name)(x.index_select(dims[0], left))
            return y.new_zeros(y.shape).index_copy(dims[0], left, part) if part.dim() == y.dim() else y

        hooks.append(network.get_submodule(name).register_forward_hook(over_the_rest))
    try:
        yield network
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _watched(network: nn.Module, before: Callable[..., Any], after: Callable[..., Any]) -> Iterator[None]:
    """Call ``before(name, inputs)`` and ``after(name, inputs, outputs)`` for every module that runs."""
    hooks = []
    for name, module in network.named_modules():
        hooks.append(module.register_forward_pre_hook(lambda _m, x, name=name: (before(name, x), None)[1]))
        hooks.append(module.register_forward_hook(lambda _m, x, y, name=name: (after(name, x, y), None)[1]))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _first_apart(pruned: nn.Module, masked: nn.Module, x: Tensor, tolerance: float) -> str:
    """Which layer is the first to compute something else."""
    values: list[dict[str, Tensor]] = [{}, {}]
    for network, seen in zip((pruned, masked), values, strict=True):
        layers = {name for name, module in network.named_modules() if isinstance(module, LAYERS)}

        def note(name: str, _x: Any, y: Any, seen: dict[str, Tensor] = seen, layers: set[str] = layers) -> None:
            if name in layers and isinstance(y, Tensor):
                seen.setdefault(name, y.detach())

        with _watched(network, lambda *_: None, note):
            _run(network, x)
    for name, one in values[0].items():
        other = values[1].get(name)
        if other is not None and _apart([_norm(one)], [_norm(other)]) > tolerance:
            return f"without them {name!r} computes something else than with zeros in their place"
    return "without them the network computes something else than with zeros in their place"


def _norm(value: Tensor) -> Tensor:
    """A number that channels of zeros do not change."""
    return value.double().square().sum().sqrt()
