"""How far rows of a student are from what a teacher asks of them.

Distillation (Hinton et al. 2015, arXiv 1503.02531), its decoupled form DKD (Zhao et al. 2022, arXiv 2203.08679), the
gap between two students that learn together (Guo et al. 2025, arXiv 2410.04140), and that between vectors.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .rows import average, labelled, pieces, single
from .targets import Target, kd


def divergence(logits: Tensor, target: Target, temperature: float = 1.0) -> Tensor:
    """``KL(ρ ‖ softmax(z/T))`` of each row, ``[M]``, for student logits z ``[M, K]``.

    It is CE(ρ, q) less the entropy of ρ, which no weight changes: the same gradients, and 0 where the student has
    arrived. The T² of distillation is not in it.

    >>> divergence(torch.zeros(1, 2), Target(torch.tensor([[1.0, 0.0]]))).exp()
    tensor([2.])
    """
    return _Divergence.apply(logits, target.probs, target.classes, target.rest, temperature)


class _Divergence(torch.autograd.Function):
    """Rows in pieces; the softmax is made anew on the way back, so that only the logits are kept."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, probs: Tensor, classes: Tensor | None, rest: Tensor | None, T: float) -> Tensor:
        ctx.save_for_backward(z, probs, classes, rest)
        ctx.temperature = T
        losses = single(z[:, :1]).new_empty(len(z))
        for rows, piece in pieces(z):
            log_q = (single(piece) / T).log_softmax(1)
            p = probs[rows].to(log_q)
            if classes is None or rest is None:
                entropy = torch.special.entr(p).sum(1)
                losses[rows] = entropy.neg_().sub_((p * log_q).sum(1))  # autocast would run vecdot in bf16
                continue
            u, others = rest[rows].to(log_q), z.shape[1] - p.shape[1]
            entropy = torch.special.entr(p).sum(1) + others * torch.special.entr(u)
            listed = log_q.gather(1, classes[rows])
            losses[rows] = -entropy - ((p - u[:, None]) * listed).sum(1) - u * log_q.sum(1)
        return losses

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor | None, None, None, None, None]:  # type: ignore[override]
        z, probs, classes, rest = ctx.saved_tensors
        gradient = torch.empty_like(z)
        for rows, piece in pieces(z):
            slope = (single(piece) / ctx.temperature).softmax(1)
            p = probs[rows].to(slope)
            if classes is None:
                slope.mul_(p.sum(1, keepdim=True)).sub_(p)
            else:
                u = rest[rows].to(slope)[:, None]
                total = p.sum(1, keepdim=True) + (z.shape[1] - p.shape[1]) * u
                slope.mul_(total).sub_(u).scatter_add_(1, classes[rows], u - p)
            gradient[rows] = slope.mul_((above[rows] / ctx.temperature).to(slope)[:, None])
        return gradient, None, None, None, None


def kd_loss(student: Tensor, teacher: Tensor, temperature: float = 4.0, weights: Tensor | None = None) -> Tensor:
    """``T²·KL(p^T ‖ q^T)``, mean over rows, of student and teacher logits ``[M, K]`` (Hinton et al. 2015, section 2).

    >>> round(float(kd_loss(torch.zeros(1, 2), torch.tensor([[0.0, 8.0]]))), 3)
    5.245
    """
    return average(divergence(student, kd(teacher, temperature), temperature), weights) * temperature**2


def decoupled(logits: Tensor, teacher: Tensor, labels: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The two parts of DKD, each ``[M]``, of student and teacher logits ``[M, K]`` (Zhao et al. 2022, section 3.1).

    The divergence between the two-way distributions (true class, any other), and the one between the distributions
    over the other classes. For every row ``KL(p^T ‖ q^T) = first + (1 - p_t)·second``.

    >>> first, second = decoupled(torch.zeros(1, 3), torch.tensor([[0.0, 2.0, 2.0]]), torch.tensor([0]), 1.0)
    >>> float(second)  # among the other classes both are even
    0.0
    """
    true_class = labels.clamp(min=0)[:, None]

    def parts(x: Tensor) -> tuple[Tensor, Tensor]:
        log_p = (single(x) / temperature).log_softmax(1)
        others = log_p.scatter(1, true_class, -torch.inf)
        two = torch.cat([log_p.gather(1, true_class), others.logsumexp(1, keepdim=True)], dim=1)
        return two, (others - two[:, 1:]).scatter(1, true_class, 0.0)

    (two_q, others_q), (two_p, others_p) = parts(logits), parts(teacher.detach())
    target_class = F.kl_div(two_q, two_p, reduction="none", log_target=True).sum(1)
    other_classes = (others_p.exp().scatter(1, true_class, 0.0) * (others_p - others_q)).sum(1)
    return target_class, other_classes


def dkd_loss(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
    weights: Tensor | None = None,
) -> Tensor:
    """DKD: ``T²·(α·first + β·second)`` of the parts of `decoupled`, mean over the rows that have a label (Zhao et al.
    2022, section 3.2; the numbers are the authors' for CIFAR-100).

    >>> z = torch.tensor([[1.0, 2.0, 0.0]])
    >>> round(float(dkd_loss(z, z, torch.tensor([1]))), 6)
    0.0
    """
    first, second = decoupled(student, teacher, labels, temperature)
    return average(alpha * first + beta * second, labelled(labels, weights)) * temperature**2


def gap_loss(student: Tensor, dynamic: Tensor, smoothing: float = 0.0, weights: Tensor | None = None) -> Tensor:
    """GPD: ``CE(softmax(v), z)`` with smoothed targets, mean over rows, of the logits ``[M, K]`` of a student z and of
    the dynamic teacher v, which is not moved by it (Guo et al. 2025, section 3.3).

    >>> float(gap_loss(torch.zeros(1, 2), torch.tensor([[9.0, 1.0]])).exp())
    2.0
    """
    target = dynamic.detach().float().softmax(1)
    values = F.cross_entropy(student.float(), target, label_smoothing=smoothing, reduction="none")
    return average(values, weights)


def vector_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """``(1 - cos(z, v)) + mean_j (z_j - v_j)²`` of each row, ``[M]``, of vectors ``[M, D]``: direction, then length.

    >>> vector_loss(torch.tensor([[0.0, 2.0]]), torch.tensor([[2.0, 0.0]]))
    tensor([5.])
    """
    z, v = single(student), single(teacher.detach())
    return 1 - F.cosine_similarity(z, v, dim=1) + (z - v).square().mean(1)
