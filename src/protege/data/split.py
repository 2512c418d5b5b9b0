"""Choosing samples: stratified, seeded, nested; and by what each of them holds.

`choose` and `hold_out` rank samples once and cut the ranking. Within a class the order is a hash of (seed,
position); between classes the sample of rank r in a class of n has key (r + ½)/n, which is Webster's method
of apportionment: every prefix of the ranking holds each class in its share (to within a sample), and a
longer prefix contains a shorter one, which quotas by largest remainder would not guarantee.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import UserError
from .views import draws

_CHOOSE, _HOLD_OUT = 0, 1


def _ranks(position: Tensor, labels: Tensor, seed: int, purpose: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rank of each sample in its class, size of its class, and its random number: [N] each."""
    random = draws(seed, position, purpose, 1)[:, 0]
    order = torch.argsort(random, stable=True)
    order = order[torch.argsort(labels[order], stable=True)]
    _, of, counts = labels.unique(return_inverse=True, return_counts=True)
    starts = counts.cumsum(0) - counts
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order)) - starts[of[order]]
    return rank, counts[of], random


def _first(key: Tensor, random: Tensor, n: int) -> Tensor:
    """Positions of the n smallest keys, ties broken at random."""
    order = torch.argsort(random, stable=True)
    return order[torch.argsort(key[order], stable=True)][:n]


def choose(
    labels: Tensor | None,
    *,
    fraction: float | None = None,
    samples: int | None = None,
    seed: int = 0,
    count: int | None = None,
    each: bool = True,
) -> Tensor:
    """Positions of a part of a set, int64, sorted: a `fraction` of it, or a number of `samples`; all if
    neither.

    `labels` is int64 [N]; where there is none a sample, give None and `count` = N. Each class keeps its
    share and at least one sample, so a very small fraction is raised to one a class; where not `each`
    class needs one, fewer `samples` than classes are of different classes. For one seed a smaller part
    lies within every larger one. Raises UserError for a fraction outside (0, 1], for `samples` below the
    number of classes that need one or above N, and for both given.
    """
    if labels is None:
        if count is None:
            raise ValueError("choose() needs labels, or the count of samples.")
        labels = torch.zeros(count, dtype=torch.int64)
    labels = labels.cpu()
    total, classes = len(labels), len(labels.unique())
    if fraction is not None and samples is not None:
        raise UserError(f"fraction {fraction:g} and samples {samples} were both given; give only one of them.")
    if fraction is not None:
        if not 0 < fraction <= 1:
            raise UserError(f"fraction {fraction:g} is not in (0, 1]; give 0.1 for a tenth of the training set.")
        size = max(round(fraction * total), classes)
    elif samples is not None:
        if each and samples < classes:
            raise UserError(
                f"samples {samples} is fewer than the {classes} classes; give at least {classes}, one a class."
            )
        if samples > total:
            raise UserError(f"samples {samples} is more than the {total} available; give at most {total}.")
        size = samples
    else:
        size = total
    rank, of, random = _ranks(torch.arange(total), labels, seed, _CHOOSE)
    key = torch.where(rank == 0, -1.0, (rank + 0.5) / of)
    return _first(key, random, size).sort().values


def hold_out(index: Tensor, labels: Tensor | None, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split the positions `index` (int64 [M]) into (training, held out), each sorted; `share` of them is
    held out.

    `labels` is int64 [N] of the whole set, or None. Stratified; each class keeps at least one training
    sample.
    """
    if not 0 < share < 1:
        raise UserError(f"held-out share {share:g} is not in (0, 1); give 0.1 to hold out a tenth.")
    index = index.cpu()
    classes = torch.zeros(len(index), dtype=torch.int64) if labels is None else labels.cpu()[index]
    rank, of, random = _ranks(index, classes, seed, _HOLD_OUT)
    key = torch.where(rank == of - 1, 2.0, (rank + 0.5) / of)
    size = min(round(share * len(index)), len(index) - len(classes.unique()))
    held = torch.zeros(len(index), dtype=torch.bool)
    held[_first(key, random, size)] = True
    return index[~held].sort().values, index[held].sort().values


def hold_out_by_content(places: Tensor, labels: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Split a set into (training, held out) positions by what each sample holds: held out is what has its place
    (float64 [N], of `protege.data.contents`) below `share`.

    So neither names nor other samples count, and what was trained on is not held out when others come or go; except in
    a class (`labels`, int64 [N]) of two samples or more that all fall on one side, of which the nearest is moved.
    """
    held = places < share
    for members in torch.argsort(labels, stable=True).split(labels.unique(return_counts=True)[1].tolist()):
        if len(members) > 1 and not held[members].any():
            held[members[places[members].argmin()]] = True
        elif held[members].all():
            held[members[places[members].argmax()]] = False
    everything = torch.arange(len(labels))
    return everything[~held], everything[held]
