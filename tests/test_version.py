"""The version is said once: by the installed metadata, and without an installation by the checkout itself."""

import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from tools import surroundings

import protege
from protege.commands import app

ROOT = Path(__file__).parents[1]


def test_version_is_that_of_the_metadata(monkeypatch, capsys):
    assert protege.__version__ == version("protege")
    monkeypatch.setattr(sys, "argv", ["protege", "--version"])
    with pytest.raises(SystemExit) as ended:
        app.main()
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"protege {protege.__version__}\n"


def test_a_checkout_that_is_not_installed_knows_its_version():
    code = (
        "import importlib.metadata as m\n"
        "def none(name): raise m.PackageNotFoundError(name)\n"
        "m.version = none\n"
        "import importlib.util, sys\n"
        "spec = importlib.util.spec_from_file_location('v', sys.argv[1])\n"
        "module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)\n"
        "print(module.__version__)"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, str(ROOT / "src/protege/version.py")],
        env=surroundings(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
