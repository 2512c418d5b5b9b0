"""What a student can learn from, as functions of tensors: for any training loop.

Losses of logits work on *rows*, ``[M, K]``: one row for each sample of a classifier, each pixel of a segmenter, each
token of a language model. They return a scalar, the mean over rows. ``weights`` ``[M]`` say how much each row counts;
a row of weight 0 has neither value nor gradient. Labels are int64 ``[M]``, -100 where a row has none.

    >>> import torch
    >>> from protege.losses import kd_loss
    >>> student, teacher = torch.zeros(8, 10, requires_grad=True), torch.randn(8, 10)
    >>> kd_loss(student, teacher, temperature=4.0).backward()

Features are maps ``[N, C, H, W]``, or ``[N, L, C]`` where said so.
"""

from .divergence import decoupled, divergence, dkd_loss, gap_loss, kd_loss, vector_loss
from .features import attention_loss, attention_map, flow, flow_loss, hint_loss, regressor
from .relations import Relations, calibrate
from .rows import average, class_weights, cross_entropy
from .targets import Target, kd, pt, pt_sim, sim, smoothed, topk, true_probability

__all__ = [
    "Relations",
    "Target",
    "attention_loss",
    "attention_map",
    "average",
    "calibrate",
    "class_weights",
    "cross_entropy",
    "decoupled",
    "divergence",
    "dkd_loss",
    "flow",
    "flow_loss",
    "gap_loss",
    "hint_loss",
    "kd",
    "kd_loss",
    "pt",
    "pt_sim",
    "regressor",
    "sim",
    "smoothed",
    "topk",
    "true_probability",
    "vector_loss",
]
