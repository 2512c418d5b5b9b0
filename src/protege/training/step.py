"""One update of a fit phase: losses of a batch, their gradients, the optimizer and the moving average.

It is a function of tensors, so that on a GPU it can be compiled, and recorded and launched as a whole: how far weights
move are tensors there, sums of the losses stay where they are in memory, and the device is asked nothing.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ..data import Batch
from ..errors import told
from ..models.captured import Captured, Recorder, Tensors, steady_of
from ..signals.source import Fields
from ..torch_utils import as_it_was
from .in_progress import FitInProgress
from .schedule import turned

WORTH = 20_000  # updates of a phase from which compiling repays the half minute that it takes, on a GPU
AGAIN = 3  # times that a step may be compiled for one size of batches: no more helps
VARIANTS = 64  # of one function, by phase and size of batches, that torch compiles before it gives up


class Step:
    """Updates the weights of ``fit`` and adds the losses to ``sums``: first `set`, then ``update`` by a batch, this
    process's part of that many rows.

    ``compile`` is the run's setting; ``tell`` says in one sentence where it cannot be followed. ``record`` is that of
    `Captured`.
    """

    def __init__(
        self,
        fit: FitInProgress,
        sums: dict[str, Tensor],
        autocast: Callable[[], AbstractContextManager[Any]],
        accelerator: Accelerator,
        compile: str,
        tell: Callable[[str], None],
        record: Recorder | None = None,
    ) -> None:
        self.fit, self.sums, self.autocast, self.accelerator, self.tell = fit, sums, autocast, accelerator, tell
        self.world, device = accelerator.num_processes, accelerator.device
        gpu = device.type == "cuda"
        for name, value in sums.items():  # of a run that goes on
            sums[name] = value.to(device)
        for group in fit.optimizer.param_groups:
            rate = float(group["lr"])  # of a run that goes on, the last update's
            group["lr"] = torch.tensor(rate, device=device) if gpu else rate
        if fit.average is not None and (gpu or record):
            fit.average.share = torch.ones((), device=device)
        self._step, update = fit.phase.step, self._update
        self._made: Counter[Any] = Counter()  # how often the step was compiled for a size of batches
        if compile == "on" or (compile == "auto" and gpu and fit.steps * fit.epochs >= WORTH):
            self._step, update = self._counted(compiled(self._losses_of)), self._update_compiled
            tell(f"compiling the step of phase {fit.phase.name!r}: the first updates wait for that")
        self.update = update
        if (gpu and compile != "off" and self.world == 1) or record:
            captured = Captured(
                self._update_by,
                device,
                state=self._state,
                steady=lambda: steady_of(fit.trainee, device),
                kept=lambda: as_it_was(fit.trainee),
                failed=self._failed("recorded"),
                record=record,
            )
            self.update = lambda batch, rows: captured(tensors_of(batch), lambda: update(batch, rows))

    def set(self, scale: float) -> None:
        """Say how far the next update moves: at ``scale`` times the peak rates."""
        for group in self.fit.optimizer.param_groups:
            group["lr"] = turned(group["lr"], group["initial_lr"] * scale)
        if self.fit.average is not None:
            self.fit.average.set()

    def _update(self, batch: Batch, rows: int) -> None:
        fit, settings, wrapped = self.fit, self.fit.settings, self.fit.wrapped
        pieces = batch.chunks(settings.accumulate)
        for piece in pieces:
            with nullcontext() if piece is pieces[-1] else self.accelerator.no_sync(wrapped):
                with self.autocast():
                    losses = self._step(wrapped, piece)
                share = len(piece) * self.world / rows  # an average over the rows of every process
                self.accelerator.backward(losses["loss"] * share)
            for name, value in losses.items():
                part = value.detach() * (share / self.world)
                self.sums[name] = self.sums[name].add_(part) if name in self.sums else part
        if self.world > 1:
            fit.refuse_unreached()
        parameters = list(fit.trainee.parameters())
        for parameter in parameters:  # not every optimizer knows an embedding's sparse ones
            if parameter.grad is not None and parameter.grad.layout != torch.strided:
                parameter.grad = parameter.grad.to_dense()
        if settings.clip:
            self.accelerator.clip_grad_norm_(parameters, settings.clip)
        fit.optimizer.step()
        fit.optimizer.zero_grad()
        if fit.average is not None:
            fit.average.move()

    # ---- where the whole is more than its calls one by one --------------------------------------------------------

    def _update_by(self, tensors: Tensors) -> None:
        batch = Anonymous.of(tensors)
        self._update(batch, len(batch))

    def _update_compiled(self, batch: Batch, rows: int) -> None:
        """An update whose step is compiled, until it cannot be or has to be compiled again and again."""
        try:
            self._update(batch, rows)
        except Exception as error:
            if not _of_compiling(error):  # what the step itself raises
                raise
            self._not_compiled(error)
            self._update(batch, rows)
        if max(self._made.values(), default=0) > AGAIN:
            self._not_compiled(Placeless("it has to be compiled anew in each update"))

    def _counted(self, run: Callable[[Tensors], dict[str, Tensor]]) -> Callable[..., dict[str, Tensor]]:
        """The phase's step by what is compiled of it."""

        def step(trainee: nn.Module, batch: Batch) -> dict[str, Tensor]:
            tensors, before = tensors_of(batch), graphs_made()
            losses = run(tensors)
            if graphs_made() > before:
                self._made[tuple(value.shape for value in tensors.values())] += 1
            return losses

        return step

    def _not_compiled(self, error: Exception) -> None:
        self._step = self.fit.phase.step
        self._made.clear()
        self._failed("compiled")(error)

    def _losses_of(self, tensors: Tensors) -> dict[str, Tensor]:
        return self.fit.phase.step(self.fit.wrapped, Anonymous.of(tensors))

    def _state(self) -> list[Tensor]:
        """All that an update changes."""
        fit = self.fit
        networks = [fit.trainee, *([fit.average.module] if fit.average else [])]
        values = [value for network in networks for value in (*network.parameters(), *network.buffers())]
        kept = [value for state in fit.optimizer.state.values() for value in state.values()]
        return [*values, *(value for value in kept if isinstance(value, Tensor)), *self.sums.values()]

    def _failed(self, how: str) -> Callable[[Exception], None]:
        def failed(error: Exception) -> None:
            self.fit.optimizer.zero_grad()
            name = self.fit.phase.name
            self.tell(f"the step of phase {name!r} cannot be {how} ({told(error)}) and runs as it is, which is slower.")

        return failed


class Placeless(AttributeError):
    """What is asked of a batch is another thing in each call."""


class Anonymous(Batch):
    """A batch within what is compiled or recorded: it does not know which samples it has, as these are others in each
    call."""

    def __init__(self, inputs: Tensor, labels: Tensor, signals: dict[str, dict[str, Tensor]]) -> None:
        self.inputs, self.labels, self.signals = inputs, labels, signals

    @classmethod
    def of(cls, tensors: Tensors) -> Anonymous:
        """From what `tensors_of` gives."""
        signals: dict[str, dict[str, Tensor]] = {}
        for (source, name), value in tensors.items():
            if source is not None:
                signals.setdefault(source, Fields())[name] = value
        return cls(tensors[None, "inputs"], tensors[None, "labels"], signals)

    def __len__(self) -> int:
        return len(self.inputs)

    def __getattr__(self, name: str) -> Any:
        raise Placeless(f"a step that is compiled or recorded has no {name!r} of its batch")

    def _map(self, change: Callable[[Tensor], Tensor]) -> Anonymous:
        return type(self).of({name: change(value) for name, value in tensors_of(self).items()})

    def _cut(self, cut: slice) -> Anonymous:
        return self._map(lambda x: x[cut])


def tensors_of(batch: Batch) -> Tensors:
    """The tensors of a batch by source (None: the data) and name."""
    signals = {(source, name): value for source, fields in batch.signals.items() for name, value in fields.items()}
    return {(None, "inputs"): batch.inputs, (None, "labels"): batch.labels, **signals}


def compiled(function: Callable[[Tensors], Any]) -> Callable[[Tensors], Any]:
    """The function, compiled for each size of batches, with the random numbers that it draws as it is."""
    from torch import _dynamo  # slow to import

    _dynamo.config.cache_size_limit = max(_dynamo.config.cache_size_limit, VARIANTS)
    _dynamo.config.use_numpy_random_stream = True
    if not os.environ.get("TORCH_LOGS"):
        logging.getLogger("torch._dynamo").setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", module=r"torch\._dynamo")
    return torch.compile(function, dynamic=False, options={"fallback_random": True})


def _of_compiling(error: Exception) -> bool:
    """Whether it was raised because something is compiled, and not by what is."""
    torchs = sys.modules.get("torch._dynamo.exc")
    return isinstance(error, Placeless) or (torchs is not None and isinstance(error, torchs.TorchDynamoException))


def graphs_made() -> int:
    """How many graphs torch has compiled in this process."""
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]
