"""From samples and an order to batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import starmap
from typing import TypeVar

import torch
from torch import Tensor

from .augment import Augment
from .batch import Batch
from .decoders import decoded
from .progress import progress
from .samples import Samples
from .views import CLEAN

CHECKED = 64
T = TypeVar("T")


def forward_size(samples: Samples, most: int) -> int:
    """Samples to put through a network at once where nothing is learned: at most `most`, fewer if they are large.

    A batch has at most 2^20 pixels (256 images of 64×64, 20 of 224×224), or 8 images of up to 2^23 pixels in all, so
    that activations stay moderate.
    """
    return max(1, min(most, max(2**20 // samples.extent, min(8, 2**23 // samples.extent))))


def batches(
    samples: Samples,
    order: Sequence[Tensor],
    view: int,
    augment: Augment,
    *,
    workers: int = 0,
    device: torch.device | str | None = None,
) -> Iterator[Batch]:
    """One batch for each tensor of positions (int64 [B]) in `order`, in that order.

    Of sets in memory what `order` needs is decoded first; they are fetched inline, on the device where they lie.
    Streams are decoded by `workers` processes that run ahead (0: in this process), which live on inside
    `lasting_decoders`. To start in the middle of an epoch give the rest of its order: a batch depends on nothing but
    its positions, the view and `augment`. Batches end on `device` if one is given. No number is drawn from torch's
    global generator.
    """
    if samples.in_memory and len(order):
        shown = None if view == CLEAN else augment
        samples.load(augment.pool if shown and shown.mixes else torch.cat([*order]), shown)
    made: Iterator[Batch]
    if samples.in_memory or not workers:
        made = (samples.fetch(positions, view, augment) for positions in order)
    else:
        pinned = device is not None and torch.device(device).type == "cuda"
        made = decoded(samples, order, view, augment, workers, pinned)
    if device is None:
        yield from made
    elif samples.device.type == "cpu":
        yield from ahead(made, device)
    else:
        yield from (batch.to(device) for batch in made)


def ahead(batches: Iterator[Batch], device: torch.device | str) -> Iterator[Batch]:
    """Batches of the processor on `device`. To CUDA each is copied while the one before is worked on, out of
    page-locked memory and on a stream of its own."""
    device = torch.device(device)
    if device.type != "cuda":
        return (batch.to(device) for batch in batches)
    copies = _copies(device)

    def sent(batch: Batch) -> tuple[Batch, torch.cuda.Event]:
        with torch.cuda.stream(copies):
            return batch.pin_memory().to(device), copies.record_event()

    def received(batch: Batch, copied: torch.cuda.Event) -> Batch:
        working = torch.cuda.current_stream(device)
        working.wait_event(copied)
        for values in (batch.inputs, batch.labels):
            values.record_stream(working)  # so that no later copy takes their memory before they have been used
        return batch

    return starmap(received, one_ahead(map(sent, batches)))


@cache
def _copies(device: torch.device) -> torch.cuda.Stream:
    """One for all passes: memory is kept for each stream apart."""
    return torch.cuda.Stream(device)


def one_ahead(items: Iterable[T]) -> Iterator[T]:
    """The items, each given when the next one has been taken."""
    items = iter(items)
    for item in items:
        for following in items:
            yield item
            item = following
        yield item


def refuse_damaged(samples: Samples, positions: Tensor, workers: int = 0) -> None:
    """Decode samples (int64 [M]) of a stream and let go of them. Raises UserError naming one that cannot be."""
    with progress("checking images", len(positions)) as advance:
        order = positions.split(forward_size(samples, CHECKED)) if len(positions) else ()
        for batch in batches(samples, order, CLEAN, Augment(), workers=workers):
            advance(len(batch.index))


def bare_batches(
    samples: Samples, order: Sequence[Tensor], view: int, augment: Augment, *, device: torch.device | str | None = None
) -> Iterator[Batch]:
    """`batches` without a look at the images: inputs [B, 0], and labels where a sample has one (else [B, 0]).

    Text comes whole: its tokens cost nothing to fetch, and its labels are among them.
    """
    if len(samples.shape) == 1:
        yield from batches(samples, order, view, augment, device=device)
        return
    for positions in order:
        nothing = torch.empty(len(positions), 0)
        labels = samples.labels_of(positions, view, augment)
        batch = Batch(nothing, nothing.long() if labels is None else labels, positions, view)
        yield batch if device is None else batch.to(device)
