"""Which epoch's weights a phase keeps, and the losses it is judged by on samples it does not learn from."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import nn

from ..data import Batch
from ..tasks import Task
from .running import Running
from .state import State


def held_out_losses(
    fit: Running,
    network: nn.Module,
    batches: Iterable[Batch],
    count: int,
    autocast: Callable[[], AbstractContextManager[Any]],
    world: int,
) -> dict[str, float]:
    """The phase's own losses, means over ``count`` samples that the processes have divided among themselves."""
    sums: dict[str, Any] = {}
    network.eval()
    with torch.no_grad():
        for batch in batches:
            for feed in fit.judges:
                feed.attach(batch)
            with autocast():
                losses = fit.phase.step(network, batch)
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + value.detach() * (len(batch) / count)
    mine = {name: float(value) for name, value in sums.items()}
    each = gather_object([mine]) if world > 1 else [mine]  # a process may have had no batch
    return {name: sum(one.get(name, 0.0) for one in each) for name in max(each, key=len)}


def remember_best(state: State, fit: Running, task: Task, network: nn.Module, metrics: dict[str, float]) -> None:
    """Keep the best evaluation so far (or the last, where that is what the phase keeps), and its weights."""
    value, before = metrics[fit.phase.select_by or task.metric], state.record
    lower = fit.phase.select_by == "loss"
    better = (before is None or value < before) if lower else task.better(value, before)
    state.record, state.stale = (value, 0) if better else (before, state.stale + 1)
    if better or fit.settings.select == "last":
        weights = copy.deepcopy(network.state_dict()) if fit.settings.select == "best" else None
        state.best = {"epoch": state.epoch, "value": value, "metrics": metrics, "state": weights}
