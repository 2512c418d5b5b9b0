"""A run that is stopped, or finds its disk full, says in one sentence how it goes on, and has lost nothing."""

import builtins
import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import forks
import pytest
from safetensors import SafetensorError
from safetensors.torch import load_file
from tools import events, same, surroundings

import protege
from protege import UserError
from protege.errors import Stopped
from protege.models import storage
from protege.signals import Source
from protege.training import loop as running
from protege.training.loop import Loop

RUN = {
    "student": "zoo:mlp?hidden=8",
    "data": "digits",
    "samples": 60,
    "epochs": 4,
    "batch_size": 20,
    "precision": "fp32",
}


def go(out: Path, teacher: Path | None = None, **more) -> None:
    given = {"method": "none"} if teacher is None else {"teacher": str(teacher), "views": 2}
    protege.distill(out=out, **RUN, **given, **more)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PROTEGE_CACHE", str(tmp_path_factory.mktemp("cache")))
        go(out := tmp_path_factory.mktemp("whole") / "run")
    return out


@pytest.fixture(scope="module")
def taught(tmp_path_factory, digits_teacher) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PROTEGE_CACHE", str(tmp_path_factory.mktemp("cache")))
        go(out := tmp_path_factory.mktemp("taught") / "run", digits_teacher)
    return out


def assert_equal(out: Path, reference: Path) -> None:
    mine, theirs = (load_file(folder / "student" / "model.safetensors") for folder in (out, reference))
    assert same(mine, theirs)
    mine, theirs = (json.loads((folder / "result.json").read_text()) for folder in (out, reference))
    assert mine["student"] == theirs["student"]
    assert mine["student_samples_seen"] == theirs["student_samples_seen"]
    assert [e for e in events(out) if e["event"] == "epoch"] == [e for e in events(reference) if e["event"] == "epoch"]


# ---- Ctrl-C and SIGTERM ---------------------------------------------------------------------------------------


def send(monkeypatch, number: int, owner, name: str, count: int) -> None:
    """Send this process a signal in the ``count``-th call of a function."""
    original, calls = getattr(owner, name), 0

    def hooked(*args, **kwargs):
        nonlocal calls
        calls += 1
        found = original(*args, **kwargs)
        if calls == count:
            os.kill(os.getpid(), number)
        return found

    monkeypatch.setattr(owner, name, hooked)


MOMENTS = {
    "in an update": (running, "factor", 5),
    "in the first update": (running, "factor", 1),
    "in the last update": (running, "factor", 12),
    "while it is evaluated": (Loop, "evaluate", 4),
    "at the end of an epoch": (Loop, "_end_epoch", 2),
    "while signals are stored": (Source, "compute", 3),
}


@pytest.mark.parametrize("moment", list(MOMENTS))
def test_nothing_is_lost_by_ctrl_c(moment, taught, digits_teacher, tmp_path, monkeypatch):
    """No checkpoint by time: what was done is kept when the run is stopped."""
    out, before = tmp_path / "run", signal.getsignal(signal.SIGINT)
    with pytest.MonkeyPatch.context() as patch:
        send(patch, signal.SIGINT, *MOMENTS[moment])
        with pytest.raises(KeyboardInterrupt) as stopped:
            go(out, digits_teacher, checkpoint_seconds=1e6)
    assert signal.getsignal(signal.SIGINT) is before
    assert isinstance(stopped.value, Stopped)
    assert str(stopped.value) == f"what was done is kept in {str(out)!r}, go on with the same call and resume=True."
    updates = 0
    original = running.factor

    def counted(*args):
        nonlocal updates
        updates += 1
        return original(*args)

    monkeypatch.setattr(running, "factor", counted)
    go(out, digits_teacher, resume=True)
    assert_equal(out, taught)
    if moment.endswith("update"):
        assert updates == 12 - MOMENTS[moment][2], "each update was done once"


def test_once_more_stops_at_once(whole, tmp_path, monkeypatch):
    with pytest.MonkeyPatch.context() as patch:
        send(patch, signal.SIGINT, running, "factor", 5)
        send(patch, signal.SIGINT, running.Journal, "spent", 16)
        with pytest.raises(Stopped):
            go(tmp_path / "run")
    go(tmp_path / "run", resume=True)
    assert_equal(tmp_path / "run", whole)


def test_sigterm_is_heard_too(whole, tmp_path, monkeypatch, caplog):
    with pytest.MonkeyPatch.context() as patch:
        send(patch, signal.SIGTERM, running, "factor", 5)
        with pytest.raises(SystemExit) as ended:
            go(tmp_path / "run")
    assert ended.value.code == 143
    assert "go on with the same call and resume=True" in caplog.text
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    go(tmp_path / "run", resume=True)
    assert_equal(tmp_path / "run", whole)


def test_before_anything_is_done_there_is_nothing_to_go_on_with(tmp_path, monkeypatch):
    with pytest.MonkeyPatch.context() as patch:
        send(patch, signal.SIGINT, running.Loop, "evaluate", 1)
        with pytest.raises(KeyboardInterrupt) as stopped:
            go(tmp_path / "run")
    assert not isinstance(stopped.value, Stopped)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_command_prints_the_command_that_goes_on(number, tmp_path):
    out = tmp_path / "a run"
    options = [
        f"--{key.replace('_', '-')}={value}" for key, value in {**RUN, "epochs": 100_000, "method": "none"}.items()
    ]
    process = forks.protege("distill", *options, "--out", out)
    log = out / "metrics.jsonl"
    while not (log.exists() and log.read_text().count('"epoch"') > 2):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    process.wait()
    assert "Traceback" not in process.stderr
    last = process.stderr.strip().splitlines()[-1]
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert last == f"stopped; go on with protege distill --resume --out '{out}'"
    else:
        assert process.returncode == 143
        assert last == f"stopped; what was done is kept in '{out}', go on with the same call and --resume."


# ---- a full disk ------------------------------------------------------------------------------------------------


def fill_disk(monkeypatch, ending: str, count: int) -> None:
    """Let the disk be full when the ``count``-th file of such a name is opened for writing."""
    real, opened = io.open, 0

    def full(path, mode="r", *args, **kwargs):
        nonlocal opened
        if isinstance(path, str | Path) and re.search(f"{ending}$", str(path)) and mode[0] in "wa":
            opened += 1
            if opened >= count:
                return real("/dev/full", mode, *args, **kwargs)
        return real(path, mode, *args, **kwargs)

    monkeypatch.setattr(builtins, "open", full)
    monkeypatch.setattr(io, "open", full)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize(
    ("ending", "count"),
    [
        (r"\.pt\.[-\w]+\.tmp", 1),
        (r"\.pt\.[-\w]+\.tmp", 4),
        (r"\.json\.[-\w]+\.tmp", 3),
        ("/metrics.jsonl", 2),
        ("/metrics.jsonl", 4),
        ("student", 1),
    ],
)
def test_a_full_disk(ending, count, whole, tmp_path, monkeypatch):
    out = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        fill_disk(patch, ending, count)
        if ending == "student":
            error = SafetensorError("I/O error: No space left on device (os error 28)")
            patch.setattr(storage, "save_file", lambda *_: (_ for _ in ()).throw(error))
        with pytest.raises(UserError, match=r"disk is full .*free some; .*resume=True\.$") as refused:
            go(out, checkpoint_seconds=0)
    assert "\n" not in str(refused.value)
    assert not [path for path in out.rglob("*") if path.suffix == ".tmp" or ".tmp" in path.name]
    assert not (out / "result.json").exists()
    for line in (out / "metrics.jsonl").read_text().splitlines():
        json.loads(line)
    go(out, resume=True)
    assert_equal(out, whole)


def test_a_full_disk_at_the_very_end_and_the_very_beginning(whole, tmp_path):
    out = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        fill_disk(patch, ".tmp", 1)
        with pytest.raises(UserError, match=r"disk is full .*: free some\.$"):
            go(out)
    assert not list(out.iterdir())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", refuse_pages(os.replace))
        with pytest.raises(UserError, match=r"disk is full .*: free some; what was done is kept"):
            go(out)
    assert not list(out.rglob("*tmp*"))
    go(out, resume=True)
    assert (out / "report.html").exists()
    assert_equal(out, whole)


def refuse_pages(real):
    def replace(source, target):
        if str(target).endswith(".html"):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(source, target)

    return replace


# ---- in a session -----------------------------------------------------------------------------------------------

FAULTY = """import protege; raise protege.UserError("the zoo has no model 'nonet'.")"""


def test_python_i_shows_the_sentence_alone(tmp_path):
    (tmp_path / "faulty.py").write_text(FAULTY)
    environment = surroundings(PYTHONSTARTUP="")
    for options, traceback in ([["-i"], False], [[], True]):
        command = [sys.executable, *options, "faulty.py"]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        assert ("Traceback" in done.stderr) == traceback
        assert "the zoo has no model 'nonet'" in done.stderr


@pytest.mark.parametrize("kind", [UserError, Stopped])
def test_a_notebook_shows_the_sentence_alone(kind, monkeypatch):
    error = kind("one sentence.")
    assert error._render_traceback_() == [f"{kind.__name__}: one sentence."]
    monkeypatch.setenv("PROTEGE_DEBUG", "1")
    try:
        raise error
    except kind:
        assert error._render_traceback_()[0].startswith("Traceback")
    shell = pytest.importorskip("IPython.core.interactiveshell").InteractiveShell()
    shown = []
    monkeypatch.delenv("PROTEGE_DEBUG")
    monkeypatch.setattr(shell, "_showtraceback", lambda kind, error, lines: shown.append(lines))
    shell.user_ns["error"] = error
    shell.run_cell("raise error")
    assert shown == [[f"{kind.__name__}: one sentence."]]
