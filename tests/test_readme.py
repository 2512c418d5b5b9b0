"""The README as a newcomer follows it: its blocks, in their order, in one folder, each in a shell of its own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
OWN = ("git clone",)  # what the demo's own tests and a fresh clone try
EPOCHS = re.compile(r"(epochs ?=? ?)\d+")  # of the examples, which are the only thing that is shortened here


def blocks() -> list[tuple[str, str]]:
    """(language, text) of every block of code."""
    return re.findall(r"^```(\w*)\n(.*?)^```", README.read_text(encoding="utf-8"), flags=re.M | re.S)


def test_every_block_says_what_it_is():
    assert {language for language, _ in blocks()} <= {"bash", "python", "toml"}


@pytest.mark.timeout(1500)
def test_the_readme_word_for_word(tmp_path):
    """A block whose first line names a file is that file; others are run, each as a newcomer would."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONSAFEPATH"}
    environment |= {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(tmp_path / "home"),
    }
    environment.pop("PROTEGE_CACHE", None)  # a newcomer has none
    here = tmp_path / "here"
    here.mkdir()
    ran = 0
    for language, whole in blocks():
        text = EPOCHS.sub(r"\g<1>2", whole)
        if named := re.match(r"# (\w+\.(?:py|toml))\n", text):
            (here / named[1]).write_text(text, encoding="utf-8")
            continue
        if text.startswith(OWN):
            continue
        assert language in ("bash", "python"), text
        command = ["bash", "-euo", "pipefail", "-c", text] if language == "bash" else [sys.executable, "-c", text]
        run = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True)
        assert run.returncode == 0, f"{text}\n{run.stdout}\n{run.stderr}"
        ran += 1
    assert ran >= 6
    assert (here / "runs/small/report.html").is_file()
    assert (here / "runs/study/study.md").is_file()
