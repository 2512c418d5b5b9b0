"""Masks: the class of each pixel of an image, in files or in Python, and which classes the values of a set stand for.

A mask is read as its values, int16 [H, W]: 0 to 255 as they are, `NONE` for a pixel that Python says has no label, and
`WHITE` for what is not black in a mask that is black and white. 255 does not count, unless masks are drawn in grey
levels from black to white (0 and 255, or 0, 128 and 255): these are a class each.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from ..errors import UserError
from .classes import numbers
from .framing import centred
from .pixels import LOSSY, open_image, readable, upright
from .views import VOID

NONE, WHITE = -1, 256
_LOG = logging.getLogger("protege")


@dataclass(frozen=True)
class MaskForm:
    """What the values of masks mean. `table`: the class of each of 0 to 255, `VOID` for none. `white`: which of these
    values `WHITE` is."""

    table: bytes = bytes(range(256))
    white: int = 1

    def classes_of(self, values: np.ndarray) -> np.ndarray:
        """The classes, uint8, of values of masks."""
        table = np.array([VOID, *self.table, self.table[self.white]], np.uint8)
        return table[values - NONE]

    def relabelled(self, place: Tensor) -> MaskForm:
        """With class k called `place[k]`."""
        numbered = [*place.tolist(), *[VOID] * (256 - len(place))]
        return replace(self, table=bytes(numbered[k] for k in self.table))


def present(values: np.ndarray) -> np.ndarray:
    """Which of the values from `NONE` to `WHITE` a mask has, bool [258]."""
    return np.bincount(values.ravel() - NONE, minlength=WHITE - NONE + 1) > 0


def read_mask(path: Path) -> np.ndarray:
    """The values of a mask file. Raises UserError for what cannot be one."""
    with readable(f"mask {path}"), open_image(path) as image:
        if image.format in LOSSY:
            raise UserError(
                f"mask {path} is saved as {image.format}, which does not keep values exactly; a PNG of label values is "
                "expected: export the masks again."
            )
        return mask_values(image, f"mask {path}")


def mask_values(image: Image.Image, where: str) -> np.ndarray:
    """The values of a mask, upright. Raises UserError calling the mask `where` for what cannot be one."""
    with readable(where):
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
    if values.dtype == np.bool_:
        return values.astype(np.int16) * WHITE
    if (values != np.rint(values)).any():
        raise UserError(f"{where} holds fractions where one label value a pixel is expected; save whole numbers.")
    if values.max() > VOID or values.min() < 0:
        odd = values.max() if values.max() > VOID else values.min()
        raise UserError(f"{where} holds the label {odd:g}; 0 to 255 is expected: number the classes from 0.")
    return values.astype(np.int16)


def fitted_mask(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """Values of a mask file brought to a size as its image is, each pixel the nearest one's."""
    if values.shape == (height, width):
        return values
    unit = WHITE if values.max() == WHITE else 1  # in a mask that is black and white, there are no others
    image = Image.fromarray((values // unit).astype(np.uint8))
    return np.asarray(centred(image, width, height, Image.Resampling.NEAREST)).astype(np.int16) * unit


@dataclass(frozen=True)
class MaskSet:
    """What the masks of a set hold.

    `seen`: by split, `present` of each mask. `called`: what a mask is called in a sentence. `options`: whether the user
    may name classes and values to ignore as options.
    """

    name: str
    seen: Mapping[str, np.ndarray]
    called: Callable[[str, int], str]
    options: bool = False

    def classes(
        self, names: Sequence[str] | None = None, ignored: Collection[int] = ()
    ) -> tuple[tuple[str, ...], MaskForm]:
        """The classes, and which values they are.

        `names` are those of the values, in order, that are not `ignored`; without any each value in training masks up
        to the greatest is a class named by its number. Raises `UserError` where a value is no class, and where training
        masks do not show what is to be learned.
        """
        train: Any = self.seen["train"].any(0)
        drawn = set(np.flatnonzero(train[1:]).tolist()) - set(ignored)
        values = levels = list(_grey_levels(drawn, None if names is None else len(names)))
        if levels:
            _LOG.info(
                "the masks of %s are drawn in the grey levels %s; each is a class, 255 too.",
                *(self.name, ", ".join(map(str, levels))),
            )
            classes = tuple(names or numbers(len(levels)))
        else:
            counted = [value for value in range(VOID) if value not in ignored]
            shown = [value for value in counted if train[value + 1] or (value == 1 and train[WHITE + 1])]
            classes = tuple(names or (str(value) for value in counted if value <= max(shown, default=-1)))
            values = counted[: len(classes)]
        number = {value: n for n, value in enumerate(values)}
        form = MaskForm(bytes(number.get(value, VOID) for value in range(256)), VOID if levels else 1)
        plain = replace(self, seen={split: _plain(masks, form.white) for split, masks in self.seen.items()})
        plain._refuse_strangers(classes, values, ignored, bool(levels))
        shown = [value for value in values if plain.seen["train"][:, value].any()]
        if not levels and VOID not in ignored:
            plain._refuse_white_object([classes[number[value]] for value in shown])
        absent = [value for value in values if value not in shown]
        if absent and self.options and names is None:
            at = int(plain.seen["train"][:, values[-1]].argmax())
            raise UserError(
                f"{self.called('train', at)} holds the label {values[-1]}, but no training mask has {absent[0]}; "
                "labels without gaps are expected (255 never counts): number the masks so, name all classes with "
                f"?classes=…, or add ?ignore={values[-1]}."
            )
        for value in absent:
            n = number[value]
            _LOG.warning("no training mask of %s shows class %d ('%s').", self.name, n, classes[n])
        return classes, form

    def _refuse_strangers(
        self, classes: Sequence[str], values: Sequence[int], ignored: Collection[int], levels: bool
    ) -> None:
        """Raise UserError where there are too few classes or too many, or a value is neither a class nor ignored."""
        count = len(classes)
        if count < 2 or len(values) < count:
            raise UserError(
                f"{self.name} has {count} class{'es' * (count != 1)} ({', '.join(classes[:3])}); 2 to 255 are "
                "expected, beside what is ignored: check the masks and the class names."
            )
        for split, masks in self.seen.items():
            wrong = masks & ~np.isin(np.arange(256), [*values, *ignored, VOID])
            if wrong.any():
                at, value = np.argwhere(wrong)[0].tolist()
                expected = ", ".join(map(str, values)) if levels else f"{values[0]} to {values[-1]}"
                remedy = f"or give {VOID} for none"
                if self.options:
                    remedy = f"name all classes with ?classes=…, or add ?ignore={value}"
                raise UserError(
                    f"{self.called(split, at)} holds the label {value}; {expected} is expected, as there are {count} "
                    f"classes: correct it, {remedy}."
                )

    def _refuse_white_object(self, shown: Sequence[str]) -> None:
        """Raise UserError where 255, which does not count, may well be an object; `shown`: the classes in training."""
        remedy = "add ?ignore=255 if this is meant" if self.options else "give -100 instead of 255 if this is meant"
        if len(shown) == 1 and self.seen["train"][:, VOID].any():
            raise UserError(
                f"the training masks of {self.name} show only one class ('{shown[0]}') beside 255, which does not "
                f"count; at least two are expected: number the classes from 0, or {remedy}."
            )
        masks = [(split, at) for split, values in self.seen.items() for at in range(len(values))]
        every = np.concatenate(list(self.seen.values()))
        by_one, by_white = every[:, 1], every[:, VOID]
        if not every[:, 2:VOID].any() and by_one.any() and by_white.any() and not (by_one & by_white).any():
            raise UserError(
                f"some masks of {self.name} mark what is not 0 by 1, such as "
                f"{self.called(*masks[int(by_one.argmax())])}, and others by 255, such as "
                f"{self.called(*masks[int(by_white.argmax())])}; one value is expected: make them alike, or {remedy}."
            )


def _plain(seen: np.ndarray, white: int) -> np.ndarray:
    """Which of 0 to 255 masks have, bool [N, 256], where `WHITE` is `white`."""
    plain = seen[:, 1 : VOID + 2].copy()
    plain[:, white] |= seen[:, WHITE + 1]
    return plain


def _grey_levels(drawn: set[int], classes: int | None) -> tuple[int, ...]:
    """The values of masks that are drawn in grey levels from black to white, as many as there are `classes` if their
    number is known. Empty for class numbers, among which 255 does not count."""
    if VOID not in drawn:
        return ()
    levels = sorted((drawn | {0}) - {WHITE} if WHITE in drawn else drawn)
    if len(levels) < 2 or 1 in levels or classes not in (None, len(levels)):
        return ()
    even = (abs(value - n * VOID / (len(levels) - 1)) < 1 for n, value in enumerate(levels))
    return tuple(levels) if all(even) else ()
