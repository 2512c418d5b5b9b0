"""A batch: some samples' view, their labels, and where they came from."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Batch:
    """Samples that go through the networks together.

    `inputs`: raw uint8 [B, C, H, W] in channels-last memory, or int64 tokens [B, L].
    `labels`: int64 [B], [B, H, W] or [B, L]; `UNLABELLED` where there is none.
    `index`: int64 [B], the samples' positions, where they were given: on the CPU, where stored signals are looked up.
    `view`: which augmentation the inputs are; `CLEAN` for none.
    `signals`: what teachers said about them, source name → field → tensor whose first axis is B.
    """

    inputs: Tensor
    labels: Tensor
    index: Tensor
    view: int
    signals: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.index)

    def _map(self, change) -> Batch:
        signals = {s: {k: change(v) for k, v in named.items()} for s, named in self.signals.items()}
        return Batch(change(self.inputs), change(self.labels), self.index, self.view, signals)

    def to(self, device: torch.device | str) -> Batch:
        """The batch with inputs, labels and signals on `device`."""
        return self._map(lambda x: x.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory (called by torch's DataLoader)."""
        return self._map(lambda x: x.pin_memory())

    def chunks(self, n: int) -> list[Batch]:
        """The batch in at most `n` parts of equal size, the last one possibly smaller (as `torch.chunk`)."""
        size = -(-len(self) // n)
        return [self._cut(slice(start, start + size)) for start in range(0, len(self), size)]

    def _cut(self, cut: slice) -> Batch:
        part = self._map(lambda x: x[cut])
        part.index = self.index[cut]
        return part
