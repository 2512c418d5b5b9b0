"""Targets: what a row of the teacher's knowledge asks of the student, as a distribution over the K classes.

Tang et al. 2020, "Understanding and Improving Knowledge Distillation" (arXiv 2002.03532), take a teacher's row apart:
label smoothing (`smoothed`), the teacher's confidence in the true class (`pt`), class relations (`sim`), both
(`pt_sim`), and the row without its noise (`topk`). `kd` is the row itself (Hinton et al. 2015).

In most of them all classes but a few share one probability. A `Target` says only the few and the shared one, and
`divergence` needs no more: nothing of size ``[M, K]`` is made but the logits and their gradient.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .rows import pieces, single

HOTTEST = 1e4  # T; beyond it T² and differences of v/T leave single precision nothing


@dataclass(frozen=True)
class Target:
    """M rows of a distribution ρ over K classes, constants of the sample.

    ``probs`` [M, k] belong to ``classes`` (int64 [M, k], no class twice in a row); ``rest`` [M] is the probability
    of *each* of the other K - k classes. Where ``classes`` is None, ``probs`` is dense, [M, K], and ``rest`` unused.

    >>> Target(torch.tensor([[0.7]]), torch.tensor([[2]]), torch.tensor([0.1])).dense(4)
    tensor([[0.1000, 0.1000, 0.7000, 0.1000]])
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
    """The teacher's row ``softmax(v/T)`` for teacher logits v ``[M, K]`` (Hinton et al. 2015, section 2).

    >>> kd(torch.tensor([[4.0, 0.0]]), temperature=4.0).probs
    tensor([[0.7311, 0.2689]])
    """
    return Target((single(logits) / temperature).softmax(1))


def topk(probs: Tensor, listed: Tensor, classes: int) -> Target:
    """The k largest probabilities ``[M, k]`` of the classes ``listed`` ``[M, k]``; the others share what is left (Tang
    et al. 2020, KD-topk).

    Probabilities from a cache are rounded: a sum above 1, or other than 1 where every class is listed, is scaled to 1.

    >>> topk(torch.tensor([[0.5, 0.3]]), torch.tensor([[2, 0]]), classes=4).dense(4)
    tensor([[0.3000, 0.1000, 0.5000, 0.1000]])
    """
    probs, others = single(probs), classes - probs.shape[1]
    total = probs.sum(1)
    probs = probs / (total.clamp(min=1.0) if others else total)[:, None]
    return Target(probs, listed.long(), (1 - total).clamp(min=0.0) / max(others, 1))


def smoothed(labels: Tensor, epsilon: float, classes: int) -> Target:
    """Label smoothing: 1 - ε on the true class, and ε/K on every class (Tang et al. 2020, section 3.1).

    >>> smoothed(torch.tensor([1]), epsilon=0.2, classes=4).dense(4)
    tensor([[0.0500, 0.8500, 0.0500, 0.0500]])
    """
    rest = torch.full(labels.shape, epsilon / classes, device=labels.device)
    return Target(1 - epsilon + rest[:, None], labels.clamp(min=0)[:, None], rest)


def pt(truth: Tensor, labels: Tensor, classes: int) -> Target:
    """``truth`` ``[M]``, the teacher's probability of the true class, on it; the others share what is left (KD-pt).

    >>> pt(torch.tensor([0.7]), torch.tensor([0]), classes=4).dense(4)
    tensor([[0.7000, 0.1000, 0.1000, 0.1000]])
    """
    return Target(truth[:, None], labels.clamp(min=0)[:, None], (1 - truth) / max(classes - 1, 1))


def sim(rows: Tensor) -> Target:
    """``rows`` ``[M, K]`` of the true classes' relations (KD-sim), as `Relations` gives them.

    >>> sim(torch.tensor([[0.8, 0.2]])).dense(2)
    tensor([[0.8000, 0.2000]])
    """
    return Target(rows)


def pt_sim(truth: Tensor, rows: Tensor, labels: Tensor, mix: float | None = None) -> Target:
    """``truth`` ``[M]`` on the true class, what is left in proportion to the relations ``rows`` ``[M, K]``.

    With ``mix`` a: ``a·pt + (1-a)·sim`` instead (KD-pt+sim).

    >>> pt_sim(torch.tensor([0.6]), torch.tensor([[0.5, 0.375, 0.125]]), torch.tensor([0])).dense(3)
    tensor([[0.6000, 0.3000, 0.1000]])
    """
    if mix is not None:
        return Target(mix * pt(truth, labels, rows.shape[1]).dense(rows.shape[1]) + (1 - mix) * rows)
    true_class = labels.clamp(min=0)[:, None]
    others = rows.scatter(1, true_class, 0.0)
    total = others.sum(1, keepdim=True)
    # A class that is related to none shares evenly, as in `pt`.
    others = torch.where(total > 0, others / total, 1 / max(rows.shape[1] - 1, 1))
    return Target((others * (1 - truth)[:, None]).scatter(1, true_class, truth[:, None]))


def true_probability(logits: Tensor, labels: Tensor, temperature: float = 1.0) -> Tensor:
    """p_t ``[M]``: the probability of the true class under teacher logits ``[M, K]``; no gradient.

    >>> true_probability(torch.tensor([[2.0, 2.0]]), torch.tensor([1]))
    tensor([0.5000])
    """
    logits, true_class = logits.detach(), labels.clamp(min=0)[:, None]
    parts = [(single(v) / temperature).log_softmax(1).gather(1, true_class[rows]) for rows, v in pieces(logits)]
    return torch.cat([single(logits[:0, :1]), *parts]).exp().squeeze(1)
