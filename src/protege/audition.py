"""The audition: what a teacher must show before it may teach, and its figures, measured once."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from .data import CLEAN, Augment, Samples, batches, cache_root, choose, forward_size
from .errors import UserError
from .labels import blind
from .models import Model
from .modes import eval_mode
from .tasks import Chance
from .teacher.feed import PROBE
from .teacher.signals import behaviour, fingerprint
from .train.runner import Runner
from .writing import write_json

logger = logging.getLogger("protege")
AUDITION = 1024  # transfer samples that a teacher is tried on
FEW = 10  # samples, of which one class is no wonder
SCENES = 64  # in segmentation, where each has thousands of rows
VERSION = 3  # of what is remembered; another one is measured anew


def refuse_chance_level(
    teacher: Model, spec: str, runner: Runner, samples: Samples, positions: Tensor, where: str = "transfer set"
) -> None:
    """Raise `UserError` when the teacher shows no more on these samples than a count of their labels does (`Chance`).

    In segmentation one class often fills most of the pixels, and neighbours are alike: there it is the accuracy
    averaged over classes, whose chance is 1/K for every guess that does not look at the image.

    That is what a wrong normalisation, channel order or class order looks like, and it is silent elsewhere.
    """
    most = SCENES if runner.task.name == "segmentation" else AUDITION
    some = positions[choose(None, samples=min(len(positions), most), seed=0, count=len(positions))]
    metrics, details = runner.evaluate(teacher, samples, some, f"teacher on the {where}")
    if not all(map(math.isfinite, metrics.values())):
        raise UserError(
            f"the teacher {spec!r} gives values that are not finite on the {where}; expected finite outputs: "
            "check its weights file."
        )
    language = runner.task.name == "language"
    causes = "its input normalisation, channel order and order of classes are those it was trained with"
    if runner.task.name == "segmentation" and metrics:
        classes, reached = details["chance"]["classes"], metrics["balanced_accuracy"]
        if classes > 1 and reached <= blind(classes):
            raise _at_chance(spec, where, "mean accuracy of the classes", reached, 1 / classes, causes)
        return
    labels = samples.fetch(some, CLEAN, Augment()).labels if language else samples.labels
    if labels is None or not metrics:
        return
    chance = Chance.of(labels if language else labels[some])
    if chance is None or not chance.explains(metrics["accuracy"], metrics["nll"], metrics.get("balanced_accuracy")):
        return
    if language:
        causes = "it was trained, and on text of this kind"
        raise _at_chance(spec, where, "perplexity", metrics["perplexity"], math.exp(chance.nll), causes)
    raise _at_chance(spec, where, "accuracy", metrics["accuracy"], chance.accuracy, causes)


@torch.no_grad()
def warn_if_constant(teacher: Model, spec: str, runner: Runner) -> None:
    """Warn where a teacher chooses one class for all of its audition: without labels, more cannot be asked of it."""
    corpus, count = runner.corpus, len(runner.corpus.positions)
    if count < FEW:
        return
    some = corpus.positions[choose(None, samples=min(count, AUDITION), seed=0, count=count)]
    chosen = set()
    with eval_mode(teacher), runner.autocast():
        order = list(some.split(forward_size(corpus.train, PROBE)))
        for batch in batches(corpus.train, order, CLEAN, Augment(), workers=corpus.workers, device=runner.device):
            chosen |= set(teacher(batch.inputs).argmax(1).unique().tolist())
            if len(chosen) > 1:
                return
    logger.warning(
        "the teacher %r chooses one class for all of %d images, and a student that does the same agrees with it: check "
        "that its input normalisation and channel order are those it was trained with.",
        spec,
        len(some),
    )


def _at_chance(spec: str, where: str, what: str, reached: float, chance: float, causes: str) -> UserError:
    return UserError(
        f"the teacher {spec!r} is at chance level on the {where} ({what} {reached:.3f}, chance {chance:.3f}); "
        f"expected a trained teacher: check that {causes}."
    )


class Memo:
    """A network's test metrics, remembered by the fingerprints of network and data, so that a study pays once."""

    def __init__(self, network: Model, test: Samples, runner: Runner) -> None:
        how = f"{runner.precision} {runner.device.type}"
        some = torch.arange(min(forward_size(test, PROBE), len(test)))
        first = next(batches(test, [some], CLEAN, Augment(), device=runner.device))
        with eval_mode(network), torch.no_grad(), runner.autocast():
            shown = behaviour({"logits": network(first.inputs)})
        parts = [VERSION, fingerprint(network), shown, test.fingerprint(), how]
        self.path = cache_root() / "evaluations" / f"{_digest(parts)}.json"

    def read(self) -> dict[str, Any] | None:
        """What was measured before; None where nothing sound is there."""
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
            return found["figures"] if found["digest"] == _digest(found["figures"]) else None
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None

    def write(self, known: dict[str, Any]) -> None:
        """Remember."""
        known = json.loads(json.dumps(known))
        with suppress(OSError):  # without it the next run measures again
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.path, {"digest": _digest(known), "figures": known})


def _digest(values: Any) -> str:
    return hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=8).hexdigest()
