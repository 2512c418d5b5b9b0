"""Batches of views that a device makes by itself: in a view of small images launching is most of the work."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..data import Batch
from ..data.rendering import Render
from ..data.views import key_of
from ..models.captured import Captured, Recorder, Tensors
from ..signals import Views


class Drawn:
    """The batches of ``views`` whose samples lie on their device, each made by one launch. ``record`` is that of
    `Captured`."""

    def __init__(self, views: Views, render: Render, record: Recorder | None = None) -> None:
        self.views, self.render = views, render
        self._made = Captured(self._make, views.device, record=record)

    @classmethod
    def of(cls, views: Views) -> Drawn | None:
        """None where the processor has a part in it."""
        if views.samples.device.type != views.device.type:
            return None
        render = views.samples.renderer(views.augment, views.positions)
        return None if render is None else cls(views, render)

    def _make(self, tensors: Tensors) -> Tensors:
        inputs, labels = self.render(tensors["index"], tensors["key"])
        return {"inputs": inputs, "labels": labels}

    def batches(self, order: Sequence[Tensor], view: int) -> Iterator[Batch]:
        """A batch of a view, which is not the clean one, for each tensor of positions."""
        if not order:
            return
        device = self.views.device
        there = torch.cat(list(order)).to(device).split([len(positions) for positions in order])
        key = torch.tensor(key_of(self.views.augment.seed, view), device=device)
        for positions, index in zip(order, there, strict=True):
            made = self._made({"index": index, "key": key})
            # copies, as the next batch is made in the same place
            yield Batch(made["inputs"].clone(), made["labels"].clone(), positions, view)
