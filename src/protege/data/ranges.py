"""Which values are black and white in images of more than 8 bits a channel.

Files do not say: 12 bits lie in 16, floats go from 0 to 1 or to 255, signed numbers have no black. So it is decided
once for a set, from all training images together, kept with the model that learned from them, and used for whatever
that model is shown later: no image is stretched by itself.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

_LOG = logging.getLogger("protege")

Ranges = tuple[tuple[str, float, float], ...]
"""(kind, black, white) for each kind of pixels there is: "integer" and "float"."""

ROUNDING = 0.25 / 255
"""How far beyond 0 and 1 floats may lie: a quarter of a grey level."""

_FULL = (255, 1023, 4095, 16383, 65535)  # 8, 10, 12, 14 and 16 bits


@dataclass(frozen=True)
class Extent:
    """The least and greatest of some pixels, and whether all are whole numbers."""

    low: float
    high: float
    whole: bool

    @classmethod
    def of(cls, pixels: np.ndarray) -> Extent:
        whole = pixels.dtype.kind in "iu" or bool((pixels == np.rint(pixels)).all())
        return cls(float(pixels.min()), float(pixels.max()), whole)

    @classmethod
    def union(cls, parts: Iterable[Extent]) -> Extent:
        parts = list(parts)
        return cls(min(p.low for p in parts), max(p.high for p in parts), all(p.whole for p in parts))


def range_of(kind: str, extent: Extent) -> tuple[float, float]:
    """Black and white of pixels of this extent.

    Whole numbers from 0 fill 8, 10, 12, 14 or 16 bits, the fewest that hold them. Other floats go from 0 (or, where
    some are negative, from -1) to 1, or from 0 to 255 where they come near it. What fits none of these goes from the
    least to the greatest.
    """
    low, high = extent.low, extent.high
    if kind == "float" and low >= -ROUNDING and high <= 1 + ROUNDING:
        return 0.0, 1.0
    if kind == "float" and low >= -1 - ROUNDING and high <= 1 + ROUNDING:
        return -1.0, 1.0
    if low >= 0 and (extent.whole or 127 < high <= 255):
        for full in _FULL:
            if high <= full:
                return 0.0, float(full)
    return (low, high) if low < high else (low, low + 1)


def quantised(pixels: np.ndarray, black: float, white: float) -> np.ndarray:
    """Pixels in 8 bits, 0 for black and 255 for white; what lies beyond is cut off there. Integers keep their upper
    bits; floats are rounded to the nearest level."""
    if pixels.dtype.kind in "iu" and float(black).is_integer() and float(white).is_integer():
        first, count = int(black), int(white) - int(black) + 1
        levels = (pixels.astype(np.int64).clip(first, int(white)) - first) * 256 // count
    else:
        levels = np.rint((pixels.astype(np.float64) - black) * (255 / (white - black)))
    return levels.clip(0, 255).astype(np.uint8)


def settle(name: str, extents: Mapping[str, Sequence[tuple[str, Extent]]], known: Ranges = ()) -> Ranges:
    """The ranges of a set, told: those a model brings along (`known`), and else those of the training images.

    `extents` has for each split the kind and extent of each image of more than 8 bits.
    """
    ranges = {kind: (black, white) for kind, black, white in known}
    for kind in sorted({kind for images in extents.values() for kind, _ in images}):
        splits = {split: [e for k, e in images if k == kind] for split, images in extents.items()}
        whence = "as the model learned"
        if kind not in ranges:
            whole = Extent.union(splits.get("train") or [e for images in splits.values() for e in images])
            ranges[kind] = range_of(kind, whole)
            whence = f"as training images go from {whole.low:g} to {whole.high:g}"
        black, white = ranges[kind]
        _LOG.info(
            "'%s' has images with %s pixels of more than 8 bits; %g is black and %g white, %s.",
            *(name, kind, black, white, whence),
        )
        room = ROUNDING * (white - black)
        for split, images in splits.items():
            if beyond := sum(e.low < black - room or e.high > white + room for e in images):
                _LOG.warning(
                    "%d of %d such images in %s of '%s' go beyond %g to %g and are cut off there.",
                    *(beyond, len(images), split, name, black, white),
                )
    return tuple((kind, *ends) for kind, ends in sorted(ranges.items()))
