"""What a viewer shows of an image: upright, on white, in sRGB, in 8 bits a channel.

A file holds more than pixels: a tag that says how the camera was held, which pixels are transparent, what its colours
mean (`profiles`), and sometimes more than 8 bits a channel. Of these nothing tells which value is white, so that is
decided once for a set (`ranges`) and never for one image: a dark photo stays dark.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageFile

from ..errors import UserError, told
from .framing import Box
from .profiles import Conversion, UnfitError, conversion
from .ranges import Extent, Ranges, quantised

_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = [_TURNS[tag] for tag in (5, 6, 7, 8)]
_FROM_RIGHT = [_TURNS[tag] for tag in (2, 3, 7, 8)]  # what is stored at the right comes first
_FROM_BELOW = [_TURNS[tag] for tag in (3, 4, 6, 7)]
_TAGGED = ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif")
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_TAGS = (b"eXIf", b"XML:com.adobe.xmp", b"Raw profile type")
_SIXTEEN_BITS = {f"{mode};16{order}" for mode in ("RGB", "RGBA", "RGBX") for order in "LBN"}
_PROGRAMS = ("EPS", "MPEG")  # decoded by other programs, or not at all
_JPEGS = ("JPEG", "MPO")
_HEIF = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1")
LOSSY = (*_JPEGS, "AVIF", "HEIF")
"""Formats that do not keep values exactly."""
REMARKS = {
    "transparent": "has transparent pixels; there and in all others they are shown on white",
    "animated": "is animated; of it and all others the first frame is taken",
    "pages": "has several pages; of it and all others the first is taken",
    "profile": "has a colour profile that is damaged, or of another kind of image; it and all such are read without",
}
"""What is told once of a set, where an image is the first that shows it."""
GREY = ("1", "L", "LA", "La", "I", "F")


class Deviation(Exception):
    """An image does not have the form that a sample of the set suggested."""


@cache
def formats() -> tuple[str, ...]:
    """The formats that Pillow decodes by itself, the common ones first."""
    Image.preinit()
    Image.init()
    makers = {name: maker for name, (maker, _) in Image.OPEN.items() if name not in _PROGRAMS}
    stub = ImageFile.StubImageFile
    return tuple(name for name, maker in makers.items() if not (isinstance(maker, type) and issubclass(maker, stub)))


class NoHeifError(Exception):
    """An image is HEIC, and what reads that is not installed."""


def open_image(file: bytes | Path) -> Image.Image:
    """An image, its header read; raises what Pillow raises, and NoHeifError."""
    try:
        return Image.open(io.BytesIO(file) if isinstance(file, bytes) else file, formats=formats())
    except Image.UnidentifiedImageError:
        if "HEIF" in formats() or not _is_heif(file):
            raise
    try:
        import pillow_heif  # which not everybody needs
    except Exception as error:
        raise NoHeifError(told(error)) from error
    pillow_heif.register_heif_opener()
    formats.cache_clear()
    return open_image(file)


def _is_heif(file: bytes | Path) -> bool:
    """Whether a file says that it is HEIF, which AVIF may say, too."""
    if isinstance(file, bytes):
        head = file[:12]
    else:
        with file.open("rb") as opened:
            head = opened.read(12)
    return head[4:8] == b"ftyp" and head[8:] in _HEIF


@contextmanager
def readable(what: str) -> Iterator[None]:
    """Turns whatever goes wrong inside into the one sentence for a damaged file or image, which is called `what`."""
    try:
        yield
    except (UserError, Deviation):
        raise
    except NoHeifError as error:
        raise UserError(
            f"{what} is HEIC, and pillow-heif, which reads that, cannot be imported ({error}); install it with: "
            'pip install "protege[heic]", or convert the image to JPEG.'
        ) from error
    except Exception as error:
        why = "not an image Pillow knows" if isinstance(error, Image.UnidentifiedImageError) else ""
        why = why or (error.strerror if isinstance(error, OSError) else None) or told(error)
        raise UserError(
            f"{what} cannot be decoded ({why}); replace or remove it, or let skip_bad = 1 leave it out."
        ) from error


def is_grey(image: Image.Image) -> bool:
    return image.mode in GREY or image.mode.startswith("I;")


def remarks_of(image: Image.Image, pixels: bool = False) -> set[str]:
    """Which of `REMARKS` the header of an image shows; `pixels`: or what may be transparent in it, which is decoded."""
    if pixels and image.has_transparency_data:
        return shown(image, 3, (("integer", 0, 65535), ("float", 0, 1)))[1]
    remarks = set()
    with suppress(Exception):  # a damaged frame that is not read
        if image.format not in ("MPO", "PSD") and getattr(image, "is_animated", False):
            remarks.add("pages" if image.format == "TIFF" else "animated")
    try:
        conversion(image)
    except UnfitError:
        remarks.add("profile")
    return remarks


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What brings a loaded image upright. TIFF is turned by Pillow as it is loaded."""
    if image.format == "TIFF" or not any(key in image.info for key in _TAGGED):
        return None
    try:
        return _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # damaged tags are none
        return None


def upright(image: Image.Image) -> Image.Image:
    """The image as its orientation tag (EXIF, or XMP) says it was taken."""
    image.load()
    turn = _turn(image)
    return image if turn is None else image.transpose(turn)


def upright_size(image: Image.Image, data: bytes | None = None) -> tuple[int, int]:
    """(width, height) of the upright image; ``data`` is the file, if that is at hand."""
    width, height = image.size
    late = image.format == "PNG" and width != height  # only its end tells, unless the tag is nowhere
    if late and (data is None or any(tag in data for tag in _PNG_TAGS)):
        image.load()
    if image.format == "TIFF" and image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8):
        image.load()
        return image.size
    return (height, width) if _turn(image) in _SIDEWAYS else (width, height)


def draft(image: Image.Image, box: Box, size: tuple[int, int]) -> Box:
    """Have a JPEG decoded at 1/2, 1/4 or 1/8 where its part `box` (left, top, right, bottom) is to be resized to `size`
    and has still twice as many pixels each way, so that resampling averages; and the box in what is then decoded.

    To be called before the image is loaded; box and size are those of the upright image.
    """
    left, top, right, bottom = box
    room = min((right - left) / size[0], (bottom - top) / size[1]) / 2
    scale = next((scale for scale in (8, 4, 2) if scale <= room), 1)
    if scale == 1 or image.format not in _JPEGS:
        return box
    width, height = image.size
    image.draft(None, (width // scale, height // scale))
    turn = _turn(image)  # of a mirrored image, what fills up the last pixels comes first
    x = image.width - width / scale if turn in _FROM_RIGHT else 0
    y = image.height - height / scale if turn in _FROM_BELOW else 0
    x, y = (y, x) if turn in _SIDEWAYS else (x, y)
    return left / scale + x, top / scale + y, right / scale + x, bottom / scale + y


def smallest(image: Image.Image) -> Image.Image:
    """The same image, of which a JPEG is decoded as small as it can be: what is left is to see whether it is whole."""
    if image.format in _JPEGS:
        image.draft(None, (1, 1))
    return image


def png_header(data: bytes) -> bytes | None:
    """The header of a PNG, which decides its size and kind; None where more does, and for other images."""
    if not data.startswith(_PNG):
        return None
    square = data[16:20] == data[20:24]
    return data[8:33] if square or not any(tag in data for tag in _PNG_TAGS) else None


def seems_cut(data: bytes) -> bool:
    """Whether the end of a PNG or JPEG is missing, as after a download that was broken off."""
    return (data.startswith(_PNG) and b"IEND" not in data[-12:]) or (
        data[:2] == b"\xff\xd8" and data[-2:] != b"\xff\xd9"
    )


def depth(image: Image.Image) -> str | None:
    """Of pixels with more than 8 bits a channel, "integer" or "float"."""
    if image.mode == "F":
        return "float"
    if image.mode.startswith("I"):
        return "integer"
    return "integer" if _halves(image) or _signed_bytes(image) else None


def _halves(image: Image.Image) -> str:
    """Of colours with 16 bits a channel, of which Pillow gives the upper 8, how they lie in the file; else ""."""
    tiles = getattr(image, "tile", None)
    if image.mode not in ("RGB", "RGBA") or not tiles:
        return ""
    raw = tiles[0][3][0] if isinstance(tiles[0][3], tuple) else tiles[0][3]
    return raw if raw in _SIXTEEN_BITS else ""


def _signed_bytes(image: Image.Image) -> bool:
    return image.format == "TIFF" and image.mode == "L" and _tag(image, 339, 1) == 2


def _tag(image: Image.Image, number: int, default: int) -> int:
    """A number of a TIFF's header."""
    value: Any = getattr(image, "tag_v2", {}).get(number, default)
    return value[0] if isinstance(value, tuple) else value


def values(image: Image.Image) -> np.ndarray:
    """The pixels of an image with `depth` as the file has them, [H, W] or [H, W, channels]; loads it."""
    if raw := _halves(image):
        return _sixteen_bits(image, raw)
    signed = _signed_bytes(image)
    pixels = np.asarray(image)
    if signed:
        return pixels.view(np.int8)
    if image.format == "TIFF" and image.mode == "I" and _tag(image, 258, 32) == 32 and _tag(image, 339, 1) == 1:
        return pixels.view(np.uint32)
    return pixels


def _sixteen_bits(image: Any, raw: str) -> np.ndarray:
    """All 16 bits of a channel: read again as if the bytes lay the other way round, the lower half comes out."""
    here = image.fp.tell()
    image.fp.seek(0)
    other: Any = open_image(image.fp.read())
    image.fp.seek(here)
    native = "L" if sys.byteorder == "little" else "B"
    swapped = raw[:-1] + {"L": "B", "B": "L"}[raw[-1].replace("N", native)]
    other.tile = [
        tile._replace(args=(swapped, *tile.args[1:]) if isinstance(tile.args, tuple) else swapped)
        for tile in other.tile
    ]
    upper, lower = np.asarray(image, np.uint16), np.asarray(other, np.uint16)
    return upper << 8 | lower


def extent(image: Image.Image | bytes, what: str) -> tuple[str, Extent] | None:
    """The `depth` of an image or file, which is called `what`, and the extent of its pixels; None for one of 8 bits."""
    with readable(what):
        image = open_image(image) if isinstance(image, bytes) else image
        kind = depth(image)
        if kind is None:
            return None
        pixels = values(image)
    if kind == "float" and not np.isfinite(pixels).all():
        raise not_finite(what)
    return kind, Extent.of(pixels[..., :3] if pixels.ndim == 3 else pixels)


def not_finite(what: str) -> UserError:
    return UserError(f"{what} has pixels that are not finite; mend or remove this image.")


def shown(image: Image.Image, channels: int, ranges: Ranges = ()) -> tuple[Image.Image, set[str]]:
    """The image in 8 bits a channel, grey (1) or in colour (3), upright, on white and in sRGB; and which of `REMARKS`
    it shows. Raises Deviation where it has a `depth` that `ranges` does not know, else what Pillow raises."""
    image, to_srgb, remarks = prepared(image, channels, ranges)
    return image if to_srgb is None else to_srgb(image), remarks


def prepared(image: Image.Image, channels: int, ranges: Ranges = ()) -> tuple[Image.Image, Conversion | None, set[str]]:
    """As `shown`, but for a conversion that may come after resizing, when there are fewer pixels."""
    kind, mode, remarks = depth(image), "L" if channels == 1 else "RGB", remarks_of(image)
    to_srgb = None if kind is not None or "profile" in remarks else conversion(image)
    image = upright(image) if kind is None else _in_eight_bits(image, kind, ranges)
    if image.mode == mode and "transparency" not in image.info:
        return image, to_srgb and (lambda small: to_srgb(small).convert(mode)), remarks
    if image.mode == "LAB":
        profiles = (ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"))
        image = ImageCms.profileToProfile(image, *profiles, outputMode="RGB") or image
    if image.mode in ("La", "RGBa"):  # multiplied by their opacity, from which Pillow knows one way only
        image = image.convert(image.mode.upper())
    if to_srgb is not None:
        image = to_srgb(image)
    if not image.has_transparency_data:
        return image.convert(mode), None, remarks
    blended = image.convert("RGBA")
    if blended.getchannel("A").getextrema() == (255, 255):
        return image.convert(mode), None, remarks
    white = Image.new("RGBA", blended.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, blended).convert(mode), None, remarks | {"transparent"}


def _in_eight_bits(image: Image.Image, kind: str, ranges: Ranges) -> Image.Image:
    known = {name: (black, white) for name, black, white in ranges}
    if kind not in known:
        raise Deviation(f"has {kind} pixels of more than 8 bits")
    inverted = image.format == "TIFF" and image.mode in ("I;16", "F") and _tag(image, 262, 1) == 0
    raw = values(image)
    pixels = quantised(raw[..., :3] if raw.ndim == 3 else raw, *known[kind])
    pixels = 255 - pixels if inverted else pixels
    alpha = None
    if raw.ndim == 3 and raw.shape[2] == 4:
        alpha = raw[..., 3] >> 8
    elif (key := image.info.get("transparency")) is not None:
        same = raw == np.asarray(key)
        alpha = np.where(same.all(-1) if raw.ndim == 3 else same, 0, 255)
    if alpha is not None:
        pixels = np.dstack([pixels, alpha.astype(np.uint8)])
    ready, turn = Image.fromarray(np.ascontiguousarray(pixels)), _turn(image)
    return ready if turn is None else ready.transpose(turn)
