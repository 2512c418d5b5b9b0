"""What networks that are given in Python may have been made of: read off what they keep, to be tried out."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from torch import nn

from ..lookup import place_of

Source = dict[str, Any]  # as `Model.source`


def sources_of(network: nn.Module) -> Iterator[Source]:
    """Sources that may build a network again, the likeliest first: what its library knows it by, and its class, called
    without arguments or with those that it keeps as attributes. "model" is None where that cannot be imported."""
    kind = type(network)
    if kind.__module__.startswith("timm."):
        yield from _of_timm(network)
    if kind.__module__.startswith("transformers."):
        yield from _of_transformers(network)
    place, kept = place_of(kind), _arguments_of(network)
    yield {"model": place, "arguments": {}}
    if kept:
        yield {"model": place, "arguments": kept}


def _of_timm(network: Any) -> Iterator[Source]:
    config = getattr(network, "pretrained_cfg", None)
    name = config.get("architecture") if isinstance(config, Mapping) else None
    if not name:
        return
    count = int(getattr(network, "num_classes", 0))
    yield {"model": f"timm:{name}", "arguments": _plain(getattr(network, "_model_args", {})) | {"num_classes": count}}


def _of_transformers(network: Any) -> Iterator[Source]:
    with suppress(Exception):  # of a configuration that is no JSON
        config = json.loads(network.config.to_json_string())
        yield {
            "model": f"transformers:{network.config.model_type}",
            "arguments": {"class": type(network).__name__, "config": config},
        }


def _arguments_of(network: nn.Module) -> dict[str, Any]:
    """The plain values that the network keeps under the names of its class's arguments, other than their defaults, as
    JSON gives them back."""
    try:
        parameters = inspect.signature(type(network)).parameters.values()
    except (TypeError, ValueError):
        return {}
    kept = {p.name: (vars(network)[p.name], p.default) for p in parameters if p.name in vars(network)}
    return _plain({key: value for key, (value, default) in kept.items() if not _same(value, default)})


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Those that JSON can hold, as it gives them back."""
    return json.loads(json.dumps({key: value for key, value in values.items() if _is_plain(value)}))


def _same(value: Any, default: Any) -> bool:
    return type(value) is type(default) and bool(value == default)


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(type(key) is str and _is_plain(item) for key, item in value.items())
    return math.isfinite(value) if type(value) is float else value is None or type(value) in (int, str, bool)
