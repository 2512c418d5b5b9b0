"""Which samples a run learns from, by which it is judged, and how they are augmented."""

from __future__ import annotations

import logging
from dataclasses import replace

import torch
from torch import Tensor

from ..data import Augment, Data, Samples, check_augment, choose, default_workers, hold_out
from ..errors import UserError
from ..methods import METHODS, Method
from ..signals import Views
from ..signals.views import DEFAULT_VIEWS, settled
from ..tasks import Task
from .recipe import Recipe

MONITORED = 2000  # test samples behind the curve of a run that holds nothing out


def choose_samples(
    settings: Recipe, method: Method, task: Task, data: Data, given: Augment | None, device: torch.device
) -> tuple[Views, Views | None, Views | None, Recipe]:
    """What a run learns from; what is held out, by which it is judged; else what its curve shows; and its settings with
    every default filled in that depends on these.

    ``given`` is the augmentation where it was given in Python. Raises `UserError` for settings that do not suit the
    data.
    """
    s = settings
    if not data.labelled and task.labelled:
        _refuse_without_labels(s, method, data)
    labels = None if method.labels == "unread" or not task.labelled else data.train.labels
    positions = choose(
        labels,
        fraction=s.fraction,
        samples=s.samples,
        seed=s.seed,
        count=len(data.train),
        each=method.labels == "needed",
    )
    _warn_of_missing(labels, positions, data)
    share = s.validation
    if share is None:
        share = 0.1 if _judged(s) and data.val is None else 0.0
    held, count = None, len(positions)
    if share:
        positions, kept_out = hold_out(positions, labels, share, s.seed)
        if len(kept_out):
            held = (data.train, kept_out)
        elif s.validation is None and method.defaults.get("select"):  # nobody asked for it
            logging.getLogger("protege").info(
                "%d samples leave none to hold out: each phase keeps its last state rather than its best.", count
            )
            share, s = 0.0, s.model_copy(update={"select": "last", "patience": 0})
        else:
            raise UserError(
                f"validation = {share:g} holds out none of {count} samples, as each class keeps one to learn from; "
                "expected at least one: give more samples, or leave out validation=…, select=… and patience=…."
            )
    elif data.val is not None:
        held = (data.val, torch.arange(len(data.val)))
    monitor = None
    if data.test is not None:
        shown = min(len(data.test), max(MONITORED, len(data.classes)))
        monitor = (data.test, choose(data.test.labels, samples=shown, seed=0, count=len(data.test)))
    asked = s.views or (DEFAULT_VIEWS if s.teacher is not None else "all")
    augment, views = settled(_augment(s, method, task, data, given), asked, positions, s.seed)
    workers = default_workers() if s.workers is None else s.workers
    train = Views(data.train, positions, augment, views, device, workers)

    def views_of(part: tuple[Samples, Tensor] | None) -> Views | None:
        return part and replace(train, samples=part[0], positions=part[1])

    filled = {"validation": share, "views": s.views or views or "all", "augment": str(augment)}
    return train, views_of(held), views_of(monitor), s.model_copy(update=filled)


def _refuse_without_labels(settings: Recipe, method: Method, data: Data) -> None:
    if method.labels == "needed":
        able = " or ".join(repr(name) for name, method in METHODS.items() if method.labels != "needed")
        raise UserError(
            f"method {settings.method!r} needs labels, which the data {settings.data!r} does not have; expected a "
            f"folder for each class: sort the images so, or use method={able}."
        )
    if data.val is None and _judged(settings):
        raise UserError(
            f"select = best and patience need labels, which the data {settings.data!r} does not have; expected select "
            "= last: leave them out, or give labelled images in val/."
        )
    if data.val is None and settings.validation:
        raise UserError(
            f"validation = {settings.validation:g} needs labels, which the data {settings.data!r} does not have; "
            "expected 0: leave it out, or give labelled images in val/."
        )


def _judged(settings: Recipe) -> bool:
    """Whether a phase keeps its best state or stops early, and so must not be judged on the test set."""
    parts = [settings.model_dump(include={"select", "patience"}), *settings.phases.values()]
    return any(part.get("select") == "best" or part.get("patience") for part in parts)


def _augment(settings: Recipe, method: Method, task: Task, data: Data, given: Augment | None) -> Augment:
    augment = data.augment
    if settings.augment is not None:
        augment = given or Augment.parse(settings.augment)
    check_augment(augment, data.train.shape, data.train.labels is None)
    if augment.mixes and task.labelled and method.labels == "needed":
        able = " or ".join(repr(name) for name, method in METHODS.items() if method.labels != "needed")
        raise UserError(
            f"augment = '{augment}' mixes images, which then have no single true class, and method "
            f"{settings.method!r} needs it; expected one that learns from the teacher alone: use method={able}, or "
            "leave that out."
        )
    return augment


def _warn_of_missing(labels: Tensor | None, positions: Tensor, data: Data) -> None:
    """Warn where the choice of samples has left none of some class."""
    if labels is None or labels.dim() != 1:
        return
    whole, chosen = (set(values[values >= 0].unique().tolist()) for values in (labels, labels[positions]))
    if missing := sorted(whole - chosen):
        logging.getLogger("protege").warning(
            "the %d samples show %d of the %d classes; there is none of %r to learn from.",
            len(positions),
            len(chosen),
            len(whole),
            data.classes[missing[0]],
        )
