"""How a network wants its input where nobody says it: by what it tells itself, by trying, else as the data is."""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from ..data.labels import BY_CONTENT, BY_POSITION
from ..errors import UserError
from . import storage
from .channels import channels_taken
from .description import read_description
from .fit import DataLike
from .inputs import IMAGENET_MEAN, IMAGENET_STD, LUMA, InputSpec
from .model import Model
from .saving import SIZES
from .sizes import fitting_size, own_sizes

logger = logging.getLogger(__name__)

TOKENS = InputSpec(kind="tokens", channels=1)
DARKEST_STD = 1 / 255  # a channel without any variation is divided by one grey level, not by zero


def has_tokens(data: DataLike) -> bool:
    return data.task == "language"


def input_for(channels: int, data: DataLike | None, size: Sequence[int] | None = None) -> InputSpec:
    """The spec of a network without its own: the data's statistics, or ImageNet's where there is no data."""
    if data is not None and has_tokens(data):
        return TOKENS
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    if data is not None:
        mean, std = data.statistics()
        if size is None:
            size = data.train.shape[1:]
    if data is not None and data.task != "classification":
        size = None  # outputs per pixel must keep the size of the labels
    mean, std = (spread(values, channels) for values in (mean, std))
    pixels = None if size is None else (size[0], size[1])
    return InputSpec(channels=channels, size=pixels, mean=mean, std=tuple(max(s, DARKEST_STD) for s in std))


def spread(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """Statistics of the data for a network with other channels: repeated from grey, weighted to grey."""
    if len(values) == channels:
        return tuple(values)
    if len(values) == 3 and channels == 1:
        return (sum(weight * value for weight, value in zip(LUMA, values, strict=True)),)
    return (sum(values) / len(values),) * channels


def channels_of(network: nn.Module, data: DataLike | None) -> int:
    """What the network is found to take of the data; without data what its first convolution takes, else 3."""
    if data is not None and not has_tokens(data):
        channels, height, width = data.train.shape
        spec_for = partial(input_for, data=data)
        return channels_taken(network, (channels, height, width), len(data.classes), spec_for)
    taken = (module.in_channels for module in network.modules() if isinstance(module, nn.Conv2d))
    return next(filter(None, taken), 3)


def input_of(network: nn.Module, data: DataLike | None, trained: bool) -> InputSpec:
    """The spec of the user's own network: what it says itself, else the data's, at a size that it runs at."""
    if found := input_from_timm(network, keep_size=True, data=data):
        return found
    spec = input_for(channels_of(network, data), data)
    if trained and spec.kind == "image":
        logger.info(
            "the network %s does not say how it wants its pixels: they are normalised by the data's own mean and "
            "deviation; where it was trained otherwise, wrap it as Model(network, InputSpec(mean=…, std=…)).",
            type(network).__name__,
        )
    if spec.size is None or not (own := own_sizes(network)):
        return spec
    return replace(spec, size=fitting_size(network, spec.channels, [spec.size, *own]) or spec.size)


def input_from_timm(
    network: nn.Module, keep_size: bool, image_size: int | None = None, data: DataLike | None = None
) -> InputSpec | None:
    """The spec in a timm network's `pretrained_cfg`, with its size where that is fixed or to be kept. A fixed one is
    that of the network as it was built, which need not be the one it was trained at."""
    config = getattr(network, "pretrained_cfg", None) or getattr(network, "default_cfg", None)
    if not isinstance(config, dict) or not {"mean", "std", "input_size"} <= config.keys():
        return None
    channels = int(channels_of(network, None))
    trained = int(config["input_size"][1]), int(config["input_size"][2])
    size: tuple[int, int] | None = trained
    if config.get("fixed_input_size") or image_size is not None:
        given = [(image_size, image_size)] if image_size is not None else []
        shapes = [data.train.shape[1:]] if data is not None and not has_tokens(data) else []
        likely = [*given, *own_sizes(network), trained, *((height, width) for height, width in shapes)]
        size = fitting_size(network, channels, [*likely, *((side, side) for side in SIZES)]) or likely[0]
    elif not keep_size:
        size = None
    mean, std = (spread(config[key], channels) for key in ("mean", "std"))
    return InputSpec(channels=channels, size=size, mean=mean, std=std)


def held_out_by(*models: Any) -> str:
    """How samples are held out where a set has no test split, so that none are that these (a `Model`, or the spec of a
    folder that holds one) have learned from: by position, where one of them was made before version 0.2."""
    return BY_CONTENT if all(held_out == BY_CONTENT for _, held_out in _described(models)) else BY_POSITION


def known_ranges(*models: Any) -> tuple[tuple[str, float, float], ...]:
    """`InputSpec.ranges` of the first of these that has some: a `Model`, or the spec of a folder that holds one."""
    return next((spec.ranges for spec, _ in _described(models) if spec.ranges), ())


def _described(models: Sequence[Any]) -> Iterator[tuple[InputSpec, str]]:
    """How those want their input that are a `Model` or the spec of a folder, and how samples were held out of what they
    have learned from."""
    for model in models:
        if isinstance(model, Model):
            yield model.input, model.held_out
        elif isinstance(model, str | Path) and model and os.path.isdir(folder := os.path.expanduser(model)):
            with suppress(UserError):  # whoever loads it says what is wrong
                description = read_description(storage.locate(Path(folder)))
                yield description.spec, description.held_out
