"""What the benchmarks share: one epoch of the runner, as it logs it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from understudy.data import Augment, Samples
from understudy.models import Model
from understudy.tasks import TASKS
from understudy.train import FitSettings, Phase, Runner
from understudy.train.precision import place, resolve_precision
from understudy.train.progress import Display
from understudy.train.state import Corpus, Memory


def run_epoch(
    phases: Sequence[Phase],
    student: Model,
    samples: Samples,
    settings: FitSettings,
    *,
    views: int = 0,
    cache: Path | None = None,
) -> dict[str, Any]:
    """The log of one epoch over all samples, without evaluation: ``images_per_second`` and ``train`` losses."""
    accelerator = Accelerator(mixed_precision="no")
    place(student, accelerator.device)
    corpus = Corpus(
        samples, torch.arange(len(samples)), None, None, Augment(shift=4, flip=True), views=views, classes=100
    )
    with tempfile.TemporaryDirectory() as folder:
        runner = Runner(
            student,
            TASKS["classification"],
            corpus,
            settings,
            {},
            Memory(1 << 34 if cache else 0, cache),
            Path(folder),
            accelerator=accelerator,
            precision=resolve_precision("auto", accelerator.device),
            seed=0,
            checkpoint_seconds=1e9,
            display=Display(False),
        )
        runner.run(phases, False, {})
        lines = (Path(folder) / "metrics.jsonl").read_text().splitlines()
    return next(event for event in map(json.loads, lines) if event["event"] == "epoch")
