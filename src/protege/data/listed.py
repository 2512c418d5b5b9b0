"""The encoded images of a listing as samples: decoded into memory where that fits, and as streams otherwise."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from os import cpu_count
from pathlib import Path

from protege.data.decode import Form, Survey, extent, survey
from protege.data.decoded import decoded
from protege.data.folders import Listing
from protege.data.pixels import Deviation
from protege.data.progress import progress
from protege.data.ranges import Extent, Ranges, settle
from protege.data.samples import Samples
from protege.data.streams import Encoded

_LOG = logging.getLogger("protege")


def listed_samples(
    name: str, listing: Listing, image_size: int | None, memory_limit: int, scratch: Path, ranges: Ranges = ()
) -> tuple[dict[str, Samples], Ranges]:
    """The samples of each split, and the ranges of those of more than 8 bits: `ranges`, and what these leave open."""
    sources = {split: source for split, (source, _) in listing.splits.items()}
    total = sum(map(len, sources.values()))
    known = survey(item for source in sources.values() for item in source.sample())

    def in_memory(form: Form) -> dict[str, Samples]:
        found = {split: decoded(split, *pair, form, scratch) for split, pair in listing.splits.items()}
        names = [known.transparent, *(transparent for _, transparent in found.values())]
        tell_transparent(next(filter(None, names), None))
        return {split: samples for split, (samples, _) in found.items()}

    if not known.deep and total * known.form(image_size).size <= memory_limit:
        with suppress(Deviation):  # some image is unlike those surveyed: survey all
            return in_memory(known.form(image_size, ranges)), ranges
    if known.deep or not known.settled:
        known = _survey_all(listing, known, total)
    if known.deep:
        ranges = settle(name, _extents(listing, total), ranges)
    form = known.form(image_size, ranges)
    if total * form.size <= memory_limit:
        return in_memory(form), ranges
    tell_transparent(known.transparent)
    streams: dict[str, Samples] = {
        split: Encoded(source.streamable(scratch), labels, form) for split, (source, labels) in listing.splits.items()
    }
    return streams, ranges


def _survey_all(listing: Listing, known: Survey, total: int) -> Survey:
    with progress("surveying images", total) as advance:
        for source, _ in listing.splits.values():
            for chunk in source.chunks():
                known = survey(chunk, known)
                advance(len(chunk))
    return known


def _extents(listing: Listing, total: int) -> dict[str, list[tuple[str, Extent]]]:
    """Kind and extent of each image of more than 8 bits: of all, so that no order or sample decides."""
    found: dict[str, list[tuple[str, Extent]]] = {}
    with progress("measuring images", total) as advance, ThreadPoolExecutor(cpu_count()) as pool:
        for split, (source, _) in listing.splits.items():
            found[split] = []
            for chunk in source.chunks():
                found[split] += filter(None, pool.map(lambda item: extent(*item), chunk))
                advance(len(chunk))
    return found


def tell_transparent(name: str | None) -> None:
    """Say once what becomes of transparent pixels, of which image `name` has some."""
    if name is not None:
        _LOG.info("%s has transparent pixels; there and in all others they are shown on white.", name)
