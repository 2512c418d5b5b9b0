"""Colours of views: jitter in whole numbers, the same on every device, and RandAugment with Pillow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from .views import Draw, View, below, draws

MOST_STEPS = 30  # of RandAugment's strength
_ONE = 1 << 16  # 1.0 in whole numbers
_LUMA = (19595, 38470, 7471)  # of red, green and blue, in 1/65536, as Pillow has it
_FILL = 128


def jittered(images: Tensor, seed: int, index: Tensor, view: View, strength: float) -> Tensor:
    """Images uint8 [B, C, H, W] with brightness, contrast and, in colour, saturation each times a factor from
    1 − strength to 1 + strength, in this order."""
    random = draws(seed, index, view, Draw.SATURATION + 1)[:, Draw.BRIGHTNESS :]
    spread = round(strength * _ONE)
    factors = (_ONE - spread + below(random, 2 * spread + 1)).int()[:, :, None, None, None]  # [B, 3, 1, 1, 1]
    pixels = _scaled(images.int(), torch.zeros((), dtype=torch.int32, device=images.device), factors[:, 0])
    grey = _grey(pixels)
    mean = (grey.long().sum((1, 2, 3), keepdim=True) // grey[0].numel()).int()
    pixels = _scaled(pixels, mean, factors[:, 1])
    if images.shape[1] == 3:
        pixels = _scaled(pixels, _grey(pixels), factors[:, 2])
    return pixels.to(torch.uint8)


def _scaled(pixels: Tensor, centre: Tensor, factor: Tensor) -> Tensor:
    """Pixels as far from the centre as the factor (in 1/65536) says, within 0 to 255."""
    return (centre + (((pixels - centre) * factor + _ONE // 2) >> 16)).clamp(0, 255)


def _grey(pixels: Tensor) -> Tensor:
    """The brightness of pixels int32 [B, C, H, W], as [B, 1, H, W]."""
    if pixels.shape[1] != 3:
        return pixels.sum(1, keepdim=True, dtype=torch.int32) // pixels.shape[1]
    red, green, blue = (weight * pixels[:, c : c + 1] for c, weight in enumerate(_LUMA))
    return (red + green + blue + _ONE // 2) >> 16


def randaugmented(images: Tensor, seed: int, index: Tensor, view: int, steps: float) -> Tensor:
    """Images uint8 [B, C, H, W], grey or in colour, after two changes each, drawn from `CHANGES`."""
    random = draws(seed, index, view, Draw.SECOND_SIGN + 1).cpu()
    pixels = images.permute(0, 2, 3, 1).cpu().numpy()
    changed = np.empty_like(pixels, order="C")
    for at, image in enumerate(pixels):
        picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else np.ascontiguousarray(image))
        for which, sign in ((Draw.FIRST, Draw.FIRST_SIGN), (Draw.SECOND, Draw.SECOND_SIGN)):
            change = CHANGES[int(below(random[at, which], len(CHANGES)))]
            picture = change(picture, steps / MOST_STEPS, 1 if int(below(random[at, sign], 2)) else -1)
        changed[at] = np.asarray(picture).reshape(image.shape)
    return torch.from_numpy(changed).to(images.device).permute(0, 3, 1, 2)


Change = Callable[[Image.Image, float, int], Image.Image]


def _moved(image: Image.Image, *inverse: float) -> Image.Image:
    """By an affine map, whose inverse has these coefficients about the image's centre."""
    a, b, c, d, e, f = inverse
    x, y = image.width / 2, image.height / 2
    about = (a, b, c + x - a * x - b * y, d, e, f + y - d * x - e * y)
    fill = _FILL if image.mode == "L" else (_FILL,) * 3
    return image.transform(image.size, Image.Transform.AFFINE, about, Image.Resampling.NEAREST, fillcolor=fill)


def _enhanced(kind: Callable[[Image.Image], Any]) -> Change:
    return lambda image, level, sign: kind(image).enhance(1 + sign * 0.9 * level)


CHANGES: tuple[Change, ...] = (  # strengths as in torchvision
    lambda image, level, sign: image,
    lambda image, level, sign: _moved(image, 1, sign * 0.3 * level, 0, 0, 1, 0),
    lambda image, level, sign: _moved(image, 1, 0, 0, sign * 0.3 * level, 1, 0),
    lambda image, level, sign: _moved(image, 1, 0, sign * level * image.width * 150 / 331, 0, 1, 0),
    lambda image, level, sign: _moved(image, 1, 0, 0, 0, 1, sign * level * image.height * 150 / 331),
    lambda image, level, sign: image.rotate(sign * 30 * level, fillcolor=_FILL if image.mode == "L" else (_FILL,) * 3),
    _enhanced(ImageEnhance.Brightness),
    _enhanced(ImageEnhance.Color),
    _enhanced(ImageEnhance.Contrast),
    _enhanced(ImageEnhance.Sharpness),
    lambda image, level, sign: ImageOps.posterize(image, 8 - round(4 * level)),
    lambda image, level, sign: ImageOps.solarize(image, round(256 * (1 - level))),
    lambda image, level, sign: ImageOps.autocontrast(image),
    lambda image, level, sign: ImageOps.equalize(image),
)
