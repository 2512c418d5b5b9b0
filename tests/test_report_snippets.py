"""A report's "Load this student": what it prints is run as it stands."""

import html
import re
import shlex
import sys

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import protege
from protege.commands import app
from protege.models.sources import SCHEMES
from protege.report.snippets import BUILT


class Own(nn.Module):
    """A student given in Python."""

    def __init__(self, width=8, slope=0.0):
        super().__init__()
        self.slope = slope
        self.conv, self.fc = nn.Conv2d(1, width, 3), nn.Linear(width, 10)

    def forward(self, x):
        return self.fc(nn.functional.leaky_relu(self.conv(x), self.slope).mean((2, 3)))


NOTEBOOK = """
import torch
from torch import nn
class Noted(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 8, 3), nn.Linear(8, 10)
    def forward(self, x):
        return self.fc(self.conv(x).relu().mean((2, 3)))
"""


def printed(out):
    """The pieces of code of a report, as they would be copied."""
    page = (out / "report.html").read_text()
    section = page[page.index("Load this student") :]
    return [html.unescape(code) for code in re.findall(r'<code id="code-\d">(.*?)</code>', section, re.S)]


def notebook():
    """Names as a notebook has them, with a class of its own."""
    names = {"__name__": "__main__"}
    exec(NOTEBOOK, names)
    return names


def pictures():
    raw = torch.randint(0, 256, (20, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return TensorDataset(raw, torch.arange(20) % 10)


@pytest.mark.parametrize("data", ["digits", "own"])
@pytest.mark.parametrize("student", ["zoo", "factory", "class", "arguments", "notebook", "pruned", "pruned notebook"])
def test_what_is_printed_works(student, data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "nets_of_mine.py").write_text(
        "from torch import nn\n"
        "def net(num_classes):\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))\n"
    )
    names = notebook()
    given = pictures() if data == "own" else data
    opened = protege.load_data("digits")
    made = {
        "zoo": lambda: "zoo:cnn_tiny",
        "factory": lambda: "nets_of_mine:net",
        "class": Own,
        "arguments": lambda: Own(4, 0.2),
        "notebook": lambda: names["Noted"](),
        "pruned": lambda: protege.shrink(protege.load_model(Own(), data=opened), ratio=0.5, data=opened, out="small"),
        "pruned notebook": lambda: protege.shrink(
            protege.load_model(names["Noted"](), data=opened), ratio=0.5, data=opened, out="small"
        ),
    }
    result = protege.train(made[student](), given, out=tmp_path / "run", epochs=1, samples=10)
    python, *shell = printed(tmp_path / "run")
    exec(python, names)
    raw = pictures().tensors[0]
    assert torch.equal(names["student"](raw), result.student(raw))
    assert names["logits"].shape == (1, 10)
    assert bool(shell) == (data == "digits" and student in ("zoo", "factory", "class", "arguments", "pruned"))
    assert ("trust" in python) == ("trust=True" in python) == (student in ("factory", "class", "arguments", "pruned"))
    assert ("evaluate" in python) == (not shell)
    for command in shell:
        monkeypatch.setattr(sys, "argv", shlex.split(command))
        with pytest.raises(SystemExit) as ended:
            app.main()
        assert ended.value.code in (0, None)
    assert "Traceback" not in capsys.readouterr().err


def test_what_needs_no_trust_is_what_models_build():
    assert set(BUILT) == set(SCHEMES)


def test_a_class_whose_arguments_nothing_tells_is_named(tmp_path):
    class Inner(Own):
        def __init__(self, layers):
            super().__init__()
            self.more = layers

    protege.train(Inner(nn.Linear(2, 2)), "digits", out=tmp_path / "run", epochs=1, samples=10)
    (python,) = printed(tmp_path / "run")
    assert "network = Inner(...)  # your own Inner" in python
    assert "network=network" in python
