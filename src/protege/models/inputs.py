"""How a network wants its input: channels, size, normalisation, framing. Part of the model, not of the data.

Data yields raw pixels (uint8, or floats in 0..1); every network turns them into what it was trained on. A
teacher and a student with different normalisation can so be fed from one batch.
"""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.framing import MODES, RESAMPLING, Frame
from ..errors import UserError, shown

MOST_CHANNELS = 2**16
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, the weights Pillow's "L" mode uses
FILLED = 16  # channels whose constants a compiled network fills in one by one
ROUNDING = 0.25 / 255  # how far beyond 0 and 1 floats may lie: a quarter of a grey level
FRAMING = ("interpolation", "crop_share", "crop_mode")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class InputSpec:
    """What a network's `forward` expects, and the way there from raw input.

    `mean` and `std` are per channel, in 0..1 units and in the order of the channels the network sees (so blue
    first where `order` is "bgr"); left empty they mean 0 and 1. `size` is (height, width), None where any
    size will do. `kind` "tokens" hands its input over untouched. `interpolation` is how images are resized, and
    `crop_share` and `crop_mode` are how whole photos are brought to the size where data is opened for the network, see
    `protege.data.framing.Frame`; the network itself gets batches of one size, which it takes for framed already. Raises
    `UserError` for values that cannot be meant.
    """

    kind: str = "image"
    channels: int = 3
    size: tuple[int, int] | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    order: str = "rgb"
    ranges: tuple[tuple[str, float, float], ...] = ()
    interpolation: str = "bilinear"
    crop_share: float | None = None
    crop_mode: str = "center"

    def __post_init__(self) -> None:
        channels, size, ranges = self.channels, self.size, self.ranges
        self._require("kind", self.kind in ("image", "tokens"), "is not known; use 'image' or 'tokens'")
        usable = _whole(channels) and channels <= MOST_CHANNELS
        self._require("channels", usable, "should be a whole number from 1, such as 3")
        self._require("order", self.order in ("rgb", "bgr"), "is not known; use 'rgb' or 'bgr'")
        usable = self.order == "rgb" or channels == 3
        self._require("order", usable, f"needs 3 channels, but channels is {channels}; use order 'rgb'")
        usable = size is None or (_is_list(size, 2) and all(map(_whole, size)))
        self._require("size", usable, "should be [height, width] in pixels, or null for any size")
        for name, default in (("mean", 0.0), ("std", 1.0)):
            values = getattr(self, name)
            usable = _is_list(values) and all(map(_finite, values))
            self._require(name, usable, "should be a list of finite numbers, one for each channel")
            usable = len(values) in (0, channels)
            self._require(name, usable, f"has {len(values)} values for {channels} channels; give one for each")
            object.__setattr__(self, name, tuple(map(float, values)) or (default,) * channels)
        self._require("std", min(self.std) > 0, "holds a value that is not above 0; give each channel's spread")
        known = ", ".join(map(repr, RESAMPLING))
        self._require("interpolation", self.interpolation in RESAMPLING, f"is not known; use one of {known}")
        usable = self.crop_share is None or (_finite(self.crop_share) and 0.01 <= self.crop_share <= 4)
        self._require("crop_share", usable, "should be a share, such as 0.875, of at least 0.01 and at most 4, or null")
        known = ", ".join(map(repr, MODES))
        self._require("crop_mode", self.crop_mode in MODES, f"is not known; use one of {known}")
        self._require("ranges", _is_list(ranges), "should be a list, such as [['integer', 0, 4095]]")
        for entry in ranges:
            parts: Any = entry if _is_list(entry, 3) else (None, None, None)
            kind, black, white = parts
            if kind not in ("integer", "float") or not _finite(black) or not _finite(white) or black >= white:
                raise UserError(
                    f"input range {shown(entry)} should be a kind, 'integer' or 'float', and its values of black and "
                    "white, such as ['integer', 0, 4095]."
                )
        object.__setattr__(self, "ranges", tuple((kind, float(black), float(white)) for kind, black, white in ranges))
        object.__setattr__(self, "size", None if size is None else tuple(size))

    def _require(self, name: str, usable: bool, remedy: str) -> None:
        if not usable:
            raise UserError(f"input {name} {shown(getattr(self, name))} {remedy}.")

    @property
    def frame(self) -> Frame:
        """The rule by which whole photos are brought to the size."""
        if self.crop_share is None:
            return Frame(self.interpolation)
        fill = tuple(round(255 * value) for value in self.mean) if self.crop_mode == "border" else ()
        return Frame(self.interpolation, self.crop_share, self.crop_mode, fill)

    def framed(self, frame: Frame) -> "InputSpec":
        """The same but for that rule."""
        return dataclasses.replace(
            self, interpolation=frame.interpolation, crop_share=frame.share, crop_mode=frame.mode
        )

    def framing(self) -> dict[str, Any]:
        """What it says of that rule; nothing where it is this library's own."""
        return {} if self.frame == Frame() else {key: getattr(self, key) for key in FRAMING}

    def __repr__(self) -> str:  # without a rule that of the time before there were any, by which folders know networks
        kept = [field.name for field in dataclasses.fields(self) if field.name not in FRAMING] + [*self.framing()]
        return f"InputSpec({', '.join(f'{key}={getattr(self, key)!r}' for key in kept)})"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `from_dict` gives the same spec back."""
        values = dataclasses.asdict(self)
        if not self.ranges:  # only few networks have seen files of more than 8 bits
            del values["ranges"]
        values = {key: value for key, value in values.items() if key not in FRAMING} | self.framing()
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "InputSpec":
        """The spec written by `to_dict`. Keys left out take defaults; unknown ones raise `UserError`."""
        if not isinstance(values, Mapping):
            raise UserError(f"input description {shown(values)} should be a table with keys such as 'mean' and 'std'.")
        known = [field.name for field in dataclasses.fields(cls)]
        for key in values:
            if key not in known:
                raise UserError(f"input key {shown(key)} is not known; use some of {', '.join(known)}.")
        return cls(**values)

    def __call__(self, raw: Tensor) -> Tensor:
        """Raw images [B, C, H, W] (uint8, or floats in 0..1) → float32 [B, channels, height, width].

        Grey becomes colour by repetition, colour becomes grey by ITU-R 601; other differences in channels
        raise `UserError`. Resizing is by the `interpolation` with antialiasing and happens only where
        `size` is given and differs. Channels-last images stay channels-last. Differentiable for float input.
        """
        if self.kind == "tokens":
            return raw
        if raw.dim() != 4:
            raise UserError(
                f"images have shape {list(raw.shape)} where [batch, channels, height, width] is expected; "
                "add the missing dimension."
            )
        if raw.shape[1] not in (1, self.channels) and (raw.shape[1], self.channels) != (3, 1):
            raise UserError(
                f"images have {raw.shape[1]} channels but the network takes {self.channels}; "
                "convert the images or choose another network."
            )
        if raw.dtype != torch.uint8 and not raw.is_floating_point():
            raise UserError(f"images are {raw.dtype}; give uint8, or floats from 0 to 1.")
        if raw.is_floating_point():
            _check_range(raw)
        # one channel is contiguous in both layouts; its stride tells which, to convolutions too
        pixels_first = raw.is_contiguous(memory_format=torch.channels_last) and raw.stride(1) == 1
        layout = torch.channels_last if pixels_first else torch.contiguous_format
        unit = 1 / 255 if raw.dtype == torch.uint8 else 1.0
        if self.size is not None and tuple(raw.shape[2:]) != self.size:
            raw = _resized(raw, self.size, self.interpolation)
        images = raw.to(torch.float32)
        if images.shape[1] == 3 and self.channels == 1:
            red, green, blue = LUMA
            images = images[:, 0:1] * red + images[:, 1:2] * green + images[:, 2:3] * blue
        if self.order == "bgr" and images.shape[1] == 3:
            images = images.flip(1)
        how = self.mean, self.std, unit, images.device
        if torch.compiler.is_compiling():  # constants of the traced graph, never real tensors among traced ones
            scale, shift = _constants(*how)
        else:
            scale, shift = _whole_image(*how, (images.shape[2], images.shape[3]), layout)
        return torch.addcmul(shift, images, scale).contiguous(memory_format=layout)


def _resized(raw: Tensor, size: tuple[int, int], how: str) -> Tensor:
    """With antialiasing; uint8 stays uint8 on every device, as in Pillow and torchvision, and floats from 0 to 1 so."""
    if raw.dtype == torch.uint8 and (how in _KERNELS or raw.device.type != "cpu"):
        return _interpolated(raw.float(), size, how, 255).round().to(torch.uint8)
    return _interpolated(raw if raw.dtype == torch.uint8 else raw.float(), size, how, 1)


def _interpolated(images: Tensor, size: tuple[int, int], how: str, white: int) -> Tensor:
    if how == "nearest":
        return F.interpolate(images, size, mode="nearest-exact")
    if how not in _KERNELS:
        images = F.interpolate(images, size, mode=how, antialias=True, align_corners=False)
        sharpens = how == "bicubic" and images.is_floating_point()  # and so goes beyond black and white
        return images.clamp(0, white) if sharpens else images
    down, across = (_spread(n, m, how, images.device) for n, m in zip(images.shape[2:], size, strict=True))
    return (down @ (images @ across.T).clamp(0, white)).clamp(0, white)


def _spread(size: int, target: int, how: str, device: torch.device) -> Tensor:
    """What share of each of ``size`` pixels the ``target`` ones are made of, [target, size], as in Pillow."""
    radius, kernel = _KERNELS[how]
    scale = size / target
    centres = (torch.arange(target, dtype=torch.float64) + 0.5) * scale
    distance = (torch.arange(size, dtype=torch.float64) + 0.5 - centres[:, None]) / max(scale, 1.0)
    shares = torch.where((distance > -radius) & (distance <= radius), kernel(distance), 0.0)
    return (shares / shares.sum(1, keepdim=True)).to(device, torch.float32)


_KERNELS: dict[str, tuple[float, Callable[[Tensor], Tensor]]] = {  # those that torch has not
    "box": (0.5, torch.ones_like),
    "hamming": (1.0, lambda x: torch.sinc(x) * (0.54 + 0.46 * torch.cos(math.pi * x))),
    "lanczos": (3.0, lambda x: torch.sinc(x) * torch.sinc(x / 3)),
}


def _check_range(raw: Tensor) -> None:
    """Raise `UserError` for float images that are not from 0 to 1, where looking at them is cheap.

    On an accelerator it makes the processor wait, so only the first images of a process are looked at there, and ever
    fewer of the later ones. Images that are traced or compiled have no values.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or not raw.numel():
        return
    if raw.device.type != "cpu":
        number = next(_seen[raw.device.type])
        if number & (number - 1) or (raw.is_cuda and torch.cuda.is_current_stream_capturing()):
            return
    try:
        low, high = (value.item() for value in raw.detach().aminmax())
    except RuntimeError:  # without values after all, as under vmap or on the meta device
        return
    if low >= -ROUNDING and high <= 1 + ROUNDING:
        return
    if not math.isfinite(high - low):
        raise UserError("float images hold values that are not finite where 0 to 1 is expected; mend them.")
    remedy = "divide them by 255, or give uint8" if low >= 0 else "leave out Normalize, the model normalises by itself"
    if low >= -0.5 and high <= 1.5:
        remedy = "limit them with .clamp(0, 1)"
    raise UserError(f"float images have values from {low:.3g} to {high:.3g} where 0 to 1 is expected; {remedy}.")


_seen: dict[str, Iterator[int]] = defaultdict(lambda: count(1))


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _is_list(value: object, length: int | None = None) -> bool:
    return isinstance(value, tuple | list) and length in (None, len(value))


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _constants(
    mean: tuple[float, ...], std: tuple[float, ...], unit: float, device: torch.device
) -> tuple[Tensor, ...]:
    """What makes unit·x/std − mean/std one multiply-add, scale·x + shift: each float32 [1, C, 1, 1]."""
    scale = [unit / s for s in std]
    shift = [-m / s for m, s in zip(mean, std, strict=True)]
    if device.type != "cpu" and torch.compiler.is_compiling() and len(scale) <= FILLED:
        # filled where they are needed: numbers of the processor would be copied in every call
        return tuple(torch.cat([torch.full((1, 1, 1, 1), x, device=device) for x in row], 1) for row in (scale, shift))
    both = torch.tensor([scale, shift], dtype=torch.float32, device=device)
    return both[0].view(1, -1, 1, 1), both[1].view(1, -1, 1, 1)


@lru_cache(maxsize=64)
def _whole_image(
    mean: tuple[float, ...],
    std: tuple[float, ...],
    unit: float,
    device: torch.device,
    size: tuple[int, int],
    layout: torch.memory_format,
) -> tuple[Tensor, ...]:
    """The same spread over [1, C, H, W]: broadcasting channels-last pixels is ten times slower."""
    with torch.inference_mode(False):  # a constant born in inference mode could not take part in training later
        spread = (constant.expand(1, -1, *size) for constant in _constants(mean, std, unit, device))
        return tuple(constant.contiguous(memory_format=layout) for constant in spread)
