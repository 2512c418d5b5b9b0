"""The examples run, are short, and are told of in one table."""

import re
import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
FILES = sorted(EXAMPLES.glob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_an_example_runs(path, tmp_path, monkeypatch, capsys):
    if path.stem == "hf_trainer":
        pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(path), "--tiny"])
    runpy.run_path(str(path), run_name="__main__")
    told = capsys.readouterr().out
    assert told.strip()
    if path.stem == "widening":
        assert float(re.search(r"by (\S+)", told)[1]) < 1e-5
    if path.stem == "few_photos":
        cut, solved = (float(re.search(rf"{word}: +([\d.]+)", told)[1]) for word in ("cut", "solved"))
        assert solved > cut


def test_examples_are_short_and_told_of():
    assert len(FILES) >= 5
    assert all(len(path.read_text().splitlines()) <= 60 for path in FILES)
    assert set(re.findall(r"`(\w+\.py)`", (EXAMPLES / "README.md").read_text())) == {path.name for path in FILES}
