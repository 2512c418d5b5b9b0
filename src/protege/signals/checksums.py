"""Checksums of stored rows: a weighted sum of a row's words, which every changed bit changes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache

import numpy as np
import torch
from torch import Tensor

CHUNK = 1 << 14  # rows that are looked at together
_WORDS = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}


def checksums(rows: np.ndarray, fields: Mapping[str, Tensor]) -> np.ndarray:
    """Checksums int32 [N], never 0, of the fields [N, …] of rows of these numbers; swapped rows have others."""
    total = torch.from_numpy(rows) * _weights("", 1)
    for name, value in sorted(fields.items()):
        if value[:1].numel():
            words = _words(value)
            total += torch.mv(words.long(), _weights(name, words.shape[1]))
    return (total >> 32).to(torch.int32).numpy() | 1


def of_view(rows: np.ndarray, fields: Mapping[str, Tensor]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Some of the ``rows`` (sorted) of a whole view's fields and their checksums, until all were named."""
    ends = np.searchsorted(rows, np.arange(CHUNK, rows.max(initial=0) + CHUNK, CHUNK))
    for chunk in np.split(rows, ends):
        if not len(chunk):
            continue
        first, last = int(chunk[0]), int(chunk[-1]) + 1
        if 2 * len(chunk) >= last - first:  # a copy of these rows would cost more than to look at all
            sums = checksums(np.arange(first, last), {name: value[first:last] for name, value in fields.items()})
            yield chunk, sums if len(chunk) == len(sums) else sums[chunk - first]
        else:
            index = torch.from_numpy(chunk)
            yield chunk, checksums(chunk, {name: value[index] for name, value in fields.items()})


def _words(value: Tensor) -> Tensor:
    """Rows as whole numbers [N, …] of the largest kind that fits into their size."""
    flat = value.contiguous().flatten(1) if value.dim() > 1 else value.contiguous()[:, None]
    size = flat[:1].nbytes
    kind = next(kind for width, kind in _WORDS.items() if size % width == 0)
    return flat.view(torch.uint8).view(kind)


@cache
def _weights(name: str, count: int) -> Tensor:
    """Odd numbers, so that no change of a single bit is lost; others for each field."""
    drawn = np.random.Philox([count, *name.encode()]).random_raw(count)
    return torch.from_numpy(drawn.view(np.int64) | 1)
