"""What the demo prints at its end works as printed, in the folder where it was run."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from protege.run import demo


def without_the_environment() -> str:
    """The search path of a shell in which the environment of these tests is not active."""
    scripts = Path(sys.executable).parent
    return os.pathsep.join(each for each in os.environ["PATH"].split(os.pathsep) if Path(each) != scripts)


def test_the_commands_that_the_demo_prints_work(digits_teacher, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", without_the_environment())
    out = Path("runs") / "a demo"
    shutil.copytree(digits_teacher, out / "teacher" / "student")
    lines = demo.next_commands(out)
    done = subprocess.run(
        ["bash", "-e", "-c", "\n".join(lines).replace("--epochs 100", "--epochs 2")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (Path("runs") / "mine1" / "report.html").exists()
    assert demo.next_commands(out)[-1].endswith("--out runs/mine2"), "nothing is to be overwritten"


def test_an_active_environment_is_not_activated_again(tmp_path, monkeypatch):
    scripts = Path(sys.executable).parent
    if not (scripts / "protege").exists():
        pytest.skip("protege is not installed as a command")
    monkeypatch.setenv("PATH", f"{scripts}{os.pathsep}{without_the_environment()}")
    assert [line.split()[0] for line in demo.next_commands(tmp_path / "demo")] == ["protege"]


def test_the_demo_names_one_report(tmp_path, monkeypatch, capsys):
    metric = {"mean": 0.9, "interval95": 0.01, "values": [0.9, 0.9]}
    rows = [
        {"setting": {"method": method}, "metrics": {"accuracy": metric}, "difference": {"accuracy": metric}}
        for method in ("none", "kd")
    ]
    demo._tell({"name": "x", "teacher": {"metrics": {"accuracy": 1.0}}, "rows": rows, "runs": []}, tmp_path / "demo")
    told = capsys.readouterr().err
    assert told.count("report.html") == 1
    for line in demo.next_commands(tmp_path / "demo"):
        assert f"  {line}\n" in told, "on a line of its own, however narrow the terminal is"
