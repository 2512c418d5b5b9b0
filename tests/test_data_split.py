"""Parts of a set are stratified, seeded and nested."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from protege.data import choose, hold_out
from protege.errors import UserError

LABELS = st.lists(st.integers(0, 4), min_size=5, max_size=60).map(lambda x: torch.tensor([0, 1, 2, 3, 4, *x]))


@given(LABELS, st.data(), st.integers(0, 5))
def test_choice_is_nested_and_has_every_class(labels, data, seed):
    large = data.draw(st.integers(5, len(labels)))
    small = data.draw(st.integers(5, large))
    outer, inner = choose(labels, samples=large, seed=seed), choose(labels, samples=small, seed=seed)
    assert len(outer) == large
    assert len(inner) == small
    assert set(inner.tolist()) <= set(outer.tolist())
    assert outer.tolist() == sorted(set(outer.tolist()))
    assert labels[inner].unique().numel() == 5


def test_fewer_samples_than_classes_are_of_different_ones_and_nested():
    labels = torch.arange(10).repeat(5)
    parts = [choose(labels, samples=n, seed=3, each=False) for n in (1, 4, 9, 10, 23)]
    for small, large in itertools.pairwise(parts):
        assert set(small.tolist()) < set(large.tolist())
        assert len(labels[small].unique()) == len(small)


@given(st.integers(1, 20), st.integers(1, 9), st.integers(0, 5))
def test_choice_of_a_balanced_set_is_balanced(each, tenths, seed):
    labels = torch.arange(4).repeat(10 * each)
    chosen = choose(labels, fraction=tenths / 10, seed=seed)
    assert labels[chosen].bincount().tolist() == [each * tenths] * 4


@given(LABELS, st.integers(5, 30), st.integers(0, 5))
def test_choice_keeps_each_class_near_its_share(labels, samples, seed):
    samples = min(samples, len(labels))
    chosen = labels[choose(labels, samples=samples, seed=seed)].bincount(minlength=5)
    share = labels.bincount(minlength=5) * samples / len(labels)
    assert ((chosen - share) <= 1.5).all()  # above its share only by rounding or for being a class's only sample


def test_choice_depends_on_the_seed_only():
    labels = torch.arange(10).repeat(50)
    assert torch.equal(choose(labels, samples=50, seed=3), choose(labels, samples=50, seed=3))
    assert not torch.equal(choose(labels, samples=50, seed=3), choose(labels, samples=50, seed=4))


def test_choice_without_labels_and_of_everything():
    assert len(choose(None, count=80, fraction=0.25)) == 20
    assert choose(torch.tensor([0, 1, 1])).tolist() == [0, 1, 2]
    assert len(choose(torch.arange(100), fraction=0.01)) == 100  # raised to one a class


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"fraction": 0.0}, "not in (0, 1]"),
        ({"fraction": 1.5}, "not in (0, 1]"),
        ({"fraction": float("nan")}, "not in (0, 1]"),
        ({"fraction": 0.5, "samples": 10}, "only one"),
        ({"samples": 4}, "5 classes"),
        ({"samples": 101}, "100 available"),
    ],
)
def test_choice_that_cannot_be_made(arguments, says):
    with pytest.raises(UserError) as caught:
        choose(torch.arange(5).repeat(20), **arguments)
    assert says in str(caught.value)
    assert str(caught.value).count(". ") == 0


@given(LABELS, st.floats(0.05, 0.95), st.integers(0, 5))
def test_hold_out_parts_the_set_and_leaves_every_class(labels, share, seed):
    index = torch.arange(len(labels))[torch.arange(len(labels)) % 7 != 6]
    train, held = hold_out(index, labels, share, seed)
    assert sorted(train.tolist() + held.tolist()) == index.tolist()
    assert set(labels[train].tolist()) == set(labels[index].tolist())
    assert len(held) <= round(share * len(index))


def test_hold_out_is_stratified():
    labels = torch.arange(4).repeat(25)
    train, held = hold_out(torch.arange(100), labels, 0.2, 0)
    assert labels[held].bincount().tolist() == [5] * 4
    with pytest.raises(UserError, match=r"not in \(0, 1\)"):
        hold_out(train, labels, 1.0, 0)
