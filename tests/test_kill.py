"""A few of the kills of `tests/kill.py`, which tries hundreds."""

import subprocess
import sys
from pathlib import Path

import pytest
from tools import surroundings

KILL = Path(__file__).parent / "kill.py"


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
def test_killed_runs_end_as_others_and_leave_nothing_behind(tmp_path):
    done = subprocess.run(
        [sys.executable, str(KILL), "--work", str(tmp_path), "--random", "1", "--files", "5", "--only", "none", "kd"],
        env=surroundings(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "6 killed, 0 went wrong" in done.stdout
