"""Benchmarks run: one round of the smallest there is, of which no figure is believed (memory.py needs a big one)."""

import runpy
import sys
from pathlib import Path

import forks
import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
SMALL = "--batch 4 --rounds 1"


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
        runpy.run_path(str(BENCHMARKS / "start.py"))["child"](settings, 0.01)

    done = forks.Fork(child)
    assert done.wait() == 0, done.stderr
    assert " importing\n" in done.stdout
    before, after = done.stdout.split("from there on")
    assert "data/spec: load_data" in before
    assert "run/api: distill" in after
