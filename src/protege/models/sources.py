"""Where networks come from: the zoo, other libraries, and the user's own Python, each named by one string.

A source is `zoo:NAME`, `timm:NAME`, `smp:NAME`, `transformers:NAME` or `package.module:factory`; with its
arguments it is all that `config.json` needs to build the network again. Arguments may follow a spec as in
`zoo:resnet18?stem=imagenet`.
"""

import inspect
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import nn

from ..errors import UserError, nearest
from ..lookup import find_callable, typed
from . import transformers_adapter, zoo

SCHEMES = ("zoo", "timm", "smp", "transformers")
_FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


def is_source(name: str) -> bool:
    """Whether the text has the form of a source rather than of a folder."""
    return name.partition(":")[0] in SCHEMES or _FACTORY.fullmatch(name) is not None


def build(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """The network that source `name` makes of `arguments`. `UserError` for whatever is wrong with either."""
    scheme, _, rest = name.partition(":")
    if scheme == "zoo":
        return zoo.build(rest, arguments)
    if scheme == "timm":
        return build_timm(rest, arguments)
    if scheme == "smp":
        return build_smp(rest, arguments)
    if scheme == "transformers":
        return transformers_adapter.build(rest, arguments)
    network = call_factory(name, find_factory(name), arguments)
    return getattr(network, "network", network) if hasattr(network, "input") else network  # one that gave a Model


def find_factory(name: str) -> Callable[..., Any]:
    """The callable at `package.module:attribute`, see `find_callable`."""
    return find_callable(name, "model", "makes a network", ", or use zoo:NAME or timm:NAME", SCHEMES)


def call_factory(name: str, factory: Callable[..., Any], arguments: Mapping[str, Any]) -> nn.Module:
    """What the user's factory returns, which must be an `nn.Module`."""
    try:
        network = factory(**arguments)
    except (Exception, SystemExit) as error:
        given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        raise UserError(f"calling {name}({given}) fails with {typed(error)}; correct the call or factory.") from error
    if not isinstance(network, nn.Module):
        raise UserError(
            f"calling {name} gives a {type(network).__name__}, not an nn.Module; return the network itself."
        )
    return network


def accepts(factory: Callable[..., Any], argument: str) -> bool:
    """Whether a callable takes the named argument (a `**kwargs` is no promise that it is understood)."""
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):
        return False
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return argument in parameters and parameters[argument].kind in kinds


def build_timm(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """`timm.create_model`, with its failures in one sentence each."""
    path = arguments.get("checkpoint_path")
    if path and not str(path).endswith(".safetensors"):
        raise UserError(
            f"timm:{name} got checkpoint_path={path!r}, which some versions of timm unpickle; expected a .safetensors "
            "file: convert it, or load it with weights_only in a function of your own."
        )
    timm = transformers_adapter.library("timm", "timm")
    if not timm.is_model(name):
        hint = nearest(name, timm.list_models(), "timm.list_models() names them all")
        raise UserError(f"timm has no model {name!r}; {hint}.")
    return _built(f"timm:{name}", partial(timm.create_model, name), arguments, arguments)


def build_smp(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """A network of segmentation-models-pytorch; with fresh weights unless `encoder_weights` names others."""
    library = transformers_adapter.library("smp", "segmentation_models_pytorch")
    known = library.MODEL_ARCHITECTURES_MAPPING
    if name.lower() not in known:
        raise UserError(f"segmentation-models-pytorch has no model {name!r}; {nearest(name.lower(), known)}.")
    options = set(inspect.signature(known[name.lower()]).parameters) - {"kwargs", "classes"} | {"num_classes"}
    for key in arguments:
        if key not in options:  # the library takes any, and does nothing with it
            raise UserError(f"smp:{name} has no argument {key!r}; {nearest(key, options)}.")
    given = {key: value for key, value in arguments.items() if key != "num_classes"}
    make = partial(library.create_model, name, classes=arguments["num_classes"])
    return _built(f"smp:{name}", make, arguments, {"encoder_weights": None, **given})


def _built(source: str, make: Callable[..., Any], arguments: Mapping[str, Any], given: Mapping[str, Any]) -> nn.Module:
    try:
        return make(**given)
    except Exception as error:
        text = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        raise UserError(f"{source} cannot be built with {text}: {typed(error)}; correct the arguments.") from error


def smp_normalisation(
    name: str, arguments: Mapping[str, Any], weights: str
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of the images, in [0, 1], that the weights of a network's encoder were trained on."""
    library = transformers_adapter.library("smp", "segmentation_models_pytorch")
    default = inspect.signature(library.MODEL_ARCHITECTURES_MAPPING[name.lower()]).parameters["encoder_name"].default
    encoder = arguments.get("encoder_name", default)
    try:
        used = library.encoders.get_preprocessing_params(encoder, weights)
    except Exception as error:
        raise UserError(
            f"how {weights!r} weights of {encoder!r} want their input cannot be read ({typed(error)}); check the "
            "connection, or wrap the network as Model(network, InputSpec(mean=…, std=…))."
        ) from error
    return tuple(used["mean"]), tuple(used["std"])
