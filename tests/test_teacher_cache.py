"""A teacher's outputs in a loop of one's own: exact, paid for once, and in the files of a run."""

import doctest
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import protege
from protege.data import load_data
from protege.errors import UserError
from protege.losses import divergence, topk
from protege.models import InputSpec, Model
from protege.signals import Feature, Logits, Source, TopK, teacher

QUICK = {"epochs": 2, "batch_size": 64, "checkpoint_seconds": 1e9, "precision": "fp32"}
# What processors with bf16 would take by default is tested in test_numerics.py.
TeacherCache = partial(protege.signals.TeacherCache, precision="fp32")


@pytest.fixture
def forwarded(monkeypatch) -> list[int]:
    """How many samples each pass of a teacher for its signals has had."""
    passes: list[int] = []
    original = Source.compute

    def compute(self, inputs):
        passes.append(len(inputs))
        return original(self, inputs)

    monkeypatch.setattr(Source, "compute", compute)
    return passes


class Pictures(torch.utils.data.Dataset):
    """Small colour images that all differ, of four classes."""

    def __init__(self, count: int = 50, side: int = 8) -> None:
        self.images = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, at: int):
        return self.images[at], at % 4


def network(classes: int = 4) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, classes))


def test_the_example_runs():
    assert doctest.testmod(teacher) == (0, 8)


def test_nothing_is_made_before_it_is_asked_for(monkeypatch, cache_folder, tmp_path):
    monkeypatch.setattr(Source, "compute", lambda *_: pytest.fail("computed"))
    monkeypatch.setattr(Source, "fingerprint", lambda *_: pytest.fail("hashed"))
    made = TeacherCache(network(), Pictures(), folder=tmp_path / "cache")
    made.loader(8)
    assert not (tmp_path / "cache").exists()
    assert not list(cache_folder.iterdir())


@pytest.mark.parametrize("augment", [None, "none", "crop=0.5,flip,jitter=0.3", "mixup=0.4"])
def test_the_teacher_speaks_of_the_very_pixels(augment):
    """Online and remembered, in every view: what it says in half precision."""
    own = network()
    made = TeacherCache(own, Pictures(), views=2, augment=augment, signals=[Logits(), Feature("1")])
    features = []
    own[1].register_forward_hook(lambda _, inputs, output: features.append(output))
    for _ in range(4):
        for batch in made.loader(16):
            with torch.no_grad():
                expected = made.teacher(batch.inputs)
            torch.testing.assert_close(batch.teacher.logits, expected, rtol=2**-10, atol=1e-4)
            torch.testing.assert_close(batch.teacher.probs, expected.softmax(1), rtol=1e-2, atol=1e-4)
            torch.testing.assert_close(batch.teacher.features["1"], features[-1], rtol=2**-10, atol=1e-4)
            assert batch.teacher.indices is None
            assert not batch.teacher.rest.any()


def test_each_view_is_paid_for_once(forwarded):
    made = TeacherCache(network(), Pictures(), views=3)
    counts, seen = [], []
    for _ in range(7):
        views = {batch.view for batch in made.loader(20)}
        counts.append(sum(forwarded))
        seen.append(views)
    assert seen == [{0}, {1}, {2}, {0}, {1}, {2}, {0}]
    assert counts == [100, 150, 200, 200, 200, 200, 200]  # and 50 by which it is known
    again = TeacherCache(network(), Pictures(), views=5)
    assert again.fill() == 2 * 50
    assert again.fill() == 0


@pytest.mark.parametrize("settings", [{"budget": 0}, {"views": "all"}, {"budget": 50 * (4 * 2 + 4)}])
def test_what_has_no_room_is_computed(settings, cache_folder):
    made = TeacherCache(network(), Pictures(), **{"views": 2, **settings})
    kept = TeacherCache(network(), Pictures(), views=2)
    for _ in range(3):
        for ours, theirs in zip(made.loader(25), kept.loader(25), strict=True):
            assert torch.equal(ours.index, theirs.index)
            if settings.get("views") == "all":
                assert torch.equal(ours.teacher.logits, made.teacher(ours.inputs).detach())
            else:
                assert torch.equal(ours.inputs, theirs.inputs)
                assert torch.equal(ours.teacher.logits, theirs.teacher.logits)


def test_the_order_is_a_function_of_seed_and_epoch():
    made = TeacherCache(network(), Pictures(), views=2, seed=3)

    def order(**which) -> list[list[int]]:
        return [batch.index.tolist() for batch in made.loader(16, **which)]

    first = order(epoch=0)
    assert sorted(at for part in first for at in part) == list(range(50))
    assert sorted(map(len, first)) == [12, 12, 13, 13]
    assert len(made.loader(16)) == len(first)
    assert first == order(epoch=0) == order(epoch=0, seed=3) == order()  # the first pass that is counted
    assert order(epoch=1) == order() != first
    assert order(epoch=0, seed=4) not in (first, order(epoch=1))
    assert made.epoch == 2
    made.epoch = 0
    assert order() == first
    loader = made.loader(16)
    loader.set_epoch(1)
    assert [batch.index.tolist() for batch in loader] == [batch.index.tolist() for batch in loader] == order(epoch=1)


def test_a_dataset_is_learned_from_as_it_is():
    data = Pictures()
    made = TeacherCache(network(), data, augment="none")
    assert len(made) == 50
    for batch in made.loader(7):
        assert batch.labels.tolist() == [at % 4 for at in batch.index.tolist()]
        expected = np.stack([data[at][0] for at in batch.index.tolist()])
        assert np.array_equal(batch.inputs.permute(0, 2, 3, 1).numpy(), expected)
        assert batch["labels"] is batch.labels
        with pytest.raises(AttributeError, match="no 'pixels'"):
            _ = batch.pixels
    assert len(TeacherCache(network(), (data, Pictures(20)))) == 50
    assert len(TeacherCache(network(10), load_data(Pictures(40)), augment="none")) < 40  # some are held out as test


def test_top_k_is_enough_for_a_large_vocabulary():
    """Of 150,000 classes ten are kept; with the mass of the rest the loss is that of the same rows in full."""
    classes, k = 150_000, 10
    torch.manual_seed(1)
    big = nn.Sequential(nn.Flatten(), nn.Linear(8 * 8 * 3, classes))
    big[1].weight.data *= 8
    student = nn.Sequential(nn.Flatten(), nn.Linear(8 * 8 * 3, classes))
    wrapped, learner = (Model(one, InputSpec(mean=(0.5,) * 3, std=(0.3,) * 3)) for one in (big, student))
    made = TeacherCache(wrapped, Pictures(12), views=1, augment="none", signals=[TopK(k)])
    (batch,) = made.loader(12)
    said = batch.teacher
    with torch.no_grad():
        full, z = wrapped(batch.inputs).double().softmax(1), learner(batch.inputs).double()
    probs, indices = full.topk(k)
    assert said.probs.shape == said.indices.shape == (12, k)
    assert torch.equal(said.indices, indices)
    torch.testing.assert_close(said.probs.double(), probs, rtol=2**-10, atol=1e-6)
    torch.testing.assert_close(said.rest.double(), 1 - probs.sum(1), rtol=0, atol=1e-3)
    assert said.rest.min() < 0.9, "of some rows ten classes say something"
    dense = ((1 - probs.sum(1)) / (classes - k))[:, None].repeat(1, classes).scatter(1, indices, probs)
    expected = (dense * (dense.log() - z.log_softmax(1))).sum(1)
    loss = divergence(z.float(), topk(said.probs, said.indices, classes))
    torch.testing.assert_close(loss.double(), expected, rtol=1e-2, atol=5e-3)
    log_q = z.log_softmax(1)
    kept = log_q.gather(1, said.indices)
    rest = (log_q.sum(1) - kept.sum(1)) / (classes - k)
    whole = -(said.probs * kept).sum(1) - said.rest * rest
    torch.testing.assert_close(whole, -(dense * log_q).sum(1), rtol=1e-2, atol=1e-2)
    with pytest.raises(UserError, match=r"asked for probs, classes and not for its logits.*signals="):
        _ = said.logits


def test_pixels_and_tokens(tmp_path):
    """The classes of a mask are in dimension 1, those of words the last."""
    (tmp_path / "train.txt").write_text("the cat sat on the mat and the dog sat on the log\n" * 20)
    data = load_data(f"text:{tmp_path}?length=8&vocabulary=20")
    made = TeacherCache(protege.load_model("zoo:lstm?hidden=8&embedding=8", data=data), data, signals=[TopK(3)])
    batch = next(iter(made.loader(4)))
    assert batch.teacher.probs.shape[-1] == 3
    assert batch.teacher.rest.shape == batch.teacher.probs.shape[:-1]
    torch.testing.assert_close(batch.teacher.probs.sum(-1) + batch.teacher.rest, torch.ones_like(batch.teacher.rest))


# ---- with a run -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["digits", "data"])
def test_a_run_finds_what_a_loop_has_paid_for_and_the_other_way_round(digits_teacher, tmp_path, forwarded, given):
    data = "digits" if given == "digits" else load_data("digits")
    made = TeacherCache(digits_teacher if given == "digits" else protege.load_model(digits_teacher), data, views=2)
    for _ in range(2):
        for _ in made.loader(256):
            pass
    forwarded.clear()
    run = protege.distill(str(digits_teacher), "zoo:mlp?hidden=4", data, out=tmp_path / "run", views=2, **QUICK)
    assert run.result["teacher_samples_forwarded"] == 0
    assert sum(forwarded) == 64, "a few samples, by which the teacher is known"
    protege.distill(
        str(digits_teacher), "zoo:mlp?hidden=4", data, out=tmp_path / "b", views=2, target="topk", k=3, **QUICK
    )
    forwarded.clear()
    other = TeacherCache(str(digits_teacher), data, views=2, signals=[TopK(3, temperature=4.0)])
    assert other.fill() == 0
    assert sum(forwarded) == 64


def test_a_run_and_a_loop_share_a_folder_and_a_part(digits_teacher, tmp_path):
    """A run on a tenth pays for a tenth; the loop pays for the rest."""
    where = tmp_path / "signals"
    run = protege.distill(
        str(digits_teacher),
        "zoo:mlp?hidden=4",
        "digits",
        out=tmp_path / "run",
        views=2,
        samples=100,
        cache=where,
        **QUICK,
    )
    assert run.result["teacher_samples_forwarded"] == 200
    made = TeacherCache(str(digits_teacher), "digits", views=2, folder=where)
    assert made.fill() == 2 * (len(made) - 100)


def test_a_run_hashes_its_teacher_once(digits_teacher, tmp_path, monkeypatch):
    """What is opened to check a run is what the run then reads."""
    calls = []
    original = Source.fingerprint
    monkeypatch.setattr(Source, "fingerprint", lambda self: calls.append(1) or original(self))
    protege.distill(str(digits_teacher), "zoo:mlp?hidden=4", "digits", out=tmp_path / "run", samples=60, **QUICK)
    assert len(calls) == 1


# ---- refusals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"views": 0}, r"views = 0 .*expected one from 1, or 'all'"),
        ({"views": "some"}, r"views = 'some'.*'all'"),
        ({"signals": []}, r"signals is empty; expected"),
        ({"signals": [Feature("layer9")]}, r"the teacher has no module 'layer9'"),
        ({"precision": "fp8"}, r"precision = 'fp8' is not known; expected auto, bf16 or fp32"),
        ({"augment": "wobble"}, r"unknown part 'wobble'"),
        ({"budget": "much"}, r"budget = 'much' is a str; expected a whole number"),
        ({"data": None}, r"data is missing"),
        ({"teacher": "zoo:resnet0"}, r"resnet0"),
    ],
)
def test_bad_input_is_one_sentence(settings, sentence, cache_folder):
    with pytest.raises(UserError, match=sentence) as caught:
        TeacherCache(**{"teacher": network(), "data": Pictures(), **settings})
    assert "\n" not in str(caught.value)
    assert not list(cache_folder.iterdir())


def test_another_teachers_folder_and_other_files_are_refused(tmp_path):
    TeacherCache(network(), Pictures(), views=1, folder=tmp_path / "a").fill()
    other = network()
    other[4].bias.data += 1
    with pytest.raises(UserError, match=r"another teacher.*not the same weights.*folder=…"):
        TeacherCache(other, Pictures(), views=1, folder=tmp_path / "a").fill()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match=r"holds other files.*folder=…"):
        next(iter(TeacherCache(network(), Pictures(), folder=str(tmp_path / "b")).loader(4)))
    with pytest.raises(UserError, match="batch_size = 0"):
        TeacherCache(network(), Pictures()).loader(0)


def test_random_numbers_of_the_caller_stay_as_they_are():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    for _ in TeacherCache("zoo:cnn_tiny", Pictures(), views=1).loader(16):
        pass
    assert torch.equal(torch.rand(3), expected)
