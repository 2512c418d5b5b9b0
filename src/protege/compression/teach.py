"""Teaching the candidate that goes on."""

from __future__ import annotations

import math
from typing import Any

from ..files import is_run
from ..models import Model
from ..run.api import distill
from .search import Candidate, Search
from .work import Work

UPDATES = 1500  # on the teacher's outputs where there are no labels
EPOCHS = 30  # with labels


def taught(
    work: Work, search: Search, best: Candidate, labelled: bool, epochs: int | None
) -> tuple[Model, dict[str, Any]]:
    """The candidate taught on, or as it is where that made nothing better, and the record of it."""
    student, out = search.load(best), work.out / "teach"
    settings = _lesson(work, len(work.data.train), labelled, epochs)
    record: dict[str, Any] = {"settings": settings, "before": best.metrics, "metrics": best.metrics, "kept": False}
    if settings["epochs"] < 1:
        return student, record | {"why": "epochs = 0"}
    result = distill(work.teacher, student, work.data, out=out, resume=is_run(out), seed=work.seed, **settings)
    metrics = search.judge(result.student)
    if not search.judge.better(metrics, best.metrics):
        work.say("teaching made nothing better: the network stays as it was solved")
        return search.load(best), record | {"after": metrics, "why": "teaching made nothing better"}
    return result.student, record | {"after": metrics, "metrics": metrics, "kept": True, "folder": "teach"}


def _lesson(work: Work, samples: int, labelled: bool, epochs: int | None) -> dict[str, Any]:
    size = min(64, samples)
    steps = math.ceil(samples / size)
    count = epochs if epochs is not None else EPOCHS if labelled else max(5, math.ceil(UPDATES / steps))
    return {"method": "kd", "weight": 0.9 if labelled else 1.0, "epochs": count, "batch_size": size, "lr": 0.01}
