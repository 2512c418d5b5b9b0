"""`load_model`: one front door to every kind of network."""

import copy
import inspect
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from numbers import Integral
from pathlib import Path
from typing import Any

from torch import nn

from ..data.classes import numbers
from ..data.labels import MOST_CLASSES
from ..errors import UserError, shown
from ..files import usable
from ..surgery import rebuild
from ..torch_utils import copy_network, unwrapped
from . import sources, storage, transformers_adapter, zoo
from .description import Description, read_description
from .fit import DataLike, output_classes
from .inputs import InputSpec
from .model import Model
from .placing import channels_last
from .saving import checked
from .specs import TOKENS, channels_of, has_tokens, input_for, input_from_timm, input_of, spread
from .trust import FETCHING, names_code, refuse_untrusted

logger = logging.getLogger(__name__)


def load_model(
    spec: str | Path | nn.Module,
    *,
    data: DataLike | None = None,
    num_classes: int | None = None,
    network: nn.Module | None = None,
    trained: bool = False,
    trust: bool = False,
) -> Model:
    """The model that `spec` names.

    - "zoo:NAME" or "zoo:NAME?key=value&…": a fresh network; "timm:NAME", with "?pretrained=true" for its
      weights; "smp:unet?encoder_name=resnet18" of segmentation-models-pytorch; "transformers:FOLDER" for a causal
      language model, "?pretrained=false" for fresh weights;
    - "package.module:factory": the user's own, called with `num_classes` if it takes that and no default of its own
      will do;
    - a folder with `config.json` and `model.safetensors` (or a run folder with such a `student/`), whose
      model comes in eval mode; where its network was built in Python, `network` is the module to load the
      weights into;
    - an `nn.Module`, used as it is; a `Model`, returned as it is.

    `data` gives a fresh network its classes, channels and normalisation; without it, `num_classes` is
    needed. A `trained` network (a teacher) knows its classes already: it keeps the number of outputs that it
    has by itself where that suffices, and takes no names from the data. Of what a folder names only networks by scheme
    are built; where it names Python, as one made of a factory does, that is run with `trust` alone, but for a class of
    networks that the program has imported itself and that is called on numbers. Fresh weights come from torch's global
    random numbers. Raises `UserError` for anything that cannot be loaded.
    """
    if not isinstance(network, nn.Module | None):
        raise UserError(f"network = {shown(network)} is a {type(network).__name__}; expected an nn.Module: give that.")
    if data is not None and not hasattr(data, "statistics"):
        raise UserError(f"data = {shown(data)} is a {type(data).__name__}; expected Data: give load_data(…).")
    if isinstance(spec, nn.Module):
        spec = unwrapped(spec)
        if empty := [name for name, value in (*spec.named_parameters(), *spec.named_buffers()) if value.is_meta]:
            raise UserError(
                f"{empty[0]!r} of the network is on the meta device, where it has no numbers; expected weights: make "
                "the network on the CPU, or use to_empty(device='cpu') and load them."
            )
    if isinstance(spec, Model):
        return spec
    if isinstance(spec, nn.Module):
        return _from_module(spec, data, trained)
    if not isinstance(spec, str | Path):
        raise UserError(
            f"model {shown(spec)} is a {type(spec).__name__}; give a spec string, a folder or an nn.Module."
        )
    if spec == "":
        raise UserError("a model is named by an empty text; expected a spec such as zoo:resnet20, or a folder.")
    if (
        isinstance(spec, Path)
        or network is not None
        or os.path.exists(spec)
        or not sources.is_source(spec.split("?")[0])
    ):
        return _from_folder(usable(spec, "model"), network, trust, bare=spec if isinstance(spec, str) else "")
    name, arguments = sources.split_query(spec)
    scheme, _, rest = name.partition(":")
    if scheme == "zoo":
        return _from_zoo(rest, arguments, data, num_classes)
    if scheme == "timm":
        return _from_timm(rest, arguments, data, num_classes, trained)
    if scheme == "smp":
        return _from_smp(rest, arguments, data, num_classes)
    if scheme == "transformers":
        return _from_transformers(rest, arguments, data, num_classes)
    return _from_factory(name, arguments, data, num_classes, trained)


def _from_zoo(name: str, arguments: dict[str, Any], data: DataLike | None, num_classes: int | None) -> Model:
    known = zoo.arguments_of(name)
    if data is not None and has_tokens(data) != (name in zoo.LANGUAGE):
        kinds = ("text", "images") if name in zoo.LANGUAGE else ("images", "text")
        other = "zoo:resnet20" if name in zoo.LANGUAGE else "zoo:lstm"
        raise UserError(f"zoo:{name} takes {kinds[0]} but the data is {kinds[1]}; choose another, such as {other}.")
    arguments = arguments | {"num_classes": _class_count(f"zoo:{name}", arguments, data, num_classes)}
    size = None
    if data is not None and not has_tokens(data):
        channels, *size = data.train.shape
        arguments.setdefault("channels", channels)
        if "image_size" in known:
            arguments.setdefault("image_size", max(size))
    elif data is not None and "length" in known:
        arguments.setdefault("length", data.train.shape[0])
    network = zoo.build(name, arguments)
    if name in zoo.FIXED_SIZE:
        size = [arguments.get("image_size", 32)] * 2
    spec = TOKENS if name in zoo.LANGUAGE else input_for(arguments.get("channels", 3), data, size)
    return _fresh(network, spec, f"zoo:{name}", arguments, data)


def _from_timm(
    name: str, arguments: dict[str, Any], data: DataLike | None, num_classes: int | None, trained: bool
) -> Model:
    pretrained = bool(arguments.get("pretrained", False))
    own_head = pretrained and num_classes is None and (data is None or trained) and "num_classes" not in arguments
    if not own_head:
        arguments = arguments | {"num_classes": _class_count(f"timm:{name}", arguments, data, num_classes)}
    network = sources.build_timm(name, arguments)
    arguments = {key: value for key, value in arguments.items() if key not in FETCHING["timm"]}
    arguments.setdefault("num_classes", int(getattr(network, "num_classes", 0)))
    spec = input_from_timm(network, keep_size=pretrained, image_size=arguments.get("img_size"))
    spec = spec or input_for(channels_of(network, data), data)
    return _fresh(network, spec, f"timm:{name}", arguments, data, trained)


def _from_smp(name: str, arguments: dict[str, Any], data: DataLike | None, num_classes: int | None) -> Model:
    channels = arguments.get("in_channels", data.train.shape[0] if data is not None else 3)
    count = _class_count(f"smp:{name}", arguments, data, num_classes)
    arguments = {"in_channels": channels, **arguments, "num_classes": count}
    network = sources.build_smp(name, arguments)
    spec, weights = input_for(channels, data), arguments.pop("encoder_weights", None)
    if weights is not None:
        mean, std = sources.smp_normalisation(name, arguments, weights)
        spec = InputSpec(channels=channels, mean=spread(mean, channels), std=spread(std, channels))
    model = _fresh(network, spec, f"smp:{name}", arguments, data)
    model.task = "segmentation"
    return model


def _from_transformers(name: str, arguments: dict[str, Any], data: DataLike | None, num_classes: int | None) -> Model:
    if data is not None and not has_tokens(data):
        raise UserError(f"transformers:{name} takes text but the data is images; choose another, such as zoo:resnet20.")
    words = len(data.classes) if data is not None else num_classes
    network, source, tokens = transformers_adapter.open_causal(name, arguments, words)
    named = tokens or (data.classes if data is not None and len(data.classes) == network.num_classes else ())
    return Model(network, TOKENS, source, named, "language")


def _from_factory(
    name: str, arguments: dict[str, Any], data: DataLike | None, num_classes: int | None, trained: bool
) -> Model:
    factory = sources.find_factory(name)
    if sources.accepts(factory, "num_classes"):
        unasked = num_classes is None and "num_classes" not in arguments
        if unasked and (trained or data is None or not data.classes):
            by_itself = _by_default(name, factory, arguments, data)
            if by_itself is not None:
                return by_itself
        arguments = arguments | {"num_classes": _class_count(name, arguments, data, num_classes)}
    return _made(name, factory, arguments, data, trained)


def _by_default(
    name: str, factory: Callable[..., Any], arguments: dict[str, Any], data: DataLike | None
) -> Model | None:
    """What a factory makes with the number of classes that is its default; None without one that fits the data."""
    default = sources.default_of(factory, "num_classes")
    if default is inspect.Parameter.empty:
        return None
    if type(default) is int:  # said, so that a folder says it too
        arguments = arguments | {"num_classes": _checked_count(name, default)}
    if data is None or not data.classes:
        return _made(name, factory, arguments, data, trained=True)
    with suppress(UserError):  # it may know the data's number only
        model = _made(name, factory, arguments, data, trained=True)
        return model if output_classes(model, data) >= len(data.classes) else None
    return None


def _made(
    name: str, factory: Callable[..., Any], arguments: dict[str, Any], data: DataLike | None, trained: bool
) -> Model:
    network = sources.call_factory(name, factory, arguments)
    if isinstance(network, Model):
        if network.source["model"] is None:
            network.source = {"model": name, "arguments": arguments}
        return network
    return _fresh(network, input_of(network, data, trained), name, arguments, data, trained)


def _from_module(network: nn.Module, data: DataLike | None, trained: bool) -> Model:
    if data is None and input_from_timm(network, keep_size=True) is None:
        raise UserError(
            f"network {type(network).__name__} does not say how it wants its input; "
            "give data=…, or wrap it as Model(network, InputSpec(mean=…, std=…))."
        )
    spec = input_of(network, data, trained)
    task = data.task if data else "classification"
    classes: Sequence[str] = _own_names(network) if task != "language" else ()
    named = bool(classes)
    if not classes and data is not None and not trained:
        named = _has_names(data) and getattr(data, "in_one_order", True)
        classes = data.classes if named else numbers(len(data.classes))
    return Model(network, spec, None, classes, task, named=named)


def _own_names(network: nn.Module) -> tuple[str, ...]:
    """The names that a network carries for its outputs, as those of Hugging Face do; () where it has none."""
    labels = getattr(getattr(network, "config", None), "id2label", None)
    if isinstance(labels, Mapping) and sorted(labels) == list(range(len(labels))):
        names = tuple(str(labels[number]) for number in range(len(labels)))
        return () if names == tuple(f"LABEL_{number}" for number in range(len(names))) else names
    classes = getattr(network, "classes", None)
    usable = isinstance(classes, list | tuple) and all(isinstance(name, str) for name in classes)
    return tuple(classes) if usable and classes else ()


def _from_folder(path: Path, network: nn.Module | None, trust: bool, bare: str) -> Model:
    if bare in zoo.ZOO and not path.exists():
        raise UserError(f"there is no model folder {bare!r}; for a fresh network of that name write 'zoo:{bare}'.")
    folder = storage.locate(path)
    config = read_description(folder)
    if network is None:
        refuse_untrusted(folder, config, trust)
        return _built(folder, config)
    if names_code(config.model) and not trust:  # the network is the caller's own now
        config = config.model_copy(update={"model": None})
    return _refilled(folder, config, unwrapped(network))


def _built(folder: Path, config: Description) -> Model:
    """The model of a folder that names its network, and may."""
    name, arguments = config.model, config.arguments
    if name is None:
        raise UserError(
            f"the network in {str(folder)!r} was built in Python and cannot be built again by name; "
            f"load it with load_model({str(folder)!r}, network=my_network), where my_network is {_kind(config)} built "
            "as that one was."
        )
    network = rebuild(unwrapped(sources.build_without_trace(name, arguments)), config.structure)
    storage.fit(network, _state(folder, config), name, folder / storage.WEIGHTS, config.digest)
    model = _described_by(config, network)
    if off := checked(model, config.check, config.dtype == "bfloat16"):
        raise UserError(
            f"{name} gives another network than was saved in {str(folder)!r}, with {off}; its code has changed: bring "
            "back what it was, or give the network with load_model(folder, network=my_network)."
        )
    return model


def _refilled(folder: Path, config: Description, network: nn.Module) -> Model:
    """The model of a folder in the user's own network; in a copy of it, where the saved one had other sizes."""
    network = unwrapped(getattr(network, "network", network)) if isinstance(network, Model) else network
    state, structure = _state(folder, config), config.structure
    resized = bool(storage.misfits_of(network, state)) and bool(structure)
    if resized:
        network = rebuild(copy_network(network), structure)
    before = copy.deepcopy(network.state_dict())
    storage.fit(network, state, type(network).__name__, folder / storage.WEIGHTS, config.digest)
    model = _described_by(config, network)
    if off := checked(model, config.check, config.dtype == "bfloat16"):
        network.load_state_dict(before)
        raise UserError(
            f"the network given is another than was saved in {str(folder)!r}, with {off} from the same weights; give "
            f"{_kind(config)} built as that one was."
        )
    if resized:
        logger.info("the network in %s has other sizes than the one given, which stays as it is: see .network", folder)
    return model


def _kind(config: Description) -> str:
    name = config.kind.rpartition(":")[2].rpartition(".")[2]
    return f"a {name}" if name else "one"


def _state(folder: Path, config: Description) -> dict[str, Any]:
    return {**storage.read_weights(folder), **config.extra}


def _described_by(config: Description, network: nn.Module) -> Model:
    if config.memory == "channels_last":
        channels_last(network)
    classes = tuple(config.classes) or numbers(config.num_classes or 0)
    model = Model(
        network,
        config.spec,
        {"model": config.model, "arguments": config.arguments} if config.model is not None else None,
        classes,
        config.task,
        config.structure,
        config.kept,
        named=classes != numbers(len(classes)) if config.named is None else config.named,  # as version 0.1 told neither
    ).eval()
    model.held_out = config.held_out
    return model


def _fresh(
    network: nn.Module,
    spec: InputSpec,
    name: str,
    arguments: dict[str, Any],
    data: DataLike | None,
    trained: bool = False,
) -> Model:
    """A network from its source. It is made for the data's classes, unless it is `trained` or has another number."""
    task, count = data.task if data is not None else "classification", arguments.get("num_classes")
    classes: Sequence[str] = _own_names(network) if trained else ()
    named = bool(classes)
    if not classes and not trained and data is not None and count in (None, len(data.classes)):
        classes, named = data.classes, _has_names(data)
    return Model(
        network, spec, {"model": name, "arguments": arguments}, classes or numbers(count or 0), task, named=named
    )


def _has_names(data: DataLike) -> bool:
    """Whether the data's classes have names rather than numbers."""
    return bool(getattr(data, "named", data.classes != numbers(len(data.classes))))


def _class_count(name: str, arguments: dict[str, Any], data: DataLike | None, num_classes: int | None) -> int:
    for count in (arguments.get("num_classes"), num_classes, len(data.classes) or None if data is not None else None):
        if count is not None:
            return _checked_count(name, count)
    if data is not None:
        raise UserError(
            f"{name} is a fresh network and the data, which has no labels, does not say how many classes it has; write "
            f"{name}?num_classes=…."
        )
    raise UserError(
        f"{name} is a fresh network and nothing says how many classes it has; give data=… or num_classes=…."
    )


def _checked_count(name: str, count: Any) -> int:
    if isinstance(count, bool) or not isinstance(count, Integral) or not 1 <= int(count) <= MOST_CLASSES:
        raise UserError(
            f"{name} got num_classes={shown(count)}; a whole number of classes from 1 to {MOST_CLASSES:,} is expected."
        )
    return int(count)
