"""What the pixels of a mask say: the class numbers in an image file, and whether 255 is a class."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence

import numpy as np
from PIL import Image

from protege.data.pixels import upright
from protege.errors import UserError

_LOG = logging.getLogger("protege")
VOID = 255
"""The value of a pixel without a label in masks of 8 bit."""


def mask_values(image: Image.Image, where: str) -> np.ndarray:
    """The values of a mask, upright, [H, W]: uint8, or bool of an image that has two only. Raises UserError calling the
    mask `where` for what cannot be one, and what Pillow raises."""
    image = upright(image)
    values = np.asarray(image)
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        if values[..., -1].min() < 255:
            raise UserError(
                f"{where} has transparent pixels where one label value a pixel is expected; save it without "
                "transparency."
            )
        values = values[..., :-1]
    elif image.mode == "RGBX":
        values = values[..., :3]
    if values.ndim == 3:
        if image.mode not in ("LA", "La", "PA", "RGB", "RGBX", "RGBA", "RGBa") or (values != values[..., :1]).any():
            raise UserError(
                f"{where} holds colours ({image.mode}) where one label value a pixel is expected; save its class "
                "numbers as a grey or palette PNG."
            )
        values = values[..., 0]
    if values.dtype in (np.uint8, np.bool_):
        return values
    if (values != np.rint(values)).any():
        raise UserError(f"{where} holds fractions where one label value a pixel is expected; save whole numbers.")
    if values.max() > VOID or values.min() < 0:
        odd = values.max() if values.max() > VOID else values.min()
        raise UserError(f"{where} holds the label {odd:g}; 0 to 255 is expected: number the classes from 0.")
    return values.astype(np.uint8)


def grey_levels(values: Collection[int], classes: int | None) -> tuple[int, ...]:
    """The values of masks that are drawn in grey levels from black to white: 0 and 255, or 0, 128 and 255, and so on,
    as many as there are `classes` if their number is known. Empty for class numbers, among which 255 does not count.
    """
    found = sorted(values)
    if len(found) < 2 or 1 in found or classes not in (None, len(found)):
        return ()
    even = (abs(value - n * VOID / (len(found) - 1)) < 1 for n, value in enumerate(found))
    return tuple(found) if all(even) else ()


def tell_levels(name: str, levels: Sequence[int]) -> None:
    shown = ", ".join(map(str, levels))
    _LOG.info("the masks of %s are drawn in the grey levels %s; each is a class, 255 too.", name, shown)


def refuse_white_object(
    name: str, shown: Sequence[str], training: int, seen: np.ndarray, called: Callable[[int], str], remedy: str
) -> None:
    """Raise UserError where 255, which does not count, may well be an object.

    `shown`: the classes in training masks. `seen`: bool [N, 256], which values each mask has, `training` ones first.
    `called`: the name of a mask. `remedy`: what to do if 255 is meant not to count.
    """
    if len(shown) == 1 and seen[:training, VOID].any():
        raise UserError(
            f"the training masks of {name} show only one class ('{shown[0]}') beside 255, which does not count; at "
            f"least two are expected: number the classes from 0, or {remedy}."
        )
    by_one, by_white = seen[:, 1], seen[:, VOID]
    if not seen[:, 2:VOID].any() and by_one.any() and by_white.any() and not (by_one & by_white).any():
        raise UserError(
            f"some masks of {name} mark what is not 0 by 1, such as {called(int(by_one.argmax()))}, and others by 255, "
            f"such as {called(int(by_white.argmax()))}; one value is expected: make them alike, or {remedy}."
        )
