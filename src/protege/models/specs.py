"""How a network wants its input where nobody says it: by what it tells itself, by trying, else as the data is."""

import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..data import Data, Samples
from ..data.framing import Frame
from ..data.labels import BY_CONTENT, BY_POSITION
from ..errors import UserError
from ..torch_utils import copy_network, device_of, is_unmade, own_dtype, refuse_odd, seeded, untouched
from . import storage
from .description import read_description
from .inputs import IMAGENET_MEAN, IMAGENET_STD, LUMA, InputSpec
from .model import Model
from .preprocessing import from_timm, of_torchvision, of_transformers
from .saving import SIZES

logger = logging.getLogger(__name__)

TOKENS = InputSpec(kind="tokens", channels=1)
DARKEST_STD = 1 / 255  # a channel without any variation is divided by one grey level, not by zero
NAMED = re.compile(r"(img|image|input).*(size|resolution)")
LEAST = 4  # pixels: a smaller number counts something else

Size = tuple[int, int]


def has_tokens(data: Data) -> bool:
    """Whether samples are text; else they are images."""
    return len(data.train.shape) == 1


def has_masks(data: Data) -> bool:
    """Whether each pixel has a label; else each image."""
    return not has_tokens(data) and data.train.labels is None


def input_for(channels: int, data: Data | None, size: Sequence[int] | None = None) -> InputSpec:
    """The spec of a network without its own: the data's statistics, or ImageNet's where there is no data."""
    if data is not None and has_tokens(data):
        return TOKENS
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if data is None else data.statistics()
    if data is not None:  # outputs per pixel must keep the size of the labels
        size = None if has_masks(data) else size or data.train.shape[1:]
    mean, std = (spread(values, channels) for values in (mean, std))
    pixels = None if size is None else (size[0], size[1])
    spec = InputSpec(channels=channels, size=pixels, mean=mean, std=tuple(max(s, DARKEST_STD) for s in std))
    return as_framed(spec, data)


def as_framed(spec: InputSpec, data: Data | None) -> InputSpec:
    """The spec of a network that is yet to learn from the data: it sees photos as they are framed there."""
    return spec if data is None else spec.framed(getattr(data.train, "frame", Frame()))


def framed_for(model: Model, data: Data, sized: bool = True) -> Data:
    """The data with whole photos brought to their size by the model's rule; and to the size that it goes with, unless
    they were asked for at one, or not ``sized``."""
    return data.framed(*_framing(model, sized))


def seen_by(model: nn.Module, samples: Samples) -> Samples:
    """The same of some samples."""
    return samples.framed(*_framing(model)) if isinstance(model, Model) else samples


def _framing(model: Model, sized: bool = True) -> tuple[Frame, Size | None]:
    spec = model.input
    return spec.frame, spec.size if sized and spec.crop_share is not None else None


def spread(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """Statistics of the data for a network with other channels: repeated from grey, weighted to grey."""
    if len(values) == channels:
        return tuple(values)
    if len(values) == 3 and channels == 1:
        return (sum(weight * value for weight, value in zip(LUMA, values, strict=True)),)
    return (sum(values) / len(values),) * channels


def input_of(network: nn.Module, data: Data | None, trained: bool) -> InputSpec:
    """The spec of the user's own network: what it says itself, else the data's, at a size that it runs at."""
    if spec := input_by_itself(network, data, trained):
        return replace(spec, size=None, crop_share=None) if data is not None and has_masks(data) else spec
    spec = input_for(channels_of(network, data), data)
    if trained and spec.kind == "image":
        logger.info(
            "the network %s does not say how it wants its pixels: they are normalised by the data's own mean and "
            "deviation; where it was trained otherwise, wrap it as Model(network, InputSpec(mean=…, std=…)).",
            type(network).__name__,
        )
    if spec.size is None or not (named := sizes_named(network)):
        return spec
    return replace(spec, size=fitting_size(network, spec.channels, [spec.size, *named]) or spec.size)


def input_by_itself(network: nn.Module, data: Data | None, trained: bool) -> InputSpec | None:
    """The spec of a network of a library that tells it, at the size that it was built for; None of others."""
    if spec := input_from_timm(network, keep_size=True, data=data):
        return spec
    of_library = of_transformers(network)
    if of_library is None:
        return of_torchvision(network) if trained else None
    spec, known = of_library
    channels = channels_of(network, data)
    mean, std = (spread(values, channels) for values in (spec.mean, spec.std))
    spec = replace(spec, channels=channels, mean=mean, std=std, order=spec.order if channels == 3 else "rgb")
    shapes = [data.train.shape[1:]] if data is not None else []
    sizes = [(height, width) for height, width in shapes]
    if not known:
        spec = as_framed(replace(spec, size=None, interpolation="bilinear", crop_share=None, crop_mode="center"), data)
    elif spec.size is not None:
        sizes = [spec.size, *sizes]
    named = sizes_named(network)
    return replace(spec, size=fitting_size(network, channels, [*sizes, *named]) or next(iter([*named, *sizes]), None))


def input_from_timm(
    network: nn.Module, keep_size: bool, image_size: int | None = None, data: Data | None = None
) -> InputSpec | None:
    """The spec in a timm network's `pretrained_cfg`, with its size where that is fixed or to be kept. A fixed one is
    that of the network as it was built, which need not be the one it was trained at."""
    config = getattr(network, "pretrained_cfg", None) or getattr(network, "default_cfg", None)
    if not isinstance(config, dict) or not {"mean", "std", "input_size"} <= config.keys():
        return None
    channels = channels_of(network, None)
    trained = int(config["input_size"][1]), int(config["input_size"][2])
    size: Size | None = trained if keep_size else None
    if config.get("fixed_input_size") or image_size is not None:
        given = [(image_size, image_size)] if image_size is not None else []
        shapes = [data.train.shape[1:]] if data is not None and not has_tokens(data) else []
        likely = [*given, *sizes_named(network), trained, *((height, width) for height, width in shapes)]
        size = fitting_size(network, channels, [*likely, *((side, side) for side in SIZES)]) or likely[0]
    mean, std = (spread(config[key], channels) for key in ("mean", "std"))
    return InputSpec(channels=channels, size=size, mean=mean, std=std).framed(from_timm(config))


# ---- for which size a network was made, where it is made for one: asked of itself, by trying ------------------------


def fitting_size(network: nn.Module, channels: int, sizes: Iterable[Size]) -> Size | None:
    """The first of the sizes that the network runs at; None where it runs at none, or may not be run yet."""
    if is_unmade(network):  # the first size would be its size for good
        return None
    for size in dict.fromkeys(sizes):
        with suppress(Exception), untouched(network), seeded():  # of whatever kind on images of another size
            network(torch.zeros((2, channels, *size), device=device_of(network)))
            return size
    return None


def sizes_named(network: nn.Module) -> list[Size]:
    """The image sizes, (height, width), that attributes of the network's modules or of its `config` name, the outermost
    module's first."""
    owners = [*network.modules(), getattr(network, "config", None)]
    return list(dict.fromkeys(size for owner in owners for size in _named_in(getattr(owner, "__dict__", {}))))


def _named_in(values: Mapping[str, Any]) -> Iterator[Size]:
    for name, value in values.items():
        if NAMED.search(name):
            pair = (
                (value, value) if type(value) is int else tuple(value)[-2:] if isinstance(value, tuple | list) else ()
            )
            if len(pair) == 2 and all(type(side) is int and side >= LEAST for side in pair):
                yield pair


# ---- how many channels a network takes: found by running it ---------------------------------------------------------


def channels_of(network: nn.Module, data: Data | None) -> int:
    """How many channels a network takes: without data those of its first convolution, else 3.

    Of images as many as they have are tried first, and others only where the network fails on those, or answers with
    another number of samples: what its convolutions take, in order (grey images can be given with any number, colour as
    grey). Of several that run, one that gives an output a class is preferred. Weights, buffers and modes stay as they
    are; a network with lazy layers is copied.
    """
    taken = [module.in_channels for module in network.modules() if isinstance(module, nn.Conv2d)]
    if data is None or has_tokens(data):
        return next(filter(None, taken), 3)
    shape, classes, ran = data.train.shape, len(data.classes), list[int]()
    given = shape[0]
    possible = [n for n in dict.fromkeys([given, *taken, 3, 1]) if n > 0 and (given in (1, n) or (given, n) == (3, 1))]
    for channels in possible:
        outputs = _outputs_given(network, input_for(channels, data), shape)
        if outputs == classes or (outputs is not None and not classes):
            return channels
        ran += [channels] if outputs is not None else []
    return (ran or possible)[0]


def _outputs_given(network: nn.Module, spec: InputSpec, shape: tuple[int, ...]) -> int | None:
    """The size of the class dimension on two blank images; None where the network fails or mixes samples."""
    raw = torch.zeros((2, *shape), dtype=torch.uint8, device=device_of(network))
    try:
        model = Model(copy_network(network) if is_unmade(network) else network, spec)
        with untouched(model.network):
            outputs = run_as_it_can(model, raw)
        refuse_odd(outputs, "it")
    except Exception:
        return None
    return outputs.shape[1] if outputs.dim() > 1 and len(outputs) == 2 else None


def run_as_it_can(model: Model, example: Tensor) -> Any:
    """The outputs on images channels-last and in single precision, as in training; else as the network needs them:
    contiguous, or in the precision of its weights. The model notes which."""
    layouts = ["channels_last", "contiguous"] if model.layout == "channels_last" else [model.layout]
    usual = model.dtype, model.layout
    failure: Any = None
    while True:
        for model.layout in layouts:
            try:
                if is_unmade(model):
                    model(example)
                return _channels_last(model, example) if model.layout == "channels_last" else model(example)
            except Exception as error:
                failure = error
        other = own_dtype(model.network)
        if other is None or model.dtype != torch.float32:
            model.dtype, model.layout = usual
            raise failure
        model.dtype = other


def _channels_last(model: Model, example: Tensor) -> Any:
    """The outputs on images with the strides that data has, of a copy with such weights where it has any."""
    network, dimensions = model.network, {parameter.dim() for parameter in model.parameters()}
    if 4 in dimensions and 5 not in dimensions:  # of volumes torch refuses it
        network = copy_network(network).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model.run(network, example.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2))


# ---- what a model says of what it has learned from ------------------------------------------------------------------


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
