"""Losses between features, against loops that are too simple to be wrong."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from protege.losses.features import attention_loss, flow, flow_loss, hint_loss

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
