"""Benchmarks run: one round of the smallest there is, of which no figure is believed (memory.py needs a big one)."""

import json
import os
import runpy
import subprocess
import sys
import time
import zipfile
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import forks
import pytest

import protege

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
SMALL = "--batch 4 --rounds 1"


def forked(command: list[str], **_: object) -> SimpleNamespace:
    """A program of Python's in a process that need not import torch again."""

    def program() -> None:
        sys.argv = command[1:]
        runpy.run_path(command[1], run_name="__main__")

    done = forks.Fork(program)
    assert done.wait() == 0, done.stderr
    return SimpleNamespace(stdout=done.stdout)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cache", f"--teacher resnet8 --student resnet8 {SMALL} --updates 1"),
        ("fskd", "--samples 8 --width 0.125"),
        ("gpd", f"--model resnet8 {SMALL} --size 16"),
        ("loop", f"--model resnet8 {SMALL} --updates 1"),
        ("skd", f"--teacher resnet8 --student resnet8 {SMALL} --images 8 --side 16 --epochs 1 --views 1"),
        ("targets", "--classes 50 --rows 8 --rounds 1"),
    ],
)
def test_it_runs(name, options, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *options.split()])
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(subprocess, "run", forked)
    status = 0
    try:
        runpy.run_path(str(BENCHMARKS / f"{name}.py"), run_name="__main__")
    except SystemExit as left:
        status = left.code
    assert status in (None, 0, 1), "1 is a target that is missed"
    assert any(letter.isdigit() for letter in capsys.readouterr().out)


def test_the_start_of_a_run_is_taken_apart(digits_teacher, tmp_path):
    settings = {"teacher": str(digits_teacher), "student": "zoo:cnn_tiny?width=2", "data": "digits", "samples": 20}
    settings |= {"epochs": 1, "out": str(tmp_path / "run")}

    def child() -> None:
        for name in [name for name in sys.modules if name.partition(".")[0] == "protege"]:
            del sys.modules[name]  # to be imported in its time
        runpy.run_path(str(BENCHMARKS / "start.py"))["child"](settings, 0.0005)

    done = forks.Fork(child)
    assert done.wait() == 0, done.stderr
    assert " importing\n" in done.stdout
    before, after = done.stdout.split("from there on")
    assert "data/spec: load_data" in before
    assert "run/api: distill" in after


def rehearsed(*words: str, out: Path) -> forks.Fork:
    """`python benchmarks/gpu --rehearse *words`, ended."""

    def program() -> None:
        sys.argv = ["gpu", "--rehearse", *words]
        runpy.run_path(str(BENCHMARKS / "gpu"), run_name="__main__")

    done = forks.Fork(program, OUT=out)
    done.wait()
    return done


def test_what_a_gpu_shows_can_be_rehearsed_without_one(tmp_path):
    done = rehearsed("--only", "views", "cached", out=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    machine, *rows = map(json.loads, (tmp_path / "gpu.jsonl").read_text().splitlines())
    assert machine["rehearsal"]
    assert {row["check"] for row in rows} == {"views", "cached"}
    assert {row["verdict"] for row in rows} == {"passed"}
    assert all(f"passed   {row['case']} " in done.stdout for row in rows)


def test_a_check_that_fails_ends_or_takes_too_long_keeps_no_other_from_being_made(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(BENCHMARKS / "gpu"))
    monkeypatch.setenv("OUT", str(tmp_path))
    gpu = runpy.run_path(str(BENCHMARKS / "gpu" / "__main__.py"))
    work = import_module("work")

    def cases(name, function):
        def made(at):
            yield "case", function

        made.__name__ = name
        return work.Check(made, 5 if name != "c" else 1)

    def refuse():
        raise protege.UserError("so it is.")

    checks = [cases("a", refuse), cases("b", lambda: os._exit(3)), cases("c", lambda: time.sleep(60))]
    checks += [
        cases("d", lambda: {"figure": 1.5}),
        cases("e", lambda: {"verdict": "failed", "note": "below the target"}),
    ]
    (tmp_path / "folder").mkdir()
    gpu["perform_all"](checks, True, time.monotonic() + 60, tmp_path / "folder")
    assert gpu["table"]() == 4
    rows = {row["check"]: row for row in map(json.loads, (tmp_path / "gpu.jsonl").read_text().splitlines())}
    assert "so it is." in rows["a"]["note"]
    assert (rows["b"]["case"], rows["b"]["note"]) == ("case", "the check ended with status 3")
    assert rows["c"]["note"] == "the check took too long"
    assert (rows["d"]["verdict"], rows["d"]["figure"]) == ("passed", 1.5)
    assert rows["e"]["note"] == "below the target"


def test_wheels_are_unpacked_where_something_is_missing(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS / "gpu"))
    wheels = import_module("wheels")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(wheels, "IMPORTED", ["wheel_of_this_test"])
    monkeypatch.setenv("PYTHONPATH", "before")
    with pytest.raises(SystemExit, match=r"^wheel_of_this_test cannot be imported by .* make gpu-wheels"):
        wheels.provide(tmp_path)
    with zipfile.ZipFile(tmp_path / "a_b-1.0-py3-none-any.whl", "w") as file:
        file.writestr("wheel_of_this_test.py", "answer = 42")
    wheels.provide(tmp_path)
    assert import_module("wheel_of_this_test").answer == 42
    assert os.environ["PYTHONPATH"].split(os.pathsep)[0] == str(wheels.ROOT / "src")
    del sys.modules["wheel_of_this_test"]
    (tmp_path / "c-1.0-cp39-cp39-manylinux_2_28_x86_64.whl").touch()
    monkeypatch.setattr(wheels, "IMPORTED", ["another_of_this_test"])
    with pytest.raises(SystemExit, match=r"not for this Python, cp3\d+; .*GPU_VERSION=3\.\d+"):
        wheels.provide(tmp_path)


def test_a_trace_comes_to_kernels_busy_time_and_waits_of_a_step(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS / "gpu"))

    def span(cat, name, start, end):
        return {"ph": "X", "cat": cat, "name": name, "ts": start, "dur": end - start}

    trace = [span("kernel", "a", 10, 30), span("kernel", "b", 20, 40), span("gpu_memcpy", "c", 60, 70)]
    trace += [span("cuda_runtime", "cudaLaunchKernel", ts, ts + 1) for ts in (5, 6, 50)]
    trace += [span("cuda_runtime", "cudaStreamSynchronize", ts, ts + 1) for ts in (1, 41, 80)]
    trace += [span("gpu_user_annotation", "all", 0, 100), {"ph": "M", "name": "process_name"}]
    read = import_module("fast")._read(trace, 2, 100e-6)
    assert read["busy"] == pytest.approx(0.4)  # 10 to 40, and 60 to 70
    assert (read["kernels a step"], read["launches a step"], read["waits a step"]) == (1, 1.5, 0.5)


def test_the_steps_of_each_phase_are_counted(digits_teacher, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS / "gpu"))
    seen: list[int] = []
    given = {"samples": 40, "batch_size": 20, "epochs": 2, "out": tmp_path / "run"}
    with import_module("work").after_steps(seen.append):
        protege.distill(digits_teacher, "zoo:cnn_tiny?width=2", "digits", "kd", **given)
        protege.distill(digits_teacher, "zoo:cnn_tiny?width=2", "digits", "kd", **{**given, "out": tmp_path / "again"})
    assert seen == [1, 2, 3, 4] * 2
