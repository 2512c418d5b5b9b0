"""How weights move: learning rates as pure functions of progress (nothing to restore), optimisers, averages."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..torch_utils import copy_network
from .phase import FitSettings

KERNELS = ("fused", "foreach", "capturable")  # settings of an optimizer that its device decides


def factor(schedule: str, warmup: float, t: float) -> float:
    """Share of the peak learning rate at progress ``t`` in [0, 1).

    ``onecycle`` (Smith & Topin 2018): cosine from 1/25 up to the peak over 30 %, then cosine down to 1e-4/25.
    """
    if schedule == "onecycle":
        start, end, peak = 1 / 25, 1e-4 / 25, 0.3
        if t < peak:
            return start + (1 - start) * (1 - math.cos(math.pi * t / peak)) / 2
        return end + (1 - end) * (1 + math.cos(math.pi * (t - peak) / (1 - peak))) / 2
    if t < warmup:
        return t / warmup
    if schedule == "constant":
        return 1.0
    return (1 + math.cos(math.pi * (t - warmup) / (1 - warmup))) / 2


def make_optimizer(trainee: nn.Module, settings: FitSettings, batch_size: int) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum or AdamW over the learning parameters; no decay on vectors and scalars.

    See `default_lr` for the rate where none is set.
    """
    learning = [p for p in trainee.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in learning if p.dim() > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in learning if p.dim() <= 1], "weight_decay": 0.0},
    ]
    sgd = settings.optimizer == "sgd"
    lr = settings.lr or default_lr(settings.optimizer, batch_size)
    groups = [{**group, "initial_lr": lr} for group in groups if group["params"]]
    gpu = all(p.device.type == "cuda" for p in learning)
    fused = gpu or None
    if sgd:
        momentum = settings.momentum
        return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=momentum > 0, fused=fused)
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(settings.momentum, 0.999), fused=fused, capturable=gpu)
    optimizer._warned_capturable_if_run_uncaptured = True  # type: ignore[attr-defined]  # as its first updates do
    return optimizer


def load_optimizer(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
    """Take up the state of an optimizer that may have worked on another device."""
    groups = zip(saved["param_groups"], optimizer.param_groups, strict=True)
    merged = [{**group, **{key: here[key] for key in KERNELS if key in here}} for group, here in groups]
    optimizer.load_state_dict({**saved, "param_groups": merged})  # which puts numbers where these kernels want them


def default_lr(optimizer: str, batch_size: int) -> float:
    """0.1 for SGD at 128 samples, falling with the square root of smaller batches; 1e-3 for AdamW."""
    return 0.1 * min(1.0, math.sqrt(batch_size / 128)) if optimizer == "sgd" else 1e-3


def default_batch_size(samples: int) -> int:
    """A tenth of the samples, between 16 and 128."""
    return max(1, min(samples, 128, max(16, samples // 10)))


def default_epochs(steps: int) -> int:
    """About 3,000 updates, but at least 30 and at most 300 epochs."""
    return max(30, min(300, math.ceil(3000 / steps)))


def turned(dial: float | Tensor, value: float) -> float | Tensor:
    """A number that changes from update to update: the value, or the tensor that a recorded update reads it from."""
    return dial.fill_(value) if isinstance(dial, Tensor) else value


class MovingAverage:
    """Exponential moving average of a network's weights and buffers, in ``module``, on their own device.

    The decay starts small, so that the first weights are forgotten: ``min(decay, (1 + n) / (10 + n))`` at update n.
    """

    def __init__(self, trainee: nn.Module, decay: float) -> None:
        self.module, self.decay, self.count = copy_network(trainee), decay, 0
        self.share: float | Tensor = 1.0  # how far an update moves
        self._trainee, self._pairs = trainee, _Pairs(self.module, trainee)

    def update(self) -> None:
        """Move towards the network's present values; whole numbers are copied."""
        self.set()
        self.move()

    def set(self) -> None:
        """Count an update, and say how far it moves."""
        self.share = turned(self.share, 1 - min(self.decay, (1 + self.count) / (10 + self.count)) if self.count else 1)
        self.count += 1

    @torch.no_grad()
    def move(self) -> None:
        """Move as far as was said."""
        if not self._pairs.hold():
            self._pairs = _Pairs(self.module, self._trainee)
        pairs = self._pairs
        if isinstance(self.share, Tensor):  # lerp would ask the device for its value
            torch._foreach_mul_(pairs.averages, 1 - self.share)
            torch._foreach_add_(pairs.averages, torch._foreach_mul(pairs.values, self.share))
        else:
            torch._foreach_lerp_(pairs.averages, pairs.values, self.share)
        if pairs.copies:
            torch._foreach_copy_(pairs.copies, pairs.whole)

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "module": self.module.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state["count"]
        self.module.load_state_dict(state["module"])


class _Pairs:
    """The weights and buffers of an average and of what it follows, each once, however many names it has."""

    def __init__(self, average: nn.Module, trainee: nn.Module) -> None:
        pairs = list(zip(_tensors(average), _tensors(trainee), strict=True))
        floats = [pair for pair in pairs if pair[0].is_floating_point()]
        others = [pair for pair in pairs if not pair[0].is_floating_point()]
        self.averages, self.values = [m for m, _ in floats], [t for _, t in floats]
        self.copies, self.whole = [m for m, _ in others], [t for _, t in others]
        self._places = [
            (named, name, value)
            for network in (average, trainee)
            for module in network.modules()
            for named in (module._parameters, module._buffers)
            for name, value in named.items()
        ]

    def hold(self) -> bool:
        """Whether all are still in their places, where a network may have put others."""
        return all(named.get(name) is value for named, name, value in self._places)


def _tensors(module: nn.Module) -> list[Tensor]:
    """Weights and buffers, each once, however many names it has."""
    return [*module.parameters(), *module.buffers()]
