"""The memory of signals: exact, bounded, shared, and never another teacher's."""

import json
import multiprocessing
import os
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tools import CLASSES, SHIFT, Curtain, Net, events, loop, model, perform, pictures, plan, planned, same, weights
from torch import nn

from protege.data import CLEAN, batches, cache_root
from protege.errors import UserError
from protege.signals import Feature, Logits, SignalCache, Signals, Source, TopK, Views
from protege.signals import rows as row_files
from protege.signals import signals as signalling
from protege.signals.cache import Vanished
from protege.signals.folder import evict
from protege.signals.identity import behaviour
from protege.tasks import TASKS
from protege.training import Solve

TASK = TASKS["classification"]
IDENTITY = {"network": "n", "data": "d", "views": "v", "signals": "s", "precision": "fp32 on cpu"}
FIELDS = {"logits": torch.zeros(2, 5), "classes": torch.zeros(2, 3, dtype=torch.int64)}
SAMPLES = 40


def make(
    folder, identity=IDENTITY, fields=FIELDS, total=SAMPLES, used=SAMPLES, budget=2**30, named=None
) -> SignalCache:
    return SignalCache(folder, identity, fields, total=total, used=used, budget=budget, named=named).open()


def values(rows: int, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "logits": torch.randn(rows, 5, generator=generator) * 8,
        "classes": torch.randint(0, 10**6, (rows, 3), generator=generator),
    }


def teacher_signals(
    folder=None,
    *,
    positions=None,
    views=2,
    budget=2**30,
    network=None,
    signals=None,
    samples=None,
    together=(),
    precision="fp32",
) -> Signals:
    samples = pictures() if samples is None else samples
    positions = torch.arange(len(samples)) if positions is None else positions
    return Signals(
        Source("teacher", network or model(seed=3), signals or [Logits()], TASK, together=together),
        Views(samples, positions, SHIFT, views, torch.device("cpu")),
        budget=budget,
        folder=folder,
        precision=precision,
    ).open()


class Counting(nn.Module):
    """Passes on what it gets and counts the samples and calls."""

    def __init__(self) -> None:
        super().__init__()
        self.samples = self.calls = 0

    def forward(self, x):
        self.samples, self.calls = self.samples + len(x), self.calls + 1
        return x


def counted(**settings) -> tuple[nn.Module, Counting]:
    network = Net(**settings)
    network.drop = Counting()
    return model(network, seed=3), network.drop


# ---- the files ----------------------------------------------------------------------------------------------


rows = st.lists(st.integers(0, 7), min_size=1, max_size=8, unique=True)
acts = st.lists(
    st.tuples(st.sampled_from(["write", "write", "commit", "reopen"]), st.integers(-1, 0), rows), max_size=20
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(acts)
def test_stored_rows_never_change(tmp_path_factory, acts):
    """Against a dictionary: a row keeps its first committed values; what was not committed is not known."""
    folder = tmp_path_factory.mktemp("cache")
    cache = make(folder)
    stored: dict[tuple[int, int], dict[str, torch.Tensor]] = {}
    pending: dict[tuple[int, int], dict[str, torch.Tensor]] = {}
    for seed, (act, view, positions) in enumerate(acts):
        index = torch.tensor(positions)
        if act == "write":
            fields = values(len(index), seed)
            cache.write(view, index, fields)
            for at, row in enumerate(positions):
                if (view, row) not in stored:
                    pending[view, row] = {name: value[at] for name, value in fields.items()}
        elif act == "commit":
            cache.commit(view)
            done = {key: row for key, row in pending.items() if key[0] == view}
            stored |= done
            pending = {key: row for key, row in pending.items() if key not in done}
        else:
            cache, pending = make(folder), {}
        for at in {view for view, _ in [*stored, *pending]}:
            for row in range(8):
                one = torch.tensor([row])
                assert cache.known(at, one) == ((at, row) in stored)
                if (at, row) in stored:
                    found, expected = cache.read(at, one), stored[at, row]
                    assert torch.equal(found["logits"][0], expected["logits"].half().float())
                    assert torch.equal(found["classes"][0], expected["classes"])


def test_a_stored_row_is_not_written_again(tmp_path):
    cache = make(tmp_path)
    for seed, index in enumerate((torch.arange(0, 10), torch.arange(5, 15))):
        cache.write(0, index, values(10, seed))
        cache.commit(0)
    first, second = (values(10, seed)["logits"].half().float() for seed in (0, 1))
    assert torch.equal(cache.read(0, torch.arange(15))["logits"], torch.cat([first, second[5:]]))


def test_rows_come_back_as_float_and_long_in_the_order_asked(tmp_path):
    cache, index = make(tmp_path), torch.tensor([7, 3, 30])
    fields = {"logits": torch.randn(3, 5).bfloat16(), "classes": torch.arange(9).view(3, 3)}
    cache.write(0, index, fields)
    cache.commit(0)
    found = cache.read(0, torch.tensor([30, 7, 7, 3]))
    assert found["logits"].dtype == torch.float32
    assert found["classes"].dtype == torch.int64
    assert torch.equal(found["logits"], fields["logits"][[2, 0, 0, 1]].half().float())
    assert torch.equal(found["classes"], fields["classes"][[2, 0, 0, 1]])


@pytest.mark.parametrize(
    ("key", "word"),
    [
        ("network", "weights"),
        ("data", "data set"),
        ("views", "augmentation"),
        ("signals", "signals"),
        ("precision", "precision"),
    ],
)
def test_another_identity_is_refused_by_name(tmp_path, key, word):
    make(tmp_path)
    with pytest.raises(UserError, match=rf"not the same {word}\).*cache"):
        make(tmp_path, {**IDENTITY, key: "other"})
    make(tmp_path)


def test_another_layout_is_refused(tmp_path):
    make(tmp_path)
    with pytest.raises(UserError, match="version or layout"):
        make(tmp_path, total=SAMPLES + 1)
    with pytest.raises(UserError, match="version or layout"):
        make(tmp_path, fields={"logits": torch.zeros(2, 6)})


def test_other_files_and_damage_are_refused(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="holds other files"):
        make(tmp_path / "a" / "teacher-0123456789abcdef", named=tmp_path / "a")
    make(tmp_path / "b")
    for text in ("{", "[]", '{"identity": 1}'):
        (tmp_path / "b" / "cache.json").write_text(text)
        with pytest.raises(UserError, match="is damaged"):
            make(tmp_path / "b")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        make(tmp_path / "file" / "cache")


def test_killed_while_the_folder_was_claimed(tmp_path):
    (tmp_path / "cache.tmp").write_text('{"versi')
    cache = make(tmp_path)
    cache.write(0, torch.tensor([1]), values(1, 0))
    cache.commit(0)
    assert make(tmp_path).known(0, torch.tensor([1]))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(st.integers(0, 10**9), min_size=1, max_size=30), max_size=5), st.binary(max_size=60))
def test_plans_come_back_in_their_blocks(tmp_path_factory, blocks, noise):
    cache = make(tmp_path_factory.mktemp("cache"), total=10**9 + 1)
    planned = [torch.tensor(block) for block in blocks]
    cache.known(0, torch.tensor([0]))
    cache.set_plan(0, "0of1", planned)
    assert [block.tolist() for block in cache.plan(0, "0of1")] == blocks
    assert cache.plan(0, "0of2") == []
    (cache.folder / "view-0000" / "plan-0of1.npy").write_bytes(noise)
    assert cache.plan(0, "0of1") == []  # damaged: as if nothing had been planned


def test_killed_between_write_and_commit(tmp_path):
    cache, index = make(tmp_path), torch.arange(4)
    cache.write(0, index, values(4, 0))
    again = make(tmp_path)
    assert not again.known(0, index[:1])
    again.write(0, index, values(4, 1))
    again.commit(0)
    assert torch.equal(again.read(0, index)["logits"], values(4, 1)["logits"].half().float())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e6])
def test_what_half_precision_cannot_hold_is_refused(tmp_path, bad):
    cache, fields = make(tmp_path), values(2, 0)
    fields["logits"][1, 2] = bad
    with pytest.raises(UserError, match=r"'logits'.*not finite"):
        cache.write(0, torch.arange(2), fields)
    cache.commit(0)
    assert not cache.known(0, torch.tensor([1]))


def test_bfloat16_is_stored_to_the_bit(tmp_path):
    """Also beyond what float16 holds, and below; what is not finite is refused all the same."""
    bits = torch.randint(-(2**15), 2**15, (SAMPLES, 300), dtype=torch.int16, generator=torch.Generator().manual_seed(0))
    values = bits.view(torch.bfloat16).nan_to_num(0, 0, 0)
    image = values.view(SAMPLES, 3, 10, 10)
    cache = make(tmp_path, fields={"logits": values, "image": image})
    cache.write(0, torch.arange(SAMPLES), {"logits": values, "image": image})
    cache.commit(0)
    for opened in (cache, make(tmp_path, fields={"logits": values, "image": image})):
        assert opened.known(0, torch.arange(SAMPLES))
        assert torch.equal(opened.read(0, torch.arange(SAMPLES))["logits"], values.float())
        assert torch.equal(opened.read(0, torch.arange(SAMPLES))["image"], image.float())
    values[3, 2] = torch.inf
    with pytest.raises(UserError, match=r"'logits'.*not finite"):
        cache.write(1, torch.arange(SAMPLES), {"logits": values, "image": image})


def test_capacity_counts_whole_views(tmp_path):
    row = 5 * 2 + 3 * 8 + 4
    cache = make(tmp_path / "a", total=10_000, used=10_000, budget=3 * 10_000 * row + 17)
    assert cache.view_bytes == 10_000 * row
    assert cache.capacity == 3
    assert [cache.holds(view) for view in (CLEAN, 0, 2, 3)] == [True, True, True, False]
    few = make(tmp_path / "b", total=10**7, used=10, budget=2**20)
    assert few.view_bytes <= 10 * 5 * 4096  # ten rows of sparse files: two of signals, one of flags
    assert few.capacity > 3
    none = make(tmp_path / "c", budget=10)
    assert not none.holds(0)
    assert not none.holds(CLEAN)


def test_rows_that_are_never_written_take_no_disk(tmp_path):
    cache = make(tmp_path, total=1_000_000, used=10)
    cache.write(0, torch.tensor([5, 999_999]), values(2, 0))
    cache.commit(0)
    found = cache.describe()
    assert found["views"] == 1
    assert found["bytes"] < 200_000


def test_scattered_rows_take_the_disk_that_was_said(tmp_path):
    """Also where a whole view is written: nothing is allocated between the rows."""
    rows = torch.arange(0, 4000, 10)
    fields = {"map": torch.zeros(len(rows), 8, 32, 32)}
    cache = SignalCache(tmp_path / "cache", IDENTITY, fields, total=4000, used=len(rows), budget=2**40).open()
    for part in rows.split(100):
        cache.write(0, part, {"map": torch.rand(len(part), 8, 32, 32)})
    cache.commit(0)
    assert cache.read(0, rows)["map"].shape == (400, 8, 32, 32)
    assert cache.describe()["bytes"] <= cache.view_bytes + 50_000


def test_a_full_disk_is_said_in_a_sentence(tmp_path, monkeypatch):
    cache = make(tmp_path)
    cache.known(0, torch.arange(2))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(row_files, "open", full, raising=False)
    with pytest.raises(
        UserError, match=r"is full; expected room for \d+ (KB|bytes) a view: .*resume=True.* lower cache_budget="
    ):
        cache.write(0, torch.arange(2), values(2, 0))


# ---- from a network to a batch ----------------------------------------------------------------------------------


def batch_of(found: Signals, view: int, index: torch.Tensor):
    return found.views.samples.fetch(index, view, found.views.augment)


@pytest.mark.parametrize("view", [CLEAN, 0, 1])
def test_stored_and_online_signals_agree_to_half_precision(tmp_path, view):
    stored, online = teacher_signals(tmp_path), teacher_signals(views=0)
    assert stored.fill(view) == len(pictures())
    index = torch.tensor([40, 3, 17, 8])
    a, b = batch_of(stored, view, index), batch_of(online, view, index)
    assert stored.attach(a) == 4
    assert online.attach(b) == 0
    assert a.signals["teacher"]["logits"].dtype == b.signals["teacher"]["logits"].dtype == torch.float32
    torch.testing.assert_close(a.signals["teacher"]["logits"], b.signals["teacher"]["logits"], rtol=2**-10, atol=1e-4)


def test_in_bf16_remembered_and_online_agree_to_two_percent(tmp_path):
    """Other kernels may compute a batch than a block; what is remembered is what the block's pass said, to the bit."""
    network = model(Net(width=32), seed=3)
    stored, online = (teacher_signals(tmp_path, network=network, precision="bf16", budget=size) for size in (2**30, 0))
    assert stored.fill(0) == 48
    block = batch_of(stored, 0, torch.arange(48)).inputs
    with torch.autocast("cpu", torch.bfloat16):
        said = stored.source.compute(block)["logits"]
    assert said.dtype == torch.bfloat16
    for index in (torch.tensor([17]), torch.tensor([40, 3, 17, 8]), torch.arange(48)):
        a, b = batch_of(stored, 0, index), batch_of(online, 0, index)
        assert (stored.attach(a), online.attach(b)) == (len(index), 0)
        assert torch.equal(a.signals["teacher"]["logits"], said[index].float())
        apart = (a.signals["teacher"]["logits"] - b.signals["teacher"]["logits"]).abs().max()
        assert apart <= 0.02 * said.abs().max()


def test_a_network_is_known_by_what_it_does_in_single_precision(tmp_path):
    """In every precision alike; in single precision as it is known today, so that caches stay valid."""
    network = model(seed=3)
    known = {p: teacher_signals(tmp_path / p, network=network, precision=p).cache.identity for p in ("fp32", "bf16")}
    fields = Source("teacher", network, [Logits()], TASK).compute(
        batch_of(teacher_signals(), CLEAN, torch.arange(48)).inputs
    )
    assert known["fp32"]["outputs"] == known["bf16"]["outputs"] == behaviour(fields)
    assert list(known["fp32"]) == ["network", "outputs", "data", "views", "signals", "precision"]
    assert known["fp32"]["precision"] == "fp32 on cpu" != known["bf16"]["precision"]
    with torch.autocast("cpu", torch.bfloat16):  # as a user's loop may be
        within = teacher_signals(tmp_path / "fp32", network=network)
        assert within.fill(0) == 48
    fields = within.cache.read(0, torch.arange(48))["logits"]
    expected = network(batch_of(within, 0, torch.arange(48)).inputs).detach()
    assert torch.equal(fields, expected.half().float())


def test_views_differ_and_are_not_mixed_up(tmp_path):
    found, index = teacher_signals(tmp_path), torch.arange(48)
    read = []
    for view in (CLEAN, 0, 1):
        found.fill(view)
        batch = batch_of(found, view, index)
        found.attach(batch)
        read.append(batch.signals["teacher"]["logits"])
    assert not torch.equal(read[0], read[1])
    assert not torch.equal(read[1], read[2])


def test_views_beyond_the_budget_are_computed_online(tmp_path):
    network, counter = counted()
    one = teacher_signals(tmp_path, network=network, budget=48 * 10 + 10)
    assert one.cache is not None
    assert one.cache.capacity == 1
    before = counter.samples
    assert (one.fill(0), one.fill(1)) == (48, 0)
    assert counter.samples - before == 48
    first, second = batch_of(one, 0, torch.arange(8)), batch_of(one, 1, torch.arange(8))
    assert (one.attach(first), one.attach(second)) == (8, 0)
    assert counter.samples - before == 56
    expected = one.source.compute(second.inputs)["logits"].half().float()
    assert torch.equal(second.signals["teacher"]["logits"], expected)


def test_views_that_the_disk_cannot_hold_are_announced(tmp_path, monkeypatch, caplog):
    """A quarter of what is free may be taken, whatever the budget; what is not stored is said, and computed anew."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=80 * 48 * 10))
    found = teacher_signals(tmp_path, views=1000)
    count = found.cache.capacity
    assert 20 <= count < 50  # and what the folder's own few files take
    with caplog.at_level("INFO", "protege"):
        assert (found.fill(count - 1), found.fill(count), found.fill(count + 1)) == (48, 0, 0)
    assert caplog.text.count(f"the cache holds {count} of 1000 views of the teacher's signals") == 1


@pytest.mark.parametrize("bad", [float("nan"), 1e6])
def test_an_accelerator_is_asked_for_what_is_not_finite_when_an_epoch_ends(bad):
    """A batch is made without a look at the numbers (tensors without any would fail), and they are refused later."""
    network = model(seed=3)
    with torch.no_grad():
        network.network.fc.bias[1] = bad
    batch = pictures().fetch(torch.arange(4), 0, SHIFT)
    for device in ("cpu", "cuda"):
        found = Signals(
            Source("teacher", network, [Logits()], TASK),
            Views(pictures(), torch.arange(48), SHIFT, 2, torch.device(device)),
            budget=0,
        )
        for ending in (found.check, found.release, lambda found=found: found.fill(1)):
            if device == "cuda":
                found.attach(batch)
            with pytest.raises(UserError, match=r"'logits'.*not finite"):
                ending() if device == "cuda" else found.attach(batch)
            ending()  # it was told
    found = Signals(
        Source("teacher", model(seed=3).to("meta"), [Logits()], TASK),
        Views(pictures(), torch.arange(48), SHIFT, 2, torch.device("meta")),
        budget=0,
    )
    found.attach(batch.to("meta"))
    assert batch.signals["teacher"]["logits"].dtype == torch.float32


def test_top_k(tmp_path):
    network = model(Net(classes=7), seed=3)
    found, index = teacher_signals(tmp_path, network=network, signals=(TopK(2, temperature=3.0),)), torch.arange(20)
    found.fill(0)
    batch = batch_of(found, 0, index)
    found.attach(batch)
    fields = batch.signals["teacher"]
    probs, classes = (network(batch.inputs).detach() / 3.0).softmax(1).sort(dim=1, descending=True)
    torch.testing.assert_close(fields["probs"], probs[:, :2], rtol=2**-10, atol=1e-4)
    assert fields["classes"].dtype == torch.int64
    assert torch.equal(fields["classes"], classes[:, :2])


def test_top_k_of_more_than_there_are():
    fields = TopK(9).fields(torch.randn(4, CLASSES), TASK)
    assert fields["probs"].shape == fields["classes"].shape == (4, CLASSES)
    torch.testing.assert_close(fields["probs"].sum(1), torch.ones(4))


@pytest.mark.parametrize(("task", "shape"), [("segmentation", (2, 5, 4, 3)), ("language", (2, 4, 5))])
def test_top_k_of_pixels_and_tokens(task, shape):
    logits, task = torch.randn(shape), TASKS[task]
    fields = TopK(2).fields(logits, task)
    probs = logits.softmax(task.class_dim).movedim(task.class_dim, -1)
    best = probs.gather(-1, fields["classes"].long().movedim(task.class_dim, -1))
    torch.testing.assert_close(best, fields["probs"].movedim(task.class_dim, -1))
    torch.testing.assert_close(best[..., 0], probs.amax(-1))


def test_features_of_named_modules(tmp_path):
    network = model(seed=3)
    found = teacher_signals(tmp_path, network=network, signals=[Feature("conv1"), Logits(), Feature("bn2")])
    found.fill(0)
    batch = batch_of(found, 0, torch.arange(9))
    found.attach(batch)
    fields = batch.signals["teacher"]
    inner, x = network.network, network.input(batch.inputs)
    conv1 = inner.conv1(x)
    conv2 = inner.conv2(conv1.relu())
    assert set(fields) == {"feature:conv1", "feature:bn2", "logits"}
    for name, expected in (("feature:conv1", conv1), ("feature:bn2", conv2), ("logits", network(batch.inputs))):
        torch.testing.assert_close(fields[name], expected.detach(), rtol=2**-10, atol=1e-4)


def test_unknown_and_silent_modules():
    with pytest.raises(UserError, match=r"teacher has no module 'layer9'; expected .*conv1"):
        Source("teacher", model(), [Feature("layer9")], TASK)
    network = Net()
    network.spare = nn.Linear(2, 2)
    silent = Source("teacher", model(network), [Feature("spare")], TASK)
    with pytest.raises(UserError, match=r"'spare'.*never"):
        silent.compute(pictures().fetch(torch.arange(2), 0, SHIFT).inputs)


def test_the_forward_pass_stops_where_nothing_more_is_asked():
    network, counter = counted()
    inputs = pictures().fetch(torch.arange(4), 0, SHIFT).inputs
    Source("teacher", network, [Feature("conv1"), Feature("conv2")], TASK).compute(inputs)
    assert counter.calls == 0
    Source("teacher", network, [Feature("conv1"), Logits()], TASK).compute(inputs)
    assert counter.calls == 1
    network(inputs)  # no hook stays behind
    assert counter.calls == 2


def test_asking_leaves_modes_gradients_and_statistics_alone():
    """A source may share modules with what learns."""
    network = model(norm=True, drop=0.5)
    network.network.bn1.eval()
    before = [(module, module.training) for module in network.modules()]
    state = {name: value.clone() for name, value in network.state_dict().items()}
    source = Source("student", network, [Feature("conv2"), Logits()], TASK)
    fields = source.compute(pictures().fetch(torch.arange(4), 0, SHIFT).inputs)
    assert not any(value.requires_grad for value in fields.values())
    assert all(module.training == mode for module, mode in before)
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


def test_fingerprints_tell_networks_apart():
    source = Source("teacher", model(seed=1), [Logits()], TASK)
    same = Source("teacher", model(seed=1).to(memory_format=torch.channels_last), [Logits()], TASK)
    assert source.fingerprint() == same.fingerprint()
    other = model(seed=1)
    other.network.fc.bias.data[0] += 1e-6
    brighter = model(seed=1)
    brighter.input = type(brighter.input)(channels=1, mean=(0.4,), std=(0.25,))
    for network, signals in ((other, [Logits()]), (brighter, [Logits()]), (model(seed=1), [TopK(2)])):
        assert Source("teacher", network, signals, TASK).fingerprint() != source.fingerprint()


# ---- paying once ------------------------------------------------------------------------------------------------


def test_a_killed_fill_pays_for_the_rest_only(tmp_path, monkeypatch):
    monkeypatch.setattr(signalling, "BLOCK", 10)
    network, counter = counted()
    found = teacher_signals(tmp_path, network=network)
    original, calls = found.source.compute, 0

    def failing(inputs):
        nonlocal calls
        calls += 1
        if calls == 4:
            raise Curtain
        return original(inputs)

    now = iter(range(0, 10**6, 10))
    monkeypatch.setattr(signalling.time, "monotonic", lambda: next(now))  # each block is committed
    found.source.compute = failing  # type: ignore[method-assign]
    with pytest.raises(Curtain):
        found.fill(0)
    again = teacher_signals(tmp_path, network=network)
    before = counter.samples
    assert again.fill(0) == 18
    assert counter.samples - before == 18
    assert again.fill(0) == 0


def test_a_planned_block_is_forwarded_whole_whoever_completes_it(tmp_path, monkeypatch):
    """On some processors a row's last bits depend on the rows beside it."""
    monkeypatch.setattr(signalling, "BLOCK", 10)
    forwarded: list[list[int]] = []
    original = SignalCache.write

    def write(self, view, index, fields):
        original(self, view, index, fields)
        forwarded.append(index.tolist())
        if len(forwarded) == 1:
            self.commit(view)
            raise Curtain

    monkeypatch.setattr(SignalCache, "write", write)
    with pytest.raises(Curtain):
        teacher_signals(tmp_path, positions=torch.arange(0, 48, 2)).fill(0)
    assert teacher_signals(tmp_path, positions=torch.arange(19, 34)).fill(0) == 18
    assert teacher_signals(tmp_path, positions=torch.arange(0, 48, 2)).fill(0) == 4
    assert forwarded == [
        list(range(0, 20, 2)),
        list(range(20, 40, 2)),  # the first run's, though the second needs the half of it only
        [19, 21, 23, 25, 27, 29, 31, 33],
        [40, 42, 44, 46],
    ]
    assert not list(tmp_path.rglob("plan*"))


def test_subsets_pay_for_new_samples_only(tmp_path):
    first = teacher_signals(tmp_path, positions=torch.arange(0, 30))
    assert first.fill(0) == 30
    read = batch_of(first, 0, torch.arange(30))
    first.attach(read)
    second = teacher_signals(tmp_path, positions=torch.arange(20, 48))
    assert second.fill(0) == 18
    everything = teacher_signals(tmp_path)
    assert everything.fill(0) == 0
    again = batch_of(everything, 0, torch.arange(30))
    everything.attach(again)
    assert torch.equal(again.signals["teacher"]["logits"], read.signals["teacher"]["logits"])


def test_processes_share_a_view(tmp_path):
    found = teacher_signals(tmp_path)
    assert [found.fill(0, rank, 2) for rank in (0, 1)] == [48, 0]  # one block, and it is the first one's
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(signalling, "BLOCK", 10)
        small = teacher_signals(tmp_path / "small")
        assert [small.fill(1, rank, 2) for rank in (0, 1)] == [28, 20]
    assert small.fill(1) == 0


def test_a_row_does_not_depend_on_who_asks_for_it(tmp_path, monkeypatch):
    """Whoever comes later, on another machine, has blocks as large as who made the cache; older caches do not say."""
    asked: list[int] = []
    original = Source.compute
    monkeypatch.setattr(Source, "compute", lambda self, x: asked.append(len(x)) or original(self, x))
    monkeypatch.setattr(signalling, "BLOCK", 20)
    teacher_signals(tmp_path).fill(0)
    monkeypatch.setattr(signalling, "BLOCK", 30)
    teacher_signals(tmp_path).fill(1)
    (told,) = tmp_path.glob("*/cache.json")
    content = json.loads(told.read_text())
    assert content.pop("block") == 20
    told.write_text(json.dumps(content))
    teacher_signals(tmp_path).fill(CLEAN)
    assert asked == [48, 20, 20, 8, 48, 20, 20, 8, 48, 30, 18]
    told.write_text(json.dumps({**content, "block": "many"}))
    with pytest.raises(UserError, match="version or layout"):
        teacher_signals(tmp_path)


@pytest.mark.parametrize(("side", "cpu", "cuda"), [(32, 256, 256), (224, 20, 256), (512, 8, 64), (5000, 1, 1)])
def test_blocks_are_larger_on_an_accelerator(side, cpu, cuda):
    samples = SimpleNamespace(extent=side * side)
    for device, expected in (("cpu", cpu), ("cuda", cuda)):
        views = Views(samples, torch.arange(1), SHIFT, 1, torch.device(device))
        assert Signals(SimpleNamespace(), views, budget=0)._block() == expected


def slow(found: Signals) -> Signals:
    original = found.source.compute

    def compute(inputs):
        time.sleep(0.2)
        return original(inputs)

    found.source.compute = compute  # type: ignore[method-assign]
    return found


def test_runs_side_by_side_pay_once_threads(tmp_path):
    counts: list[int] = []
    both = [slow(teacher_signals(tmp_path)) for _ in range(2)]
    threads = [threading.Thread(target=lambda one=one: counts.append(one.fill(0))) for one in both]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(counts) == [0, 48]


def _fill_and_tell(folder, ready, queue) -> None:
    found = slow(teacher_signals(folder))
    ready.wait()
    queue.put(found.fill(0))


def test_runs_side_by_side_pay_once_processes(tmp_path):
    context = multiprocessing.get_context("fork")
    queue, ready = context.Queue(), context.Barrier(2)
    processes = [context.Process(target=_fill_and_tell, args=(tmp_path, ready, queue)) for _ in range(2)]
    for process in processes:
        process.start()
    assert sorted(queue.get(timeout=60) for _ in processes) == [0, 48]
    for process in processes:
        process.join()


# ---- in a run -------------------------------------------------------------------------------------------------


def losses(out) -> list[dict]:
    return [event["train"] for event in events(out) if event["event"] == "epoch"]


def distilled(out, **settings):
    student, teacher = model(seed=1), model(seed=3)
    made = loop(student, out, epochs=4, batch_size=16, **settings)
    return perform(made, plan("kd", student, teacher)), made


def test_cached_and_online_losses_agree(tmp_path):
    """The same views, stored, in part stored, or computed anew each time."""
    all_stored, _ = distilled(tmp_path / "a", views=4)
    in_part, _ = distilled(tmp_path / "b", views=4, budget=48 * 10 + 10, folder=tmp_path / "c")
    online, made = distilled(tmp_path / "d", views=4, budget=0)
    fresh, _ = distilled(tmp_path / "e", views=0)  # in four epochs four views, by the same numbers
    assert made.state.caches == []
    rows = 4 * 48
    assert [(s.forwarded, s.served) for s in (all_stored, in_part, online, fresh)] == [
        (rows, rows),
        (rows, 48),
        (rows, 0),
        (rows, 0),
    ]
    for name in "abe":
        for mine, theirs in zip(losses(tmp_path / name), losses(tmp_path / "d"), strict=True):
            assert mine == pytest.approx(theirs, rel=1e-3)
    for name in "ab":  # what comes again is rounded alike, stored or not
        assert losses(tmp_path / name) == losses(tmp_path / "d")
    assert losses(tmp_path / "e") != losses(tmp_path / "d")


def test_a_second_run_is_served(tmp_path):
    """Another student and another seed pay nothing; another choice of samples pays for the new ones."""
    some, other = torch.arange(0, 40, 2), torch.arange(0, 40)
    first, _ = distilled(tmp_path / "a", views=2, positions=some)
    assert (first.forwarded, first.served, first.seen) == (2 * 20, 4 * 20, 4 * 20)
    second, _ = distilled(tmp_path / "b", views=2, positions=some, seed=7)
    assert (second.forwarded, second.served) == (0, 4 * 20)
    third, made = distilled(tmp_path / "c", views=2, positions=other, seed=8)
    assert (third.forwarded, third.served) == (2 * 20, 4 * 40)
    fills = [e for e in events(tmp_path / "c") if e["event"] == "fill"]
    assert [(e["source"], e["view"], e["samples"]) for e in fills] == [("teacher", 0, 20), ("teacher", 1, 20)]
    assert made.state.caches[-1]["views"] == 2


def test_another_teacher_is_refused_before_training(tmp_path):
    distilled(tmp_path / "a", views=2, folder=tmp_path / "cache")
    student = model(seed=1)
    made = loop(student, tmp_path / "b", views=2, folder=tmp_path / "cache", epochs=1)
    with pytest.raises(UserError, match="not the same weights"):
        planned(made, plan("kd", student, model(seed=4))).check()
    (made,) = (tmp_path / "cache").glob("teacher_train-*/cache.json")
    assert json.loads(made.read_text())["version"] == 3


def test_another_teacher_of_a_later_phase_is_refused_before_training(tmp_path):
    distilled(tmp_path / "a", views=2, folder=tmp_path / "cache")
    student = model(seed=1)
    made = loop(student, tmp_path / "b", views=2, folder=tmp_path / "cache", epochs=1)
    first = Solve("nothing", lambda report: {})
    with pytest.raises(UserError, match="not the same weights"):
        planned(made, [first, *plan("none", student, None), *plan("kd", student, model(seed=4))]).check()


def test_features_come_back_channels_last(tmp_path):
    values = torch.randn(4, 3, 5, 2)
    cache = make(tmp_path / "a", fields={"0": values[:2]}, total=4, used=4)
    cache.write(0, torch.arange(4), {"0": values})
    cache.commit(0)
    found = cache.read(0, torch.tensor([3, 1]))["0"]
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found, values[[3, 1]], atol=2e-3, rtol=1e-3)


def test_caches_not_used_for_long_make_room(tmp_path):
    used = []
    for age, name in enumerate(["newest", "open", "oldest"]):
        cache = make(tmp_path / name)
        cache.write(0, torch.arange(SAMPLES), {k: v[:1].expand(SAMPLES, -1) for k, v in FIELDS.items()})
        cache.commit(0)
        os.utime(tmp_path / name / "cache.json", (1e9 - age, 1e9 - age))
        used.append(cache)
    size = sum(f.stat().st_blocks * 512 for f in (tmp_path / "newest").rglob("*"))
    used[2:] = []
    del cache
    evict(tmp_path, 4 * size)
    assert len(list(tmp_path.glob("*/"))) == 3
    evict(tmp_path, size // 2)  # only one of them is not in use
    assert sorted(p.name for p in tmp_path.glob("*/")) == ["newest", "open"]
    used.clear()
    evict(tmp_path, size + size // 2)
    assert [p.name for p in tmp_path.glob("*/")] == ["newest"]


def test_a_cache_that_is_opened_while_it_makes_room_is_made_anew(tmp_path, monkeypatch):
    make(tmp_path / "a")
    opening = threading.Event()
    original = shutil.rmtree

    def slowly(folder, **options):
        opening.set()
        time.sleep(0.3)  # the other waits for the lock meanwhile
        original(folder, **options)

    monkeypatch.setattr(shutil, "rmtree", slowly)
    with ThreadPoolExecutor(1) as pool:
        evicted = pool.submit(evict, tmp_path, 0)
        opening.wait()
        cache = make(tmp_path / "a")
        evicted.result()
    rows = torch.tensor([1, 3])
    cache.write(0, rows, values(2, 0))
    cache.commit(0)
    assert make(tmp_path / "a").known(0, rows)


def test_runs_make_room_side_by_side(tmp_path):
    for number in range(40):
        make(tmp_path / str(number))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: evict(tmp_path, 0), range(16)))
    assert not list(tmp_path.glob("*/"))


def test_a_folder_that_the_user_named_makes_no_room_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setattr("protege.signals.signals.evict", lambda *_: pytest.fail("evicted"))
    teacher_signals(tmp_path / "mine")


@pytest.mark.parametrize("root", [{"PROTEGE_CACHE": "~/x"}, {"PROTEGE_CACHE": "", "XDG_CACHE_HOME": ""}])
def test_caches_lie_at_home(root, monkeypatch):
    for key, value in root.items():
        monkeypatch.setenv(key, value)
    assert cache_root() == Path.home() / ("x" if root["PROTEGE_CACHE"] else ".cache/protege")


def test_one_pass_remembers_what_several_phases_ask_for_where_there_is_room(tmp_path):
    """The second phase forwards nothing; with no room for both each has its own cache; the numbers are the same."""
    asked = [Feature("conv2"), Logits()]
    found = {}
    for budget in (2**30, 0):
        if not budget:  # just what one of the two takes
            budget = max(teacher_signals(tmp_path / "size", signals=[one]).cache.view_bytes for one in asked) * 2
        forwarded = []
        for number, one in enumerate(asked):
            made = teacher_signals(tmp_path / str(budget), signals=[one], together=asked, budget=budget)
            forwarded.append(made.fill(0))
            batch = next(batches(made.views.samples, [torch.arange(5)], 0, SHIFT))
            assert made.attach(batch) == 5
            [values] = batch.signals["teacher"].values()
            found.setdefault(number, []).append(values)
        assert forwarded == ([len(made.views.samples), 0] if budget == 2**30 else [len(made.views.samples)] * 2)
    assert all(torch.equal(*pair) for pair in found.values())


def test_signals_that_have_no_room_together_share_the_budget(tmp_path):
    asked = [Feature("conv2"), Logits()]
    sizes = [teacher_signals(tmp_path / "size", signals=[one]).cache.view_bytes for one in asked]
    budget = 40 * sum(sizes)
    made = [
        teacher_signals(tmp_path / "b", views=100, signals=[one], together=asked, budget=budget).cache for one in asked
    ]
    assert made[0].folder != made[1].folder
    assert 0 < sum(cache.capacity * cache.view_bytes for cache in made) <= budget


# ---- deleted while it is in use ---------------------------------------------------------------------------------


def learned(tmp_path, monkeypatch, name: str, delete: dict[str, int]) -> tuple[dict, list[dict]]:
    """Weights after a run whose caches are deleted after that many calls of each of these functions."""
    root = tmp_path / name
    monkeypatch.setenv("PROTEGE_CACHE", str(root / "cache"))
    student = model(seed=1)
    made = loop(student, root / "run", views=2, epochs=4, batch_size=16, eval_every=1)
    with monkeypatch.context() as patch:
        patch.setattr(signalling, "BLOCK", 20)
        for method, count in delete.items():
            calls, original = iter(range(10**6)), getattr(SignalCache, method)

            def deleting(*args, original=original, calls=calls, count=count, **kwargs):
                found = original(*args, **kwargs)
                if next(calls) == count:
                    shutil.rmtree(root / "cache")
                return found

            patch.setattr(SignalCache, method, deleting)
        perform(made, plan("kd", student, model(seed=3)))
    return weights(student), events(root / "run")


@pytest.mark.parametrize(
    "delete",
    [
        *({"write": 0}, {"write": 1}, {"write": 4}, {"commit": 0}, {"commit": 1}, {"set_plan": 0}, {"set_plan": 1}),
        *({"read": 0}, {"read": 3}, {"read": 11}, {"load": 0}, {"load": 3}, {"lock": 1}, {"write": 0, "read": 5}),
    ],
    ids=str,
)
def test_deleting_a_cache_is_always_safe(delete, tmp_path, monkeypatch):
    """At any moment, the last epoch included: what was stored is there to the end or computed again, bit for bit."""
    undisturbed, _ = learned(tmp_path, monkeypatch, "whole", {})
    found, told = learned(tmp_path, monkeypatch, "disturbed", delete)
    assert same(found, undisturbed)
    assert [event["event"] for event in told].count("epoch") == 4


def test_a_cache_that_is_deleted_again_and_again_is_done_without(tmp_path, monkeypatch):
    original = SignalCache.write

    def deleting(cache, *args):
        shutil.rmtree(cache.folder)
        original(cache, *args)

    monkeypatch.setattr(SignalCache, "write", deleting)
    one = teacher_signals(tmp_path / "cache")
    assert one.fill(0) == 0
    batch = next(batches(one.views.samples, [torch.arange(5)], 0, SHIFT))
    assert one.attach(batch) == 0
    assert len(batch.signals["teacher"]["logits"]) == 5


def test_a_part_of_a_cache_that_is_deleted_is_made_anew(tmp_path):
    cache, index = make(tmp_path), torch.arange(4)
    cache.write(0, index, values(4, 0))
    cache.commit(0)
    (tmp_path / "view-0000" / "classes.int64").unlink()
    again = make(tmp_path)
    assert not again.known(0, index)
    again.write(0, index, values(4, 0))
    again.commit(0)
    assert torch.equal(make(tmp_path).read(0, index)["classes"], values(4, 0)["classes"])


def test_a_cache_that_another_run_made_anew_is_not_written_into(tmp_path):
    """Of two processes on a deleted folder, the second one finds what the first one makes there."""
    cache, index = make(tmp_path / "cache"), torch.arange(4)
    cache.write(0, index[:2], values(2, 0))
    cache.commit(0)
    shutil.rmtree(tmp_path / "cache")
    other = make(tmp_path / "cache")
    other.write(0, index[2:], values(2, 1))
    other.commit(0)
    with pytest.raises(Vanished):
        cache.write(0, index[2:], values(2, 1))
    cache.forget(0)
    assert cache.missing(0, index).tolist() == [0, 1]
