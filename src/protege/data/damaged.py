"""Leaving out images that cannot be decoded, where somebody allows so many: `skip_bad`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..errors import UserError, printable
from .decode import in_threads
from .pixels import NoHeifError, open_image, readable, smallest
from .progress import progress

Attempt = Callable[[], Any]
"""Decodes something. Raises UserError where it cannot be."""

Key = TypeVar("Key")
_NAMED = 3  # in a refusal
_LOG = logging.getLogger("protege")


def decode_once(data: bytes, name: str) -> None:
    """Decode an encoded image, as small as it can be. Raises UserError where it cannot be."""
    with readable(name):
        smallest(open_image(data)).load()


def sound(
    attempts: Mapping[Key, Iterable[Iterable[Attempt]]],
    total: int,
    allowed: int,
    mapped: Callable[..., Iterable[str | None]] = in_threads,
) -> dict[Key, Tensor]:
    """Positions of what can be decoded, int64, by split; what cannot be is counted and named.

    `attempts`: at each item of a split, some at a time, of `total` in all, which are `mapped`. All are made, so that a
    run leaves out the same whenever it is resumed. Raises UserError where more fail than are `allowed`.
    """
    bad: list[str] = []
    kept = {}
    with progress("checking images", total) as advance:
        for split, chunks in attempts.items():
            fine: list[bool] = []
            for chunk in chunks:
                problems = list(mapped(_problem, chunk))
                fine += [problem is None for problem in problems]
                bad += filter(None, problems)
                advance(len(problems))
            kept[split] = torch.tensor(fine, dtype=torch.bool).nonzero()[:, 0]
            if fine and not any(fine):
                raise UserError(f"none of {len(fine)} files can be used, such as {bad[-1]}; expected some: mend them.")
    if len(bad) > allowed:
        raise UserError(
            f"{len(bad)} of {total} files cannot be used, such as {', '.join(bad[:_NAMED])}; at most "
            f"{allowed} may be left out: mend or remove them, or give skip_bad = {len(bad)}."
        )
    if bad:
        _LOG.warning("%d of %d files left out: %s.", len(bad), total, ", ".join(bad))
    return kept


def _problem(attempt: Attempt) -> str | None:
    try:
        attempt()
    except UserError as error:
        if isinstance(error.__cause__, NoHeifError):  # none of them is damaged
            raise
        return printable(str(error).partition(";")[0])
    return None
