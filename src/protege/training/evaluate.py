"""Evaluation: one pass over unaugmented samples, metrics accumulated on the device; and what must be so before it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ..data import CLEAN, Augment, Samples, batches, forward_size
from ..errors import UserError, told
from ..numerics import exact
from ..tasks import Metrics, Task
from ..torch_utils import eval_mode

BATCH = 500
TRIED = 64  # samples on which a network shows what its outputs are


@torch.no_grad()
def evaluate(
    network: nn.Module,
    samples: Samples,
    metrics: Metrics,
    *,
    positions: Tensor | None = None,
    device: torch.device | str = "cpu",
    autocast: Callable[[], AbstractContextManager] = nullcontext,
    workers: int = 0,
    rank: int = 0,
    world: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[dict[str, float], dict[str, Any]]:
    """What ``metrics`` come to (`Metrics.compute`, `Metrics.details`) for a network called on raw inputs.

    The network's train/eval mode is as before afterwards. With several processes each takes its share of the
    batches and all get the same metrics.
    """
    device = torch.device(device)
    positions = torch.arange(len(samples)) if positions is None else positions
    order = [part for part in positions[rank::world].split(forward_size(samples, BATCH)) if len(part)]
    done = 0
    with eval_mode(network):
        for batch in batches(samples, order, CLEAN, Augment(), workers=workers, device=device):
            with autocast():
                metrics.update(network(batch.inputs), batch.labels, batch.inputs)
            done += len(batch) * world
            if progress:
                progress(min(done, len(positions)), len(positions))
    values = metrics.compute()
    return values, metrics.details()


@exact()
@torch.no_grad()
def refuse_unfit(
    network: nn.Module,
    who: str,
    samples: Samples,
    positions: Tensor,
    task: Task,
    *,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager],
) -> None:
    """Raise `UserError` where a network, on some of the samples, fails or gives what the task does not learn from
    (`Task.check`). One that fails under ``autocast`` alone is kept out of it from here on (`Model.autocast`)."""
    count = min(len(positions), forward_size(samples, TRIED))
    chosen = positions[torch.linspace(0, len(positions) - 1, count, dtype=torch.float64).long()]
    batch = next(batches(samples, [chosen], CLEAN, Augment(), device=device))
    with eval_mode(network):
        try:
            outputs = _outputs(network, batch.inputs, autocast)
        except UserError:
            raise
        except Exception as error:
            shape = list(batch.inputs.shape)
            raise UserError(
                f"the {who} fails on an input of shape {shape} ({told(error)}); use a model for such inputs."
            ) from error
    task.check(network, batch.inputs, outputs, batch.labels, who)


def _outputs(network: nn.Module, inputs: Tensor, autocast: Callable[[], AbstractContextManager]) -> Any:
    try:
        with autocast():
            return network(inputs)
    except UserError:
        raise
    except Exception:
        if not torch.is_autocast_enabled(inputs.device.type) and not getattr(network, "autocast", False):
            raise
        network.autocast = False  # type: ignore[assignment]
        try:
            with autocast():
                return network(inputs)
        except Exception:
            network.autocast = True  # type: ignore[assignment]
            raise
