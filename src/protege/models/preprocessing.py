"""How pretrained networks of other libraries want their photos, read off what comes with them.

timm tells it as numbers. torchvision and transformers give a transform, of which this finds out by trying what it does:
black and white tell the normalisation, red the order of channels, and a photo of odd sides how it is resized and cut.
What is read off so makes the pixels that the transform makes, or is not used.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import product
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from ..data.framing import MODES, RESAMPLING, Frame
from ..lookup import find_callable
from .inputs import InputSpec

logger = logging.getLogger(__name__)

SIDES = ((301, 223), (223, 302))  # of the photos that a transform is tried on: from both shapes an odd margin is cut
ALIKE = 1 / 255  # of the range from black to white, on average: rounding
WIDEST = 1.4  # times the size that is cut out, to which photos may be resized
FIRST = "IMAGENET1K_V1"  # what torchvision's `pretrained=True` stands for

Transform = Callable[[Image.Image], Tensor]  # to float [channels, height, width]


def from_timm(config: Mapping[str, Any]) -> Frame:
    """The rule in a `pretrained_cfg`, with what timm takes where that says nothing."""
    how = str(config.get("interpolation") or "bicubic")
    mode = str(config.get("crop_mode") or "center")
    return Frame(
        how if how in RESAMPLING else "bicubic",
        float(config.get("crop_pct") or 0.875),
        mode if mode in ("squash", "border") else "center",
    )


# ---- torchvision ----------------------------------------------------------------------------------------------------


def from_torchvision(name: str, arguments: Mapping[str, Any]) -> InputSpec | None:
    """How the weights that one of torchvision's functions (`package.module:name`) is given want their input."""
    if not name.startswith("torchvision.models"):
        return None
    with suppress(Exception):  # without weights, or of a kind that has none
        import torchvision

        kinds = torchvision.models.get_model_weights(find_callable(name, "model", "makes a network"))
        chosen = arguments.get("weights") or (FIRST if arguments.get("pretrained") is True else None)
        return None if chosen is None else _of_weights(kinds.verify(chosen))
    return None


def of_torchvision(network: nn.Module) -> InputSpec | None:
    """How the weights of a network that one of torchvision's functions has made want their input, where it still has
    the outputs that they have: a network does not know which of several it was given."""
    kind = type(network)
    if not kind.__module__.startswith("torchvision.models"):
        return None
    import torchvision

    count = sum(parameter.numel() for parameter in network.parameters())
    for name in torchvision.models.list_models():
        builder = torchvision.models.get_model_builder(name)
        if builder.__module__ != kind.__module__:
            continue
        entries = list(torchvision.models.get_model_weights(name))
        if not any(entry.meta.get("num_params") == count for entry in entries):
            continue
        chosen = type(entries[0]).DEFAULT
        logger.info(
            "the network %s is torchvision's %s: its photos are prepared as its weights %s want them; where it has "
            "others, wrap it as Model(network, InputSpec(mean=…, std=…, size=…, crop_share=…)).",
            *(kind.__name__, name, chosen.name),
        )
        return _of_weights(chosen)
    return None


def _of_weights(weights: Any) -> InputSpec | None:
    preset = weights.transforms()
    sides = [preset.resize_size[0]] if hasattr(preset, "resize_size") else []
    return read_off(preset, sides, [getattr(getattr(preset, "interpolation", None), "value", "bilinear")])


# ---- transformers ---------------------------------------------------------------------------------------------------


def of_transformers(network: nn.Module) -> tuple[InputSpec, bool] | None:
    """How a network of transformers that sees images wants them, by the image processor that lies where its weights
    came from, else by that of its kind; and whether it is the first."""
    config = getattr(network, "config", None)
    ours = any(kind.__module__.startswith("transformers.") for kind in type(network).__mro__)
    if not ours or config is None or getattr(network, "main_input_name", "") != "pixel_values":
        return None
    path, processor = str(getattr(config, "_name_or_path", "") or ""), None
    with suppress(Exception):  # of whatever kind: offline, of a hub that has none, or of code that is not run
        from transformers import AutoImageProcessor

        if path:
            processor = AutoImageProcessor.from_pretrained(path, trust_remote_code=False)
    known = processor is not None
    with suppress(Exception):
        processor = processor or _usual(config)
    spec = None if processor is None else _of_processor(processor)
    if spec is not None and path and not known:
        logger.info(
            "the network %s comes from %s, whose preprocessor_config.json cannot be read: its pixels are normalised as "
            "those of its kind usually are.",
            *(type(network).__name__, path),
        )
    return None if spec is None else (spec, known)


def _usual(config: Any) -> Any:
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING

    kinds = IMAGE_PROCESSOR_MAPPING[type(config)]
    able = kinds.values() if isinstance(kinds, Mapping) else kinds if isinstance(kinds, tuple) else [kinds]
    for kind in filter(None, able):
        with suppress(Exception):  # one that needs a package that is not there
            return kind()
    return None


def _of_processor(processor: Any) -> InputSpec | None:
    def transform(image: Image.Image) -> Tensor:
        return torch.as_tensor(processor(images=image, return_tensors="pt")["pixel_values"][0]).float()

    named = [_side(getattr(processor, key, None)) for key in ("size", "crop_size")]
    sides = [side for side in named if side is not None]
    share = getattr(processor, "crop_pct", None)
    sides += [int(side / share) for side in sides] if share else []
    value = getattr(processor, "resample", None)
    how = [name for name, kind in RESAMPLING.items() if value is not None and kind == value]
    return read_off(transform, sides, how)


def _side(size: Any) -> int | None:
    """The side in pixels that the `size` of an image processor names."""
    if isinstance(size, int):
        return size
    for key in ("shortest_edge", "height"):
        value = size.get(key) if isinstance(size, Mapping) else getattr(size, key, None)
        if isinstance(value, int):
            return value
    return None


# ---- any transform ---------------------------------------------------------------------------------------------------


def read_off(transform: Transform, sides: Sequence[int], ways: Sequence[str]) -> InputSpec | None:
    """The spec whose pixels are those that a transform of photos makes, found among these `sides` that photos may be
    resized to and these ways of interpolation. Without a rule where none does so; None where it does something else to
    colours than to normalise them."""
    with suppress(Exception):  # whatever a transform of others raises
        plain = _normalisation(transform)
        if plain is None:
            return None
        photos = [_photo(size) for size in SIDES]
        made = [transform(photo) for photo in photos]
        height, width = made[0].shape[1:]
        if made[1].shape[1:] != (height, width):
            return plain
        sized = replace(plain, size=(height, width))
        likely, every = [*sides, width], range(width, round(WIDEST * width))
        for names, resized, modes in ((ways, likely, MODES), (RESAMPLING, likely, MODES), (ways, every, MODES[:2])):
            rules = dict.fromkeys(product(names, [_share(width, side) for side in resized], modes))
            apart = {rule: _apart(sized.framed(Frame(*rule)), photos, made) for rule in rules}
            best = min(apart, key=apart.__getitem__, default=None)
            if best is not None and apart[best] < ALIKE:
                return _rounded(sized.framed(Frame(*best)), transform)
        logger.info(
            "the photos of a pretrained network are resized and centre-cropped to %d×%d pixels, as how its own "
            "transform does so is not known here.",
            *(width, height),
        )
        return sized
    return None


def _rounded(spec: InputSpec, transform: Transform) -> InputSpec:
    """The spec with the one of two centres that a photo shows where they differ: three pixels more than fours are cut
    off it."""
    assert spec.size is not None
    height, width = spec.size
    _, short = spec.frame.resized((width, width), (width, height))
    long = next(side for side in range(2 * max(short, height), 4 * max(short, height)) if (side - height) % 4 == 3)
    photo = _photo((short, long))
    ways = [replace(spec, crop_mode=mode) for mode in MODES[:2]] if spec.crop_mode in MODES[:2] else [spec]
    return min(ways, key=lambda way: _apart(way, [photo], [transform(photo)]))


def _share(size: int, resized: int) -> float:
    """The share by which `Frame` resizes to just so many pixels."""
    share = size / resized
    return share if int(size / share) == resized else size / (resized + 1e-6)


def _normalisation(transform: Transform) -> InputSpec | None:
    black, white, red, grey = (
        _middle(transform(Image.new("RGB", SIDES[0], colour)))
        for colour in ((0, 0, 0), (255, 255, 255), (255, 0, 0), (51, 51, 51))
    )
    range_ = white - black
    linear = bool((range_ > 0).all()) and torch.allclose(black + 0.2 * range_, grey, rtol=1e-3, atol=1e-3)
    if len(black) != 3 or not linear:
        return None
    first = int(((red - black) / range_).argmax())
    mean, std = ([float(f"{value:.6g}") + 0.0 for value in values] for values in (-black / range_, 1 / range_))
    return InputSpec(mean=tuple(mean), std=tuple(std), order="bgr" if first == 2 else "rgb")


def _middle(made: Tensor) -> Tensor:
    return made[:, made.shape[1] // 2, made.shape[2] // 2].double()


def _photo(size: tuple[int, int]) -> Image.Image:
    """Noise of several scales."""
    noise = torch.Generator().manual_seed(size[0])
    layers = []
    for shrunk in (1, 4, 16):
        small = tuple(-(-side // shrunk) for side in size)
        pixels = torch.randint(0, 256, (small[1], small[0], 3), dtype=torch.uint8, generator=noise)
        layers.append(Image.fromarray(pixels.numpy()).resize(size, Image.Resampling.BICUBIC))
    return Image.blend(Image.blend(layers[0], layers[1], 0.5), layers[2], 0.5)


def _apart(spec: InputSpec, photos: list[Image.Image], made: list[Tensor]) -> float:
    """How far the pixels by a spec are from those that were made, as a share of the range from black to white."""
    assert spec.size is not None
    height, width = spec.size
    gaps = []
    for photo, theirs in zip(photos, made, strict=True):
        pixels = torch.frombuffer(bytearray(spec.frame.applied(photo, width, height).tobytes()), dtype=torch.uint8)
        ours = spec(pixels.view(1, height, width, 3).permute(0, 3, 1, 2))[0]
        gaps.append(float(((ours - theirs).abs() * torch.tensor(spec.std).view(3, 1, 1)).mean()))
    return max(gaps)
