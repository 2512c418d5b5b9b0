"""Killed at any moment and started again, a run ends with the same weights and metrics as one never killed."""

import gc
import json
import logging
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import forks
import pytest
import torch
from safetensors.torch import load_file
from tools import Curtain, events, same

import protege
from protege.commands import app
from protege.errors import UserError
from protege.models import Model
from protege.report.read import read_run
from protege.report.run import time_facts
from protege.run import finished
from protege.run import run as running
from protege.signals import SignalCache, Source, folder, signals
from protege.training import checkpoint, journal
from protege.training.journal import Journal
from protege.training.loop import Loop

DROPPING = '''
"""A user's network in which every kind of random number matters."""
import random

import numpy as np
from torch import nn


class Dropping(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.again = nn.Conv2d(6, 6, 3, padding=1)
        self.drop = nn.Dropout(0.3)
        self.fc = nn.Linear(6, num_classes)

    def forward(self, x):
        x = self.norm(self.conv(x)).relu()
        if not self.training or random.random() < 0.7:  # stochastic depth, from Python's numbers
            x = x + self.again(x).relu()
        if self.training:
            x = x * float(np.random.uniform(0.8, 1.2))
        return self.fc(self.drop(x.mean((2, 3))))


def build(num_classes):
    return Dropping(num_classes)
'''
COMMON = {"data": "digits", "samples": 60, "views": 2, "checkpoint_seconds": 0, "lr": 0.05, "precision": "fp32"}
SETTINGS = {
    "simple": {**COMMON, "student": "zoo:cnn_tiny?width=2", "epochs": 3, "batch_size": 16},
    "everything": {
        **COMMON,
        **{"student": "dropping:build", "epochs": 4, "batch_size": 16, "optimizer": "adamw", "ema": 0.9},
        **{"accumulate": 2, "clip": 1.0, "select": "best", "patience": 3, "validation": 0.2, "eval_every": 1},
    },
    "fresh views": {**COMMON, "student": "dropping:build", "epochs": 2, "batch_size": 16, "views": "all"},
}
UPDATES = {"simple": 12, "everything": 12, "fresh views": 8}


@pytest.fixture(autouse=True)
def quick(monkeypatch, dropping):
    for module in (finished, running):
        monkeypatch.setattr(module, "write_run_report", lambda out: None)
    monkeypatch.syspath_prepend(str(dropping))


@pytest.fixture(scope="module")
def dropping(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("user")
    (folder / "dropping.py").write_text(DROPPING)
    return folder


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, digits_teacher, dropping):
    """The run folder of each setting's run that was never killed, made once, with a cache of its own."""
    made: dict[tuple[str, int], Path] = {}

    def get(name: str, blocks: int = signals.BLOCK) -> Path:
        if (name, blocks) not in made:
            out = tmp_path_factory.mktemp("undisturbed") / "run"
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("PROTEGE_CACHE", str(tmp_path_factory.mktemp("cache")))
                patch.setattr(signals, "BLOCK", blocks)
                go(name, digits_teacher, out)
            made[name, blocks] = out
        return made[name, blocks]

    return get


def go(name: str, teacher: Path, out: Path, resume: bool = False, **more) -> None:
    protege.distill(str(teacher), method="kd", out=out, resume=resume, **{**SETTINGS[name], **more})


def interrupted(name: str, teacher: Path, out: Path, **more) -> None:
    with pytest.raises(Curtain):
        go(name, teacher, out, **more)
    assert not (out / "result.json").exists()


def assert_equal(out: Path, reference: Path) -> None:
    mine, theirs = (load_file(folder / "student" / "model.safetensors") for folder in (out, reference))
    assert same(mine, theirs)
    name = "student/model.safetensors"
    assert (out / name).read_bytes() == (reference / name).read_bytes()
    mine, theirs = (json.loads((folder / "result.json").read_text()) for folder in (out, reference))
    assert mine["student"] == theirs["student"]
    assert mine["teacher"]["metrics"] == theirs["teacher"]["metrics"]
    assert mine["student_samples_seen"] == theirs["student_samples_seen"]
    assert [(p["epochs"], p["best"]) for p in mine["phases"]] == [(p["epochs"], p["best"]) for p in theirs["phases"]]
    assert (mine["cache"] is None) == (theirs["cache"] is None)
    epochs = [[e for e in events(folder) if e["event"] == "epoch"] for folder in (out, reference)]
    assert epochs[0] == epochs[1]


def raise_at(monkeypatch, owner, name: str, count: int, before: bool = False) -> None:
    """Let the ``count``-th call of ``owner.name`` (or what follows it) be the last thing that happens."""
    original, calls = getattr(owner, name), 0

    def hooked(*args, **kwargs):
        nonlocal calls
        calls += 1
        if before and calls == count:
            raise Curtain
        found = original(*args, **kwargs)
        if calls == count:
            raise Curtain
        return found

    monkeypatch.setattr(owner, name, hooked)


@pytest.mark.parametrize(
    ("name", "moment"),
    [("simple", 0.5), ("everything", 0.2), ("everything", 0.5), ("everything", 0.9), ("fresh views", 0.7)],
)
def test_stopped_between_two_updates(name, moment, undisturbed, digits_teacher, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        raise_at(patch, Journal, "save_when_due", round(moment * UPDATES[name]))
        interrupted(name, digits_teacher, tmp_path / "run")
    go(name, digits_teacher, tmp_path / "run", resume=True)
    assert_equal(tmp_path / "run", undisturbed(name))


@pytest.mark.parametrize("name", ["simple", "everything"])
def test_updates_after_the_last_checkpoint_are_done_again(name, undisturbed, digits_teacher, tmp_path):
    """Checkpoints now and then: what is lost since the last one is replayed, random numbers included."""
    with pytest.MonkeyPatch.context() as patch:
        saves = 0
        original = Journal.save_when_due

        def every_fifth(self, fit, now=False):
            nonlocal saves
            saves += 1
            self._saved = -1e9 if saves % 5 == 0 else time.monotonic() + 1e9
            original(self, fit, now)
            if saves == 9:
                raise Curtain

        patch.setattr(Journal, "save_when_due", every_fifth)
        interrupted(name, digits_teacher, tmp_path / "run")
    go(name, digits_teacher, tmp_path / "run", resume=True)
    assert_equal(tmp_path / "run", undisturbed(name))


def test_stopped_again_and_again(undisturbed, digits_teacher, tmp_path):
    out = tmp_path / "run"
    for times in range(12):
        with pytest.MonkeyPatch.context() as patch:
            raise_at(patch, Journal, "save_when_due", 3)
            try:
                go("everything", digits_teacher, out, resume=times > 0)
                break
            except Curtain:
                continue
    assert times >= 4
    assert_equal(out, undisturbed("everything"))


MOMENTS = {
    "before the first update": (Loop, "_train_epoch", 1, True),
    "an epoch's end, before it is evaluated": (Loop, "_end_epoch", 2, True),
    "an epoch's end, before it is saved": (Loop, "_end_epoch", 2, False),
    "a line was logged, but nothing saved": (Journal, "log", 3, False),
    "the first checkpoint's weights being written": (torch, "save", 1, True),
    "a checkpoint without its checksum": (checkpoint, "write_json", 4, True),
    "a checkpoint just written": (journal, "save_checkpoint", 4, False),
    "after the phase, before it is saved": (Loop, "_fit", 1, False),
    "after the last phase": (Loop, "run", 1, False),
    "the student being written": (Model, "save", 1, True),
    "the student written, the result not": (Model, "save", 1, False),
}


@pytest.mark.parametrize("moment", list(MOMENTS))
def test_stopped_between_two_lines(moment, undisturbed, digits_teacher, tmp_path):
    owner, attribute, count, before = MOMENTS[moment]
    with pytest.MonkeyPatch.context() as patch:
        raise_at(patch, owner, attribute, count, before)
        interrupted("everything", digits_teacher, tmp_path / "run")
    go("everything", digits_teacher, tmp_path / "run", resume=True)
    assert_equal(tmp_path / "run", undisturbed("everything"))


FILLING = {
    "no block forwarded": (Source, "compute", 2, True),
    "a block forwarded, not written": (Source, "compute", 2, False),
    "one block written, not marked": (SignalCache, "write", 1, False),
    "two blocks written": (SignalCache, "write", 2, False),
    "a view marked": (SignalCache, "commit", 1, False),
    "the second view": (SignalCache, "write", 5, False),
}


@pytest.fixture
def small_blocks(monkeypatch):
    """Three blocks a view, so that a fill has a middle."""
    monkeypatch.setattr(signals, "BLOCK", 25)


@pytest.mark.parametrize(
    ("moment", "each"), [(m, False) for m in list(FILLING)[::2]] + [(m, True) for m in list(FILLING)[1:]]
)
def test_stopped_while_the_cache_is_written(moment, each, undisturbed, digits_teacher, tmp_path, small_blocks):
    reference = undisturbed("simple", blocks=25)
    owner, attribute, count, before = FILLING[moment]
    with pytest.MonkeyPatch.context() as patch:
        if each:
            now = iter(range(0, 10**9, 10))
            patch.setattr(signals.time, "monotonic", lambda: next(now))
        raise_at(patch, owner, attribute, count, before)
        interrupted("simple", digits_teacher, tmp_path / "run")
    go("simple", digits_teacher, tmp_path / "run", resume=True)
    assert_equal(tmp_path / "run", reference)


def test_another_run_on_the_cache_in_between(undisturbed, digits_teacher, tmp_path, small_blocks):
    """A fill that was killed is completed as it was planned, whoever completes it."""
    with pytest.MonkeyPatch.context() as patch:
        raise_at(patch, SignalCache, "write", 2)
        interrupted("simple", digits_teacher, tmp_path / "run")
    go("simple", digits_teacher, tmp_path / "other", samples=90, seed=5)
    go("simple", digits_teacher, tmp_path / "run", resume=True)
    assert_equal(tmp_path / "run", undisturbed("simple", blocks=25))


@pytest.mark.parametrize("first", ["plan", "known", "logits", "cache.json", "in-use", "lock"])
def test_stopped_while_a_cache_is_deleted(
    first, undisturbed, digits_teacher, tmp_path, small_blocks, cache_folder, monkeypatch
):
    """Whichever of its files went first: nothing is left that a run would go on with as if it were whole."""

    def halfway(folder, *_, **__):
        for path in folder.rglob(f"*{first}*"):
            path.unlink()
        raise Curtain

    with pytest.MonkeyPatch.context() as patch:
        now = iter(range(0, 10**9, 10))
        patch.setattr(signals.time, "monotonic", lambda: next(now))
        raise_at(patch, SignalCache, "write", 5)
        interrupted("simple", digits_teacher, tmp_path / "run")
    gc.collect()  # a killed process has nothing open
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder.shutil, "rmtree", halfway)
        patch.setattr(folder, "_exclusive_lock", lambda folder: os.open(os.devnull, os.O_RDONLY))  # ends with a process
        with pytest.raises(Curtain):
            folder.evict(cache_folder, 0)
    go("simple", digits_teacher, tmp_path / "run", resume=True)
    assert_equal(tmp_path / "run", undisturbed("simple", blocks=25))
    folder.evict(cache_folder, 2**40)
    assert not list(cache_folder.glob(f"*{folder.GONE}"))


def test_forwarded_samples_are_counted_over_a_kill(undisturbed, digits_teacher, tmp_path):
    """A view that was filled and paid for stays counted, also where the kill came before the first update."""
    with pytest.MonkeyPatch.context() as patch:
        raise_at(patch, Loop, "_order", 1, before=True)
        interrupted("simple", digits_teacher, tmp_path / "run")
    go("simple", digits_teacher, tmp_path / "run", resume=True)
    mine, theirs = (json.loads((out / "result.json").read_text()) for out in (tmp_path / "run", undisturbed("simple")))
    assert mine["teacher_samples_forwarded"] == theirs["teacher_samples_forwarded"] == 120
    assert mine["cache"]["hits"] == theirs["cache"]["hits"] == 180


def test_what_earlier_runs_paid_for_is_told_as_remembered(digits_teacher, tmp_path):
    """The first run forwards every sample in two views, a second one none, a third one those it has more."""
    told = []
    for name, more in (("first", {}), ("second", {}), ("third", {"samples": 90})):
        go("simple", digits_teacher, tmp_path / name, **more)
        result = json.loads((tmp_path / name / "result.json").read_text())
        told.append((result["teacher_samples_forwarded"], result["teacher_samples_remembered"]))
        facts = dict(time_facts(read_run(tmp_path / name)))
        remembered = facts.get("its answers remembered from earlier runs", "0")
        assert (facts["images forwarded by the teacher"], remembered) == tuple(map(str, told[-1]))
    assert told[:2] == [(120, 0), (0, 120)]
    assert sum(told[2]) == 180
    assert 60 <= told[2][0] < 180


def test_resumed_with_less_disk(undisturbed, digits_teacher, tmp_path, monkeypatch):
    """How many views are stored is settled when the run starts: a stored and an online signal differ by rounding."""
    expected = undisturbed("simple")
    with pytest.MonkeyPatch.context() as patch:
        raise_at(patch, Journal, "save_when_due", 2)
        interrupted("simple", digits_teacher, tmp_path / "run")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=3 * 4096))
    go("simple", digits_teacher, tmp_path / "run", resume=True)
    assert_equal(tmp_path / "run", expected)


# ---- damage -------------------------------------------------------------------------------------------------


def damage(path: Path, kind: str) -> None:
    data = bytearray(path.read_bytes())
    if kind == "truncated":
        data = data[: len(data) // 2]
    elif kind == "flipped":
        data[len(data) // 2] ^= 4
    elif kind == "empty":
        data = bytearray()
    elif kind == "no checksum":
        path, data = path.with_suffix(".json"), bytearray(b"{}")
    elif kind == "no JSON":
        path, data = path.with_suffix(".json"), bytearray(b"[1]")
    path.write_bytes(data)
    if kind == "missing":
        path.unlink()


@pytest.mark.parametrize("kind", ["truncated", "flipped", "empty", "no checksum", "no JSON", "missing"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_used(
    kind, undisturbed, digits_teacher, tmp_path, monkeypatch, caplog
):
    out = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        raise_at(patch, Journal, "save_when_due", 7)
        interrupted("everything", digits_teacher, out)
    before, newest = sorted((out / "checkpoint").glob("*.pt"))
    damage(newest, kind)
    (out / "checkpoint" / "00000099.pt").write_bytes(b"written, but its checksum was not")
    (out / "checkpoint" / "00000100.pt.tmp").write_bytes(b"half")
    (out / "checkpoint" / "00000100.json.tmp").write_bytes(b"{")
    with caplog.at_level(logging.WARNING, "protege"):
        go("everything", digits_teacher, out, resume=True)
    warnings = [record.getMessage() for record in caplog.records if record.name == "protege"]
    assert len(warnings) == 1
    assert str(newest) in warnings[0]
    assert str(before) not in warnings[0]
    assert_equal(out, undisturbed("everything"))


def test_all_checkpoints_damaged(digits_teacher, tmp_path):
    out = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        raise_at(patch, Journal, "save_when_due", 7)
        interrupted("simple", digits_teacher, out)
    for path in (out / "checkpoint").glob("*.pt"):
        damage(path, "truncated")
    with pytest.raises(UserError, match=r"every checkpoint is damaged .*overwrite=True"):
        go("simple", digits_teacher, out, resume=True)


def test_only_two_checkpoints_are_kept(digits_teacher, tmp_path):
    go("simple", digits_teacher, tmp_path / "run")
    names = sorted(path.suffix for path in (tmp_path / "run" / "checkpoint").iterdir())
    assert names == [".json", ".json", ".pt", ".pt"]


def test_a_finished_run_is_left_as_it_is(undisturbed, digits_teacher):
    out = undisturbed("simple")
    files = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    go("simple", digits_teacher, out, resume=True)
    assert files == {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}


# ---- a true kill ----------------------------------------------------------------------------------------------

LONGER = {"epochs": 12, "samples": 200, "patience": 12}


@pytest.fixture(scope="module")
def longer(tmp_path_factory, digits_teacher, dropping):
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PROTEGE_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.syspath_prepend(str(dropping))
        go("everything", digits_teacher, out, **LONGER)
    return out


def newest(out: Path) -> int:
    """The number of the newest checkpoint."""
    return max((int(path.stem) for path in (out / "checkpoint").glob("*.pt")), default=0)


def test_kill_9_of_the_command(longer, digits_teacher, tmp_path, cache_folder, dropping, monkeypatch):
    out = tmp_path / "run"
    monkeypatch.syspath_prepend(str(dropping))
    settings = {**SETTINGS["everything"], **LONGER}
    options = [f"--{key.replace('_', '-')}={value}" for key, value in settings.items()]
    options = ["distill", "--teacher", str(digits_teacher), "--method", "kd", *options, "--out", str(out)]
    process = forks.protege(*options)
    while newest(out) < 17:
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "result.json").exists()
    monkeypatch.setattr(sys, "argv", ["protege", "distill", "--out", str(out), "--resume"])
    with pytest.raises(SystemExit) as ended:
        app.main()
    assert ended.value.code == 0
    assert_equal(out, longer)


def test_kill_9_again_and_again(longer, digits_teacher, tmp_path, cache_folder):
    """Ever new processes (forks: they start at once), each killed, the first when the cache's first file appears."""
    out, context, draw = tmp_path / "run", multiprocessing.get_context("fork"), random.Random(0)
    kills = 0
    while not (out / "result.json").exists():
        resume = (out / "recipe.toml").exists()
        process = context.Process(target=go, args=("everything", digits_teacher, out, resume), kwargs=LONGER)
        process.start()
        until = newest(out) + draw.randint(1, 25)
        while process.is_alive() and not (newest(out) >= until if kills else any(cache_folder.rglob("known.int32"))):
            time.sleep(0.001)
        time.sleep(draw.random() * 0.02 * bool(kills))
        process.kill()
        process.join()
        kills += 1
    assert kills >= 5
    go("everything", digits_teacher, out, True, **LONGER)
    assert_equal(out, longer)
