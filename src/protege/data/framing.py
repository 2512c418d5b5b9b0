"""How whole photos are brought to the size that a network takes: resized, and cut in the middle.

Pretrained networks are judged on photos that were brought to their size by one rule each, and lose accuracy by another.
What differs is how a pixel is made of its neighbours, and how much of the photo is seen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from PIL import Image

Size = tuple[int, int]
"""(width, height) in pixels, as Pillow has it."""
Box = tuple[float, float, float, float]
"""(left, top, right, bottom) in pixels, as Pillow has it."""

RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}
MODES = ("center", "center-floor", "squash", "border")


@dataclass(frozen=True)
class Frame:
    """A rule by which photos are brought to a size.

    `interpolation`: one of `RESAMPLING`. `share`: that of the resized photo's side which is cut out of its middle, as
    224 of 256 pixels; None: the largest box of the size's shape, in one resampling. `mode`: "center" resizes the
    shorter side, "squash" both sides whatever their ratio, "border" the longer side, with borders of the colour `fill`.
    Where an odd number of pixels is cut off, "center" and "squash" round as torchvision does (halves to even),
    "center-floor" cuts the smaller half off first, as transformers does.
    """

    interpolation: str = "bilinear"
    share: float | None = None
    mode: str = "center"
    fill: tuple[int, ...] = ()

    def resized(self, photo: tuple[float, float], target: Size) -> Size:
        """The size that a whole photo is resized to, before the target is cut out of it."""
        ratios = [goal / side for goal, side in zip(target, photo, strict=True)]
        if self.share is None:
            return math.ceil(photo[0] * max(ratios)), math.ceil(photo[1] * max(ratios))
        width, height = (math.floor(side / self.share) for side in target)
        if self.mode == "squash":
            return width, height
        if self.mode != "border" and width == height:  # torchvision's: the longer side is rounded down
            short, long = min(photo), max(photo)
            other = int(width * long / short)
            return (width, other) if photo[0] <= photo[1] else (other, width)
        scales = photo[0] / width, photo[1] / height
        scale = max(scales) if self.mode == "border" else min(scales)
        return round(photo[0] / scale), round(photo[1] / scale)

    def applied(self, image: Image.Image, width: int, height: int, box: Box | None = None) -> Image.Image:
        """A photo at this size. `box`: which part of the image it is."""
        resample, box = RESAMPLING[self.interpolation], box or (0, 0, *image.size)
        if self.share is None:
            return centred(image, width, height, resample, box)
        photo = box[2] - box[0], box[3] - box[1]
        whole = self.resized(photo, (width, height))
        image = image if photo == image.size == whole else image.resize(whole, resample, box)
        at = [self._start(side, goal) for side, goal in zip(whole, (width, height), strict=True)]
        fill = self.fill_of(len(image.getbands()))
        framed = Image.new(image.mode, (width, height), fill if len(fill) > 1 else fill[0])
        framed.paste(image, (at[0], at[1]))
        return framed

    def fill_of(self, channels: int) -> tuple[int, ...]:
        """The colour of borders in an image of so many channels."""
        grey = round(sum(self.fill) / max(1, len(self.fill)))
        return self.fill if len(self.fill) == channels else (grey,) * channels

    def _start(self, side: int, goal: int) -> int:
        """Where the resized photo begins, counted from where the target does."""
        if goal > side:
            return (goal - side) // 2
        return -((side - goal) // 2 if self.mode == "center-floor" else round((side - goal) / 2))


def centred(
    image: Image.Image,
    width: int,
    height: int,
    resample: Image.Resampling = Image.Resampling.BILINEAR,
    box: Box | None = None,
) -> Image.Image:
    """Short side resized, centre cropped, in one resampling; `box`: of a part of the image."""
    left, top, right, bottom = box or (0, 0, *image.size)
    # Whole numbers are divided once at the end: the box may not be larger than the image by even a rounding.
    across = min(right - left, width * (bottom - top) / height)
    down = min(bottom - top, height * (right - left) / width)
    left, top = left + (right - left - across) / 2, top + (bottom - top - down) / 2
    return image.resize((width, height), resample, box=(left, top, left + across, top + down))
