"""Targets: what a row of the teacher's knowledge asks of the student, as a distribution over the K classes.

Tang et al. 2020, "Understanding and Improving Knowledge Distillation" (arXiv 2002.03532), take a teacher's row apart:
label smoothing (`smoothed`), the teacher's confidence in the true class (`pt`), class relations (`sim`), both
(`pt_sim`), and the row without its noise (`topk`). `kd` is the row itself (Hinton et al. 2015).

In most of them all classes but a few share one probability. A `Target` says only the few and the shared one, and
`divergence` needs no more: nothing of size ``[M, K]`` is made but the logits and their gradient.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

HOTTEST = 1e4  # T; beyond it T² and differences of v/T leave single precision nothing


@dataclass(frozen=True)
class Target:
    """M rows of a distribution ρ over K classes, constants of the sample.

    ``probs`` [M, k] belong to ``classes`` (int64 [M, k], no class twice in a row); ``rest`` [M] is the probability
    of *each* of the other K - k classes. Where ``classes`` is None, ``probs`` is dense, [M, K], and ``rest`` unused.
    """

    probs: Tensor
    classes: Tensor | None = None
    rest: Tensor | None = None

    def dense(self, classes: int) -> Tensor:
        """The rows in full, [M, K]."""
        if self.classes is None or self.rest is None:
            return self.probs
        return self.rest[:, None].repeat(1, classes).scatter(1, self.classes, self.probs)


# ---- the six targets --------------------------------------------------------------------------------------------
# ``labels`` are int64 [M]. A row without a label (below 0) counts as class 0 where a label is needed: whoever sums
# the rows must leave it out.


def kd(logits: Tensor, temperature: float) -> Target:
    """The teacher's row ``softmax(v/T)`` for teacher logits v ``[M, K]``."""
    return Target((_wide(logits) / temperature).softmax(1))


def topk(probs: Tensor, listed: Tensor, classes: int) -> Target:
    """The k largest probabilities ``[M, k]`` of the classes ``listed`` ``[M, k]``; the others share what is left.

    Probabilities from a cache are rounded: a sum above 1, or other than 1 where every class is listed, is scaled to 1.
    """
    probs, others = _wide(probs), classes - probs.shape[1]
    total = probs.sum(1)
    probs = probs / (total.clamp(min=1.0) if others else total)[:, None]
    return Target(probs, listed.long(), (1 - total).clamp(min=0.0) / max(others, 1))


def smoothed(labels: Tensor, epsilon: float, classes: int) -> Target:
    """Label smoothing: 1 - ε on the true class, and ε/K on every class."""
    rest = torch.full(labels.shape, epsilon / classes, device=labels.device)
    return Target(1 - epsilon + rest[:, None], labels.clamp(min=0)[:, None], rest)


def pt(truth: Tensor, labels: Tensor, classes: int) -> Target:
    """``truth`` ``[M]``, the teacher's probability of the true class, on it; the others share what is left."""
    return Target(truth[:, None], labels.clamp(min=0)[:, None], (1 - truth) / max(classes - 1, 1))


def sim(rows: Tensor) -> Target:
    """``rows`` ``[M, K]`` of the true classes' relations (`similarity.Relations`)."""
    return Target(rows)


def pt_sim(truth: Tensor, rows: Tensor, labels: Tensor, mix: float | None = None) -> Target:
    """``truth`` ``[M]`` on the true class, what is left in proportion to the relations ``rows`` ``[M, K]``.

    With ``mix`` a: ``a·pt + (1-a)·sim`` instead.
    """
    if mix is not None:
        return Target(mix * pt(truth, labels, rows.shape[1]).dense(rows.shape[1]) + (1 - mix) * rows)
    own = labels.clamp(min=0)[:, None]
    others = rows.scatter(1, own, 0.0)
    total = others.sum(1, keepdim=True)
    # A class that is related to none shares evenly, as in `pt`.
    others = torch.where(total > 0, others / total, 1 / max(rows.shape[1] - 1, 1))
    return Target((others * (1 - truth)[:, None]).scatter(1, own, truth[:, None]))


def true_probability(logits: Tensor, labels: Tensor, temperature: float = 1.0) -> Tensor:
    """p_t ``[M]``: the probability of the true class under teacher logits ``[M, K]``."""
    logits, own = logits.detach(), labels.clamp(min=0)[:, None]
    found = [(_wide(v) / temperature).log_softmax(1).gather(1, own[rows]) for rows, v in _pieces(logits)]
    return torch.cat([_wide(logits[:0, :1]), *found]).exp().squeeze(1)


# ---- the loss ---------------------------------------------------------------------------------------------------


def divergence(logits: Tensor, target: Target, temperature: float = 1.0) -> Tensor:
    """``KL(ρ ‖ softmax(z/T))`` of each row, ``[M]``, for student logits z ``[M, K]``.

    It is CE(ρ, q) less ρ's own entropy, which no weight changes: the same gradients, and 0 where the student has
    arrived. The T² of distillation is not in it.
    """
    return _Divergence.apply(logits, target.probs, target.classes, target.rest, temperature)


class _Divergence(torch.autograd.Function):
    """Rows in pieces; the softmax is made anew on the way back, so that only the logits are kept."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, probs: Tensor, classes: Tensor | None, rest: Tensor | None, T: float) -> Tensor:
        ctx.save_for_backward(z, probs, classes, rest)
        ctx.temperature = T
        losses = _wide(z[:, :1]).new_empty(len(z))
        for rows, piece in _pieces(z):
            log_q = (_wide(piece) / T).log_softmax(1)
            p = probs[rows].to(log_q)
            if classes is None or rest is None:
                losses[rows] = (
                    torch.special.entr(p).sum(1).neg_().sub_((p * log_q).sum(1))
                )  # vecdot would be computed in bf16 under autocast
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
        for rows, piece in _pieces(z):
            slope = (_wide(piece) / ctx.temperature).softmax(1)
            p = probs[rows].to(slope)
            if classes is None:
                slope.mul_(p.sum(1, keepdim=True)).sub_(p)
            else:
                u = rest[rows].to(slope)[:, None]
                total = p.sum(1, keepdim=True) + (z.shape[1] - p.shape[1]) * u
                slope.mul_(total).sub_(u).scatter_add_(1, classes[rows], u - p)
            gradient[rows] = slope.mul_((above[rows] / ctx.temperature).to(slope)[:, None])
        return gradient, None, None, None, None


def decoupled(logits: Tensor, teacher: Tensor, labels: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The two parts of DKD, each ``[M]``, of student and teacher logits ``[M, K]``.

    Zhao et al. 2022, "Decoupled Knowledge Distillation" (arXiv 2203.08679, section 3.1): the divergence between the
    two-way distributions (true class, any other), and the one between the distributions over the other classes. For
    every row ``KL(p^T ‖ q^T) = first + (1 - p_t)·second``.
    """
    own = labels.clamp(min=0)[:, None]

    def parts(x: Tensor) -> tuple[Tensor, Tensor]:
        log_p = (_wide(x) / temperature).log_softmax(1)
        others = log_p.scatter(1, own, -torch.inf)
        two = torch.cat([log_p.gather(1, own), others.logsumexp(1, keepdim=True)], dim=1)
        return two, (others - two[:, 1:]).scatter(1, own, 0.0)

    (two_q, others_q), (two_p, others_p) = parts(logits), parts(teacher.detach())
    target_class = F.kl_div(two_q, two_p, reduction="none", log_target=True).sum(1)
    other_classes = (others_p.exp().scatter(1, own, 0.0) * (others_p - others_q)).sum(1)
    return target_class, other_classes


def _wide(x: Tensor) -> Tensor:
    """Single precision at least."""
    return x if x.dtype == torch.float64 else x.float()


def _pieces(x: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Rows, a few at a time: temporaries stay in the processor's cache, and small beside x on an accelerator."""
    size = max(1, (2**18 if x.device.type == "cpu" else 2**24) // max(x.shape[1], 1))
    for start in range(0, len(x), size):
        yield slice(start, start + size), x[start : start + size]
