"""The audition: what a teacher must show before it may teach, and its figures, measured once."""

from __future__ import annotations

import hashlib
import json
import math
from contextlib import suppress
from typing import Any

import torch

from .data import CLEAN, Augment, Samples, batches, choose
from .errors import UserError
from .models import Model
from .runfolder import write_json
from .teacher import cache_root
from .teacher.feed import PROBE
from .teacher.signals import behaviour, fingerprint
from .train.runner import Runner

AUDITION = 1024  # transfer samples that a teacher is tried on


def refuse_chance_level(teacher: Model, spec: str, runner: Runner) -> None:
    """Raise `UserError` when the teacher's accuracy on the transfer set is within three deviations of chance,
    which is the share of the commonest class.

    That is what a wrong normalisation, channel order or class order looks like, and it is silent elsewhere.
    """
    corpus = runner.corpus
    some = choose(None, samples=min(len(corpus.positions), AUDITION), seed=0, count=len(corpus.positions))
    metrics = runner.evaluate(teacher, corpus.train, corpus.positions[some], "teacher on training data")[0]
    if not all(map(math.isfinite, metrics.values())):
        raise UserError(
            f"the teacher {spec!r} gives values that are not finite on the transfer set; expected finite outputs: "
            "check its weights file."
        )
    if "accuracy" not in metrics or runner.task.name != "classification":
        return
    labels = None if corpus.train.labels is None else corpus.train.labels[corpus.positions[some]]
    chance = 1 / corpus.classes if labels is None else float(labels.bincount().max()) / len(labels)
    bound = chance + 3 * (chance * (1 - chance) / len(some)) ** 0.5
    if metrics["accuracy"] <= min(bound, (1 + chance) / 2):  # with very few samples, three deviations say nothing
        raise UserError(
            f"the teacher {spec!r} is at chance level on the transfer set (accuracy {metrics['accuracy']:.3f}, chance "
            f"{chance:.3f}); expected a trained teacher: check that its input normalisation, channel order and order "
            "of classes are those it was trained with."
        )


class Memo:
    """A teacher's test metrics, remembered by the fingerprints of teacher and data, so that a study pays once."""

    def __init__(self, teacher: Model, test: Samples, runner: Runner) -> None:
        how = f"{runner.precision} {runner.device.type}"
        first = next(batches(test, [torch.arange(min(PROBE, len(test)))], CLEAN, Augment(), device=runner.device))
        teacher.eval()
        with torch.no_grad(), runner.autocast():
            shown = behaviour({"logits": teacher(first.inputs)})
        parts = [fingerprint(teacher), shown, test.fingerprint(), how]
        name = hashlib.blake2b(repr(parts).encode(), digest_size=8).hexdigest()
        self.path = cache_root() / "evaluations" / f"{name}.json"

    def read(self) -> dict[str, Any] | None:
        """What was measured before; None where nothing sound is there."""
        try:
            return json.loads(self.path.read_text())
        except (OSError, ValueError):
            return None

    def write(self, known: dict[str, Any]) -> None:
        """Remember."""
        with suppress(OSError):  # without it the next run measures again
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.path, known)
