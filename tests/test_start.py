"""What is asked for at once comes at once: nothing imports torch that does not need it."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import protege
from protege.commands import app
from tools import surroundings

SLOW = ("torch", "numpy", "accelerate", "sklearn")


def after(code: str) -> list[str]:
    """Which of the slow modules a program has imported at its end."""
    program = f"import sys\ntry:\n    {code}\nfinally:\n    print([m for m in {SLOW!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], env=surroundings(), capture_output=True, text=True)
    return ast.literal_eval(done.stdout.strip().splitlines()[-1])


@pytest.mark.parametrize("words", ["--help", "--version", "--wrong", "distil", "evaluate --spilt 1", "shrink --help"])
def test_help_and_refusals_import_no_torch(words):
    assert after(f"sys.argv[1:] = {words.split()}; from protege.commands.app import main; main()") == []


def test_the_package_imports_no_torch():
    assert after("import protege; protege.UserError; dir(protege)") == []


def test_the_package_has_all_that_it_names():
    for name in protege.__all__:
        assert getattr(protege, name) is not None
        assert name in dir(protege)
    assert sorted([*(n for names in protege._PLACES.values() for n in names), "UserError"]) == sorted(protege.__all__)
    tree = ast.parse(Path(protege.__file__).read_text())
    (checked,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {part.asname or part.name: line.module for line in checked.body for part in line.names}
    assert seen == {name: place for place, names in protege._PLACES.items() for name in names}
    with pytest.raises(AttributeError, match="nonsense"):
        _ = protege.nonsense


def test_rooms_are_there_without_an_import_of_their_own():
    code = "import protege; protege.surgery.shrink; protege.losses.kd; protege.data.load_data"
    done = subprocess.run([sys.executable, "-c", code], env=surroundings(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_any_room_can_be_imported_first():
    """Arrows go down only: no room needs another to be imported before it."""
    code = """
import importlib, sys, protege
for room in protege._ROOMS:
    for name in [name for name in sys.modules if name.partition(".")[0] == "protege"]:
        del sys.modules[name]
    importlib.import_module(f"protege.{room}")
"""
    done = subprocess.run([sys.executable, "-c", code], env=surroundings(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit):
        app.program.main(["--help"], prog_name="protege")
    shown = " ".join(capsys.readouterr().out.split())
    files = {path.stem for path in Path(app.__file__).parent.glob("*.py") if "def command(" in path.read_text()}
    assert files - {"app"} == set(app.COMMANDS)
    for name, what in app.COMMANDS.items():
        assert f"{name} {what}" in shown
        assert app.command(name).help == what


@pytest.mark.parametrize(
    ("name", "place", "without"),
    [
        ("evaluate", "protege", {"memory_limit"}),
        ("diagnose", "protege", {"options", "image_size"}),
        ("shrink", "protege", set()),
        ("export", "protege", set()),
        ("demo", "protege.run.demo", set()),
    ],
)
def test_a_command_has_the_arguments_of_its_function_and_their_defaults(name, place, without):
    function = inspect.signature(getattr(import_module(place), name)).parameters
    command = inspect.signature(import_module(f"protege.commands.{name}").command).parameters
    assert set(function) - without == set(command) - without
    for key in set(function) - without:
        if command[key].default is not inspect.Parameter.empty:
            assert str(command[key].default) == str(function[key].default), key
