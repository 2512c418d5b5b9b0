"""`evaluate`: what a model comes to on data."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..data import Data, default_workers, load_data
from ..data.classes import SORTED, read_classes
from ..data.given import has_splits
from ..data.imagenet import as_synsets
from ..data.spec import GIB
from ..errors import UserError
from ..models import framed_for, held_out_by, known_ranges, load_model
from ..models.classes import in_order_of, with_names
from ..models.placing import place
from ..models.precision import autocast_for, resolve_precision
from ..settings import public
from ..tasks import TASKS, Chance
from ..tasks.guess import judged
from ..training.evaluate import evaluate as run_evaluation
from ..training.evaluate import refuse_unfit
from ..training.processes import make_accelerator
from ..training.progress import Display
from ..words import guess_to_beat
from .checks import refuse_another_task


@public
def evaluate(
    model: str | nn.Module,
    data: Any,
    *,
    split: str | None = None,
    classes: Any = None,
    image_size: int | None = None,
    memory_limit: int = 4 * GIB,
    skip_bad: int = 0,
    precision: str = "auto",
    trust: bool = False,
) -> dict[str, float]:
    """Metrics of a model on a split (``train``, ``val`` or ``test``) of data, without augmentation.

    ``all`` are all samples of data that has no splits, and is the default of a single Dataset; else it is ``test``,
    which of data without such a split is the fifth that a run holds out, or all where that leaves a class without
    samples. The number of classes, their order and names are the model's, where it knows them; ``classes`` (names, or
    a file with one a line) are those of one that does not. ``image_size``, ``memory_limit`` (bytes) and ``skip_bad``
    are those of `protege.data.load_data`, ``trust`` is that of `load_model`. Raises `UserError` for bad input and for
    outputs that are not finite.
    """
    single = data is not None and not isinstance(data, str | Path | Data) and not has_splits(data)
    chosen = split or ("all" if single else "test")
    if chosen not in ("train", "val", "test", "all"):
        raise UserError(f"the split {split!r} is unknown; expected train, val, test or all: change split=….")
    if precision not in ("auto", "bf16", "fp32"):
        raise UserError(f"the precision {precision!r} is unknown; expected auto, bf16 or fp32: change precision=….")
    names, whole = read_classes(classes), chosen == "all"
    loaded = load_data(
        data,
        image_size=image_size,
        memory_limit=memory_limit,
        whole=whole,
        ranges=known_ranges(model),
        held_out=held_out_by(model),
        skip_bad=skip_bad,
    )
    if whole and loaded.test is not loaded.train:
        raise UserError(f"the data {loaded.name!r} has splits; expected train, val or test: change split=….")
    if split is None and loaded.test is None and loaded.labelled:  # too few to hold some out
        loaded = replace(loaded, test=loaded.train)
    network = with_names(load_model(model, data=loaded, trained=True, trust=trust), names)
    guessed = loaded.numbering == SORTED and not network.named
    loaded = framed_for(network, in_order_of(network, loaded))
    guessed = guessed and not as_synsets(loaded.classes)
    samples = loaded.test if whole else getattr(loaded, chosen)
    if samples is None or (not loaded.labelled and (whole or chosen == "train")):
        what = "labels to measure by" if not loaded.labelled else f"{chosen} split"
        raise UserError(f"the data {loaded.name!r} has no {what}; expected some of its own: name other data.")
    device = make_accelerator().device
    place(network, device)
    samples, task = samples.to(device), TASKS[loaded.task]
    autocast = autocast_for(resolve_precision(precision, device), device)
    everything = torch.arange(len(samples))
    refuse_another_task(network, task, "model")
    refuse_unfit(network, "model", samples, everything, task, device=device, autocast=autocast)
    with Display(True) as display:
        display.say(f"{len(samples):,} samples", always=True)
        metrics, details = run_evaluation(
            network,
            samples,
            task.metrics(len(loaded.classes), device),
            device=device,
            autocast=autocast,
            workers=default_workers(),
            progress=display.reporter("evaluate"),
        )
    if not all(map(math.isfinite, metrics.values())):
        raise UserError(
            f"the model gives values that are not finite on the {chosen} split; expected finite outputs: check its "
            "weights."
        )
    seen = judged({"metrics": metrics, **details}, task.metric, loaded.classes, "the model")
    guess = guess_to_beat(task.metric, seen.get("guess", {}), lambda _, value: f"{value:.4f}")
    for line in (guess and f"{task.metric} {guess}", seen.get("remark")):
        if line:
            display.say(line, always=True)
    chance = Chance.of(samples.labels) if guessed and samples.labels is not None else None
    if metrics and chance is not None and chance.explains(metrics["accuracy"], metrics["nll"]):
        logging.getLogger("protege").warning(
            "the model is at chance level with the classes in order of their names, and does not name its outputs: if "
            "they are in another order, give their names as classes=…."
        )
    return metrics
