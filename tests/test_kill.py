"""A few of the kills of `tests/kill.py`, which tries hundreds."""

import runpy
import sys
from pathlib import Path

import forks
import pytest

KILL = Path(__file__).parent / "kill.py"


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
def test_killed_runs_end_as_others_and_leave_nothing_behind(tmp_path):
    words = [str(KILL), "--work", str(tmp_path), "--random", "1", "--files", "5", "--only", "none", "kd"]

    def kill() -> None:
        sys.argv = words
        runpy.run_path(str(KILL), run_name="__main__")

    done = forks.Fork(kill)
    assert done.wait() == 0, done.stdout + done.stderr
    assert "6 killed, 0 went wrong" in done.stdout
