"""A method is a plan of phases: what learns, from which signals, by which objective, for how long.

The runner executes them. Nothing here knows a method; a method file builds phases and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from ..data import Batch
from ..teacher import Source


class FitSettings(BaseModel):
    """How a fit phase trains. Every key is an option of the command line, a key of a recipe, and an argument."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    epochs: int | None = Field(
        None,
        ge=1,
        description="passes over the training samples; default: about 3,000 updates, 30 to 300 epochs",
    )
    batch_size: int | None = Field(
        None,
        ge=1,
        description="samples in an update, over all processes; default: a tenth of them, 16 to 128",
    )
    optimizer: Literal["sgd", "adamw"] = Field("sgd", description="sgd has Nesterov momentum")
    lr: float | None = Field(
        None, gt=0, description="peak learning rate; default: 0.1 (sgd, for 128 samples) or 1e-3 (adamw)"
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of sgd, first beta of adamw")
    weight_decay: float = Field(5e-4, ge=0, description="not applied to biases and normalisation layers")
    schedule: Literal["cosine", "onecycle", "constant"] = Field("cosine", description="learning-rate schedule")
    warmup: float = Field(0.05, ge=0, lt=1, description="share of the updates spent warming up (cosine, constant)")
    clip: float | None = Field(None, gt=0, description="largest gradient norm")
    ema: float = Field(0.0, ge=0, lt=1, description="decay of the weights' moving average; 0: none")
    accumulate: int = Field(1, ge=1, description="pieces a batch is computed in, to save memory")
    select: Literal["last", "best"] = Field("last", description="which state a phase keeps")
    patience: int | None = Field(
        None,
        ge=1,
        description="stop after this many evaluations without improvement (needs a validation share)",
    )
    eval_every: int | None = Field(None, ge=1, description="epochs between evaluations; default: ten in a phase")


@dataclass
class Fit:
    """Train ``trainee`` by gradient descent.

    ``step(trainee, batch)`` runs it on a batch and returns scalars, of which ``loss`` is minimised; the fields of
    ``sources`` are in ``batch.signals[source.name]``. Parameters whose name ``learns`` refuses are frozen, and
    modules without a learning parameter run in eval mode, so that their buffers stay bit-identical.
    ``readout`` maps the trainee (or its moving average) to the network to evaluate and keep; None: itself.
    ``overrides`` are fit settings of this phase alone. ``select_by`` is the metric that picks the best state:
    the task's by default, or ``"loss"`` for the phase's own objective on the validation samples.
    """

    name: str
    trainee: nn.Module
    step: Callable[[nn.Module, Batch], dict[str, Tensor]]
    sources: tuple[Source, ...] = ()
    learns: Callable[[str], bool] = field(default=lambda name: True)
    readout: Callable[[nn.Module], nn.Module] | None = None
    overrides: dict[str, Any] = field(default_factory=dict)
    select_by: str | None = None
    kind: Literal["fit"] = "fit"


@dataclass
class Solve:
    """Change the student by computing, not by descending: ``solve(report)`` returns scalars about what it did.

    ``report(done, total)`` moves the progress bar. A solve phase is short and starts anew when it is resumed.
    """

    name: str
    solve: Callable[[Callable[[int, int], None]], dict[str, float]]
    kind: Literal["solve"] = "solve"


Phase = Fit | Solve
