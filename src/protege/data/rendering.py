"""From pixels that lie in memory to what networks see of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from .augment import Augment
from .views import View, is_clean, render, render_masks

Render = Callable[[Tensor, View], tuple[Tensor, Tensor]]
"""Inputs and labels, as `Batch` has them, of the samples at positions int64 [B] in a view."""


@dataclass(frozen=True)
class Renderer:
    """A `Render` of decoded images: a function of tensors on one device, where its positions and a view's key lie too.

    It decodes, copies and waits for nothing, so that a step can be compiled with it in one piece; with a key the
    program is the same for every view.

    `pixels`: uint8 [N, H, W, C]; `targets`: labels int64 [N] or masks uint8 [N, H, W]; `rows`: which of them each
    sample is, int64 (None: the one at its position); `size`: (height, width) of crops that are cut from larger images,
    of which there is no clean view.
    """

    pixels: Tensor
    targets: Tensor
    augment: Augment
    rows: Tensor | None = None
    size: tuple[int, int] | None = None

    def __call__(self, index: Tensor, view: View) -> tuple[Tensor, Tensor]:
        at = index if self.rows is None else self.rows[index]
        if self.size is not None and is_clean(view):
            raise TypeError("the clean view is made of other pixels than crops.")
        return rendered(self.pixels, self.targets, at, index, view, self.augment, self.size)


def rendered(
    pixels: Tensor,
    targets: Tensor,
    at: Tensor,
    index: Tensor,
    view: View,
    augment: Augment,
    size: tuple[int, int] | None = None,
) -> tuple[Tensor, Tensor]:
    """Inputs and labels of images pixels[at], which are samples number `index`; `targets` and
    `size` as those of a `Renderer`.

    Of a masked image crops have the shape: a scene is seldom square, and should not be squeezed.
    """
    aspect = 1.0 if targets.ndim == 1 else pixels.shape[2] / pixels.shape[1]
    inputs = augment.dressed(render(pixels, at, index, view, augment, aspect, size), index, view)
    if targets.ndim == 1:
        return inputs, targets.index_select(0, at)
    return inputs, render_masks(targets, at, index, view, augment, aspect)
