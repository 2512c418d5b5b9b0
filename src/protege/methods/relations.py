"""Class relations of a network: from its logit layer, or from its mean predictions."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data import Batch, forward_size
from ..data.labels import UNLABELLED
from ..errors import UserError
from ..losses import Relations, calibrate, true_probability
from ..losses.relations import TABLE
from ..signals import Feature, Logits, Source
from ..tasks import Task
from .method import Setup

logger = logging.getLogger(__name__)

LOOKED_AT = 2000  # training samples behind a calibrated τ


def logit_layer(network: nn.Module, classes: int, example: Tensor, task: Task) -> nn.Linear | None:
    """The linear layer of ``network`` whose output on raw inputs ``example`` are the network's logits, if any."""
    inner = getattr(network, "network", network)
    linear = {n: m for n, m in inner.named_modules() if isinstance(m, nn.Linear) and m.out_features == classes}
    for name, layer in reversed(linear.items()):
        try:
            fields = Source("teacher", network, [Logits(), Feature(name)], task).compute(example)
        except UserError:  # never called
            continue
        logits, feature = fields["logits"], fields[f"feature:{name}"]
        if logits.shape == feature.shape and torch.allclose(logits, feature):
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
        logits, labels, _ = task.rows(source.compute(batch.inputs)["logits"], batch.labels)
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


def class_relations(setup: Setup, tau: float | None) -> Relations:
    """The teacher's class relations, from its logit layer or else from its mean predictions."""
    transfer, task, teacher = setup.transfer, setup.task, setup.teacher
    example = transfer.example()
    classes = Source("teacher", teacher, [Logits()], task).compute(example)["logits"].shape[task.class_dim]
    layer = logit_layer(teacher, classes, example, task)
    if layer is None and classes**2 > TABLE:
        raise UserError(
            f"the teacher has no linear logit layer and {classes} classes; expected one, or at most "
            f"{int(TABLE**0.5)} classes: change target=… to pt or topk."
        )
    vectors, truth = None if layer is None else layer.weight, 0.0
    if vectors is None or tau is None:
        step = -(-len(transfer.positions) // LOOKED_AT)
        chosen = transfer.batches(forward_size(transfer.samples, 256), positions=transfer.positions[::step])
        truth, means = predictions(teacher, chosen, task, classes if vectors is None else None)
        vectors = means if vectors is None else vectors
    if layer is None:
        logger.info("the teacher has no linear logit layer; class relations come from its mean predictions")
    if tau is None:
        tau = calibrate(vectors, truth)
        logger.info("τ = %.4g gives classes the teacher's mean confidence, %.3f", tau, truth)
    return Relations(vectors, tau)
