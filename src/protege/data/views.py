"""Views: augmentations that can be replayed, and where their pixels come from.

Each sample has as many views as one likes. A view is a pure function of (seed, position of the sample, view
number): the same three give the same pixels in any batch, worker, process or device, so what a teacher said
about a view can be stored and used again (FKD, Shen & Xing 2022). The randomness is a counter-based hash,
splitmix64 (Steele, Lea & Flood 2014), in wrapping int64 arithmetic that is exact on every device, and not a
random generator, whose numbers depend on what was drawn before.

Translation is the field's pad-and-crop for small images (He et al. 2016) with the border reflected; `crop`
is the random resized crop used for large ones (Szegedy et al. 2015). Pixels are picked by index arithmetic
and one gather; nothing here loops over images.
"""

from __future__ import annotations

import math
from enum import IntEnum
from typing import Protocol

import torch
from torch import Tensor

from .labels import UNLABELLED

CLEAN = -1
"""The view that is not augmented."""

View = int | Tensor
"""A view by its number or, never `CLEAN`, by its `key_of`, int64 [] on the device of the samples' positions. A compiled
step takes that as it takes the positions, where each number would be another program."""

SMALL = 64
"""Images up to this many pixels high and wide keep their size."""

MOST_PIXELS = 1 << 14
"""The longest side that images are brought to, and the farthest that they are shifted."""

VOID = 255
"""The value of a pixel without a label in masks of 8 bit."""

GAMMA = 0x9E3779B97F4A7C15
_MIX1 = 0xBF58476D1CE4E5B9
_MIX2 = 0x94D049BB133111EB
_MASK = (1 << 64) - 1


class Moves(Protocol):
    """Where the pixels of views come from: what `Augment` says of it."""

    @property
    def seed(self) -> int: ...
    @property
    def shift(self) -> int: ...
    @property
    def flip(self) -> bool: ...
    @property
    def crop(self) -> float: ...
    @property
    def moves(self) -> bool: ...


class Draw(IntEnum):
    """Which random number of a view decides what."""

    DOWN, RIGHT, FLIP, AREA, RATIO, TOP, LEFT = range(7)
    BRIGHTNESS, CONTRAST, SATURATION = range(7, 10)
    FIRST, FIRST_SIGN, SECOND, SECOND_SIGN = range(10, 14)
    OWN_HIGH, OWN_LOW = range(14, 16)
    PARTNER, WAY, SHARE, CENTRE_DOWN, CENTRE_RIGHT = range(16, 21)


def splitmix(x: int) -> int:
    """The splitmix64 step on one Python integer: 64 bits in, 64 bits out, unsigned."""
    x = (x + GAMMA) & _MASK
    x = ((x ^ (x >> 30)) * _MIX1) & _MASK
    x = ((x ^ (x >> 27)) * _MIX2) & _MASK
    return x ^ (x >> 31)


def _signed(x: int) -> int:
    return x - (1 << 64) if x >> 63 else x


def is_clean(view: View) -> bool:
    return not isinstance(view, Tensor) and view == CLEAN


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Logical right shift: torch's own is arithmetic."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _splitmix(x: Tensor) -> Tensor:
    x = x + _signed(GAMMA)
    x = (x ^ _shifted(x, 30)) * _signed(_MIX1)
    x = (x ^ _shifted(x, 27)) * _signed(_MIX2)
    return x ^ _shifted(x, 31)


def key_of(seed: int, view: int) -> int:
    """What stands for a view in its random numbers: 64 bits, signed."""
    return _signed(splitmix(splitmix(seed & _MASK) ^ (view & _MASK)))


def draws(seed: int, index: Tensor, view: View, count: int) -> Tensor:
    """32 random bits for each of `count` draws of each sample: int64 [B, count] in 0 … 2³²−1.

    Draw d of sample i is the upper half of s(s(s(s(seed) ^ view) ^ i) ^ d), s being splitmix64. A key has its seed.
    """
    key = view if isinstance(view, Tensor) else key_of(seed, view)
    sample = _splitmix(index ^ key)
    number = torch.arange(count, device=index.device)
    return _shifted(_splitmix(sample[:, None] ^ number), 32)


def uniform(bits: Tensor) -> Tensor:
    """Turn 32 random bits into a number in (0, 1), float64."""
    return (bits.double() + 0.5) / 2**32


def below(bits: Tensor, n: int | Tensor) -> Tensor:
    """Turn 32 random bits into a uniform integer in 0 … n−1 (n below 2³¹)."""
    return (bits * n) >> 32


def reflect(position: Tensor, size: int) -> Tensor:
    """Fold positions outside 0 … size−1 back in, mirrored at the border pixel, which is not repeated."""
    if size == 1:
        return torch.zeros_like(position)
    period = 2 * (size - 1)
    position = position.remainder(period)
    return torch.minimum(position, period - position)


def _moved(augment: Moves, index: Tensor, view: View, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Where views made by translation and flip take their rows, int64 [B, height], and columns, [B, width], from;
    positions outside the image are not folded back."""
    rows = torch.arange(height, device=index.device).expand(len(index), height)
    columns = torch.arange(width, device=index.device).expand(len(index), width)
    random = draws(augment.seed, index, view, Draw.FLIP + 1)
    if augment.flip:
        columns = torch.where(below(random[:, Draw.FLIP, None], 2) == 1, width - 1 - columns, columns)
    if augment.shift:
        move = below(random[:, : Draw.FLIP], 2 * augment.shift + 1) - augment.shift
        rows, columns = rows + move[:, :1], columns + move[:, 1:]
    return rows, columns


def pick(pixels: Tensor, at: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Gather [B, h, w, C] from pixels [N, H, W, C]: image at[b], rows[b, :], columns[b, :]."""
    _, height, width, channels = pixels.shape
    flat = (at[:, None] * height + rows)[:, :, None] * width + columns[:, None, :]
    picked = pixels.view(-1, channels).index_select(0, flat.view(-1))
    return picked.view(len(at), rows.shape[1], columns.shape[1], channels)


def boxes(
    augment: Moves, index: Tensor, view: View, height: Tensor, width: Tensor, aspect: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Crop boxes of random resized crops in images of the given sizes (int64 [B] each).

    Returns int64 [B, 4] of (top, left, height, width) in pixels, and the flips, bool [B]. The boxes' ratio of
    width to height is 3/4 to 4/3 of `aspect`. Where a ratio would not fit into the image it is moved to the
    nearest that does, so the area keeps its share.
    """
    random = draws(augment.seed, index, view, Draw.LEFT + 1)
    share = augment.crop + (1 - augment.crop) * random[:, Draw.AREA].double() / 2**32
    ratio = aspect * torch.exp((2 * random[:, Draw.RATIO].double() / 2**32 - 1) * math.log(4 / 3))
    shape = width.double() / height.double()
    ratio = torch.minimum(torch.maximum(ratio, share * shape), shape / share)
    area = share * height.double() * width.double()
    h = torch.minimum(torch.sqrt(area / ratio).ceil().long(), height)
    w = torch.minimum(torch.sqrt(area * ratio).ceil().long(), width)
    top = below(random[:, Draw.TOP], height - h + 1)
    left = below(random[:, Draw.LEFT], width - w + 1)
    flip = (below(random[:, Draw.FLIP], 2) == 1) & augment.flip
    return torch.stack([top, left, h, w], 1), flip


def _taps(start: Tensor, length: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Bilinear taps of `size` output positions spread over [start, start+length): lower and upper source
    position and the upper one's weight in 1/256, int64 [B, size]. Integers, so that every device gives the
    same pixels."""
    out = torch.arange(size, device=start.device)
    centre = ((2 * out + 1) * length[:, None] * 256) // (2 * size) - 128
    centre = torch.minimum(centre.clamp(min=0), (length[:, None] - 1) * 256)
    low = centre >> 8
    high = torch.minimum(low + 1, length[:, None] - 1)
    return start[:, None] + low, start[:, None] + high, centre & 255


def resized_crops(
    pixels: Tensor,
    at: Tensor,
    index: Tensor,
    view: View,
    augment: Moves,
    aspect: float = 1.0,
    size: tuple[int, int] | None = None,
) -> Tensor:
    """Random resized crops, uint8 [B, height, width, C], of images pixels[at] (uint8 [N, H, W, C]), by bilinear
    interpolation to a `size` (None: that of the images); `aspect` as in `boxes`."""
    _, height, width, _ = pixels.shape
    sides = torch.full_like(index, height), torch.full_like(index, width)
    box, flip = boxes(augment, index, view, *sides, aspect)
    height, width = size or (height, width)
    top, bottom, down = _taps(box[:, 0], box[:, 2], height)
    left, right, across = _taps(box[:, 1], box[:, 3], width)
    reverse = flip[:, None]
    left, right, across = (torch.where(reverse, x.flip(1), x) for x in (left, right, across))
    down, across = down[:, :, None, None].int(), across[:, None, :, None].int()
    above = pick(pixels, at, top, left) * (256 - across) + pick(pixels, at, top, right) * across
    under = pick(pixels, at, bottom, left) * (256 - across) + pick(pixels, at, bottom, right) * across
    return ((above * (256 - down) + under * down + (1 << 15)) >> 16).to(torch.uint8)


def render(
    pixels: Tensor,
    at: Tensor,
    index: Tensor,
    view: View,
    augment: Moves,
    aspect: float = 1.0,
    size: tuple[int, int] | None = None,
) -> Tensor:
    """The view of images pixels[at], which are samples number `index`: uint8 [B, C, H, W], channels-last memory.

    `pixels` is uint8 [N, H, W, C]; `at` and `index` are int64 [B] on its device; `aspect` as in `boxes`; `size`, of
    crops alone, as in `resized_crops`.
    """
    if is_clean(view) or not augment.moves:
        out = pixels.index_select(0, at)
    elif augment.crop:
        out = resized_crops(pixels, at, index, view, augment, aspect, size)
    else:
        _, height, width, _ = pixels.shape
        rows, columns = _moved(augment, index, view, height, width)
        out = pick(pixels, at, reflect(rows, height), reflect(columns, width))
    return out.permute(0, 3, 1, 2)


def render_masks(masks: Tensor, at: Tensor, index: Tensor, view: View, augment: Moves, aspect: float = 1.0) -> Tensor:
    """The labels that belong to `render`: int64 [B, H, W] of masks[at] (uint8 [N, H, W]).

    A mask takes its nearest value; `UNLABELLED` are pixels that are `VOID` or come from outside the image.
    """
    _, height, width = masks.shape
    outside = None
    if is_clean(view) or not augment.moves:
        picked = masks.index_select(0, at)
    else:
        if augment.crop:
            rows, columns = _nearest(augment, index, view, height, width, aspect)
        else:
            rows, columns = _moved(augment, index, view, height, width)
            out = [(p < 0) | (p >= size) for p, size in ((rows, height), (columns, width))]
            outside = out[0][:, :, None] | out[1][:, None, :]
            rows, columns = reflect(rows, height), reflect(columns, width)
        picked = pick(masks[..., None], at, rows, columns)[..., 0]
    void = picked == VOID if outside is None else (picked == VOID) | outside
    return picked.long().masked_fill_(void, UNLABELLED)


def _nearest(
    augment: Moves, index: Tensor, view: View, height: int, width: int, aspect: float
) -> tuple[Tensor, Tensor]:
    """The pixels nearest to the centres that a random resized crop looks at: rows [B, H], columns [B, W]."""
    size = torch.full_like(index, height), torch.full_like(index, width)
    box, flip = boxes(augment, index, view, *size, aspect)
    rows, columns = (
        start[:, None] + ((2 * torch.arange(n, device=index.device) + 1) * length[:, None]) // (2 * n)
        for start, length, n in ((box[:, 0], box[:, 2], height), (box[:, 1], box[:, 3], width))
    )
    return rows, torch.where(flip[:, None], columns.flip(1), columns)
