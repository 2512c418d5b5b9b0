"""Whose files are whose: nothing of a user's own is replaced or deleted, whatever a command is told to do."""

import errno
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import forks
import psutil
import pytest
import torch
from tools import Curtain, surroundings
from torch import nn

import protege
from protege import UserError
from protege.files import clear_drafts, drafts, flush, is_report, is_run, is_study, whole, write_text
from protege.report import write_report
from protege.run.demo import demo
from protege.run.folder import holding
from protege.run.study import run_study
from protege.training import checkpoint
from protege.training.journal import Journal

RUN = {"student": "zoo:mlp?hidden=4", "data": "digits", "samples": 20, "batch_size": 10, "epochs": 2}
RUN |= {"checkpoint_seconds": 0, "precision": "fp32"}
RECIPE = "".join(f"{key} = {json.dumps(value)}\n" for key, value in RUN.items() if key != "precision")
STUDY = f'name = "s"\nseeds = [0]\n[recipe]\nmethod = "none"\n{RECIPE}[grid]\nlr = [0.1]\n'


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A folder of a user's own, with files under the names that runs and studies use."""
    here = tmp_path / "project"
    texts = {
        "recipe.toml": f'method = "none"\n{RECIPE}',
        "study.toml": STUDY,
        "metrics.jsonl": '{"event": "start", "loss": 1}\n',
        "result.json": '{"accuracy": 1}',
        "study.json": '{"name": "mine"}',
        "diagnosis.json": "[]",
        "export.json": "{}",
        "shrink.json": "{}",
        "demo.toml": 'name = "mine"',
        "report.html": "<p>mine",
        "config.json": "{}",
        "student/config.json": "{}",
        "checkpoint/best.pt": "x",
        "signals/eeg.bin": "x",
        "pictures/me.png": "x",
        "logs/train.log": "x",
        "runs/lr-0.1_seed-0/model.pt": "x",
        "prepared/half/model.pt": "x",
        "notes.tmp": "x",
    }
    for name, text in texts.items():
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text(text)
    monkeypatch.chdir(here)
    return here


WAYS = [{}, {"resume": True}, {"overwrite": True}]
COMMANDS = {
    "train": lambda **how: protege.train(recipe="recipe.toml", out=".", **how),
    "distill": lambda **how: protege.distill(recipe="recipe.toml", out=".", **how),
    "resume alone": lambda **how: protege.distill(out=".", **how),
    "study": lambda **how: run_study("study.toml", ".", **how),
    "demo": lambda **how: demo(".", **how),
}
QUICK = {
    "diagnose": lambda **how: protege.diagnose("zoo:mlp?hidden=4", "digits", out=".", **how),
    "shrink": lambda **how: protege.shrink("zoo:cnn_tiny", ratio=0.5, data="digits", out=".", **how),
    "export": lambda **how: protege.export("zoo:cnn_tiny", to="onnx", data="digits", out=".", **how),
}


@pytest.mark.parametrize("how", WAYS, ids=["plain", "resume", "overwrite"])
@pytest.mark.parametrize("command", [*COMMANDS, *QUICK])
def test_a_folder_of_the_users_own_stays_as_it_is(command, how, project):
    if command in QUICK and "resume" in how:
        pytest.skip("has nothing to resume")
    before = tree(project)
    with pytest.raises(UserError) as refused:
        (COMMANDS | QUICK)[command](**how)
    assert tree(project) == before
    assert "add resume" not in str(refused.value), "which would not help here"
    assert "add overwrite" not in str(refused.value), "nor would this"


def test_a_report_replaces_no_page_of_the_users_own(project, tmp_path):
    before = tree(project)
    with pytest.raises(UserError):
        write_report(project)
    assert tree(project) == before
    out = tmp_path / "run"
    protege.train(out=out, **RUN)
    assert is_report(out / "report.html")
    write_report(out)
    (out / "report.html").write_text("mine")
    with pytest.raises(UserError, match="was made otherwise and is kept: move it away"):
        write_report(out)
    assert (out / "report.html").read_text() == "mine"


def test_overwrite_starts_beside_other_files(tmp_path):
    out = tmp_path / "out"
    mine = {"notes.txt": "a", "sub/metrics.jsonl": "b", "x.tmp": "c"}
    for name, text in mine.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(text)
    with pytest.raises(UserError, match=r"add overwrite=True to start beside what is there\.$"):
        protege.train(out=out, **RUN)
    protege.train(out=out, overwrite=True, **RUN)
    with pytest.raises(UserError, match=r"add resume=True to go on or overwrite=True to start anew\.$"):
        protege.train(out=out, **RUN)
    inner = {"student/mine.py": "d", "checkpoint/best.pt": "e", "signals/eeg.bin": "f", "logs/my.log": "g"}
    for name, text in inner.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(text)
    protege.train(out=out, overwrite=True, **RUN | {"seed": 1})
    assert {name: (out / name).read_text() for name in mine | inner} == mine | inner


def test_a_study_overwrites_only_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.toml").write_text(STUDY)
    mine = {"out/runs/other/student.bin": "a", "out/logs/mine.log": "b", "out/prepared/x/y": "c", "out/notes.txt": "d"}
    run_study("mine.toml", "out")
    assert is_study(Path("out"))
    assert is_run(Path("out/runs/lr-0.1_seed-0"))
    for name, text in mine.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text)
    Path("out/runs/lr-0.1_seed-0/notes.txt").write_text("e")
    first = Path("out/runs/lr-0.1_seed-0/result.json").stat().st_mtime_ns
    run_study("mine.toml", "out", overwrite=True)
    assert {name: Path(name).read_text() for name in mine} == mine
    assert Path("out/runs/lr-0.1_seed-0/notes.txt").read_text() == "e"
    assert Path("out/runs/lr-0.1_seed-0/result.json").stat().st_mtime_ns > first


@pytest.mark.parametrize("moment", ["the log", "the recipe", "the first checkpoint"])
def test_a_run_killed_as_it_begins_is_known_again(moment, tmp_path, monkeypatch):
    out = tmp_path / "out"
    owner, name = {
        "the log": (Journal, "begin"),
        "the recipe": (protege.run.run, "write_toml"),
        "the first checkpoint": (Journal, "save"),
    }[moment]

    def killed(*_: object) -> None:
        raise Curtain

    for how in ("resume", "overwrite"):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, killed)
            with pytest.raises(Curtain):
                protege.train(out=out, **RUN)
        assert protege.train(out=out, **RUN, **{how: True}).metrics
        shutil.rmtree(out)


def test_a_log_that_was_cut_goes_on_in_whole_lines(tmp_path, monkeypatch):
    out = tmp_path / "out"
    original, calls = Journal.save_when_due, 0

    def killed(self, fit, now=False):
        nonlocal calls
        original(self, fit, now)
        calls += 1
        if calls == 5:
            raise Curtain

    for left in (0, 10, 2000, -3):
        calls = 0
        with monkeypatch.context() as patch:
            patch.setattr(Journal, "save_when_due", killed)
            with pytest.raises(Curtain):
                protege.train(out=out, **RUN)
        size = (out / "metrics.jsonl").stat().st_size
        os.truncate(out / "metrics.jsonl", left if left >= 0 else size + left)
        protege.train(out=out, resume=True, **RUN)
        data = (out / "metrics.jsonl").read_bytes()
        assert b"\0" not in data
        events = [json.loads(line)["event"] for line in data.splitlines()]
        assert events[0] == "start"
        assert events[-1] == "epoch"
        shutil.rmtree(out)


def test_overwriting_is_judged_by_where_networks_lie(tmp_path, monkeypatch, digits_teacher):
    monkeypatch.setenv("HOME", str(tmp_path))
    out = tmp_path / "run"
    protege.train(**RUN, out=out)
    for role in ("teacher", "student"):
        options = {**RUN, "teacher": None, "method": "none", role: "~/run/student"}
        with pytest.raises(UserError, match=f"would replace the {role} "):
            protege.distill(**options, out=out, overwrite=True)
    assert (out / "student" / "model.safetensors").exists()
    monkeypatch.chdir(out)
    protege.train(**RUN, out=".", overwrite=True)  # nothing that it learns from lies here
    protege.distill(**RUN, teacher=digits_teacher, cache="~/cache", out=tmp_path / "other")
    assert list((tmp_path / "cache").iterdir())


def draft(path: Path, process: int, monkeypatch, machine: str = "here") -> Path:
    """The draft that a process of this number on that machine would write the file to."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(platform, "node", lambda: machine)
        patch.setattr(os, "getpid", lambda: process)
        with drafts(path.parent, path.name) as made:
            pass
    monkeypatch.setattr(platform, "node", lambda: "here")
    return made


def test_drafts_of_killed_processes_go_and_others_stay(tmp_path, monkeypatch):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    target = tmp_path / "a.json"
    dead, alive = draft(target, gone.pid, monkeypatch), draft(target, os.getppid(), monkeypatch)
    old = tmp_path / f".config.json.{gone.pid}.tmp"
    others = [tmp_path / name for name in (".vimrc.tmp", "a.json.tmp", ".b.12x.tmp", f".a.{gone.pid}.tmp")]
    for path in (dead, alive, old, *others):
        path.write_text("x")
    with whole(target) as file:
        file.write(b"{}")
    assert not dead.exists()
    draft(tmp_path / "model", gone.pid, monkeypatch).mkdir()
    clear_drafts(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"a.json", alive.name, *(path.name for path in others)}


def test_machines_and_threads_that_write_the_same_file_leave_each_others_drafts(tmp_path, monkeypatch):
    """Containers that share a disk have processes of the same numbers."""
    target = tmp_path / "a.json"
    theirs, left = (draft(target, os.getpid(), monkeypatch, machine) for machine in ("there", "elsewhere"))
    theirs.write_text("half")
    left.write_text("half")
    os.utime(left, (0, 0))  # none writes for so long
    with whole(target) as first, whole(target) as second:
        assert len(list(tmp_path.iterdir())) == 3
        first.write(b"first")
        second.write(b"second")
    assert target.read_bytes() == b"first"  # closed last
    assert {path.name for path in tmp_path.iterdir()} == {"a.json", theirs.name}


def test_a_file_system_that_cannot_wait_for_the_disk_is_written_to(tmp_path, monkeypatch):
    def refuse(_):
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", refuse)
    write_text(tmp_path / "a.txt", "ä")
    flush(tmp_path)
    assert (tmp_path / "a.txt").read_bytes() == "ä".encode()


def test_a_file_system_without_locks_is_worked_on_with_a_warning(tmp_path, monkeypatch, caplog):
    def refuse(*_, **__):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("protege.run.folder.FileLock.acquire", refuse)
    with holding(tmp_path) as hold:
        hold()
    assert "has no locks" in caplog.text


def test_a_full_disk_is_no_disk_without_locks(tmp_path, monkeypatch, caplog):
    def refuse(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("protege.run.folder.FileLock.acquire", refuse)
    with holding(tmp_path) as hold, pytest.raises(UserError, match=r"disk of .* is full .*: free some\."):
        hold()
    assert "locks" not in caplog.text


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_what_interrupts_a_checkpoint_is_what_is_raised(error, tmp_path):
    """torch's writer would make a RuntimeError of it, in its own words."""

    class Weights(dict):
        def __reduce__(self):
            raise error

    for state in ({"a": torch.zeros(10), "b": Weights()}, {"b": Weights()}):
        with pytest.raises(error):
            checkpoint.save_checkpoint(tmp_path, 1, state)
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("resumed", [False, True])
def test_states_whose_record_was_lost_go_with_the_old_ones(resumed, tmp_path):
    """A kill between the deletions of a record and of its state leaves the state."""
    for number in (1, 2, 3):
        checkpoint.save_checkpoint(tmp_path, number, {"n": number})
    for name in ("00000001.pt", "mine.pt", "00000001.txt"):
        (tmp_path / name).write_text("left")
    if resumed:  # nothing may be left to do
        checkpoint.drop_old(tmp_path)
    else:
        checkpoint.save_checkpoint(tmp_path, 4, {"n": 4})
    kept = {f"0000000{n}.{kind}" for n in ((2, 3) if resumed else (3, 4)) for kind in ("json", "pt")}
    assert {item.name for item in tmp_path.iterdir()} == kept | {"mine.pt", "00000001.txt"}


def test_ctrl_c_while_a_checkpoint_is_written(tmp_path, monkeypatch):
    """It comes in the middle of each checkpoint in turn; then the run goes on."""
    for moment in range(1, 6):
        out, calls, write = tmp_path / str(moment), 0, checkpoint._Hashed.write

        def interrupted(self, data, write=write, moment=moment):
            nonlocal calls
            calls += self.file.tell() == 0
            if calls == moment:
                calls += 100
                os.kill(os.getpid(), signal.SIGINT)
            return write(self, data)

        with monkeypatch.context() as patch:
            patch.setattr(checkpoint._Hashed, "write", interrupted)
            with pytest.raises(KeyboardInterrupt):
                protege.train(out=out, **RUN)
        protege.train(out=out, resume=True, **RUN)


def test_a_class_that_is_not_utf8_ends_a_run_at_its_start(tmp_path):
    class Own(torch.utils.data.Dataset):
        classes = ("a\ud800", "b")

        def __len__(self):
            return 40

        def __getitem__(self, index):
            return torch.full((1, 8, 8), index % 2 * 0.5), index % 2

    folder = tmp_path / "images"
    for name in (b"caf\xe9", b"b"):
        (folder / os.fsdecode(name)).mkdir(parents=True)
        for n in range(10):
            (folder / os.fsdecode(name) / f"{n}.pgm").write_bytes(b"P5 8 8 255\n" + bytes([n]) * 64)
    for data in (Own(), f"images:{folder}"):
        with pytest.raises(UserError, match=r"which is not UTF-8; expected text: rename that one\.$"):
            protege.train(**RUN | {"data": data}, out=tmp_path / "out")
        assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="which is not UTF-8"):
        protege.Model(nn.Flatten(), protege.InputSpec(channels=1), classes=["\udcff"])


def test_settings_in_utf8_are_read_where_the_encoding_is_another(tmp_path):
    (tmp_path / "recipe.toml").write_text(f'method = "none"\n{RECIPE}\n# 你好\n', encoding="utf-8")
    command = [sys.executable, "-m", "protege", "train", str(tmp_path / "recipe.toml"), "--out", str(tmp_path / "out")]
    environment = surroundings(LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    done = subprocess.run(command, env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert is_run(tmp_path / "out")


@pytest.mark.parametrize("number", [signal.SIGKILL])
def test_a_study_that_was_ended_goes_on_at_once(number, tmp_path):
    (tmp_path / "study.toml").write_text(STUDY.replace('"epochs": 2', "").replace("epochs = 2", "epochs = 60"))
    command = ["study", "study.toml", "--out", "out", "--jobs", "1"]
    run = tmp_path / "out" / "runs" / "lr-0.1_seed-0"
    process = forks.protege(*command, cwd=tmp_path)
    while not list(run.glob("checkpoint/*3.json")):
        assert process.poll() is None
        time.sleep(0.01)
    workers = psutil.Process(process.pid).children()
    process.send_signal(number)
    process.wait()
    done = forks.run(*command, "--resume", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "in use" not in done.stderr
    alive = psutil.wait_procs(workers, timeout=0)[1]  # among them those that nobody has asked for their end
    assert not [worker for worker in alive if worker.status() != psutil.STATUS_ZOMBIE]
    assert "what was done is kept" in (tmp_path / "out" / "logs" / f"{run.name}.log").read_text(encoding="utf-8")
    assert (run / "result.json").exists()
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith((".lock", ".tmp"))]
