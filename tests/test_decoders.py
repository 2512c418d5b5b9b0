"""Processes that decode a stream live on from pass to pass, change nothing, and end."""

import os
from contextlib import nullcontext

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from protege import distill
from protege.data import CLEAN, Augment, batches, decoders, lasting_decoders, load_data, loader
from protege.data.loader import one_ahead
from protege.run import run

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 9, 11, 3), np.uint8)
ITEMS = [(Image.fromarray(image), n % 3) for n, image in enumerate(PIXELS)]
ORDER = torch.randperm(24, generator=torch.Generator().manual_seed(0)).split(5)
AUGMENT = Augment(shift=2, flip=True)


@pytest.fixture(scope="module")
def data():
    return load_data((ITEMS, ITEMS[:6]), memory_limit=10)


@pytest.fixture
def stream(data):
    return data.train


@pytest.fixture
def made(monkeypatch) -> list[decoders.Decoders]:
    """All that are made meanwhile."""
    made, real = [], decoders.Decoders.__init__
    monkeypatch.setattr(decoders.Decoders, "__init__", lambda self, *rest: made.append(self) or real(self, *rest))
    return made


def processes() -> set[int]:
    return {child.pid for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE}


def check(samples, view, augment=AUGMENT, order=ORDER, workers=2):
    found = list(batches(samples, order, view, augment, workers=workers))
    for batch, positions in zip(found, order, strict=True):
        alone = samples.fetch(positions, view, augment)
        assert (batch.view, batch.index.tolist()) == (view, positions.tolist())
        assert torch.equal(batch.inputs, alone.inputs)
        assert torch.equal(batch.labels, alone.labels)


def test_processes_serve_all_views_and_end(stream, made):
    before = processes()
    with lasting_decoders():
        check(stream, 0)
        first = processes() - before
        assert len(first) == 2
        for view in (1, CLEAN, 2**40):
            check(stream, view)
        check(stream, CLEAN, Augment())  # as evaluation asks
        assert processes() - before == first
        check(stream, 1, Augment(crop=0.3))  # other views: of other processes, in place of these
        assert len(processes() - before) == 2
        assert not processes() & first
        check(stream, 1, workers=1)
        assert len(processes() - before) == 1
    assert processes() == before
    assert len(made) == 3
    check(stream, 0)
    assert processes() == before


def test_passes_at_the_same_time_do_not_meet(stream, made):
    before = processes()
    with lasting_decoders():
        one, two = (batches(stream, ORDER, view, AUGMENT, workers=1) for view in (0, 1))
        for first, second, positions in zip(one, two, ORDER, strict=True):
            assert torch.equal(first.inputs, stream.fetch(positions, 0, AUGMENT).inputs)
            assert torch.equal(second.inputs, stream.fetch(positions, 1, AUGMENT).inputs)
        assert len(processes() - before) == 1
        check(stream, 2, workers=1)
        assert len(made) == 2
        next(broken := batches(stream, ORDER, 3, AUGMENT, workers=1))
        broken.close()
        check(stream, 4, workers=1)  # what was made for the pass that was broken off is no part of it
        assert len(made) == 2
    assert processes() == before


def test_no_processes_are_left_by_what_raises_half_way(stream):
    before, kept = processes(), []
    with pytest.raises(ZeroDivisionError) as caught, lasting_decoders():  # noqa: PT012
        for batch in batches(stream, ORDER, 0, AUGMENT, workers=2):
            kept.append(processes() - before)
            len(batch) // 0
    assert caught.traceback
    assert len(kept[0]) == 2
    assert processes() == before


def test_signals_to_a_group_of_processes_are_left_to_the_one_that_is_worked_for(stream):
    before = processes()
    with lasting_decoders():
        check(stream, 0)
        assert {os.getpgid(process) for process in processes() - before} == processes() - before


def test_a_run_starts_processes_once_for_each_stream_and_leaves_none(data, tmp_path, made, monkeypatch):
    before = processes()
    settings = {"epochs": 3, "eval_every": 1, "workers": 1, "precision": "fp32", "select": "last"}
    out = distill(None, "zoo:mlp?hidden=8", data, "none", tmp_path / "out", **settings).out
    assert processes() == before
    assert len(made) == 2  # for the train and the test set
    memory = load_data((ITEMS, ITEMS[:6]))
    other = distill(None, "zoo:mlp?hidden=8", memory, "none", tmp_path / "other", **settings).out
    assert (out / "student" / "model.safetensors").read_bytes() == (
        other / "student" / "model.safetensors"
    ).read_bytes()

    monkeypatch.setattr(run, "end", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        distill(None, "zoo:mlp?hidden=8", data, "none", tmp_path / "third", **settings)
    assert processes() == before


def test_an_item_is_given_when_the_next_one_has_been_taken():
    taken = []
    items = one_ahead(taken.append(n) or n for n in range(4))
    assert [(n, len(taken)) for n in items] == [(0, 2), (1, 3), (2, 4), (3, 4)]
    assert list(one_ahead([])) == []


class Sent:
    """A batch, and a tensor of it, that tell what becomes of them."""

    def __init__(self, number: int, log: list[str]):
        self.number, self.log, self.inputs, self.labels = number, log, self, self

    def pin_memory(self):
        self.log.append(f"{self.number} pinned")
        return self

    def to(self, device):
        self.log.append(f"{self.number} sent")
        return self

    def record_stream(self, stream):
        self.log.append(f"{self.number} belongs to {stream.name}")


def test_batches_go_to_a_gpu_on_a_stream_of_their_own_while_the_one_before_is_worked_on(monkeypatch):
    log: list[str] = []

    class Stream:
        def __init__(self, device, name="copies"):
            self.name = name

        def record_event(self):
            return f"the end of {log[-1]}"

        def wait_event(self, event):
            log.append(f"{self.name} waits for {event}")

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext(log.append(f"on {stream.name}")))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream(device, "work"))
    loader._copies.cache_clear()
    for batch in loader.ahead(iter([Sent(0, log), Sent(1, log)]), "cuda"):
        log.append(f"{batch.number} is worked on")
    loader._copies.cache_clear()
    sent = [[f"on copies {n} pinned {n} sent"] for n in (0, 1)]
    used = [[f"work waits for the end of {n} sent", *[f"{n} belongs to work"] * 2, f"{n} is worked on"] for n in (0, 1)]
    assert " ".join(log) == " ".join([*sent[0], *sent[1], *used[0], *used[1]])
    assert [batch.number for batch in loader.ahead(iter([Sent(2, log)]), "cpu")] == [2]
