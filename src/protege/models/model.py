"""A network together with how it wants its input, how to build it again, and what its outputs mean."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from ..data.classes import read_naming
from ..data.labels import BY_CONTENT
from ..errors import UserError, shown
from ..files import usable
from ..outputs import logits_in
from ..settings import public
from ..torch_utils import unwrapped
from . import storage
from .description import FORMAT, TaskName
from .inputs import InputSpec
from .placing import is_channels_last, make_writable
from .saving import Described, described

logger = logging.getLogger(__name__)

NOTE = "built in Python: load with protege.load_model(folder, network=my_network)"


class Model(nn.Module):
    """`network`, the user's own untouched module, behind its `input` spec: raw input → the network's outputs.

    `source` tells how to build the network again, as {"model": "zoo:resnet20", "arguments": {"num_classes":
    10}}; without one the network is the user's own instance. `classes` are the names of its outputs (a list, {name:
    number}, or how many there are), () where unknown; not `named`, they are only the outputs' numbers, made up for a
    set without names.

    Of a network that was shrunk, `structure` are the edits that make it of a fresh one of its source
    (`protege.surgery.pruning.structure`), and `kept` tells for each layer by name which output channels of the network
    it was first shrunk from it still has; both are empty for others.

    `layout` is the memory layout in which the network can run: "channels_last", or "contiguous" for one that
    fails on channels-last images (one that calls `x.view`, say), as `check_classes` finds out. Such a network
    gets contiguous input, and its weights must not be made channels-last. `dtype` is the type of its input, that of its
    weights where it fails on single precision, and `autocast` whether it may run in another precision than its own, as
    quantised networks may not. `shape` is that of one raw input on which it is known to run. All are found out there.

    `held_out` tells how test samples were held out of what it has learned from, see `protege.data.Data`.
    """

    layout: str = "channels_last"
    dtype: torch.dtype = torch.float32
    autocast: bool = True
    shape: tuple[int, ...] | None = None
    held_out: str = BY_CONTENT

    @public
    def __init__(
        self,
        network: nn.Module,
        input: InputSpec,
        source: dict[str, Any] | None = None,
        classes: Any = (),
        task: str = "classification",
        structure: Sequence[Mapping[str, Any]] = (),
        kept: Mapping[str, Sequence[int]] | None = None,
        named: bool = True,
    ) -> None:
        super().__init__()
        self.network = unwrapped(network)
        if any(isinstance(module, torch.jit.ScriptModule) for module in self.network.modules()):
            raise UserError(
                f"the network {type(network).__name__} is TorchScript, which is not supported; give the nn.Module that "
                "it was made of."
            )
        make_writable(self.network)
        self.input = input
        self.source = source or {"model": None, "arguments": {}}
        naming = read_naming(classes, "classes of the model")
        self.classes: tuple[str, ...] = naming.names if naming else ()
        self.named = naming is not None and naming.named and named
        if task not in get_args(TaskName):
            tasks = ", ".join(get_args(TaskName))
            raise UserError(f"the task {shown(task)} of the model is unknown; expected one of {tasks}: change task=….")
        self.task = task
        self.structure = [dict(edit) for edit in structure]
        self.kept = {name: list(channels) for name, channels in (kept or {}).items()}

    def forward(self, raw: Tensor) -> Any:
        """Raw images [B, C, H, W] (uint8 or 0..1 floats) or tokens [B, L] → the network's outputs; of outputs
        that hold `logits` among others, as Hugging Face's do, these."""
        return self.run(self.network, raw)

    def run(self, network: nn.Module, raw: Tensor) -> Any:
        """`forward` through another network in the place of the own one."""
        if self.autocast:
            return self._rows(logits_in(network(self.prepared(raw))))
        with torch.autocast(raw.device.type, enabled=False):
            outputs = self._rows(logits_in(network(self.prepared(raw))))
        return outputs.float() if isinstance(outputs, Tensor) else outputs

    def _rows(self, outputs: Any) -> Any:
        """Outputs of a classifier as [B, K], also of one that leaves pixels of which there is one: [B, K, 1, 1]."""
        pixels = isinstance(outputs, Tensor) and outputs.dim() > 2 and self.input.kind == "image"
        if pixels and self.task != "segmentation" and outputs.shape[2:].numel() == 1:
            return outputs.flatten(1)
        return outputs

    def prepared(self, raw: Tensor) -> Tensor:
        """What the network itself is called on."""
        ready = self.input(raw)
        if self.layout == "contiguous":  # one channel is contiguous in both layouts, but not by its strides
            ready = ready.contiguous().flatten().view(ready.shape)
        return ready if self.dtype == torch.float32 or not ready.is_floating_point() else ready.to(self.dtype)

    @public
    def save(self, folder: str | Path, *, dtype: str | None = None, overwrite: bool = False) -> Path:
        """Write `config.json` and `model.safetensors` into `folder`, atomically, and return the folder.

        `dtype` "bfloat16" or "float32" stores floating weights so; integers stay as they are. An existing
        model is not replaced unless `overwrite`; then, or where the folder cannot be written, `UserError`. Whether the
        network can be built again by name is tried out; where that would give another one, "model" is null and a
        warning tells how to load it.
        """
        folder = usable(folder, "folder", "written")
        weights, extra = storage.weights_of(self.network, dtype)
        found = described(self)
        kind = type(self.network)
        config = {
            "format": FORMAT,
            **found.source,
            "task": self.task,
            "classes": list(self.classes),
            "named": self.named,
            "input": self.input.to_dict(),
            "held_out": self.held_out,
            "dtype": storage.dtype_of(weights),
            "memory": "channels_last" if is_channels_last(self.network) else "contiguous",
        }
        config |= {key: value for key, value in self._optional(found, extra).items() if value}
        if found.source["model"] is None:
            config |= {"note": NOTE, "class": f"{kind.__module__}:{kind.__qualname__}", "call": found.call}
        storage.write(folder, config, weights, overwrite)
        if found.source["model"] is None:
            logger.warning(
                "the network cannot be built again by name, as %s; load it with protege.load_model(%r, network=%s)",
                found.why,
                str(folder),
                found.call,
            )
        return folder

    def check_savable(self) -> None:
        """Raise `UserError` where the network has a state that `save` could not write."""
        storage.checked_state(self.network)

    def _optional(self, found: Described, extra: Mapping[str, Any]) -> dict[str, Any]:
        return {"structure": found.structure, "kept": self.kept, "extra": extra, "check": found.check}

    def __prepare_scriptable__(self) -> nn.Module:
        raise UserError(
            "TorchScript of a Model is not supported; expected torch.export: use protege.export(model, to='onnx') or "
            "torch.export.export(model, (images,)), or torch.jit.trace(model, images)."
        )


def saved_source(model: Model) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The source and structure for `config.json`, tried out; "model" is None where nothing builds the network again."""
    found = described(model)
    return found.source, found.structure
