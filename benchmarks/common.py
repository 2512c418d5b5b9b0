"""What the benchmarks share: made-up images, networks, and the loop of runs with its log."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from protege.data import Augment, InMemory, Samples
from protege.methods import METHODS, Setup, Views
from protege.models import InputSpec, Model
from protege.models.placing import place
from protege.models.precision import resolve_precision
from protege.models.zoo import build
from protege.tasks import TASKS
from protege.training import FitSettings, Loop, Phase
from protege.training.progress import Display

AUGMENT = Augment(shift=4, flip=True)


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def images(count: int, side: int = 32) -> InMemory:
    """Random images of CIFAR-100's kind."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, side, side, 3), dtype=torch.uint8, generator=generator)
    return InMemory(pixels, torch.randint(0, 100, (count,), generator=generator)).to(device())


def network(name: str) -> Model:
    """A fresh network of the zoo for 100 classes."""
    torch.manual_seed(0)
    spec = InputSpec(channels=3, size=None, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    return Model(build(name, {"num_classes": 100}), spec)


def setup_of(
    method: str, student: Model, teacher: Model | None, samples: Samples, views: int = 0, **settings: Any
) -> Setup:
    """What the method's plan gets: all samples, on the device."""
    for each in filter(None, (student, teacher)):
        place(each, device())
    transfer = Views(samples, torch.arange(len(samples)), AUGMENT, views, device())
    return Setup(student, teacher, TASKS["classification"], METHODS[method].settings(**settings), transfer)


def run(
    phases: Sequence[Phase],
    student: Model,
    samples: Samples,
    settings: FitSettings,
    *,
    views: int = 0,
    cache: Path | None = None,
    budget: int = 1 << 34,
) -> list[dict[str, Any]]:
    """The log of a run over all samples, without evaluation; signals are remembered where ``cache`` is a folder."""
    accelerator = Accelerator(mixed_precision="no")
    train = Views(samples, torch.arange(len(samples)), AUGMENT, views, device())
    with tempfile.TemporaryDirectory() as folder:
        loop = Loop(
            student,
            TASKS["classification"],
            phases,
            settings,
            train,
            None,
            None,
            Path(folder),
            classes=100,
            cache=cache,
            budget=budget if cache else 0,
            accelerator=accelerator,
            precision=resolve_precision("auto", accelerator.device),
            seed=0,
            checkpoint_seconds=1e9,
            display=Display(False),
        )
        loop.begin({})
        state = loop.run(None)
        lines = (Path(folder) / "metrics.jsonl").read_text().splitlines()
    return [*map(json.loads, lines), {"event": "done", "phases": state.done}]


def run_epoch(phases: Sequence[Phase], student: Model, *rest: Any, **named: Any) -> dict[str, Any]:
    """The first epoch of a run: ``images_per_second`` and ``train`` losses."""
    return next(event for event in run(phases, student, *rest, **named) if event["event"] == "epoch")
