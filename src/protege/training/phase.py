"""A method is a plan of phases: what learns, from which signals, by which objective, for how long.

The loop executes them. Nothing here knows a method; a method file builds phases and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from torch import Tensor, nn

from ..data import Batch
from ..settings import Settings, number_or
from ..signals import Source

BatchSize = Annotated[
    Annotated[int, Field(ge=1)] | Literal["auto"], BeforeValidator(number_or("auto", "a number of samples"))
]


class FitSettings(Settings):
    """How a fit phase trains. Every key is an option of the command line, a key of a recipe, and an argument."""

    epochs: int | None = Field(
        None,
        ge=1,
        description="passes over the training samples; default: about 3,000 updates, 30 to 300 epochs",
    )
    batch_size: BatchSize | None = Field(
        None,
        description="samples in an update, over all processes; default: a tenth of them, 16 to 128; auto: as many as "
        "fill the GPU, with a rate to match",
    )
    optimizer: Literal["sgd", "adamw"] = Field("sgd", description="sgd has Nesterov momentum; default for text: adamw")
    lr: float | None = Field(
        None,
        gt=0,
        le=3.4e38,
        description="peak learning rate; default: 0.1 (sgd, for 128 samples), 1e-3 (adamw), 3e-3 (text)",
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of sgd, first beta of adamw")
    weight_decay: float = Field(
        5e-4, ge=0, description="not applied to biases and normalisation layers; default for text: 0.01"
    )
    schedule: Literal["cosine", "onecycle", "constant"] = Field("cosine", description="learning-rate schedule")
    warmup: float = Field(0.05, ge=0, lt=1, description="share of the updates spent warming up (cosine, constant)")
    clip: float | None = Field(None, gt=0, description="largest gradient norm; default for text: 1")
    ema: float = Field(0.0, ge=0, lt=1, description="decay of the weights' moving average; 0: none")
    accumulate: int = Field(
        1, ge=1, description="pieces a batch is computed in, to save memory; losses are averaged in each"
    )
    select: Literal["last", "best"] = Field("last", description="which state a phase keeps; default for text: best")
    patience: int | None = Field(
        None,
        ge=0,
        description="stop after this many evaluations without improvement (needs a validation share); 0: never",
    )
    eval_every: int | None = Field(None, ge=1, description="epochs between evaluations; default: ten in a phase")


@dataclass
class Fit:
    """Train ``trainee`` by gradient descent.

    ``step(trainee, batch)`` runs it on a batch and returns scalars, of which ``loss`` is minimised; the fields of
    ``sources`` are in ``batch.signals[source.name]``. Parameters whose name ``learns`` refuses are frozen, and
    modules whose parameters are all frozen run in eval mode, so that their buffers stay bit-identical.
    ``readout`` maps the trainee (or its moving average) to the network to evaluate and keep; None: itself.
    ``overrides`` are fit settings of this phase that the method's own settings name (the epochs of a last fine-tuning,
    say). ``select_by`` is the metric that picks the best state: the task's by default, else one of the scalars of
    ``step`` on the validation samples, such as its ``"loss"``. ``reads`` says what ``step`` looks at besides the
    signals; where that is less than pixels and all signals come from caches, no image is fetched. ``parts``: of how
    many losses ``loss`` is the mean; SGD's default rate is as many times as high, so that each of them counts as it
    would alone. ``continues``: it goes on from a state that means something by itself, so that where the best state is
    kept this one counts too, as that of epoch 0.
    """

    name: str
    trainee: nn.Module
    step: Callable[[nn.Module, Batch], dict[str, Tensor]]
    sources: tuple[Source, ...] = ()
    learns: Callable[[str], bool] = field(default=lambda name: True)
    readout: Callable[[nn.Module], nn.Module] | None = None
    overrides: dict[str, Any] = field(default_factory=dict)
    select_by: str | None = None
    reads: frozenset[Literal["pixels", "labels"]] = frozenset({"pixels", "labels"})
    parts: int = 1
    continues: bool = False
    kind: Literal["fit"] = "fit"


@dataclass
class Solve:
    """Change the student by computing, not by descending: ``solve(report)`` returns what it did.

    ``report(done, total)`` moves the progress bar. What is returned are scalars, and under ``blocks`` a list of
    dicts, one for each block in order (its ``name`` and scalars), which the log keeps one by one. A solve phase is
    short, starts anew when it is resumed, and leaves the names and shapes of the student's weights as they are.
    ``layers``: names of those that it sets as they are in the teacher, for a preview.
    """

    name: str
    solve: Callable[[Callable[[int, int], None]], dict[str, Any]]
    layers: tuple[str, ...] = ()
    kind: Literal["solve"] = "solve"


Phase = Fit | Solve
