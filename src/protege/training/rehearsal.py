"""Whether a phase's step works, and with its smallest batch, tried before anything is trained.

A normalisation behind global pooling cannot learn from one sample, whose variance it would divide by; which networks
have one, their own forward pass tells.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from itertools import count
from typing import Any

import torch
from torch import Tensor

from ..data import CLEAN
from ..errors import UserError, shown, told
from ..models.placing import place
from ..signals import Views
from ..signals.rows import widened
from ..signals.source import Fields
from ..torch_utils import as_it_was
from .in_progress import set_modes
from .phase import Fit
from .plan import Plan


def smallest_piece(samples: int, batch_size: int, world: int, accumulate: int) -> int:
    """Samples in the smallest forward pass of an epoch, as the loop cuts it."""
    steps = -(-samples // batch_size)
    sizes = []
    for part in {samples // steps, -(-samples // steps)}:
        for mine in {part // world, -(-part // world)} - {0}:
            piece = -(-mine // accumulate)
            sizes.append(mine - piece * (-(-mine // piece) - 1))
    return min(sizes)


def refuse_lone_samples(
    phase: Fit, plan: Plan, train: Views, world: int, autocast: Callable[[], AbstractContextManager]
) -> None:
    """Raise `UserError` where a phase has batches of one sample on which its step fails. Weights, buffers, modes and
    random numbers stay as they are."""
    settings, samples = plan.settings_of(phase), len(train)
    batch_size = plan.lengths(settings)[0]
    if smallest_piece(samples, batch_size, world, settings.accumulate) > 1:
        return
    try:
        with torch.no_grad():
            _step(phase, train, 1, autocast)
    except UserError:
        raise
    except Exception as error:
        enough = (n for n in count(batch_size + 1) if smallest_piece(samples, n, world, settings.accumulate) > 1)
        remedy = (
            f"set batch_size = {next(enough)}" if samples > 2 * world * settings.accumulate else "give more samples"
        )
        raise UserError(
            f"phase {phase.name!r} has batches of one sample (batch_size = {batch_size}), with which its network "
            f"cannot learn ({told(error)}); expected at least two in each: {remedy}."
        ) from error


def refuse_failing_step(phase: Fit, plan: Plan, train: Views, autocast: Callable[[], AbstractContextManager]) -> None:
    """Raise what the step of a phase raises, and `UserError` where it returns no loss to minimise."""
    batch_size = plan.lengths(plan.settings_of(phase))[0]
    _step(phase, train, batch_size, autocast, _go_back)


def _go_back(phase: Fit, losses: Any) -> None:
    """The backward pass of a step's losses, without a trace."""
    scalars = isinstance(losses, Mapping) and all(isinstance(v, Tensor) and not v.dim() for v in losses.values())
    if not scalars or "loss" not in losses or not losses["loss"].requires_grad:
        raise UserError(
            f"the step of phase {phase.name!r} returns {shown(losses)}; expected a dict of scalar tensors in which "
            "'loss' depends on what learns: correct it."
        )
    gradients = [(parameter, parameter.grad) for parameter in phase.trainee.parameters()]
    try:
        for parameter, _ in gradients:
            parameter.grad = None
        losses["loss"].backward()
    finally:
        for parameter, gradient in gradients:
            parameter.grad = gradient


def step_bytes(phase: Fit, train: Views, count: int, autocast: Callable[[], AbstractContextManager]) -> int:
    """The most memory that a step with so many samples, forward and back, takes on a CUDA device beside what is there.

    Samples come again where there are fewer.
    """
    before = torch.cuda.memory_allocated(train.device)
    torch.cuda.reset_peak_memory_stats(train.device)
    _step(phase, train, count, autocast, _go_back)
    return torch.cuda.max_memory_allocated(train.device) - before


def _step(
    phase: Fit,
    train: Views,
    count: int,
    autocast: Callable[[], AbstractContextManager],
    then: Callable[[Fit, Any], None] = lambda phase, losses: None,
) -> None:
    """A step on ``count`` samples from the first on, and what is done ``then`` with what it gives; weights, buffers,
    modes and random numbers stay as they are."""
    batch = next(train.ordered([train.positions[torch.arange(count) % len(train)]], CLEAN))
    place(phase.trainee, train.device)
    with as_it_was(phase.trainee), ExitStack() as forward:
        forward.enter_context(autocast())
        for source in phase.sources:
            place(source.network, train.device)
            with torch.no_grad():
                fields = source.compute(batch.inputs)
            batch.signals[source.name] = Fields({name: widened(value) for name, value in fields.items()})
        phase.trainee.train()
        named = phase.trainee.named_parameters()
        set_modes(phase.trainee, {p for name, p in named if p.requires_grad and phase.learns(name)})
        losses = phase.step(phase.trainee, batch)
        forward.close()
        then(phase, losses)
