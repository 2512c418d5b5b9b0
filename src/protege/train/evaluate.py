"""Evaluation: one pass over unaugmented samples, metrics accumulated on the device."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ..data import CLEAN, Augment, Samples, batches, forward_size
from ..modes import eval_mode
from ..tasks import Metrics, Task

BATCH = 500


@torch.no_grad()
def evaluate(
    network: nn.Module,
    samples: Samples,
    task: Task,
    classes: int,
    *,
    positions: Tensor | None = None,
    device: torch.device | str = "cpu",
    autocast: Callable[[], AbstractContextManager] = nullcontext,
    workers: int = 0,
    rank: int = 0,
    world: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[dict[str, float], dict[str, Any]]:
    """Metrics and details (`Metrics.compute`, `Metrics.details`) of a network called on raw inputs.

    The network's train/eval mode is as before afterwards. With several processes each takes its share of the
    batches and all get the same metrics.
    """
    device = torch.device(device)
    positions = torch.arange(len(samples)) if positions is None else positions
    order = [part for part in positions[rank::world].split(forward_size(samples, BATCH)) if len(part)]
    metrics = Metrics(task, classes, device)
    done = 0
    with eval_mode(network):
        for batch in batches(samples, order, CLEAN, Augment(), workers=workers, device=device):
            with autocast():
                outputs = network(batch.inputs)
            metrics.update(outputs, batch.labels)
            done += len(batch) * world
            if progress:
                progress(min(done, len(positions)), len(positions))
    values = metrics.compute()
    return values, metrics.details()
