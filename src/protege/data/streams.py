"""Samples that are decoded when they are fetched, for sets that do not fit in memory."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor

from protege.data.batch import Batch
from protege.data.classes import renumbered
from protege.data.decode import Form, decode
from protege.data.pixels import Deviation
from protege.data.samples import Samples
from protege.data.sources import Streamable
from protege.data.views import Augment, render
from protege.errors import UserError


class Encoded(Samples):
    """Encoded images read by position and decoded with Pillow, in the workers of `batches`.

    Shift and flip give exactly the pixels that the same set in memory gives; random resized crops are cut
    from the full-size original, so they are sharper than crops of decoded small images.
    """

    in_memory = False

    def __init__(self, source: Streamable, labels: Tensor, form: Form) -> None:
        self.source, self.form = source, form
        self.labels: Tensor = labels.to("cpu", torch.int64)
        self.shape = (form.channels, form.height, form.width)
        self._digest: str | None = None

    def __len__(self) -> int:
        return len(self.source)

    def fetch(self, index: Tensor, view: int, augment: Augment) -> Batch:
        index = index.cpu()
        form = self.form
        pixels = np.empty((len(index), form.height, form.width, form.channels), np.uint8)
        for at, position in enumerate(index.tolist()):
            data, name = self.source.read(position)
            try:
                pixels[at], _ = decode(data, name, form, (augment, position, view))
            except Deviation as error:
                raise UserError(
                    f"{error}, unlike the images read before; convert it to the others' form, or remove it."
                ) from error
        rest = Augment(augment.shift, augment.flip and not augment.crop, 0.0, augment.seed)
        inputs = render(torch.from_numpy(pixels), torch.arange(len(index)), index, view, rest)
        return Batch(inputs, self.labels[index], index, view)

    def relabelled(self, place: Tensor) -> Encoded:
        return Encoded(self.source, renumbered(self.labels, place), self.form)

    def fingerprint(self) -> str:
        if self._digest is None:
            text = f"{self.source.fingerprint()} {self.form}"
            self._digest = hashlib.sha256(text.encode() + self.labels.numpy().tobytes()).hexdigest()
        return self._digest
