"""`load_model`: one front door to every kind of network."""

import copy
import inspect
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from numbers import Integral
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..data import Data
from ..data.classes import numbers
from ..data.labels import MOST_CLASSES
from ..errors import UserError, shown
from ..files import usable
from ..lookup import split_query
from ..numerics import exact
from ..surgery import rebuild
from ..torch_utils import copy_network, seeded, unwrapped
from . import sources, storage, transformers_adapter, zoo
from .description import Description, read_description
from .fit import output_classes
from .inputs import InputSpec
from .model import Model
from .parts import assembled
from .placing import channels_last
from .preprocessing import from_torchvision
from .saving import checked
from .specs import (
    TOKENS,
    as_framed,
    channels_of,
    has_tokens,
    input_by_itself,
    input_for,
    input_from_timm,
    input_of,
    spread,
)
from .trust import FETCHING, names_code, refuse_untrusted

logger = logging.getLogger(__name__)

IMAGES = "classification"  # the task of a network that no data tells


@exact()
def load_model(
    spec: str | Path | nn.Module,
    *,
    data: Data | None = None,
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
        return spec if isinstance(spec, Model) else _from_module(spec, data, trained)
    if not isinstance(spec, str | Path):
        raise UserError(
            f"model {shown(spec)} is a {type(spec).__name__}; give a spec string, a folder or an nn.Module."
        )
    if spec == "":
        raise UserError("a model is named by an empty text; expected a spec such as zoo:resnet20, or a folder.")
    folder = isinstance(spec, Path) or network is not None or os.path.exists(spec)
    if folder or not sources.is_source(str(spec).split("?")[0]):
        return _from_folder(usable(spec, "model"), network, trust, bare=spec if isinstance(spec, str) else "")
    name, arguments = split_query(str(spec))
    makers = {"zoo": _from_zoo, "timm": _from_timm, "smp": _from_smp, "transformers": _from_transformers}
    return makers.get(name.partition(":")[0], _from_factory)(_Order(name, arguments, data, num_classes, trained))


# ---- networks by their source ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Order:
    """A network to be made: its source with the arguments, and what else `load_model` was given."""

    name: str
    arguments: dict[str, Any]
    data: Data | None
    num_classes: int | None
    trained: bool

    @property
    def bare(self) -> str:
        """The name without the scheme."""
        return self.name.partition(":")[2]

    def count(self) -> int:
        """How many classes the network is to have."""
        of_data = None if self.data is None else len(self.data.classes) or None
        for count in (self.arguments.get("num_classes"), self.num_classes, of_data):
            if count is not None:
                return _checked_count(self.name, count)
        if self.data is not None:
            raise UserError(
                f"{self.name} is a fresh network and the data, which has no labels, does not say how many classes it "
                f"has; write {self.name}?num_classes=…."
            )
        raise UserError(
            f"{self.name} is a fresh network and nothing says how many classes it has; give data=… or num_classes=…."
        )


def _checked_count(name: str, count: Any) -> int:
    if isinstance(count, bool) or not isinstance(count, Integral) or not 1 <= int(count) <= MOST_CLASSES:
        raise UserError(
            f"{name} got num_classes={shown(count)}; a whole number of classes from 1 to {MOST_CLASSES:,} is expected."
        )
    return int(count)


def _from_zoo(order: _Order) -> Model:
    name, data, text = order.bare, order.data, order.bare in zoo.LANGUAGE
    known = zoo.arguments_of(name)
    if data is not None and has_tokens(data) != text:
        kinds, other = (("text", "images"), "resnet20") if text else (("images", "text"), "lstm")
        raise UserError(f"zoo:{name} takes {kinds[0]} but the data is {kinds[1]}; choose another, such as zoo:{other}.")
    arguments = order.arguments | {"num_classes": order.count()}
    size = None
    if data is not None and text and "length" in known:
        arguments.setdefault("length", data.train.shape[0])
    elif data is not None and not text:
        channels, *size = data.train.shape
        arguments.setdefault("channels", channels)
        if "image_size" in known:
            arguments.setdefault("image_size", max(size))
    network = zoo.build(name, arguments)
    if name in zoo.FIXED_SIZE:
        size = [arguments.get("image_size", 32)] * 2
    spec = TOKENS if text else input_for(arguments.get("channels", 3), data, size)
    return _fresh(replace(order, trained=False), network, spec, arguments)


def _from_timm(order: _Order) -> Model:
    arguments, data = order.arguments, order.data
    pretrained = bool(arguments.get("pretrained", False))
    asked = order.num_classes is not None or "num_classes" in arguments or (data is not None and not order.trained)
    if asked or not pretrained:  # else it keeps the head it was trained with
        arguments = arguments | {"num_classes": order.count()}
    network = sources.build_timm(order.bare, arguments)
    arguments = {key: value for key, value in arguments.items() if key not in FETCHING["timm"]}
    arguments.setdefault("num_classes", int(getattr(network, "num_classes", 0)))
    spec = input_from_timm(network, keep_size=pretrained, image_size=arguments.get("img_size"))
    spec = spec or input_for(channels_of(network, data), data)
    learned = pretrained or order.trained or "checkpoint_path" in order.arguments
    return _fresh(order, network, spec if learned else as_framed(spec, data), arguments)


def _from_smp(order: _Order) -> Model:
    channels = order.arguments.get("in_channels", order.data.train.shape[0] if order.data is not None else 3)
    arguments = {"in_channels": channels, **order.arguments, "num_classes": order.count()}
    network = sources.build_smp(order.bare, arguments)
    spec, weights = input_for(channels, order.data), arguments.pop("encoder_weights", None)
    if weights is not None:
        mean, std = sources.smp_normalisation(order.bare, arguments, weights)
        spec = InputSpec(channels=channels, mean=spread(mean, channels), std=spread(std, channels))
    model = _fresh(replace(order, trained=False), network, spec, arguments)
    model.task = "segmentation"
    return model


def _from_transformers(order: _Order) -> Model:
    data = order.data
    if data is not None and not has_tokens(data):
        raise UserError(f"{order.name} takes text but the data is images; choose another, such as zoo:resnet20.")
    words = len(data.classes) if data is not None else order.num_classes
    network, source, tokens = transformers_adapter.open_causal(order.bare, order.arguments, words)
    named = tokens or (data.classes if data is not None and len(data.classes) == network.num_classes else ())
    return Model(network, TOKENS, source, named, "language")


def _from_factory(order: _Order) -> Model:
    factory = sources.find_factory(order.name)
    if sources.accepts(factory, "num_classes"):
        unasked = order.num_classes is None and "num_classes" not in order.arguments
        if unasked and (order.trained or order.data is None or not order.data.classes):
            by_itself = _by_default(order, factory)
            if by_itself is not None:
                return by_itself
        order = replace(order, arguments=order.arguments | {"num_classes": order.count()})
    return _made(order, factory)


def _by_default(order: _Order, factory: Callable[..., Any]) -> Model | None:
    """What a factory makes with the number of classes that is its default; None without one that fits the data."""
    default, data = inspect.signature(factory).parameters["num_classes"].default, order.data
    if default is inspect.Parameter.empty:
        return None
    order = replace(order, trained=True)
    if type(default) is int:  # named, so that a folder names it too
        order = replace(order, arguments=order.arguments | {"num_classes": _checked_count(order.name, default)})
    if data is None or not data.classes:
        return _made(order, factory)
    with suppress(UserError):  # it may know the data's number only
        model = _made(order, factory)
        return model if output_classes(model, data) >= len(data.classes) else None
    return None


def _made(order: _Order, factory: Callable[..., Any]) -> Model:
    network = sources.call_factory(order.name, factory, order.arguments)
    if isinstance(network, Model):
        if network.source["model"] is None:
            network.source = {"model": order.name, "arguments": order.arguments}
        return network
    spec = from_torchvision(order.name, order.arguments) or input_of(network, order.data, order.trained)
    return _fresh(order, network, spec, order.arguments)


def _fresh(order: _Order, network: nn.Module, spec: InputSpec, arguments: dict[str, Any]) -> Model:
    """A network from its source. It is made for the data's classes, unless it is `trained` or has another number."""
    data, count = order.data, arguments.get("num_classes")
    classes: Sequence[str] = _names_carried(network) if order.trained else ()
    named = bool(classes)
    if not classes and not order.trained and data is not None and count in (None, len(data.classes)):
        classes, named = data.classes, _has_names(data)
    source, task = {"model": order.name, "arguments": arguments}, data.task if data is not None else IMAGES
    return Model(network, spec, source, classes or numbers(count or 0), task, named=named)


# ---- the user's own networks -----------------------------------------------------------------------------------------


def _from_module(network: nn.Module, data: Data | None, trained: bool) -> Model:
    if data is None and input_by_itself(network, None, trained) is None:
        raise UserError(
            f"network {type(network).__name__} does not say how it wants its input; "
            "give data=…, or wrap it as Model(network, InputSpec(mean=…, std=…))."
        )
    spec = input_of(network, data, trained)
    classes: Sequence[str] = _names_carried(network) if spec.kind == "image" else ()
    named = bool(classes)
    if not classes and data is not None and not trained:
        named = _has_names(data) and getattr(data, "in_one_order", True)
        classes = data.classes if named else numbers(len(data.classes))
    return Model(network, spec, None, classes, data.task if data else IMAGES, named=named)


def _names_carried(network: nn.Module) -> tuple[str, ...]:
    """The names that a network carries for its outputs, as those of Hugging Face do; () where it has none."""
    labels = getattr(getattr(network, "config", None), "id2label", None)
    if isinstance(labels, Mapping) and sorted(labels) == list(range(len(labels))):
        names = tuple(str(labels[number]) for number in range(len(labels)))
        return () if names == tuple(f"LABEL_{number}" for number in range(len(names))) else names
    classes = getattr(network, "classes", None)
    usable = isinstance(classes, list | tuple) and all(isinstance(name, str) for name in classes)
    return tuple(classes) if usable and classes else ()


def _has_names(data: Data) -> bool:
    """Whether the data's classes have names rather than numbers."""
    return bool(getattr(data, "named", data.classes != numbers(len(data.classes))))


# ---- folders ---------------------------------------------------------------------------------------------------------


def _from_folder(path: Path, given: nn.Module | None, trust: bool, bare: str) -> Model:
    """The model of a folder in the network that it names, if it may, or in the one given; in a copy of that, where the
    saved one had other sizes."""
    if bare in zoo.ZOO and not path.exists():
        raise UserError(f"there is no model folder {bare!r}; for a fresh network of that name write 'zoo:{bare}'.")
    folder = storage.locate(path)
    config = read_description(folder)
    kind = f"a {name}" if (name := config.kind.rpartition(":")[2].rpartition(".")[2]) else "one"
    before: dict[str, Any] | None = None
    resized = False
    if given is None:
        refuse_untrusted(folder, config, trust)
        if config.model is None:
            raise UserError(
                f"the network in {str(folder)!r} was built in Python and cannot be built again by name; load it with "
                f"load_model({str(folder)!r}, network=my_network), where my_network is {kind} built as that one was."
            )
        name = config.model
        with seeded():  # its weights will be replaced: the caller's random numbers stay
            made = assembled(config.parts) if config.parts else sources.build(name, config.arguments)
            network = rebuild(unwrapped(made), config.structure)
        state, beside = _state_in(folder, config)
    else:
        if names_code(config.model) and not trust:  # the network is the caller's own now
            config = config.model_copy(update={"model": None})
        network = unwrapped(given)
        network = unwrapped(network.network) if isinstance(network, Model) else network
        name, (state, beside) = type(network).__name__, _state_in(folder, config)
        resized = bool(storage.misfits_of(network, state)) and bool(config.structure)
        network = rebuild(copy_network(network), config.structure) if resized else network
        before = copy.deepcopy(network.state_dict())
    storage.fit(network, state, name, folder / storage.WEIGHTS, config.digest)
    storage.put(network, beside)
    model = _described_by(config, network)
    if off := checked(model, config.check, config.dtype == "bfloat16"):
        if before is not None:
            network.load_state_dict(before)
            raise UserError(
                f"the network given is another than was saved in {str(folder)!r}, with {off} from the same weights; "
                f"give {kind} built as that one was."
            )
        raise UserError(
            f"{name} gives another network than was saved in {str(folder)!r}, with {off}; its code has changed: bring "
            "back what it was, or give the network with load_model(folder, network=my_network)."
        )
    if resized:
        logger.info("the network in %s has other sizes than the one given, which stays as it is: see .network", folder)
    return model


def _state_in(folder: Path, config: Description) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The network's state in a folder, and what tensors there are beside it."""
    weights = storage.read_weights(folder)
    beside = {key: weights.pop(key) for key in config.beside if key in weights}
    return {**weights, **config.extra}, beside


def _described_by(config: Description, network: nn.Module) -> Model:
    if config.memory == "channels_last":
        channels_last(network)
    classes = tuple(config.classes) or numbers(config.num_classes or 0)
    named_by = config.model is not None and not config.parts
    source = {"model": config.model, "arguments": config.arguments} if named_by else None
    named = classes != numbers(len(classes)) if config.named is None else config.named  # version 0.1 told neither
    model = Model(network, config.spec, source, classes, config.task, config.structure, config.kept, named=named).eval()
    model.held_out = config.held_out
    return model
