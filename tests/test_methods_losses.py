"""Losses between features, against loops that are too simple to be wrong."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from protege.data.labels import UNLABELLED
from protege.losses import (
    attention_loss,
    average,
    cross_entropy,
    dkd_loss,
    flow,
    flow_loss,
    gap_loss,
    hint_loss,
    kd_loss,
    vector_loss,
)

SHAPES = st.tuples(*(st.integers(1, 3) for _ in range(4)))


def maps(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), shape=SHAPES)
def test_hint_loss(seed, shape):
    student, teacher = maps(seed, *shape), maps(seed + 1, *shape)
    pairs = zip(student.flatten().tolist(), teacher.flatten().tolist(), strict=True)
    expected = sum((a - b) ** 2 for a, b in pairs) / student.numel()
    assert hint_loss(student, teacher).item() == pytest.approx(expected, rel=1e-4, abs=1e-6)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), shape=SHAPES, channels=st.integers(1, 4))
def test_attention_loss(seed, shape, channels):
    n, _, h, w = shape
    student, teacher = maps(seed, *shape), maps(seed + 1, n, channels, h, w)
    total = 0.0
    for a, b in zip(student, teacher, strict=True):
        both = []
        for one in (a, b):
            flat = [sum(one[j, y, x].item() ** 2 for j in range(len(one))) for y in range(h) for x in range(w)]
            length = math.sqrt(sum(v * v for v in flat))
            both.append([v / length for v in flat])
        total += sum((p - q) ** 2 for p, q in zip(*both, strict=True))
    assert attention_loss(student, teacher).item() == pytest.approx(total / (n * h * w), rel=1e-4, abs=1e-6)


def test_attention_does_not_see_scale_nor_the_order_of_channels():
    teacher = maps(0, 2, 4, 3, 3)
    assert attention_loss(3 * teacher[:, [2, 0, 3, 1]], teacher).item() == pytest.approx(0, abs=1e-12)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), shape=SHAPES, channels=st.integers(1, 4))
def test_flow(seed, shape, channels):
    n, c, h, w = shape
    first, second = maps(seed, *shape), maps(seed + 1, n, channels, h, w)
    found = flow(first, second)
    assert found.shape == (n, c, channels)
    for i in range(n):
        for j in range(c):
            for k in range(channels):
                pixels = [(first[i, j, y, x] * second[i, k, y, x]).item() for y in range(h) for x in range(w)]
                assert found[i, j, k].item() == pytest.approx(sum(pixels) / (h * w), rel=1e-4, abs=1e-6)
    other = flow(maps(seed + 2, *shape), second)
    expected = sum((a - b) ** 2 for a, b in zip(found.flatten().tolist(), other.flatten().tolist(), strict=True))
    loss = flow_loss((first, second), (maps(seed + 2, *shape), second))
    assert loss.item() == pytest.approx(expected / found.numel(), rel=1e-4, abs=1e-6)


def test_flow_keeps_single_precision_under_autocast():
    maps_of = (maps(0, 4, 16, 8, 8), maps(1, 4, 32, 8, 8))
    with torch.autocast("cpu", torch.bfloat16):
        found = flow(*maps_of)
    assert torch.equal(found, flow(*maps_of))


def test_larger_maps_are_pooled():
    """A map whose pixels are repeated says what the smaller one says."""
    small, other = maps(0, 2, 3, 2, 3), maps(1, 2, 3, 2, 3)
    large = nn.functional.interpolate(small, scale_factor=2)
    for loss in (hint_loss, attention_loss):
        assert loss(large, other).item() == pytest.approx(loss(small, other).item(), rel=1e-5)
        assert loss(other, large).item() == pytest.approx(loss(other, small).item(), rel=1e-5)
    torch.testing.assert_close(flow(large, other), flow(small, other))
    torch.testing.assert_close(flow(other, large), flow(other, small))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_losses_reach_the_student_alone(dtype):
    student, teacher = maps(0, 2, 3, 4, 4).to(dtype).requires_grad_(), maps(1, 2, 3, 4, 4).to(dtype)
    loss = hint_loss(student, teacher) + attention_loss(student, teacher)
    loss = loss + flow_loss((student, student[:, :2]), (teacher, teacher[:, :2]))
    assert loss.dtype == torch.float32
    loss.backward()
    assert student.grad is not None
    assert bool(student.grad.isfinite().all())
    assert student.grad.abs().sum() > 0


# ---- losses of rows ---------------------------------------------------------------------------------------------


def rows(m: int = 7, classes: int = 4):
    """Student and teacher logits, labels of which two are none, and weights of which one is 0."""
    g = torch.Generator().manual_seed(1)
    z, v = torch.randn(2, m, classes, generator=g) * 2
    labels = torch.randint(0, classes, (m,), generator=g)
    labels[[1, 4]] = UNLABELLED
    weights = torch.rand(m, generator=g)
    weights[2] = 0
    return z.requires_grad_(), v, labels, weights


def softmax(row: list[float], temperature: float = 1.0) -> list[float]:
    shares = [math.exp(x / temperature) for x in row]
    return [share / sum(shares) for share in shares]


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def each_row(name: str, z: list[float], v: list[float], y: int) -> float:
    """The loss of one row by the authors' formula, in Python's own numbers."""
    q, p = softmax(z, 3.0), softmax(v, 3.0)
    if name == "kd":
        return 9 * kl(p, q)
    if name == "dkd":
        others = [k for k in range(len(z)) if k != y]
        two = [[row[y], 1 - row[y]] for row in (p, q)]
        rest = [[row[k] / (1 - row[y]) for k in others] for row in (p, q)]
        return 9 * (2.0 * kl(*two) + 5.0 * kl(*rest))
    q, p = softmax(z), softmax(v)
    if name == "gap":
        return -sum((0.8 * a + 0.2 / len(z)) * math.log(b) for a, b in zip(p, q, strict=True))
    if name == "vector":
        cosine = sum(a * b for a, b in zip(z, v, strict=True)) / math.dist(z, [0] * len(z)) / math.dist(v, [0] * len(v))
        return 1 - cosine + sum((a - b) ** 2 for a, b in zip(z, v, strict=True)) / len(z)
    return -(0.9 * math.log(q[y]) + 0.1 * sum(map(math.log, q)) / len(z))  # smoothed cross-entropy


LOSSES = {
    "kd": lambda z, v, y, w: kd_loss(z, v, 3.0, w),
    "dkd": lambda z, v, y, w: dkd_loss(z, v, y, 2.0, 5.0, 3.0, w),
    "gap": lambda z, v, y, w: gap_loss(z, v, 0.2, w),
    "vector": lambda z, v, y, w: average(vector_loss(z, v), w),
    "labels": lambda z, v, y, w: cross_entropy(z, y, 0.1, weights=w),
}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", list(LOSSES))
def test_losses_of_rows_by_their_definition(name, weighted):
    """Weighted means; a row of weight 0, or without the label that a loss needs, has neither value nor gradient."""
    z, v, labels, weights = rows()
    loss = LOSSES[name](z, v, labels, weights if weighted else None)
    loss.backward()
    counts = weights.tolist() if weighted else [1.0] * len(z)
    if name in ("dkd", "labels"):
        counts = [0.0 if y == UNLABELLED else w for w, y in zip(counts, labels.tolist(), strict=True)]
    values = [each_row(name, *row) for row in zip(z.tolist(), v.tolist(), labels.clamp(min=0).tolist(), strict=True)]
    expected = sum(w * x for w, x in zip(counts, values, strict=True)) / sum(counts)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert [bool(row.any()) for row in z.grad] == [w > 0 for w in counts]
    whole = z.detach()[[w > 0 for w in counts]].requires_grad_()  # as if the others were not there
    kept = [x[[w > 0 for w in counts]] for x in (v, labels, weights)]
    LOSSES[name](whole, kept[0], kept[1], kept[2] if weighted else None).backward()
    torch.testing.assert_close(z.grad[[w > 0 for w in counts]], whole.grad)


@pytest.mark.parametrize("name", list(LOSSES))
def test_what_does_not_count_may_be_anything(name):
    z, v, labels, weights = rows()
    z = z.detach()
    z[2], v[2] = 1e30, -1e30  # its weight is 0
    z.requires_grad_()
    loss = LOSSES[name](z, v, labels, weights)
    loss.backward()
    assert bool(loss.isfinite())
    nothing = LOSSES[name](z, v, torch.full_like(labels, UNLABELLED), torch.zeros_like(weights))
    assert nothing.item() == 0
    assert bool(z.grad.isfinite().all()), z.grad
