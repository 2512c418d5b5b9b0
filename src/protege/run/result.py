"""What a run says of itself: of which networks, on what, and what came of it: the parts of ``result.json``."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..data import CLEAN, Augment, Data, batches
from ..models import Model, count_macs, count_parameters
from ..models.storage import bytes_of
from ..tasks import TASKS
from ..tasks.guess import judged
from ..training.loop import Loop
from ..training.state import State
from ..version import __version__
from .prepare import Run
from .recipe import Recipe


def beginning_of(run: Run, teacher: Any, student: dict[str, Any]) -> dict[str, Any]:
    """Networks, data and settings: the part of the result that is known before anything is trained."""
    count, available = len(run.loop.train), len(run.data.train)
    return {
        "method": run.settings.method,
        "task": run.task.name,
        "seed": run.settings.seed,
        "out": str(run.out),
        "classes": list(run.data.classes) if run.task.named_classes else [],
        "data": {
            "name": run.settings.data,
            "train_samples": count,
            "available_samples": available,
            "classes": len(run.data.classes) if run.task.labelled else 0,
            "fraction": count / available,
        },
        "teacher": teacher,
        "student": student,
        "plan": run.outline,
    }


def result_of(
    beginning: Mapping[str, Any], loop: Loop, state: State, metrics: dict[str, float], details: dict[str, Any]
) -> dict[str, Any]:
    """What ``result.json`` holds: `beginning`, and what the finished run came to."""
    plain = TASKS.get(loop.task.name, loop.task)  # that of a run without class weights
    measured = {"metrics": metrics, **details}
    seconds = sum(phase["seconds"] for phase in state.done)
    return {
        "version": 1,
        **beginning,
        "student": {**beginning["student"], **measured, **judged(measured, plain.metric, beginning["classes"])},
        "phases": state.done,
        "seconds": seconds,
        "student_samples_seen": state.seen,
        "teacher_samples_forwarded": state.forwarded,
        "teacher_samples_remembered": state.remembered,
        "timing": {**state.timing, "other": max(0.0, seconds - sum(state.timing.values()))},
        "cache": _caches(state.caches, state.served),
        "environment": environment(loop),
    }


def _caches(used: list[dict[str, Any]], served: int) -> dict[str, Any] | None:
    """The caches of all phases together: how many views they hold, and what they take on disk."""
    latest = {cache["path"]: cache for cache in used}  # as the last phase that used it has left it
    if not latest:
        return None
    room, views = sum(cache["bytes"] for cache in latest.values()), max(cache["views"] for cache in latest.values())
    return {"path": used[-1]["path"], "bytes": room, "views": views, "hits": served}


def sizes(network: Model, data: Data, device: torch.device) -> dict[str, int]:
    """A network's parameters, its multiply-accumulates for one sample of the data, and the bytes of its file."""
    params, macs = count_parameters(network.network), count_macs(network, first_of(data, device))
    return {"params": params, "macs": macs, "bytes": bytes_of(network.network)}


def first_of(data: Data, device: torch.device) -> Tensor:
    """The first raw sample, [1, …]."""
    return next(batches(data.train, [torch.tensor([0])], CLEAN, Augment())).inputs.to(device)


def environment(loop: Loop) -> dict[str, Any]:
    """Where the run took place."""
    device = loop.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "protege": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": f"{device.type} ({name})",
        "threads": torch.get_num_threads(),
        "processes": loop.world,
        "precision": loop.precision,
    }


def for_tracker(settings: Recipe) -> dict[str, Any]:
    """Settings as a tracker takes them: numbers and text."""
    values = settings.model_dump()
    return {key: value if isinstance(value, int | float) else str(value) for key, value in values.items()}
