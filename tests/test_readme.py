"""The README as a newcomer follows it: its blocks, in their order, in one folder, each line a process of its own."""

import re
import shlex
from pathlib import Path

import forks

README = Path(__file__).parents[1] / "README.md"
OWN = ("git clone",)  # what the demo's own tests and a fresh clone try
EPOCHS = re.compile(r"(epochs ?=? ?)\d+")  # of the examples, which are the only thing that is shortened here


def blocks() -> list[tuple[str, str]]:
    """(language, text) of every block of code."""
    return re.findall(r"^```(\w*)\n(.*?)^```", README.read_text(encoding="utf-8"), flags=re.M | re.S)


def test_every_block_says_what_it_is():
    assert {language for language, _ in blocks()} <= {"bash", "python", "toml"}


def test_the_readme_word_for_word(tmp_path, monkeypatch):
    """A block whose first line names a file is that file; others are run, each as a newcomer would."""
    monkeypatch.delenv("PROTEGE_CACHE")  # a newcomer has none
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
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
        for line in text.splitlines() if language == "bash" else [text]:
            if language == "python":
                run = forks.python(text, here)
            else:
                program, *words = shlex.split(line, comments=True)
                assert program in ("protege", "python"), line
                run = forks.run(*words, cwd=here) if program == "protege" else forks.python(Path(*words), here)
            assert run.returncode == 0, f"{line}\n{run.stdout}\n{run.stderr}"
            ran += 1
    assert ran >= 7
    assert (here / "runs/small/report.html").is_file()
    assert (here / "runs/study/study.md").is_file()
