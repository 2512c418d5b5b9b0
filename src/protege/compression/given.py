"""What `compress` is given, opened and checked: a model, images, and perhaps what a stopped call has left."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..data import Data, choose, hold_out, load_data
from ..errors import UserError
from ..models import Model, framed_for, held_out_by, known_ranges, load_model
from ..models.classes import in_order_of
from ..torch_utils import copy_network
from .work import RECORD

JUDGED, MOST_JUDGED = 0.2, 1000  # of the training images, that judge candidates where there is no val split


def opened_for(model: Any, data: Any, image_size: int | None, skip_bad: int, trust: bool) -> tuple[Model, Data]:
    """A copy of the model, and the data in its order of classes."""
    ranges, way = known_ranges(model), held_out_by(model)
    opened = load_data(data, image_size=image_size, ranges=ranges, held_out=way, skip_bad=skip_bad)
    teacher = copy_network(load_model(model, data=opened, trained=True, trust=trust)).cpu().eval()
    teacher.kept = {}  # of an earlier shrinking: what is left is told of this model
    if teacher.input.kind != "image":
        raise UserError("the model takes tokens; expected a network for images: compress knows only these.")
    opened = framed_for(teacher, in_order_of(teacher, opened))
    if image_size is None:  # photos come at the size that the model takes
        opened = opened.framed(teacher.input.frame, teacher.input.size)
    return teacher, opened


def with_judges(opened: Data) -> Data:
    """The data with a val split: some of the training images where there is none, some of it where it is large. Raises
    `UserError` where there are too few."""
    if opened.val is None:
        labels = opened.train.labels if opened.labelled and opened.train.labels is not None else None
        count = len(opened.train)
        share = min(JUDGED, MOST_JUDGED / count)
        kept, held = hold_out(torch.arange(count), labels, share, 0)
        if not len(held):
            raise UserError(
                f"the data {opened.name!r} has {count} training images, of which none can be held out to judge by; "
                "expected more: add images."
            )
        return replace(opened, train=opened.train.part(kept), val=opened.train.part(held))
    some = choose(
        opened.val.labels, samples=min(MOST_JUDGED, len(opened.val)), seed=0, count=len(opened.val), each=False
    )
    return replace(opened, val=opened.val.part(some))


def counted(least: int = 1, **values: int) -> None:
    """Raise `UserError` for values that are no whole numbers from the least."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise UserError(f"{name} is {value!r}; expected a whole number from {least}: change {name}=….")


def begun(out: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The record of the stopped call. Raises `UserError` where that was called otherwise."""
    record = json.loads((out / RECORD).read_text(encoding="utf-8"))
    now = json.loads(json.dumps(dict(settings)))
    for key, value in now.items():
        if record.get(key) != value and isinstance(value, dict):
            raise UserError(
                f"{str(out)!r} was begun with another {key}; expected the same: give the same arguments, or start anew "
                "with overwrite=True."
            )
        if record.get(key) != value:
            raise UserError(
                f"{str(out)!r} was begun with {key} = {record.get(key)!r}, which is {value!r} now; expected the same: "
                "give the same arguments, or start anew with overwrite=True."
            )
    return record
