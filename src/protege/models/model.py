"""A network together with how it wants its input, how to build it again, and what its outputs mean."""

import logging
import re
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..data.classes import read_naming
from ..data.labels import BY_CONTENT
from ..errors import UserError, shown
from ..files import usable
from ..settings import public
from ..torch_utils import logits_in, unwrapped, without_autocast
from . import storage
from .description import FORMAT, TASK
from .inputs import InputSpec
from .placing import is_channels_last, make_writable
from .saving import ROUGH, described, rounding

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

    `task` is the name of what it has learned: one of `protege.tasks`, or `package.module:name` of somebody's, of which
    no code is run to read it.

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
        if not re.fullmatch(TASK, task):
            raise UserError(
                f"the task {shown(task)} of the model is no name; expected that of a task, such as 'classification', "
                "or package.module:name: change task=…."
            )
        self.task = task
        self.structure = [dict(edit) for edit in structure]
        self.kept = {name: list(channels) for name, channels in (kept or {}).items()}

    def forward(self, raw: Tensor) -> Any:
        """Raw images [B, C, H, W] (uint8 or 0..1 floats) or tokens [B, L] → the network's outputs; of outputs
        that hold `logits` among others, as Hugging Face's do, these."""
        return self.run(self.network, raw)

    def run(self, network: nn.Module, raw: Tensor) -> Any:
        """`forward` through another network in the place of the own one."""
        with nullcontext() if self.autocast else without_autocast(raw.device):
            outputs = logits_in(network(self.prepared(raw)))
        if not isinstance(outputs, Tensor):
            return outputs
        if self.input.kind == "image" and outputs.dim() > 2 and outputs.shape[2:].numel() == 1 < raw.shape[2:].numel():
            outputs = outputs.flatten(1)  # of a classifier that leaves pixels, of which there is one: [B, K, 1, 1]
        return outputs if self.autocast else outputs.float()

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
        description, kind = described(self), type(self.network)
        if dtype == "bfloat16" and (off := rounding(self, {**weights, **extra})) > ROUGH:
            raise UserError(
                f"the network gives outputs that are {off:.2g} of the largest away once its weights are bfloat16; "
                "expected little: save it with dtype='float32'."
            )
        config = {
            "format": FORMAT,
            **description.source,
            "task": self.task,
            "classes": list(self.classes),
            "named": self.named,
            "input": self.input.to_dict(),
            "held_out": self.held_out,
            "dtype": storage.dtype_of(weights),
            "memory": "channels_last" if is_channels_last(self.network) else "contiguous",
        }
        more = {"structure": description.structure, "kept": self.kept, "extra": extra, "check": description.check}
        more["parts"] = description.parts
        config |= {key: value for key, value in more.items() if value}
        if description.beside:
            config["beside"], weights = sorted(description.beside), weights | description.beside
        if description.source["model"] is None:
            config |= {"note": NOTE, "class": f"{kind.__module__}:{kind.__qualname__}", "call": description.call}
        storage.write(folder, config, weights, overwrite)
        if description.source["model"] is None:
            logger.warning(
                "the network cannot be built again by name, as %s; load it with protege.load_model(%r, network=%s)",
                description.why,
                str(folder),
                description.call,
            )
        return folder

    def check_savable(self) -> None:
        """Raise `UserError` where the network has a state that `save` could not write."""
        storage.checked_state(self.network)

    def __prepare_scriptable__(self) -> nn.Module:
        raise UserError(
            "TorchScript of a Model is not supported; expected torch.export: use protege.export(model, to='onnx') or "
            "torch.export.export(model, (images,)), or torch.jit.trace(model, images)."
        )
