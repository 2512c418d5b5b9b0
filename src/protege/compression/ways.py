"""Ways of making a network smaller, each by one number: the share of the whole that is to be left."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace

import torch
from torch import Tensor

from ..data import Data
from ..errors import UserError, told
from ..models import Model
from ..run.shrinking import shrunk_model
from ..surgery import decouple, shrink
from ..surgery.pruning import Path, path_of
from ..surgery.pruning.result import kept_whole
from ..torch_utils import copy_network, eval_mode, logits_in

PATH, HIDDEN, PIXELS, DECOUPLE = "path", "hidden", "pixels", "decouple"
# What they are called, in the order in which they are tried: by the cost of channels, of all and of those within blocks
# alone (what all blocks share, few images do not bring back), on smaller images, and those of `protege.shrink`.
WAYS = {
    PIXELS: "on smaller images",
    PATH: "by cost",
    DECOUPLE: "decoupled",
    HIDDEN: "by cost within blocks",
    "l1": "by l1",
    "slim": "by scales",
}
GRAIN = 28  # in so many steps the side of an image is divided, at most
LEAST = 8  # pixels of a step, where images are that large


class Ways:
    """Makes smaller copies of the ``teacher`` by the names of `WAYS`, to a share of what is ``counted``: its
    multiply-adds ("macs") or its parameters ("params"). ``raw`` are images like its input, ``looked_at`` gives those,
    prepared, on which the cost of channels is measured."""

    def __init__(
        self, teacher: Model, data: Data, raw: Tensor, counted: str, looked_at: Callable[[], Iterable[Tensor]]
    ) -> None:
        self.teacher, self.data, self.raw, self.counted, self.looked_at = teacher, data, raw, counted, looked_at
        self.prepared = teacher.prepared(raw)
        self._paths: dict[str, Path | None] = {}

    def path(self, how: str = PATH) -> Path | None:
        """The path of removals, measured when it is first needed; None for other ways, and where there is none."""
        if how in (PATH, HIDDEN) and not self._paths:
            path = path_of(self.teacher.network, self.prepared, self.looked_at(), saving=(self.counted,))
            self._paths = {PATH: path, HIDDEN: path.only(("heads", "hidden"))}
        return self._paths.get(how)

    def model(self, how: str, share: float) -> tuple[Model, list[str]]:
        """A smaller copy, on the path as near as its channels allow, and what of it stayed whole. Raises `UserError`
        where this way does not go there."""
        network = self.teacher.network
        if how == HIDDEN and not self._shared_is_cut(share):
            raise UserError("what all blocks share stays whole on the path, too.")
        if path := self.path(how):
            shrunk = path.cut(path.first(**{self.counted: share}))
        elif how == PIXELS:
            return self._on_smaller_images(share), []
        elif how == DECOUPLE:
            shrunk = decouple(network, None, macs=share, example=self.prepared)
        else:
            shrunk = shrink(network, self.prepared, how, macs=share)
        model = shrunk_model(self.teacher, shrunk, self.raw, self.data)
        return model, [str(part) for part in shrunk.left_out]

    def _shared_is_cut(self, share: float) -> bool:
        """Whether there is a path within blocks alone, and the one of all removes something else at the share."""
        path = self.path()
        if path is None or self.path(HIDDEN) is None:
            return False
        cut = path.choice(path.first(**{self.counted: share}))
        return any(path.groups[number].part == "stream" for number in cut)

    def at_end(self, how: str, share: float) -> bool:
        """Whether nothing smaller lies behind the share on the path."""
        path = self.path(how)
        return path is not None and path.first(**{self.counted: share}) == len(path.places)

    def _on_smaller_images(self, share: float) -> Model:
        """The network as it is, which gets smaller images: what convolutions cost goes with their pixels."""
        if self.counted == "params":
            raise UserError("smaller images take no parameters away.")
        sides = self.prepared.shape[2:]
        steps = [max(1, min(LEAST, side // GRAIN)) for side in sides]
        height, width = (
            max(step, math.floor(side * share**0.5 / step + 1e-9) * step)
            for side, step in zip(sides, steps, strict=True)
        )
        model = copy_network(self.teacher)
        model.input = replace(model.input, size=(height, width))
        model.kept = model.kept or kept_whole(model.network)  # by which it is known to be a copy
        if not model.classes:
            model.classes, model.named = self.data.classes, self.data.named
        try:
            with torch.no_grad(), eval_mode(self.teacher, model):
                whole, now = (logits_in(network(self.raw)) for network in (self.teacher, model))
        except Exception as error:
            raise UserError(
                f"the network does not take images of {height} × {width} pixels ({told(error)})."
            ) from error
        if whole.dim() != 2 or whole.shape != now.shape:
            raise UserError("the network's outputs lie at places of the image.")
        return model
