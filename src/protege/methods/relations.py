"""Class relations of a network: from its logit layer, or from its mean predictions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data import Batch
from ..errors import UserError
from ..labels import UNLABELLED
from ..losses.targets import true_probability
from ..tasks import Task
from ..teacher import Feature, Logits, Source


def logit_layer(network: nn.Module, classes: int, example: Tensor, task: Task) -> nn.Linear | None:
    """The linear layer of ``network`` whose output on raw inputs ``example`` are the network's logits, if any."""
    inner = getattr(network, "network", network)
    linear = {n: m for n, m in inner.named_modules() if isinstance(m, nn.Linear) and m.out_features == classes}
    for name, layer in reversed(linear.items()):
        try:
            found = Source("teacher", network, [Logits(), Feature(name)], task).compute(example)
        except UserError:  # never called
            continue
        logits, heard = found["logits"], found[f"feature:{name}"]
        if logits.shape == heard.shape and torch.allclose(logits, heard):
            return layer
    return None


@torch.no_grad()
def predictions(network: nn.Module, batches: Iterable[Batch], task: Task, classes: int | None) -> tuple[float, Any]:
    """The mean p_t over labelled rows, and the mean predictions on each class, ``[K, K]`` (None without ``classes``).

    A class that no row has gets a vector of its own, so that it is like no other.
    """
    source = Source("teacher", network, [Logits()], task)
    total, count, sums = 0.0, 0, None
    for batch in batches:
        logits, labels = task.rows(source.compute(batch.inputs)["logits"], batch.labels)
        logits, labels = logits[labels != UNLABELLED].float(), labels[labels != UNLABELLED]
        total, count = total + true_probability(logits, labels).sum().item(), count + len(labels)
        if classes is not None:
            sums = logits.new_zeros(classes, classes + 1) if sums is None else sums
            sums.index_add_(0, labels, F.pad(logits.softmax(1), (0, 1), value=1.0))
    means = None
    if sums is not None:
        seen = sums[:, -1:]
        means = torch.where(seen > 0, sums[:, :-1] / seen.clamp(min=1), torch.eye(len(sums), device=sums.device))
    return total / max(count, 1), means
