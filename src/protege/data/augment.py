"""What is done to the images of a view: `Augment`, and the text that says so."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any

from torch import Tensor

from ..errors import UserError, nearest
from .colour import MOST_STEPS, jittered, randaugmented
from .transforms import Transform, transformed
from .views import MOST_PIXELS, View, is_clean

_KINDS = {"flip": bool, "shift": int, "seed": int}  # all others are fractions
_LIMITS = {
    "shift": (MOST_PIXELS, "give a number of pixels"),
    "crop": (1, "give the least share of the image, from 0 (no crop) to 1"),
    "jitter": (1, "give a strength such as 0.4"),
    "randaugment": (MOST_STEPS, "give one such as 9"),
    "mixup": (1000, "give the α of Beta(α, α), such as 0.2"),
    "cutmix": (1000, "give the α of Beta(α, α), such as 1"),
}


@dataclass(frozen=True)
class Augment:
    """How views of a sample are made, as text ``shift=4,flip``: parts in any order, "none" for none of them.

    They are applied in this order, and every random number of them is a function of (seed, sample, view):

    - ``shift=N``: random translation of up to ±N pixels in each direction, reflected at the border.
    - ``crop=S``: random resized crop whose area is at least the share S of the image, ratio 3/4 to 4/3.
    - ``flip``: horizontal flip with probability 1/2.
    - ``jitter=S``: brightness, contrast and saturation, each times a factor from 1 − S to 1 + S.
    - ``randaugment=M``: two of the 14 changes of RandAugment (Cubuk et al. 2020), each M of 30 steps strong.
    - ``package.module:transform``: a callable of one's own; in Python also the callable itself, as ``transform``. It
      takes an image, a uint8 tensor [C, H, W] or a PIL image, and returns one of the same size. What it draws from
      torch's, NumPy's and Python's global generators is the view's own; an annotation says which kind it takes, else
      it is tried. torchvision's transforms are such.
    - ``mixup=A`` (Zhang et al. 2018) and ``cutmix=A`` (Yun et al. 2019): the image is mixed with that of another
      sample, whose share is drawn from Beta(A, A); with both, one of them, by the toss of a coin. A mixed image has no
      single true class, and so no label.
    - ``seed=N`` makes other views of the same kind.

    `pool`: positions of the samples that may be mixed in, int64; None for all.
    """

    shift: int = 0
    flip: bool = False
    crop: float = 0.0
    seed: int = 0
    jitter: float = field(default=0.0, kw_only=True)
    randaugment: float = field(default=0.0, kw_only=True)
    transform: Transform | Callable[[Any], Any] | None = field(default=None, kw_only=True)
    mixup: float = field(default=0.0, kw_only=True)
    cutmix: float = field(default=0.0, kw_only=True)
    pool: Tensor | None = field(default=None, kw_only=True, compare=False, repr=False)

    def __post_init__(self) -> None:
        for key, (most, remedy) in _LIMITS.items():
            if not 0 <= (value := getattr(self, key)) <= most:
                digits = value if isinstance(value, int) else f"{value:.12g}"
                raise UserError(f"augment {key}={digits} is not in 0 to {most}; {remedy}.")
        if self.crop and self.shift:
            raise UserError(
                f"augment 'shift={self.shift},crop={self.crop:g}' asks for both; a random resized crop "
                "already moves the image, so give only one of them."
            )
        if self.transform is not None and not isinstance(self.transform, Transform):
            object.__setattr__(self, "transform", Transform.of(self.transform))

    @classmethod
    def of(cls, value: Any) -> Augment:
        """What is given in Python for `augment`: text, a callable, or an Augment."""
        if isinstance(value, Augment):
            return value
        return cls.parse(value) if isinstance(value, str) else cls(transform=value)

    @classmethod
    def parse(cls, text: str) -> Augment:
        """Read "none", "shift=4,flip" or "crop=0.35,jitter=0.4,my.transforms:rain"; the inverse of `str`."""
        values: dict[str, Any] = {}
        known = [f.name for f in fields(cls) if f.name not in ("transform", "pool")]
        for part in (p.strip() for p in text.split(",")):
            key, equals, value = part.partition("=")
            if part in ("none", ""):
                continue
            if ":" in part and "transform" not in values:
                values["transform"] = Transform.named(part)
                continue
            if key not in known:
                raise UserError(
                    f"augment '{text}' has an unknown part '{part if ':' in part else key}'; "
                    f"{nearest(key, [*known, 'none'], otherwise='' if ':' not in part else 'give one callable')}."
                )
            kind = _KINDS.get(key, float)
            try:
                if (kind is bool) == bool(equals):
                    raise ValueError
                values[key] = True if kind is bool else kind(value)
            except ValueError:
                raise UserError(
                    f"augment '{text}' cannot be read at '{part}'; write it like 'shift=4,flip' or 'crop=0.35,flip'."
                ) from None
        return cls(**values)

    def __str__(self) -> str:
        parts = [f"shift={self.shift}"] if self.shift else []
        parts += [f"crop={self.crop!r}"] if self.crop else []
        parts += ["flip"] if self.flip else []
        parts += [f"{key}={getattr(self, key)!r}" for key in ("jitter", "randaugment") if getattr(self, key)]
        parts += [str(self.transform)] if self.transform else []
        parts += [f"{key}={getattr(self, key)!r}" for key in ("mixup", "cutmix") if getattr(self, key)]
        parts += [f"seed={self.seed}"] if self.seed else []
        return ",".join(parts) or "none"

    @property
    def moves(self) -> bool:
        """Whether pixels of a view come from elsewhere in the image."""
        return bool(self.shift or self.flip or self.crop)

    @property
    def mixes(self) -> bool:
        """Whether images of views are mixed with those of other samples."""
        return bool(self.mixup or self.cutmix)

    @property
    def changes(self) -> bool:
        """Whether any view differs from the clean one."""
        return bool(self.moves or self.jitter or self.randaugment or self.transform or self.mixes)

    @property
    def on_host(self) -> bool:
        """Whether parts of it are made on the processor, wherever the pixels lie: all but shift, crop, flip, jitter."""
        return bool(self.randaugment or self.transform or self.mixes)

    def among(self, pool: Tensor) -> Augment:
        """The same, mixing in samples at these positions only: those that may be learned from."""
        return replace(self, pool=pool.cpu()) if self.mixes else self

    def identity(self) -> str:
        """What makes views of one sample the same: the text, the source of a transform and the samples mixed in."""
        parts = [f"{self},seed={self.seed}"]
        parts += [self.transform.digest] if isinstance(self.transform, Transform) else []
        parts += [hashlib.sha256(self.pool.numpy().tobytes()).hexdigest()] if self.pool is not None else []
        return " ".join(parts)

    def dressed(self, images: Tensor, index: Tensor, view: View) -> Tensor:
        """Images of a view, uint8 [B, C, H, W], whose pixels lie where they should, in its colours: `jitter`,
        `randaugment` and `transform`. `index`: the positions of the samples, int64 [B]."""
        if is_clean(view):
            return images
        if self.jitter:
            images = jittered(images, self.seed, index, view, self.jitter)
        if isinstance(view, Tensor):
            if self.on_host:
                raise TypeError(f"augment '{self}' needs the number of a view, not its key.")
            return images
        if self.randaugment:
            images = randaugmented(images, self.seed, index, view, self.randaugment)
        if isinstance(self.transform, Transform):
            images = transformed(self.transform, images, self.seed, index, view)
        return images


def check_augment(augment: Augment, shape: tuple[int, ...], masked: bool = False) -> None:
    """Raise `UserError` where samples of this shape, (C, H, W) or (L,), cannot have such views; `masked`: images with a
    label for each pixel."""
    if len(shape) == 1:
        if augment.changes:
            raise UserError(f"augment = '{augment}' does not suit text; expected none: leave it out.")
        return
    if masked:
        for key in ("randaugment", "transform", "mixup", "cutmix"):
            if getattr(augment, key):
                raise UserError(
                    f"augment = '{augment}' does not suit images with masks, which {key} would not follow; expected "
                    "shift, crop, flip or jitter: leave the others out."
                )
    if augment.randaugment and shape[0] not in (1, 3):
        raise UserError(
            f"augment randaugment={augment.randaugment:g} does not suit images of {shape[0]} channels; expected grey "
            "or colour: leave it out."
        )
    if isinstance(augment.transform, Transform):
        augment.transform.try_on(shape)
