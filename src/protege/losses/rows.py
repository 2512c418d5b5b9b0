"""Rows of logits: their mean, and the loss of their labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UserError

UNLABELLED = -100  # the label of a row that has none, as torch's losses have it


def average(values: Tensor, weights: Tensor | None = None) -> Tensor:
    """The mean of ``values`` ``[M]``, each counted by its weight ``[M]``; 0 where nothing counts.

    >>> float(average(torch.tensor([1.0, 5.0, 9.0]), torch.tensor([1.0, 1.0, 0.0])))
    3.0
    """
    if weights is None:
        return values.sum() / max(len(values), 1)
    total = weights.sum()
    return (values.where(weights > 0, 0.0) * weights).sum() / total.where(total > 0, 1.0)


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    smoothing: float = 0.0,
    class_weights: Tensor | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """Mean cross-entropy of rows ``[M, K]`` with labels ``[M]``, in single precision; a row without a label does not
    count.

    ``class_weights`` ``[K]`` are those of `torch.nn.CrossEntropyLoss`, with ``smoothing`` too; but the sum is divided
    by the number of rows rather than by their weights, so that a row counts the same in whatever batch it is.

    >>> float(cross_entropy(torch.zeros(2, 4), torch.tensor([1, -100])).exp())
    4.0
    """
    values = F.cross_entropy(
        single(logits), labels, class_weights, ignore_index=UNLABELLED, label_smoothing=smoothing, reduction="none"
    )
    return average(values, labelled(labels, weights))


def labelled(labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """How much rows count where only those with a label ``[M]`` do.

    >>> labelled(torch.tensor([3, -100]))
    tensor([1., 0.])
    """
    known = (labels != UNLABELLED).float()
    return known if weights is None else known * weights


def class_weights(wanted: str | Sequence[float], counts: Tensor) -> Tensor:
    """Weights ``[K]``, float32, of classes of which ``counts`` ``[K]`` rows are to be learned from; over these rows
    their mean is 1.

    "balanced" gives all classes that occur the same sum; else the weights given, one a class. Raises `UserError`
    where their number is another, or no row has a weight.

    >>> class_weights("balanced", torch.tensor([1, 3]))
    tensor([2.0000, 0.6667])
    """
    counts = counts.double()
    if not counts.any():
        raise UserError("class_weights need labels, which the data does not have; expected some: leave them out.")
    if wanted == "balanced":
        raw = torch.where(counts > 0, 1 / counts, 0.0)
    else:
        raw = torch.tensor(list(wanted), dtype=torch.float64, device=counts.device)
        if len(raw) != len(counts):
            raise UserError(
                f"class_weights has {len(raw)} values for {len(counts)} classes; expected one for each class, in their "
                "order: correct the list, or write balanced."
            )
    mean = (raw * counts).sum() / counts.sum()
    if mean == 0:
        raise UserError(
            "class_weights are 0 for every class that there is to learn from; expected some above 0: correct the list."
        )
    return (raw / mean).float()


def single(x: Tensor) -> Tensor:
    """The same numbers in single precision at least."""
    return x if x.dtype == torch.float64 else x.float()


def in_own_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Within it autocast, where the device has it, leaves tensors as precise as they are."""
    known = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if known else nullcontext()


def pieces(x: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Rows, a few at a time: temporaries stay in the processor's cache, and small beside x on an accelerator."""
    size = max(1, (2**18 if x.device.type == "cpu" else 2**24) // max(x.shape[1], 1))
    for start in range(0, len(x), size):
        yield slice(start, start + size), x[start : start + size]
