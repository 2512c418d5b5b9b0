"""A teacher's vectors: outputs ``[N, D]``, no labels. What is true of an image is the teacher's vector.

Chosen by ``task="embeddings"`` on any images. The student gives vectors of the teacher's width, so that it can stand in
its place before an index or a classifier that was made for the teacher's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError
from ..losses import average, vector_loss
from ..torch_utils import eval_mode
from .metrics import Metrics
from .task import Shortfall, Task

MOST = 10_000  # images among which nearest neighbours are sought
CONSTANT = 1e-6  # spread of directions below which vectors do not tell images apart


@dataclass(frozen=True)
class Embeddings(Task):
    metric = "cosine"
    teacher: Any = None  # of the run
    name = "embeddings"
    of = "classification"
    accuracy_name = "cosine"
    labelled = False
    named_classes = False
    suspects = "its input normalisation and channel order are those it was trained with"
    targets = {"kd": "vectors"}  # noqa: RUF012
    unsuited = {  # noqa: RUF012
        key: f"{key} reads labels, which the task 'embeddings' does not; expected none: leave {key} out."
        for key in ("class_weights", "label_smoothing")
    }

    def refuse_shape(self, outputs: Tensor, labels: Tensor) -> None:
        super().refuse_shape(outputs, labels)
        if outputs.dim() != 2:
            raise UserError(
                f"a network gives outputs of shape {list(outputs.shape)} in place of vectors; expected [images, "
                "values]: end it with a pooling and flatten(1)."
            )

    def loss(
        self, rows: Tensor, truth: Tensor, weights: Tensor, smoothing: float = 0.0, class_weights: Tensor | None = None
    ) -> Tensor:
        return average(vector_loss(rows, truth), weights)

    def imitation(self, rows: Tensor, teacher: Tensor, weights: Tensor, temperature: float) -> Tensor:
        return average(vector_loss(rows, teacher), weights)

    @torch.no_grad()
    def score(self, rows: Tensor, truth: Tensor, weights: Tensor) -> dict[str, Tensor]:
        return {"cosine": average(F.cosine_similarity(rows.float(), truth.float()), weights)}

    def metrics(self, classes: int, device: torch.device | str = "cpu") -> Metrics:
        return VectorMetrics(self.teacher, device)

    def unlabelled_metrics(self, classes: int, teacher: nn.Module, device: torch.device | str = "cpu") -> Metrics:
        return VectorMetrics(teacher, device)

    @property
    def references(self) -> tuple[nn.Module, ...]:
        return (self.teacher,)

    def shortfall(self, metrics: Mapping[str, float], details: Mapping[str, Any]) -> Shortfall | None:
        if details.get("spread", 1.0) > CONSTANT:
            return None
        return Shortfall("spread of its vectors", details["spread"], 0.0)

    def check_values(self, network: nn.Module, inputs: Tensor, rows: Tensor, who: str) -> None:
        """Vectors may have any values."""

    def taught_by(self, teacher: nn.Module | None) -> Task:
        if teacher is None:
            raise UserError(
                "task = 'embeddings' has no teacher, whose vectors are what is learned; expected one: use distill with "
                "teacher=…."
            )
        return replace(self, teacher=teacher)


class VectorMetrics(Metrics):
    """How near a network's vectors are to its teacher's: the mean cosine, and ``recall_at_1``, how often the nearest
    other image (by cosine, of at most `MOST`) by its vectors is the one that is nearest by the teacher's."""

    def __init__(self, teacher: nn.Module, device: torch.device | str = "cpu") -> None:
        self.teacher, self.device = teacher, device
        self.pairs: list[tuple[Tensor, Tensor]] = []  # directions, ``[N, D]``: the network's, the teacher's

    def update(self, outputs: Tensor, labels: Tensor, inputs: Tensor | None = None) -> None:
        with eval_mode(self.teacher):
            truth = self.teacher(inputs)
        self.pairs.append((F.normalize(outputs.float()), F.normalize(truth.float())))

    def compute(self) -> dict[str, float]:
        pairs = self.pairs
        if dist.is_available() and dist.is_initialized():
            shares: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(shares, [(ours.cpu(), theirs.cpu()) for ours, theirs in pairs])
            pairs = [(ours.to(self.device), theirs.to(self.device)) for share in shares for ours, theirs in share]
        if not pairs:
            return {}
        self.ours, theirs = (torch.cat(vectors) for vectors in zip(*pairs, strict=True))
        values = {"cosine": (self.ours * theirs).double().sum(1).mean().item()}
        if len(self.ours) > 2:
            same = neighbours(self.ours[:MOST]) == neighbours(theirs[:MOST])
            values["recall_at_1"] = same.double().mean().item()
        return values

    def details(self) -> dict[str, Any]:
        """``spread`` of the network's vectors: 0 where all have one direction, 1 where these cancel out."""
        if not self.pairs:
            return {}
        return {"spread": 1 - self.ours.double().mean(0).square().sum().item()}


def neighbours(vectors: Tensor) -> Tensor:
    """Which other of the directions ``[N, D]`` is nearest to each, int64 ``[N]``."""
    nearest = []
    for start in range(0, len(vectors), 1000):
        cosines = vectors[start : start + 1000] @ vectors.T
        here = torch.arange(len(cosines), device=vectors.device)
        cosines[here, here + start] = -torch.inf  # itself
        nearest.append(cosines.argmax(1))
    return torch.cat(nearest)
