"""The next word at each token: outputs ``[N, L, K]``, labels ``[N, L]``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ..data.labels import UNLABELLED
from ..errors import UserError
from .chance import Chance
from .metrics import ClassMetrics, Metrics
from .task import Shortfall, Task

# Rows of thousands of words: SGD at the rates of images crawls, and a T above 1 buries the likely words under the rest.
DEFAULTS = {"optimizer": "adamw", "lr": 3e-3, "weight_decay": 0.01, "clip": 1.0, "select": "best"}


@dataclass(frozen=True)
class Language(Task):
    metric = "perplexity"
    defaults = DEFAULTS
    name = "language"
    higher_is_better = False
    class_dim = -1
    temperature = 1.0
    ambiguous = True  # any word may follow
    suspects = "it was trained, and on text of this kind with these words"
    named_classes = False  # words are the student's
    unsuited = {  # noqa: RUF012
        "class_weights": "class_weights do not suit text, whose classes are its words; expected images: leave "
        "class_weights out."
    }

    def rows(self, outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self.refuse_shape(outputs, labels)
        rows, labels = self.flat(outputs, labels), labels.reshape(-1)
        return rows, labels, (labels != UNLABELLED).float()

    def flat(self, outputs: Tensor, labels: Tensor) -> Tensor:
        scored = outputs[:, -labels.shape[1] :]  # some networks answer to the context too
        return scored.reshape(-1, outputs.shape[-1])

    def refuse_shape(self, outputs: Tensor, labels: Tensor) -> None:
        super().refuse_shape(outputs, labels)
        if outputs.dim() != 3 or outputs.shape[1] < labels.shape[1]:
            raise UserError(
                f"a network gives outputs of shape {list(outputs.shape)} where labels have {list(labels.shape)}; "
                "expected [batch, tokens, words], in training as well: return the logits of every token."
            )

    def metrics(self, classes: int, device: torch.device | str = "cpu") -> Metrics:
        return WordMetrics(self.rows, classes, device)

    def shortfall(self, metrics: Mapping[str, float], details: Mapping[str, Any]) -> Shortfall | None:
        if not details.get("chance") or not {"accuracy", "nll", "perplexity"} <= metrics.keys():
            return None  # metrics of one's own
        chance = Chance(**details["chance"])
        if not chance.explains(metrics["accuracy"], metrics["nll"]):
            return None
        return Shortfall("perplexity", metrics["perplexity"], math.exp(chance.nll))

    def level(self, chance: Mapping[str, float]) -> tuple[str, float]:
        return "accuracy", chance["accuracy"]


class WordMetrics(ClassMetrics):
    """Perplexity, accuracy and the negative log-likelihood: classes are too many to be shown one by one."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.confusion = self.confusion[:0, :0]

    def compute(self) -> dict[str, float]:
        if not (metrics := super().compute()):
            return {}
        accuracy, nll = metrics["accuracy"], metrics["nll"]
        return {"perplexity": math.exp(min(nll, 700.0)), "accuracy": accuracy, "nll": nll}

    def details(self) -> dict[str, Any]:
        return {} if self.chance is None else {"chance": asdict(self.chance)}
