"""Whether a phase can take its smallest batch, tried before anything is trained.

A normalisation behind global pooling cannot learn from one sample, whose variance it would divide by; which networks
have one, their own forward pass tells.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import count

import torch

from ..data import CLEAN, batches
from ..errors import UserError, told
from ..models.placing import place
from ..signals.cache import widened
from ..torch_utils import as_it_was
from .phase import Fit
from .plan import Plan


def smallest_piece(samples: int, batch_size: int, world: int, accumulate: int) -> int:
    """Samples in the smallest forward pass of an epoch, as the loop cuts it."""
    steps = -(-samples // batch_size)
    found = []
    for part in {samples // steps, -(-samples // steps)}:
        for mine in {part // world, -(-part // world)} - {0}:
            piece = -(-mine // accumulate)
            found.append(mine - piece * (-(-mine // piece) - 1))
    return min(found)


def refuse_lone_samples(
    phase: Fit, plan: Plan, world: int, device: torch.device, autocast: Callable[[], AbstractContextManager]
) -> None:
    """Raise `UserError` where a phase has batches of one sample on which its step fails. Weights, buffers, modes and
    random numbers stay as they are."""
    settings, samples = plan.settings_of(phase), len(plan.corpus.positions)
    batch_size = plan.lengths(settings)[0]
    if smallest_piece(samples, batch_size, world, settings.accumulate) > 1:
        return
    alone = plan.corpus.positions[:1]
    batch = next(batches(plan.corpus.train, [alone], CLEAN, plan.corpus.augment, device=device))
    place(phase.trainee, device)
    with as_it_was(phase.trainee), torch.no_grad(), autocast():
        for source in phase.sources:
            place(source.network, device)
            fields = source.compute(batch.inputs)
            batch.signals[source.name] = {name: widened(value) for name, value in fields.items()}
        learning = {id(p) for n, p in phase.trainee.named_parameters() if p.requires_grad and phase.learns(n)}
        phase.trainee.train()
        for module in phase.trainee.modules():
            own = list(module.parameters())
            if own and not any(id(p) in learning for p in own):
                module.eval()
        try:
            phase.step(phase.trainee, batch)
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
