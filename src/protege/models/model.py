"""A network together with how it wants its input, how to build it again, and what its outputs mean."""

import importlib
import inspect
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from protege.errors import UserError
from protege.models import sources, storage
from protege.models.inputs import InputSpec
from protege.outputs import logits_in
from protege.surgery import rebuild, record

logger = logging.getLogger(__name__)

UNNAMED_NOTE = "built in Python: load with protege.models.load_model(folder, network=my_network)"


class Model(nn.Module):
    """`network`, the user's own untouched module, behind its `input` spec: raw input → the network's outputs.

    `source` tells how to build the network again, as {"model": "zoo:resnet20", "arguments": {"num_classes":
    10}}; without one the network is the user's own instance. `classes` are the names of its outputs, () where
    unknown.

    Of a network that was shrunk, `structure` are the edits that make it of a fresh one of its source
    (`protege.surgery.structure`), and `kept` tells for each layer by name which output channels of the network
    it was first shrunk from it still has; both are empty for others.

    `layout` is the memory layout in which the network can run: "channels_last", or "contiguous" for one that
    fails on channels-last images (one that calls `x.view`, say), as `check_classes` finds out. Such a network
    gets contiguous input, and its weights must not be made channels-last.
    """

    layout: str = "channels_last"

    def __init__(
        self,
        network: nn.Module,
        input: InputSpec,
        source: dict[str, Any] | None = None,
        classes: tuple[str, ...] = (),
        task: str = "classification",
        structure: Sequence[Mapping[str, Any]] = (),
        kept: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.input = input
        self.source = source or {"model": None, "arguments": {}}
        self.classes = tuple(classes)
        self.task = task
        self.structure = [dict(edit) for edit in structure]
        self.kept = {name: list(channels) for name, channels in (kept or {}).items()}

    def forward(self, raw: Tensor) -> Any:
        """Raw images [B, C, H, W] (uint8 or 0..1 floats) or tokens [B, L] → the network's outputs; of outputs
        that hold `logits` among others, as Hugging Face's do, these."""
        return self.run(self.network, raw)

    def run(self, network: nn.Module, raw: Tensor) -> Any:
        """`forward` through another network in the place of the own one."""
        return logits_in(network(self.prepared(raw)))

    def prepared(self, raw: Tensor) -> Tensor:
        """What the network itself is called on."""
        ready = self.input(raw)
        if self.layout == "contiguous":  # one channel is contiguous in both layouts, but not by its strides
            ready = ready.contiguous().flatten().view(ready.shape)
        return ready

    def save(self, folder: str | Path, *, dtype: str | None = None, overwrite: bool = False) -> Path:
        """Write `config.json` and `model.safetensors` into `folder`, atomically, and return the folder.

        `dtype` "bfloat16" or "float32" stores floating weights so; integers stay as they are. An existing
        model is not replaced unless `overwrite`; then, or where the folder cannot be written, `UserError`.
        """
        folder = Path(folder)
        weights = storage.weights_of(self.network, dtype)
        source, structure = saved_source(self)
        config = {
            "format": storage.FORMAT,
            **source,
            "task": self.task,
            "classes": list(self.classes),
            "input": self.input.to_dict(),
            "dtype": storage.dtype_of(weights),
        }
        if structure:
            config["structure"] = structure
        if self.kept:
            config["kept"] = self.kept
        if source["model"] is None:
            config["note"] = UNNAMED_NOTE
            logger.warning("the network cannot be built again by name; %s is %s", folder, UNNAMED_NOTE)
        storage.write(folder, config, weights, overwrite)
        return folder


def saved_source(model: Model) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The source and structure for `config.json`, tried out: they must give the network's own keys and shapes.

    The structure is that of the network as it is now, [] where it is its source's. A network changed in ways that no
    structure tells, and an instance whose class cannot make an equal one without arguments, have no source: "model" is
    then None.
    """
    unnamed: tuple[dict[str, Any], list[dict[str, Any]]] = ({"model": None, "arguments": {}}, [])
    source = dict(model.source)
    own_instance = source["model"] is None
    if own_instance:
        source = _class_source(model.network)
    if source["model"] is None:
        return unnamed
    structure: list[dict[str, Any]] = []
    try:
        rebuilt = _skeleton(source)
        if model.structure or storage.misfits_of(rebuilt, model.network.state_dict()):
            structure = record(rebuilt, model.network)
            rebuilt = rebuild(rebuilt, structure)
    except Exception as error:
        if isinstance(error, UserError) and not own_instance:
            logger.warning("the network's structure cannot be told: %s", error)
        return unnamed
    same = not storage.misfits_of(rebuilt, model.network.state_dict())
    return (source, structure) if same and (not own_instance or _same_settings(rebuilt, model.network)) else unnamed


def _skeleton(source: dict[str, Any]) -> nn.Module:
    if source["model"].startswith("zoo:"):
        with torch.device("meta"):
            return sources.build(source["model"], source["arguments"])
    return sources.build_without_trace(source["model"], source["arguments"])


def _class_source(network: nn.Module) -> dict[str, Any]:
    kind = type(network)
    unnamed: dict[str, Any] = {"model": None, "arguments": {}}
    if kind.__module__ == "__main__" or "<" in kind.__qualname__:
        return unnamed
    try:
        found: Any = importlib.import_module(kind.__module__)
        for part in kind.__qualname__.split("."):
            found = getattr(found, part)
        inspect.signature(kind).bind()
    except (ImportError, AttributeError, TypeError, ValueError):
        return unnamed
    return {"model": f"{kind.__module__}:{kind.__qualname__}", "arguments": {}} if found is kind else unnamed


def _same_settings(first: nn.Module, second: nn.Module) -> bool:
    """Whether two module trees agree in types and plain attributes: strides, switches and so on."""

    def settings(network: nn.Module) -> list[tuple[str, type, dict[str, Any]]]:
        plain = (int, float, str, bool, tuple, list, type(None))
        return [
            (
                name,
                type(module),
                {key: value for key, value in vars(module).items() if isinstance(value, plain)},
            )
            for name, module in network.named_modules()
        ]

    def untrained(entries: list[tuple[str, type, dict[str, Any]]]) -> list[tuple[str, type, dict[str, Any]]]:
        return [(name, kind, {k: v for k, v in values.items() if k != "training"}) for name, kind, values in entries]

    return untrained(settings(first)) == untrained(settings(second))
