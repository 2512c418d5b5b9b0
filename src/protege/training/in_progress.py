"""A fit phase while it runs, and the random numbers it draws."""

from __future__ import annotations

import math
import random
from collections.abc import Set
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from ..errors import UserError
from ..signals import Signals
from ..torch_utils import mix, trained_by
from .phase import Fit, FitSettings
from .schedule import MovingAverage
from .state import State


@dataclass
class FitInProgress:
    """A fit phase while it runs."""

    phase: Fit
    settings: FitSettings
    student: nn.Module
    wrapped: nn.Module  # what the loop calls: the trainee, as Accelerate prepared it
    trainee: nn.Module
    optimizer: Any
    average: MovingAverage | None
    signals: list[Signals]
    held_signals: list[Signals]  # the same signals of the samples that the phase's own loss is evaluated on
    steps: int  # updates in an epoch
    epochs: int
    clock: float = 0.0  # when this epoch began, its fill included
    began: float = 0.0  # when this epoch's first update began
    rows: int = 0  # samples in this epoch's updates
    _dropouts: dict[nn.RNNBase, float] = field(default_factory=dict)

    @property
    def kept(self) -> nn.Module:
        """What is evaluated and kept: the moving average, where there is one."""
        return self.trainee if self.average is None else self.average.module

    def set_modes(self) -> None:
        """See `set_modes`. What the student's own ``train()`` leaves in eval mode stays so, also where the trainee is
        only made of its parts."""
        held = set(self.student.modules()) - trained_by(self.student)
        self.wrapped.train()
        learning = {p for p in self.trainee.parameters() if p.requires_grad}
        self._dropouts = set_modes(self.trainee, learning, held) | self._dropouts

    def bring_back_modes(self) -> None:
        """Give recurrent layers the dropout that `set_modes` took from them."""
        for module, dropout in self._dropouts.items():
            module.dropout = dropout

    def refuse_unreached(self) -> None:
        """Raise after a backward pass where a parameter got no gradient, for which torch would wait in vain."""
        names = [name for name, p in self.trainee.named_parameters() if p.requires_grad and p.grad is None]
        if names:
            raise UserError(
                f"the loss of phase {self.phase.name!r} does not depend on the parameter {names[0]!r} (one of "
                f"{len(names)}); expected that it does where several processes learn together: freeze what is not used "
                "with requires_grad_(False), or start one process."
            )

    def check_finite(self, value: float, state: State, what: str = "loss") -> float:
        """A loss or metric, which must be finite: where it is not, the user can mend it."""
        if not math.isfinite(value):
            epoch = state.epoch + (state.step > 0)
            raise UserError(
                f"the {what} of phase {self.phase.name!r} is {value} in epoch {epoch}; "
                "expected a finite number: lower lr=…, set clip=1, or check the data."
            )
        return value

    def state_dict(self) -> dict[str, Any]:
        kept = {"trainee": self.trainee.state_dict(), "optimizer": self.optimizer.state_dict()}
        if self.phase.readout:  # so that a run that is never resumed has left a usable student
            kept["student"] = self.phase.readout(self.kept).state_dict()
        return kept | ({"average": self.average.state_dict()} if self.average is not None else {})


def set_modes(
    trainee: nn.Module, learning: Set[nn.Parameter], held: Set[nn.Module] = frozenset()
) -> dict[nn.RNNBase, float]:
    """Leave in train mode what is ``learning``; eval mode in modules whose every parameter is frozen, and in those that
    are ``held`` in it.

    A frozen recurrent layer is in train mode, without dropout, which comes to the same: cuDNN cannot go back through
    one in eval mode. Returns the dropout that such layers had.
    """
    for module in trainee.modules():
        parameters = list(module.parameters())
        if parameters and learning.isdisjoint(parameters):
            module.eval()
        elif module in held:
            module.training = False
    dropouts = {}
    for module in trainee.modules():
        if isinstance(module, nn.RNNBase) and not module.training:
            dropouts[module] = module.dropout
            module.training, module.dropout = True, 0.0
    return dropouts


def random_state() -> dict[str, Any]:
    """Where this process's random numbers stand (torch, NumPy, Python), as plain values and tensors."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    numbers = [kind, np.asarray(keys).tolist(), *rest]
    state = {"torch": torch.get_rng_state(), "numpy": numbers, "python": random.getstate()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def seed_everything(seed: int, phase: int, rank: int) -> None:
    """Random numbers of a phase (dropout and the like) depend on the seed, the phase and the process alone."""
    seed = mix(seed, phase, -1 - rank)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def restore_random(randoms: list[dict[str, Any]], rank: int, device: torch.device) -> None:
    """Continue the random numbers of a checkpoint."""
    if rank < len(randoms):
        torch.set_rng_state(randoms[rank]["torch"].cpu())
        np.random.set_state(tuple(randoms[rank]["numpy"]))
        random.setstate(randoms[rank]["python"])
        if "cuda" in randoms[rank] and device.type == "cuda":
            torch.cuda.set_rng_state(randoms[rank]["cuda"].cpu(), device)


def share_buffers(fit: FitInProgress, world: int) -> None:
    """Give every process the first one's buffers (BatchNorm's statistics), which checkpoints keep."""
    if world > 1:
        for network in [fit.trainee, *([fit.average.module] if fit.average else [])]:
            for buffer in network.buffers():
                torch.distributed.broadcast(buffer, 0)
