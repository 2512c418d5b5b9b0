"""Which epoch's weights a phase keeps, and the losses it is judged by on samples it does not learn from."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import nn

from ..data import Batch
from ..tasks import Task
from ..torch_utils import eval_mode
from .in_progress import FitInProgress
from .state import State


def held_out_losses(
    fit: FitInProgress,
    network: nn.Module,
    batches: Iterable[Batch],
    count: int,
    autocast: Callable[[], AbstractContextManager[Any]],
    world: int,
) -> dict[str, float]:
    """The phase's own losses, means over ``count`` samples that the processes have divided among themselves."""
    sums: dict[str, Any] = {}
    with torch.no_grad(), eval_mode(network):
        for batch in batches:
            for signals in fit.held_signals:
                signals.attach(batch)
            with autocast():
                losses = fit.phase.step(network, batch)
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + value.detach() * (len(batch) / count)
    mine = {name: float(value) for name, value in sums.items()}
    shares = gather_object([mine]) if world > 1 else [mine]  # a process may have had no batch
    return {name: sum(share.get(name, 0.0) for share in shares) for name in max(shares, key=len)}


def remember_best(state: State, fit: FitInProgress, task: Task, network: nn.Module, metrics: dict[str, float]) -> None:
    """Keep the best evaluation so far (or the last, where that is what the phase keeps), and its weights."""
    value, before = metrics[fit.phase.select_by or task.metric], state.record
    better = _better(fit, task, value, before)
    state.record, state.stale = (value, 0) if better else (before, state.stale + 1)
    if fit.settings.select == "last":
        state.best = {"epoch": state.epoch, "value": value, "metrics": metrics, "state": None}
    elif better and not (state.best and _beaten_by_start(fit, task, metrics, state.best)):
        _keep(state, fit, task, network, metrics)


def remember_start(state: State, fit: FitInProgress, task: Task, network: nn.Module, metrics: dict[str, float]) -> None:
    """Keep the state that a phase begins with until training beats it; it is no evaluation that patience counts."""
    if metrics and all(map(math.isfinite, metrics.values())):
        _keep(state, fit, task, network, metrics)


def _keep(state: State, fit: FitInProgress, task: Task, network: nn.Module, metrics: dict[str, float]) -> None:
    value, weights = metrics[fit.phase.select_by or task.metric], copy.deepcopy(network.state_dict())
    state.best = {"epoch": state.epoch, "value": value, "metrics": metrics, "state": weights}


def _better(fit: FitInProgress, task: Task, new: float, old: float | None) -> bool:
    return (old is None or new < old) if fit.phase.select_by == "loss" else task.better(new, old)


def _beaten_by_start(fit: FitInProgress, task: Task, metrics: dict[str, float], best: dict[str, Any]) -> bool:
    """Whether the state that the phase began with is better: of equals the one of the smaller loss."""
    value, (loss, first) = (
        metrics[fit.phase.select_by or task.metric],
        (evaluation.get("nll", evaluation.get("loss", 0.0)) for evaluation in (metrics, best["metrics"])),
    )
    return best["epoch"] == 0 and (
        _better(fit, task, best["value"], value) or (value == best["value"] and first < loss)
    )
