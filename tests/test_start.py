"""What is asked for at once comes at once: nothing imports torch that does not need it."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import forks
import pytest
import torch
from sklearn.datasets import load_digits
from tools import surroundings
from torch.optim.optimizer import register_optimizer_step_pre_hook

import protege
from protege.commands import app
from protege.data import Augment, Data, InMemory
from protege.models import load_model
from protege.training.progress import in_words

SLOW = ("torch", "numpy", "accelerate", "sklearn")


def after(code: str) -> list[str]:
    """Which of the slow modules a program has imported at its end."""
    program = f"import sys\ntry:\n    {code}\nfinally:\n    print([m for m in {SLOW!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], env=surroundings(), capture_output=True, text=True)
    return ast.literal_eval(done.stdout.strip().splitlines()[-1])


WORDS = ["--help", "--version", "--wrong", "distil", "evaluate --spilt 1", "shrink --help"]
WORDS += ["distill --wrong 1", "distill a.toml", "distill --set lr", "train --temperature 3", "train --epochs"]


def test_help_and_refusals_import_no_torch():
    """Each in a fork of a process that has imported no more than Python does."""
    code = """
import io, os, sys
from contextlib import redirect_stderr, redirect_stdout
from protege.commands.app import main
for words in WORDS:
    sys.stdout.flush()
    if not os.fork():
        sys.argv[1:], said = words.split(), io.StringIO()
        try:
            with redirect_stdout(said), redirect_stderr(said):
                main()
        except SystemExit as left:
            status = left.code
        slow = [name for name in SLOW if name in sys.modules]
        print(repr([words, status, slow, "Traceback" in said.getvalue()]), flush=True)
        os._exit(0)
    os.wait()
"""
    code = f"WORDS, SLOW = {WORDS!r}, {SLOW!r}\n{code}"
    done = subprocess.run([sys.executable, "-c", code], env=surroundings(), capture_output=True, text=True, check=True)
    lines = [ast.literal_eval(line) for line in done.stdout.splitlines()]
    assert lines == [[words, 0 if words.endswith(("help", "version")) else 2, [], False] for words in WORDS]


@pytest.mark.parametrize("name", ["distill", "train"])
def test_the_settings_that_are_read_off_their_text_are_all_that_there_are(name):
    """Their options are known before what declares them is imported; help and a method from outside import it."""
    read, imported = (app.command(name, words) for words in ((), ("--help",)))
    options = [
        sorted((option.name, option.opts, option.metavar) for option in made.params) for made in (read, imported)
    ]
    assert options[0] == options[1]


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


def test_what_only_some_data_needs_is_not_imported_for_other(tmp_path):
    """Arrays need no pyarrow, and one run no scipy: both take their time, and a bare machine may have neither."""

    def work() -> None:
        for name in [name for name in sys.modules if name.partition(".")[0] == "protege"]:
            del sys.modules[name]
        sys.modules.update(dict.fromkeys(("pyarrow", "scipy", "sklearn", "pandas")))  # to import them fails
        import_module("protege.run.study")
        images = torch.randint(0, 256, (40, 8, 8, 3), dtype=torch.uint8).numpy()
        fresh = import_module("protege").train
        fresh("zoo:cnn_tiny?width=2", (images, torch.arange(40) % 4), tmp_path / "run", epochs=1)

    done = forks.Fork(work)
    assert done.wait() == 0, done.stderr


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
        ("diagnose", "protege", {"options", "image_size", "skip_bad"}),
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


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.2, "1 s"), (41, "41 s"), (150, "2 min"), (3570, "1 h 00 min"), (12_000, "3 h 20 min")]
)
def test_a_remaining_time_in_words(seconds, said):
    assert in_words(seconds) == said


def test_a_log_has_every_evaluation_and_the_time_left_for_the_whole_run(tmp_path, capsys):
    given = {"data": "digits", "samples": 60, "batch_size": 20, "epochs": 6, "eval_every": 2}
    protege.train("zoo:cnn_tiny?width=2", out=tmp_path / "run", **given)
    lines = [line for line in capsys.readouterr().err.splitlines() if re.match(r"labels epoch \d/6 ", line)]
    evaluated = [line for line in lines if " accuracy 0." in line]
    assert [line.split()[2] for line in evaluated] == ["2/6", "4/6", "6/6"]
    assert all(re.search(r" · \d+ (s|min) left$", line) for line in evaluated[:-1])
    assert "left" not in evaluated[-1]


def test_the_time_left_is_that_of_all_phases(tmp_path, capsys):
    teacher = protege.train("zoo:cnn_tiny?width=4", "digits", tmp_path / "teacher", epochs=2, batch_size=16, lr=0.1)
    capsys.readouterr()
    given = {"samples": 40, "epochs": 1, "cache_budget": "0"}
    done = protege.distill(teacher.student, "zoo:cnn_tiny?width=2", "digits", "skd", tmp_path / "run", **given)
    lines = [line for line in capsys.readouterr().err.splitlines() if " epoch 1/1 " in line]
    assert len(lines) == len(done.result["phases"]) > 1
    assert [bool(re.search(r" · \d+ \w+ left$", line)) for line in lines] == [True] * (len(lines) - 1) + [False]


def test_a_resumed_run_says_where_it_goes_on(tmp_path, capsys):
    given = {"data": "digits", "samples": 60, "batch_size": 20, "epochs": 3, "checkpoint_seconds": 0}
    steps = iter(range(100))

    def stop(*_: object) -> None:
        if next(steps) == 4:
            raise KeyboardInterrupt

    hook = register_optimizer_step_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        protege.train("zoo:cnn_tiny?width=2", out=tmp_path / "run", **given)
    hook.remove()
    capsys.readouterr()
    protege.train(out=tmp_path / "run", resume=True)
    assert "going on with phase labels (1 of 1) after 4 updates (1 whole epochs)\n" in capsys.readouterr().err


def many_digits(count: int) -> tuple[InMemory, InMemory]:
    pixels, labels = load_digits(return_X_y=True)
    images = torch.tensor(pixels * 15).to(torch.uint8).view(-1, 8, 8, 1)
    some = torch.arange(count) % len(images)
    return InMemory(images[:600], torch.tensor(labels)[:600]), InMemory(images[some], torch.tensor(labels)[some])


def test_a_fresh_student_is_tried_on_some_of_a_large_test_set_and_a_trained_one_on_all(tmp_path):
    train, test = many_digits(1500)
    data = Data("digits", "classification", train, None, test, tuple(map(str, range(10))), Augment())
    given = {"epochs": 12, "precision": "fp32"}
    fresh = protege.train("zoo:cnn_tiny", data, tmp_path / "fresh", **given).result["student"]
    assert fresh["before_measured_on"] == {"samples": 500}
    assert "500 test samples" in (tmp_path / "fresh" / "report.html").read_text()
    trained = load_model(tmp_path / "fresh" / "student").network
    again = protege.train(trained, data, tmp_path / "again", epochs=1, precision="fp32").result["student"]
    assert "before_measured_on" not in again
    assert again["before"] == fresh["metrics"], "that of all samples, as it knows more than chance"
