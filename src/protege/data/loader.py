"""From samples and an order to batches."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..errors import UserError
from .augment import Augment
from .batch import Batch
from .progress import progress
from .samples import Samples
from .views import CLEAN

CHECKED = 64


class _Fetches(Dataset):
    """What DataLoader workers hold: turns a list of positions into a batch.

    A UserError is handed over as a value, because DataLoader would bury its sentence in a worker's traceback.
    """

    def __init__(self, samples: Samples, view: int, augment: Augment) -> None:
        self.samples, self.view, self.augment = samples, view, augment

    def __getitems__(self, positions: list[int]) -> Batch | UserError:
        try:
            return self.samples.fetch(torch.tensor(positions), self.view, self.augment)
        except UserError as error:
            return error

    def __getitem__(self, position: int) -> Batch | UserError:
        return self.__getitems__([position])


def _unchanged(batch):
    return batch


def forward_size(samples: Samples, most: int) -> int:
    """Samples to put through a network at once where nothing is learned: at most `most`, fewer if they are large.

    A batch has at most 2^20 pixels (256 images of 64×64, 20 of 224×224), or 8 images of up to 2^23 pixels in all, so
    that activations stay moderate.
    """
    return max(1, min(most, max(2**20 // samples.extent, min(8, 2**23 // samples.extent))))


def default_workers() -> int:
    """How many processes decode streamed images for this one: as many as it has threads, at most 8."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # torchrun gives each of its processes one thread
    share = torch.get_num_threads() if local == 1 else (os.cpu_count() or 1) // local
    return max(1, min(8, share))


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
    Streams are decoded by `workers` processes that run ahead (0: in this process). To start in the middle of an epoch
    give the rest of its order: a batch depends on nothing but its positions, the view and `augment`. Batches end on
    `device` if one is given. No number is drawn from torch's global generator.
    """
    if samples.in_memory:
        if len(order):
            samples.load(augment.pool if augment.mixes and view != CLEAN else torch.cat([*order]))
        for positions in order:
            batch = samples.fetch(positions, view, augment)
            yield batch if device is None else batch.to(device)
        return
    loader = DataLoader(
        _Fetches(samples, view, augment),
        batch_sampler=[positions.tolist() for positions in order],  # type: ignore[arg-type]
        collate_fn=_unchanged,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=device is not None and torch.device(device).type == "cuda",
        generator=torch.Generator(),
    )
    for batch in loader:
        if isinstance(batch, UserError):
            raise batch
        yield batch if device is None else batch.to(device)


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
