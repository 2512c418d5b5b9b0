"""Ridge towards the identity from sums alone, against numpy's least squares and autograd on the stacked rows."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from protege.surgery import Moments, solve
from protege.surgery.solving import ridge
from protege.surgery.solving.ridge import GRID

LIMITS = settings(max_examples=30, deadline=None, database=None)


def rows(count, channels, seed, noise=0.1):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x = normal(count, channels) @ normal(channels, channels) + normal(channels)
    return x, x @ (torch.eye(channels) + 0.3 * normal(channels, channels)) + normal(channels) + noise * normal(
        count, channels
    )


def moments_of(x, y, folds=1, blocks=1, parts=5):
    made = Moments.zeros(folds, blocks, x.shape[1] // blocks, y.shape[1] // blocks)
    for i, (a, b) in enumerate(zip(x.tensor_split(parts), y.tensor_split(parts), strict=True)):
        made.add(i % folds, a, b - a)
    return made


def error(x, y, solution):
    """‖Y − XQ − c‖² on the rows themselves."""
    blocks, n, _ = solution.q.shape
    fitted = torch.cat([x[:, b * n : (b + 1) * n] @ solution.q[b] for b in range(blocks)], 1)
    return float((y - fitted - (0 if solution.intercept is None else solution.intercept)).square().sum())


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("channels", [1, 4, 16])
def test_without_ridge_it_is_numpys_least_squares(channels, intercept):
    x, y = rows(400, channels, channels)
    found = solve(moments_of(x, y), intercept, 0.0)
    stacked = np.hstack([x, np.ones((len(x), 1))]) if intercept else x.numpy()
    expected = np.linalg.lstsq(stacked, y.numpy(), rcond=None)[0]
    np.testing.assert_allclose(found.q[0], expected[:channels], rtol=1e-6, atol=1e-6)
    if intercept:
        np.testing.assert_allclose(found.intercept, expected[channels], rtol=1e-6, atol=1e-6)
    else:
        assert found.intercept is None


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("ridge", [0.0, 1e-6, None])
def test_single_precision_rows_far_from_zero_are_solved_as_well_as_double_ones(ridge, intercept):
    x, y = rows(4000, 12, 3)
    x = torch.cat([x, x[:, :2], torch.full((4000, 1), 7.0)], 1)  # two channels twice, one that is constant
    y = torch.cat([y, y[:, :2], torch.full((4000, 1), 9.0)], 1)
    x, y = (x + 300).float(), (y - 200).float()  # a hundred deviations away
    exact, found = (solve(moments_of(x.to(kind), y.to(kind), 4, parts=40), intercept, ridge) for kind in (
        torch.float64, torch.float32
    ))  # fmt: skip
    best, reached = (error(x.double(), y.double(), solution) for solution in (exact, found))
    assert reached < 1.001 * best
    assert found.after == pytest.approx(reached, rel=1e-3)
    assert found.q.abs().max() < 1.1 * exact.q.abs().max() + 1


def hard(kind, channels=48):
    """Rows of float32 on which single precision shows: channels of very different sizes, or hardly different ones."""
    x, y = rows(3000, channels, 5, noise=0.0)
    normal = torch.randn(3000, channels, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    if kind == "sizes":
        x = normal * torch.logspace(0, -4, channels)
        y = x * (1 + (torch.arange(channels) >= channels // 2))  # what is missing is in the small ones alone
    elif kind == "spectrum":
        x = normal @ torch.diag(torch.logspace(0, -2.5, channels).double()) @ torch.linalg.qr(x[:channels]).Q
        y = x @ (torch.eye(channels) + 0.1 * torch.randn(channels, channels).double()) + 0.01 * normal
    else:
        x, y = normal.clone(), normal.clone()
        x[:, 1] = x[:, 0] + 1e-2 * normal[:, 1]  # a hundredth of it apart, and that is what the target wants
        y[:, 1] = x[:, 1] + normal[:, 1]
    return x.float(), y.float()


@pytest.mark.parametrize("channels", [8, 48])
@pytest.mark.parametrize("ridge", [0.0, None])
@pytest.mark.parametrize("kind", ["sizes", "spectrum", "alike"])
def test_small_and_dependent_channels_in_single_precision(kind, ridge, channels):
    """What float32 rows are solved to is nearly as good as in float64, and its error is told as it is."""
    x, y = hard(kind, channels)
    exact, found = (solve(moments_of(x.to(as_), y.to(as_), 4, parts=8), True, ridge) for as_ in (
        torch.float64, torch.float32
    ))  # fmt: skip
    reached, best = (error(x.double(), y.double(), solution) for solution in (found, exact))
    assert best < 0.9 * exact.before
    assert reached < 1.01 * best + 1e-4 * found.before
    assert reached < 1.01 * found.after + 1e-6 * found.before
    assert found.after < 1.01 * reached + 0.01 * found.before


@LIMITS
@given(
    count=st.integers(1, 30),
    blocks=st.sampled_from([1, 3]),
    n=st.integers(1, 4),
    intercept=st.booleans(),
    ridge=st.sampled_from([0.0, 1e-4, 1e-2, 1.0, 100.0]),
    seed=st.integers(0, 2**31),
)
def test_the_solution_is_a_stationary_point_and_no_worse_than_nothing(count, blocks, n, intercept, ridge, seed):
    x, y = rows(count, blocks * n, seed)
    found = solve(moments_of(x, y, blocks=blocks), intercept, ridge)
    assert found.before == pytest.approx(float((y - x).square().sum()))
    assert found.after <= found.before
    assert found.after == pytest.approx(error(x, y, found), rel=1e-6, abs=1e-6 * found.before)
    q = found.q.clone().requires_grad_()
    c = (torch.zeros(blocks * n, dtype=torch.float64) if found.intercept is None else found.intercept).requires_grad_()
    loss = torch.zeros((), dtype=torch.float64)
    for b in range(blocks):
        part = slice(b * n, (b + 1) * n)
        centred = x[:, part] - (x[:, part].mean(0) if intercept else 0)
        strength = ridge * centred.square().sum() / n
        loss = loss + (y[:, part] - x[:, part] @ q[b] - c[part]).square().sum()
        loss = loss + strength * (q[b] - torch.eye(n)).square().sum()
    loss.backward()
    size = float(x.square().sum() + y.square().sum())
    assert q.grad.abs().max() < 1e-7 * size
    if intercept:
        assert c.grad.abs().max() < 1e-7 * size


def test_an_infinite_ridge_mixes_nothing():
    x, y = rows(50, 5, 0)
    near, far = (solve(moments_of(x, y), False, ridge) for ridge in (1e12, float("inf")))
    torch.testing.assert_close(near.q[0], torch.eye(5, dtype=torch.float64), atol=1e-9, rtol=0)
    assert torch.equal(far.q[0], torch.eye(5, dtype=torch.float64))
    shifted = solve(moments_of(x, y), True, float("inf"))
    torch.testing.assert_close(shifted.intercept, (y - x).mean(0))


def test_dead_constant_and_dependent_channels():
    x, y = rows(200, 6, 1)
    x[:, 0] = 0  # dead in the student
    x[:, 1] = 7  # constant
    x[:, 3] = x[:, 2] - 2 * x[:, 4]  # dependent
    y[:, 5] = 0  # dead in the teacher
    for folds, strength in ((1, 0.0), (4, None)):
        found = solve(moments_of(x, y, folds), True, strength)
        assert all(bool(v.isfinite().all()) for v in (found.q, found.intercept))
        # a channel that says nothing is mixed into no other, so it may wake up later and do no harm
        torch.testing.assert_close(found.q[0, :2], torch.eye(6, dtype=torch.float64)[:2], atol=1e-6, rtol=0)
        assert error(x, y, found) <= found.before
    best = np.linalg.lstsq(np.hstack([x, np.ones((200, 1))]), y.numpy(), rcond=None)[0]
    residual = float(np.square(y.numpy() - np.hstack([x, np.ones((200, 1))]) @ best).sum())
    assert solve(moments_of(x, y), True, 0.0).after == pytest.approx(residual, rel=1e-6)


def test_the_ridge_is_the_one_that_does_best_on_what_was_left_out():
    """The errors from sums are those of a loop that leaves each fold out and looks at the rows."""
    x, y = rows(36, 8, 3, noise=2.0)
    parts = list(zip(x.tensor_split(4), y.tensor_split(4), strict=True))

    def held_out(ridge):
        total = 0.0
        for out in range(4):
            a, b = (torch.cat([p[i] for j, p in enumerate(parts) if j != out]) for i in range(2))
            total += error(*parts[out], solve(moments_of(a, b), True, ridge))
        return total

    best = min((*GRID, float("inf")), key=held_out)
    assert solve(moments_of(x, y, folds=4, parts=4), True).ridge == pytest.approx(best)


def test_noise_alone_changes_nothing():
    """Where held-out samples show no gain there is no change at all."""
    torch.manual_seed(0)
    x = torch.randn(12, 8).double()
    y = x + torch.randn(12, 8).double() - 0.0
    y = x + (y - x) * torch.tensor([[1.0], [-1.0]]).repeat(6, 1).double()
    found = solve(moments_of(x, y, folds=4, parts=4), False)
    assert found.ridge is None or found.ridge >= 1
    perfect = solve(moments_of(x, x, folds=4, parts=4), True)
    assert torch.equal(perfect.q[0], torch.eye(8, dtype=torch.float64))
    assert float(perfect.intercept.abs().max()) == 0


def test_the_statistics_are_those_of_the_new_output():
    x, y = rows(100, 6, 5)
    sums = moments_of(x, y, blocks=2)
    found = solve(sums, True, 0.1)
    mean, variance = sums.image(found.q, found.intercept)
    new = torch.cat([x[:, :3] @ found.q[0], x[:, 3:] @ found.q[1]], 1) + found.intercept
    torch.testing.assert_close(mean, new.mean(0))
    torch.testing.assert_close(variance, new.var(0, correction=0))


def test_sums_do_not_depend_on_how_rows_arrive():
    x, y = rows(64, 4, 6)
    one, many = (solve(moments_of(x, y, parts=parts), True, 0.01) for parts in (1, 13))
    torch.testing.assert_close(one.q, many.q, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("folds", [2, 4])
@pytest.mark.parametrize("count", [40, 400])
def test_many_columns_are_solved_as_by_the_whole_decomposition(count, folds, monkeypatch):
    """Factors for some ridges do as well as the best of all, on each fold left out, or on the first alone."""
    x, y = rows(count, 96, 11, noise=2.0)
    monkeypatch.setattr(ridge, "MANY", 50)
    monkeypatch.setattr(ridge, "WIDE", 50 if folds == 2 else 100)
    factors = moments_of(x, y, folds, parts=folds)
    found = solve(factors, True)
    monkeypatch.undo()
    again = solve(factors, True, found.ridge)
    assert found.ridge in GRID
    torch.testing.assert_close(found.delta, again.delta, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(found.intercept, again.intercept, rtol=1e-7, atol=1e-9)
    assert found.after == pytest.approx(again.after, rel=1e-6, abs=1e-6 * again.before)
    parts = list(zip(x.tensor_split(folds), y.tensor_split(folds), strict=True))

    def held_out(strength):
        total = 0.0
        for out in range(1 if folds == 2 else folds):
            a, b = (torch.cat([p[i] for j, p in enumerate(parts) if j != out]) for i in range(2))
            total += error(*parts[out], solve(moments_of(a, b), True, strength))
        return total

    assert held_out(found.ridge) < 1.02 * min(map(held_out, GRID))


@pytest.mark.parametrize("channels", [8, 60])
def test_the_judges_decide_and_tell_what_is_to_be_expected(channels, monkeypatch):
    """On rows that nothing was solved on: each fold's errors are those of what is solved without it."""
    monkeypatch.setattr(ridge, "MANY", 30)
    x, y = rows(240, channels, 7, noise=1.0)
    apart = x + 0.3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    sums, judges = moments_of(x, y, 4, parts=4), moments_of(apart, y, 4, parts=4)
    found = solve(sums, True, None, judges)
    parts = [range(60 * fold, 60 * fold + 60) for fold in range(4)]
    others = [[i for i in range(240) if i not in part] for part in parts]
    for part, other, each in zip(parts, others, found.apart, strict=True):
        alone = solve(moments_of(x[other], y[other]), True, found.ridge)
        torch.testing.assert_close(each.delta, alone.delta, rtol=1e-6, atol=1e-8)
        assert each.before == pytest.approx(float((y[part] - apart[part]).square().sum()))
        assert each.after == pytest.approx(error(apart[part], y[part], alone))
    assert sum(each.after for each in found.apart) < sum(each.before for each in found.apart)
    spoilt = moments_of(-y, y, 4, parts=4) if channels == 8 else moments_of(-10 * x, -10 * x + (x - y), 4, parts=4)
    left = solve(sums, True, None, spoilt)
    if left.ridge is None:
        assert not left.delta.any()
        assert left.after == left.before
    else:
        assert sum(each.after for each in left.apart) < sum(each.before for each in left.apart)
