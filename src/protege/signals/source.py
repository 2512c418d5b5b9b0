"""What a frozen network is asked for.

A method asks a `Source` (a frozen network: the teacher, or a student's frozen prefix) for signals. Whether they
come from a forward pass or from the cache is not the method's business. A signal turns outputs and tapped
features into named fields, tensors whose first dimension is the sample.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..surgery import feature, first_outputs
from ..tasks import Task
from ..torch_utils import eval_mode
from .identity import fingerprint


class Signal(Protocol):
    """Something a frozen network can be asked for; frozen and hashable, its ``repr`` identifies it."""

    @property
    def module(self) -> str | None:
        """Name of the module whose output it needs; None: the network's outputs."""

    def fields(self, output: Tensor, task: Task) -> dict[str, Tensor]:
        """Named tensors ``[N, …]`` made from the output of that module."""


class Fields(dict[str, Tensor]):
    """What a source says about a batch, by name; one that is not there is told with those that are."""

    def __missing__(self, name: str) -> Tensor:
        raise KeyError(f"{name}; there are {', '.join(self)}")


@dataclass(frozen=True)
class Logits:
    """The logits in full: field ``logits``, shaped like the network's outputs."""

    module: None = field(default=None, init=False)

    def fields(self, output: Tensor, task: Task) -> dict[str, Tensor]:
        return {"logits": output}


@dataclass(frozen=True)
class Outputs:
    """All that the network returns, a tensor or a tuple of them: fields ``0``, ``1`` and so on."""

    module: None = field(default=None, init=False)

    def fields(self, output: Any, task: Task) -> dict[str, Tensor]:
        return {str(i): value for i, value in enumerate(output if isinstance(output, tuple) else (output,))}


@dataclass(frozen=True)
class TopK:
    """The k largest probabilities at a temperature: fields ``probs`` and ``classes``, k in place of K.

    All that KD-topk needs (Tang et al. 2020, section 3): the rest of the mass is spread evenly.
    """

    k: int
    temperature: float = 1.0
    module: None = field(default=None, init=False)

    def fields(self, output: Tensor, task: Task) -> dict[str, Tensor]:
        probs = (output.float() / self.temperature).softmax(task.class_dim)
        count = probs.shape[task.class_dim]
        probs, classes = probs.topk(min(self.k, count), dim=task.class_dim)
        return {"probs": probs, "classes": classes.to(torch.int16 if count < 2**15 else torch.int32)}


@dataclass(frozen=True)
class Feature:
    """The output of a named module: field ``feature:NAME``."""

    module: str

    def fields(self, output: Tensor, task: Task) -> dict[str, Tensor]:
        return {f"feature:{self.module}": output}


class Source:
    """A frozen network and the signals asked of it.

    ``network`` is called on raw inputs; ``name`` is the key under which a batch carries the fields. ``together`` are
    signals that other phases will ask for: where there is room, one pass remembers all. ``lasting``
    says whether other runs will want the same signals: those of a student's own frozen stages go when their phase ends.
    Raises `UserError` when a signal names a module that the network does not have.
    """

    def __init__(
        self,
        name: str,
        network: nn.Module,
        signals: Sequence[Signal],
        task: Task,
        lasting: bool = True,
        together: Sequence[Signal] = (),
    ) -> None:
        self.name, self.network, self.signals, self.task = name, network, tuple(signals), task
        self.lasting = lasting
        together = [*together, *(signal for signal in signals if signal not in together)] if together else []
        self.remembered = Source(name, network, together, task, lasting) if together else self
        inner = getattr(network, "network", network)  # names are those of the user's own module
        modules = dict(inner.named_modules(remove_duplicate=False))
        self._taps: dict[str, nn.Module] = {}
        for signal in self.signals:
            if signal.module is None:
                continue
            if signal.module not in modules:
                raise UserError(
                    f"the {name} has no module {signal.module!r}; expected one of its named modules, such as "
                    f"{', '.join(list(modules)[1:6])}."
                )
            self._taps[signal.module] = modules[signal.module]

    @torch.no_grad()
    def compute(self, inputs: Tensor) -> dict[str, Tensor]:
        """Fields of a batch of raw inputs, by one forward pass that stops after the last tapped module.

        The network runs in eval mode and its modes are as before afterwards: it may share modules with what learns.
        """
        outputs: Any = None
        stop = all(signal.module is not None for signal in self.signals)
        with eval_mode(self.network), first_outputs(self._taps, stop) as heard:
            outputs = self.network(inputs)
        for name in self._taps:
            if name not in heard:
                raise UserError(
                    f"the module {name!r} of the {self.name} is never called in a forward pass; expected one that is: "
                    "name another."
                )
        fields: dict[str, Tensor] = {}
        for signal in self.signals:
            output = outputs if signal.module is None else feature(heard[signal.module])
            fields.update(signal.fields(output, self.task))
        return fields

    def fingerprint(self) -> str:
        """Digest of the network's weights and input handling, and of the signals asked for."""
        digest = hashlib.blake2b(repr(self.signals).encode(), digest_size=16)
        digest.update(fingerprint(self.network).encode())
        return digest.hexdigest()
