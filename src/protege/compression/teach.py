"""Teaching the candidate that goes on."""

from __future__ import annotations

import math
from typing import Any

from .. import words
from ..errors import UserError
from ..files import is_run
from ..models import Model
from ..run.run import perform
from .search import Candidate, Search
from .work import Work

UPDATES = 1500  # on the teacher's outputs where there are no labels
EPOCHS = 30  # with labels
BATCH = 64
TEACHING = 0.9  # of the time, all but these seconds, is over when the file is made
ENDING = 10.0


def taught(
    work: Work, search: Search, best: Candidate, labelled: bool, epochs: int | None
) -> tuple[Model, dict[str, Any]]:
    """The candidate taught on by the method that `protege.run.choice` finds for it, or as it is where that made nothing
    better, and the record of it."""
    student, out = search.load(best), work.out / "teach"
    size = min(BATCH, len(work.data.train))
    steps = math.ceil(len(work.data.train) / size)
    if epochs is None:
        epochs = EPOCHS if labelled else max(5, math.ceil(UPDATES / steps))
    left = work.clock.left(TEACHING) - ENDING
    record: dict[str, Any] = {"epochs": epochs, "before": best.metrics, "metrics": best.metrics, "kept": False}
    if epochs < 1 or (left < 1 and not is_run(out)):
        return student, record | {"why": "epochs = 0" if epochs < 1 else "no time was left"}
    networks = {"teacher": work.teacher, "student": student, "data": work.data}
    settings = {"method": "auto", "epochs": epochs, "batch_size": size, "seed": work.seed}
    settings |= {} if math.isinf(left) else {"time": f"{max(1, left):.0f}s"}
    begun = (out / "recipe.toml").exists()
    try:
        result = perform(networks | ({} if begun else settings), out, resume=is_run(out), solved=True)
    except UserError as error:
        work.say(f"it is not taught on: {error}")
        return search.load(best), record | {"why": str(error)}
    for network in (work.teacher, result.student):  # the run may have taken them to an accelerator
        network.cpu()
    after = search.judge(result.student)
    told = {"after": after, **{key: result.result.get(key) for key in ("method", "choice", "seconds")}}
    told["epochs"] = sum(phase["epochs"] for phase in result.result["phases"])
    if not search.judge.better(after, best.metrics):
        before, now = (
            words.metric_value(search.judge.metric, each[search.judge.metric]) for each in (best.metrics, after)
        )
        work.say(f"teaching made nothing better on images held out ({before} → {now}): it stays as it was solved for")
        return search.load(best), record | told | {"why": "teaching made nothing better"}
    return result.student, record | told | {"metrics": after, "kept": True, "folder": "teach"}
