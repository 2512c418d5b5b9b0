"""Colour profiles (ICC): what the numbers of an image mean. Networks learn, and other programs show, sRGB."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

_SPACES = {b"RGB ": "RGB", b"GRAY": "L", b"CMYK": "CMYK"}
_LEVEL = 1  # that rounding moves colours of a profile which is sRGB by another name

Conversion = Callable[[Image.Image], Image.Image]
"""From the numbers of a file, in any mode of 8 bits a channel, to sRGB: "RGB", or "RGBA" of what has opacity."""


class UnfitError(Exception):
    """A profile is damaged, or of another kind of image."""


def conversion(image: Image.Image) -> Conversion | None:
    """What brings an image to sRGB, by the profile in its file; None where that changes nothing, for a PNG and for an
    image that a program has made. Raises UnfitError for a profile that cannot be used."""
    profile = image.info.get("icc_profile")
    if not profile or image.format in (None, "PNG") or image.mode in ("1", "LAB"):
        return None
    mode = "L" if image.mode[0] in "LIF" else "CMYK" if image.mode == "CMYK" else "RGB"  # I and F: grey in more bits
    space = _SPACES.get(profile[16:20], "")
    if mode != space and (mode, space) != ("L", "RGB"):  # the tones of a grey image may be given so
        raise UnfitError
    return _conversion(profile, space)


@lru_cache(maxsize=64)
def _conversion(profile: bytes, space: str) -> Conversion | None:
    try:
        known = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        transform = ImageCms.buildTransform(known, ImageCms.createProfile("sRGB"), space, "RGB")
    except Exception as error:  # whatever a damaged one raises
        raise UnfitError from error
    if space != "CMYK":
        steps = np.arange(0, 256, 15, dtype=np.uint8)
        colours = np.stack(np.meshgrid(*[steps] * len(space)), -1).reshape(1, -1, len(space))
        probe = Image.fromarray(colours[..., 0] if space == "L" else colours)
        moved = np.abs(np.asarray(transform.apply(probe), np.int16) - colours)
        if moved.max() <= _LEVEL:
            return None

    def convert(image: Image.Image) -> Image.Image:
        alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
        converted = transform.apply(image if image.mode == space else image.convert(space))
        if alpha is not None:
            converted.putalpha(alpha)
        return converted

    return convert
