"""Rows summed up: plain numbers, as ``diagnosis.json`` holds them and the verdict and the report read them.

Tang et al. 2020, "Understanding and Improving Knowledge Distillation": the gradient of KD at the true logit is that
of plain cross-entropy times ``ω = 1 − λ·(1 − p_t)/(1 − q_t)`` (T = 1), p the teacher, q the student.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from ..tasks import BINS, Chance, bin_of
from .relations import contrast
from .rows import TOP, Rows

SURE = 0.99
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def reading(rows: Rows) -> dict[str, Any]:
    """What a network says about a set. Measures that need labels are None where less than half the rows have one."""
    known = rows.labelled
    labelled = float(known.float().mean()) if len(rows) else 0.0
    read: dict[str, Any] = {
        "rows": len(rows),
        "labelled": labelled,
        "confidence": _mean(rows.confidence),
        "doubt": _mean(1 - rows.confidence),
        "sure": _mean((rows.confidence > SURE).float()),
        "truth": _spread(rows.log_p.exp()),
        "rest": _mean(rows.log_rest.exp()),
        "others": _spread(rows.others),
        "isolation": _mean(rows.isolation[rows.right]),
        "contrast": contrast(rows),
        "top": {str(k): _mean(rows.top[:, n]) for n, k in enumerate(TOP) if k <= rows.classes},
        "temperatures": [_at(rows, n) for n in range(len(rows.temperatures))],
        "chance": None,
        "accuracy": None,
        "balanced_accuracy": None,
        "macro_f1": None,
        "nll": None,
        "ece": None,
        "wrong": None,
        "reliability": [],
    }
    if labelled < 0.5:
        return read
    right, confidence, log_p = rows.right[known].float(), rows.confidence[known], rows.log_p[known]
    nll = -log_p
    read |= {
        "chance": asdict(chance) if (chance := Chance.of(rows.truth[known])) else None,
        "accuracy": _mean(right),
        **over_classes(rows.truth[known], rows.choice[known]),
        "nll": _mean(nll),
        "reliability": reliability(confidence, right),
        "wrong": {
            "share": 1 - float(right.mean()),
            "loss": _mean(nll * (1 - right)),
            "loss_share": float((nll * (1 - right)).sum() / nll.sum().clamp(min=1e-12)),
            # y drawn from p would give p_t the mean Σp²: what is missing is error that the teacher does not own up to
            "unowned": _mean(rows.square[known] - log_p.exp()),
        },
    }
    read["ece"] = sum(bin["share"] * abs(bin["confidence"] - bin["accuracy"]) for bin in read["reliability"])
    return read


def _mean(values: Tensor) -> float | None:
    value = float(values.double().mean()) if len(values) else math.nan
    return value if math.isfinite(value) else None


def over_classes(truth: Tensor, choice: Tensor) -> dict[str, float | None]:
    """Recall and F1 averaged over the classes that occur in ``truth`` [M], for the classes chosen."""
    both = truth[truth == choice]
    size = int(torch.cat([truth, choice]).max()) + 1 if len(truth) else 0
    counts, chosen, hits = (classes.bincount(minlength=size).double()[:size] for classes in (truth, choice, both))
    occurs = counts > 0
    recall, f1 = (hits / counts)[occurs], (2 * hits / (counts + chosen))[occurs]
    return {"balanced_accuracy": _mean(recall), "macro_f1": _mean(f1)}


def _spread(values: Tensor) -> dict[str, Any] | None:
    """Mean, quantiles and a histogram of 20 bins of values in [0, 1]; None where they are not defined."""
    mean = _mean(values)
    if mean is None:
        return None
    counts = torch.histc(values.clamp(0, 1), 20, 0, 1)
    points = torch.quantile(values.double(), torch.tensor(_QUANTILES, dtype=torch.float64)).tolist()
    return {
        "mean": mean,
        "quantiles": dict(zip(map(str, _QUANTILES), points, strict=True)),
        "histogram": (counts / counts.sum()).tolist(),
    }


def _at(rows: Rows, n: int) -> dict[str, float | None]:
    """The targets at one temperature; ``left`` is the share of what the teacher says at T = 1."""
    even = math.log(rows.classes)
    at_one = even - rows.entropy_at[:, rows.temperatures.index(1.0)].double().mean()
    left = (even - rows.entropy_at[:, n].double().mean()) / at_one.clamp(min=1e-9)
    return {
        "temperature": rows.temperatures[n],
        "truth": _mean(rows.truth_at[:, n]),
        "confidence": _mean(rows.confidence_at[:, n]),
        "entropy": _mean(rows.entropy_at[:, n] / even),
        "left": float(left),
    }


def reliability(confidence: Tensor, right: Tensor) -> list[dict[str, float]]:
    """Bins of equal width over confidence: share of rows, mean confidence and accuracy; empty ones are left out."""
    place = bin_of(confidence)
    bins = []
    for n in range(BINS):
        inside = place == n
        if bool(inside.any()):
            bins.append(
                {
                    "share": float(inside.float().mean()),
                    "confidence": float(confidence[inside].double().mean()),
                    "accuracy": float(right[inside].double().mean()),
                }
            )
    return bins


def omega(log_rest: Tensor, student_log_rest: Tensor, weight: float) -> Tensor:
    """``ω = 1 − λ·(1 − p_t)/(1 − q_t)`` [M], from ``log(1 − p_t)`` and ``log(1 − q_t)``."""
    return 1 - weight * (log_rest - student_log_rest).exp()


def rescaling(teacher: Rows, student: Rows | None, weight: float) -> dict[str, Any]:
    """How ω goes with the teacher's confidence in the truth: medians in tenths of p_t, and Spearman's rank correlation.

    Without a student, of one that holds all classes for equally likely.
    """
    if student is None:
        q_rest = torch.full_like(teacher.log_rest, math.log1p(-1 / teacher.classes))
    else:
        q_rest = student.log_rest
    values, p = omega(teacher.log_rest, q_rest, weight).double(), teacher.log_p.exp().double()
    place = (p * 10).long().clamp(0, 9)
    bins = []
    for n in range(10):
        inside = values[place == n]
        if len(inside):
            low, middle, high = torch.quantile(inside, torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)).tolist()
            bins.append({"p": float(p[place == n].mean()), "share": len(inside) / len(p), "median": middle})
            bins[-1] |= {"low": low, "high": high}
    varied = len(p) > 2 and bool(p.std() > 0) and bool(values.std() > 0)
    from scipy.stats import spearmanr  # slow to import

    rank = float(spearmanr(-teacher.log_rest.numpy(), values.numpy()).statistic) if varied else None
    return {"weight": weight, "measured": student is not None, "rank_correlation": rank, "bins": bins}


def crossing(readings: list[dict[str, Any]], key: str, level: float) -> float | None:
    """The temperature at which a falling measure reaches a level, between neighbours linear in log T; None if never.

    Where it is below already at the first temperature, that one.
    """
    before = None
    for at in readings:
        value, temperature = at[key], at["temperature"]
        if value <= level:
            if before is None:
                return temperature
            share = (before[1] - level) / max(before[1] - value, 1e-12)
            return math.exp(math.log(before[0]) + share * (math.log(temperature) - math.log(before[0])))
        before = (temperature, value)
    return None


def at_temperature(readings: list[dict[str, Any]], temperature: float) -> dict[str, Any]:
    """The measures at the temperature nearest to the one given."""
    return min(readings, key=lambda at: abs(math.log(at["temperature"]) - math.log(temperature)))
