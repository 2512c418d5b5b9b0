"""What goes on while a device computes, by threads that know no device; and rows that lie on one."""

import random
import threading
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from test_cache import batch_of, make, teacher_signals, values
from test_step import traced
from tools import SHIFT, Net, loop, model, perform, pictures, plan
from torch import nn

from protege.errors import UserError
from protege.models import placing
from protege.signals import Feature, Logits, TopK
from protege.signals import rows as row_files
from protege.signals import signals as signalling
from protege.signals.behind import EARLY, LATE, Ahead, behind, to_host
from protege.signals.source import Source
from protege.tasks import TASKS
from protege.torch_utils import copy_network
from protege.training import Fit, feeder


class Drawing(Net):
    """Draws random numbers of Python's, in eval mode too."""

    def forward(self, x):
        return super().forward(x) + random.random()


@pytest.mark.parametrize("threaded", [False, True])
def test_work_is_done_in_its_order_and_few_pieces_late(threaded):
    begun, done, free = [], [], threading.Event()

    def work(piece):
        begun.append(threading.get_ident())
        assert free.wait(10)
        done.append(piece)

    free.set() if not threaded else None
    with behind(threaded) as do:
        for piece in range(LATE):
            do(partial(work, piece))
        assert done == ([] if threaded else list(range(LATE))), "nobody waits before it must"
        threading.Timer(0.05, free.set).start()
        for piece in range(LATE, 20):
            do(partial(work, piece))
            assert len(done) >= piece - LATE
    assert done == list(range(20))
    assert set(begun) - {threading.get_ident()} if threaded else set(begun) == {threading.get_ident()}


@pytest.mark.parametrize("threaded", [False, True])
@pytest.mark.parametrize("last", [False, True])
def test_what_work_raises_is_raised_and_nothing_is_done_after_it(threaded, last):
    done = []

    def work(piece):
        if piece == 3:
            raise UserError("the disk is full.")
        done.append(piece)

    def perform():
        with behind(threaded) as do:
            for piece in range(4 if last else 50):
                do(partial(work, piece))

    with pytest.raises(UserError, match="disk is full"):
        perform()
    assert done == [0, 1, 2]


def test_where_the_caller_fails_no_work_is_left():
    done, free = [], threading.Event()

    def perform():
        with behind(True) as do:
            do(partial(free.wait, 10))
            do(lambda: done.append(1))
            threading.Timer(0.2, free.set).start()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        perform()
    assert not done


def test_a_view_is_written_behind_as_it_is_inline(tmp_path, monkeypatch):
    monkeypatch.setattr(signalling, "BLOCK", 7)
    asked = [Logits(), Feature("conv2")]
    assert teacher_signals(tmp_path / "inline", signals=asked).fill(0) == 48
    monkeypatch.setattr(signalling, "behind", lambda threaded: behind(True))
    now = iter(range(0, 10**6, 10))
    monkeypatch.setattr(signalling.time, "monotonic", lambda: next(now))  # each block is committed
    assert teacher_signals(tmp_path / "behind", signals=asked).fill(0) == 48
    for name in ("logits.float16", "feature:conv2.float16", "known.int32"):
        one, other = (next((tmp_path / way).rglob(name)).read_bytes() for way in ("inline", "behind"))
        assert one == other
    assert any(one)
    assert not list(tmp_path.rglob("plan*"))

    def full(*_):
        raise OSError(28, "No space left on device")

    found = teacher_signals(tmp_path / "full")
    monkeypatch.setattr(row_files.Rows, "put", full)
    with pytest.raises(UserError, match="is full; expected room for"):
        found.fill(0)


def test_what_lies_on_the_processor_is_not_copied():
    fields = {"logits": torch.rand(3, 2)}
    assert to_host(fields)()["logits"] is fields["logits"]


def test_rows_are_read_before_they_are_asked_for():
    order, read, begun = torch.arange(40).split(4), [], []

    def reading(index):
        read.append(threading.get_ident())
        return index * 2

    ahead = Ahead(reading, order, lambda: begun.append(1))
    for index in (*order[:3], torch.tensor([7, 1]), *order[3:], order[0]):
        assert torch.equal(ahead.take(index), index * 2)
    assert begun == [1]
    assert read.count(threading.get_ident()) == 2, "but for what was not announced"
    some, all_read = [], threading.Event()
    again = Ahead(lambda index: some.append(1) or (len(some) == EARLY and all_read.set()), order, lambda: None)
    assert all_read.wait(10)
    again.close()
    assert len(some) == EARLY


def test_signals_that_were_read_ahead_are_those_of_their_batches(tmp_path):
    found = teacher_signals(tmp_path, signals=[Logits(), Feature("conv2")])
    order = torch.randperm(48, generator=torch.Generator().manual_seed(0)).split(5)
    expected = {}
    for view in (0, 1):
        found.fill(view)
        for index in order:
            batch = batch_of(found, view, index)
            assert found.attach(batch) == len(index)
            expected[view, index] = batch.signals["teacher"]
    cache, names = found.cache, found._names
    found._ahead = 0, Ahead(lambda index: cache.rows(0, index, names), order, lambda: None)
    for index in order:
        for view in (1, 0):
            batch = batch_of(found, view, index)
            found.attach(batch)
            fields = batch.signals["teacher"]
            assert fields.keys() == expected[view, index].keys()
            for name, value in fields.items():
                assert torch.equal(value, expected[view, index][name])
                assert value.stride() == expected[view, index][name].stride()
    found.release()
    assert found._ahead is None


@pytest.mark.parametrize("kind", [Net, Drawing])
def test_a_pass_that_is_recorded_says_what_the_pass_says(kind):
    """And what it said of a batch is not overwritten by what it says of the next; what it would not follow runs as it
    is."""
    network = model(kind(), seed=3)
    plain, recorded = (teacher_signals(network=network, budget=0) for _ in range(2))
    recorded.record, failed = True, []
    recorded._recorded = captured = recorded._captured(traced)
    captured.failed = failed.append
    said = []
    for number in range(6):
        index = torch.arange(5) + number
        random.seed(number)
        for found in (plain, recorded):
            batch = batch_of(found, 0, index)
            assert found.attach(batch) == 0
            said.append(batch.signals["teacher"]["logits"])
            random.seed(number)
    for one, other in zip(said[::2], said[1::2], strict=True):
        assert torch.equal(one, other)
    assert bool(captured._recorded) == (kind is Net)
    assert bool(failed) == (kind is Drawing)
    recorded.release()
    assert recorded._recorded is None


# ---- rows on a device -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("used", [torch.arange(40), torch.tensor([3, 4, 17, 39])])
def test_only_rows_that_are_used_go_to_the_device_and_come_back_the_same(used, tmp_path):
    fields = {**values(40, 0), "map": torch.randn(40, 3, 4, 5), "wide": torch.randn(40, 6).bfloat16() * 1e20}
    cache = make(tmp_path, fields=fields)
    cache.write(0, torch.arange(40), fields)
    cache.commit(0)
    names = ["logits", "map", "wide"]
    index = used[torch.tensor([2, 0, 3, 0])]
    expected = cache.read(0, index, names=names)
    rows = cache._rows(0)
    rows.load(used, "cpu", names)
    assert cache.loaded(0, names)
    assert not cache.loaded(0, ["classes"])
    assert [rows._loaded[name].dtype for name in names] == [torch.float16, torch.float16, torch.bfloat16]
    assert all(len(rows._loaded[name]) == len(used) for name in names)
    found = cache.read(0, index, names=names)
    for name in names:
        assert torch.equal(found[name], expected[name])
        assert found[name].stride() == expected[name].stride()
    assert torch.equal(cache.read(0, index)["classes"], fields["classes"][index]), "what was not loaded"
    cache.forget()
    assert not cache.loaded(0, names)


def test_rows_on_a_device_are_found_without_asking_it(tmp_path):
    """Tensors without numbers cannot be copied to the processor."""
    cache = make(tmp_path)
    cache.write(0, torch.arange(40), values(40, 0))
    cache.commit(0)
    cache._rows(0).load(torch.arange(5, 20), "meta", ["logits"])
    found = cache.read(0, torch.zeros(7, dtype=torch.int64, device="meta"), "meta", ["logits"])["logits"]
    assert (found.device.type, found.dtype, found.shape) == ("meta", torch.float32, (7, 5))


# ---- a teacher that nobody needs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("called", ["the network", "a module in it", "nobody"])
def test_a_network_that_left_comes_back_when_it_is_called(called, monkeypatch):
    placed, network, inputs = [], model(norm=True).eval(), pictures().fetch(torch.arange(4), 0, SHIFT).inputs
    monkeypatch.setattr(placing, "place", lambda network, device: placed.append((network, device)))
    monkeypatch.setattr(placing, "device_of", lambda network: torch.device("meta"))
    expected = network(inputs)
    come_back = placing.leave(network)
    copy_network(network)
    assert not placed
    calls = {"the network": lambda: network(inputs), "a module in it": lambda: network.network.fc(torch.rand(2, 4))}
    calls.get(called, come_back)()
    assert torch.equal(network(inputs), expected)
    come_back()
    assert placed == [(network, torch.device("meta"))], "once"
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_a_teacher_of_whom_all_is_remembered_leaves_the_accelerator(tmp_path, monkeypatch):
    left, network, other = [], model(seed=3), model(seed=4)
    monkeypatch.setattr(feeder, "leave", lambda network: left.append(network) or (lambda: left.remove(network)))
    whole = teacher_signals(tmp_path / "a", network=network)
    made = loop(other, tmp_path / "run").feeder
    made.dismiss([whole], 1, other)
    made.accelerator = SimpleNamespace(device=torch.device("cuda"))
    whole.fill(0)
    made.dismiss([whole], 2, other)
    assert not left, "of the second epoch nothing is remembered"
    made.dismiss([whole, teacher_signals(tmp_path / "b", network=network, signals=[TopK(2)])], 1, other)
    made.dismiss([whole], 1, other, nn.Sequential(network.network.fc))
    made.dismiss([teacher_signals(network=network, budget=0)], 1, other)
    assert not left
    made.dismiss([whole], 1, other)
    assert left == [network]
    made.recall()
    assert not left


def test_a_teacher_stays_for_a_step_that_may_look_at_its_weights(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(feeder.Feeder, "dismiss", lambda *_: calls.append(1))
    student = model()
    perform(
        loop(student, tmp_path / "own", epochs=1),
        [Fit("own", student, lambda net, batch: {"loss": net(batch.inputs).sum()})],
    )
    assert not calls
    perform(loop(student, tmp_path / "kd", epochs=1), plan("kd", student, model(seed=3)))
    assert calls


class Tied(Net):
    """Uses a layer's weight beside the layer, where autocast leaves it."""

    def forward(self, x):
        return super().forward(x) * self.fc.weight.square().mean().sqrt()


@pytest.mark.parametrize("kind", [Net, Tied])
def test_a_copy_that_is_cast_once_says_the_same_to_the_bit_or_is_not_used(kind):
    network = model(kind(), seed=3)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    source, inputs = (
        Source("teacher", network, [Logits()], TASKS["classification"]),
        pictures(5).pixels.permute(0, 3, 1, 2),
    )

    def forward(source, inputs):
        with torch.autocast("cpu", torch.bfloat16):
            return source.compute(inputs)

    copy = signalling.lighter(source, forward, inputs)
    assert (copy is source) == (kind is Tied)
    assert copy is source or copy.network.network.fc.weight.dtype == torch.bfloat16
    assert torch.equal(forward(copy, inputs)["logits"], forward(source, inputs)["logits"])
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
