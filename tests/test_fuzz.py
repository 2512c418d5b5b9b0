"""Whatever is typed, written into a recipe or a `config.json`, or given in Python: a command ends with status 0 or 2,
in a sentence and never a traceback, and where it ends with 2 it has written nothing.

Options, keys and arguments are taken from the tables that the program itself reads, so that new ones are covered. Where
a run would train, it ends before the first update (`Loop.run` is replaced), so that an example takes milliseconds.

``make fuzz`` runs the same for longer (``FUZZ_SECONDS``), with other examples each time.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import json
import os
import re
import resource
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits
from tools import Curtain

import protege
from protege.commands import app
from protege.methods import METHODS
from protege.run.formats import Format
from protege.run.recipe import recipe_type
from protege.run.study_file import Study
from protege.run.workers import Worker
from protege.training import Loop

SECONDS = float(os.environ.get("FUZZ_SECONDS", 0))
TESTS = 7
BASE = [
    "--student",
    "zoo:mlp?hidden=4",
    "--data",
    "digits",
    "--samples",
    "40",
    "--batch-size",
    "20",
    "--epochs",
    "1",
    "--precision",
    "fp32",
]
COMMANDS = {
    "distill": [*BASE, "--teacher", "teacher/student", "--out", "out"],
    "train": [*BASE, "--out", "out"],
    "evaluate": ["--model", "teacher/student", "--data", "digits"],
    "diagnose": ["--teacher", "teacher/student", "--data", "digits", "--samples", "40", "--out", "out"],
    "shrink": ["--model", "teacher/student", "--ratio", "0.5", "--out", "out"],
    "export": ["--model", "teacher/student", "--to", "onnx", "--out", "out"],
    "study": ["study.toml", "--out", "out"],
    "demo": ["--out", "out"],
    "report": ["teacher"],
}
LONG, MANY = "x" * 300, "9" * 5000
PATHS = [
    "",
    ".",
    "/",
    "nowhere",
    LONG,
    f"a/{LONG}/b",
    "x/" * 3000,
    "notes",
    "notes/thesis.txt",
    "/dev/zero",
    "/dev/null",
]
PATHS += ["pipe", "loop", "~nobody/x", "teacher", "teacher/student", "photos", "/proc/x", "é ü", "-", "a\nb", "~", "//"]
DATA = ["digits", "synthetic:", "hub:", "images:photos", "text:words.txt", "text:words.txt?length=3&vocabulary=8"]
DATA += [
    "images:photos?order=x",
    "synthetic:classes=3,samples=9",
    "parquet:photos/a/0.png",
    "text:photos/a/0.png",
    "images:",
]
KINDS = ["images", "text", "parquet", "segmentation", "torchvision", "torchvision:MNIST", "hub", "synthetic", "", "zo"]
DIALS = ["classes", "superclasses", "correlation", "noise", "samples", "dim", "seed"]
MODELS = [
    "zoo:mlp",
    "zoo:mlp?hidden=3",
    "zoo:cnn_tiny",
    "zoo:lstm",
    "zoo:",
    "zoo:mlp?",
    "zoo:mlp?hidden=0",
    "zoo:mlp?a=b",
]
MODELS += [
    "teacher/student",
    "teacher",
    "nowhere:thing",
    "a.b:c?d=e",
    "zoo:nope",
    "timm:",
    "smp:x",
    "transformers:photos",
]
NUMBERS = [
    "0",
    "1",
    "2",
    "3",
    "-1",
    "7",
    "1e9",
    "1e-9",
    "0.5",
    "1.0",
    "nan",
    "inf",
    "-inf",
    "1e308",
    "1e-320",
    "1e400",
    "-0.0",
]
NUMBERS += [
    str(2**31),
    str(2**32),
    str(2**63),
    "9" * 25,
    "9" * 400,
    MANY,
    "1_000",
    "٣",
    "0x10",
    "1e5",
    "1,2",
    "true",
    "4GiB",
]
WORDS = [*METHODS, "auto", "adamw", "onecycle", "best", "all", "balanced", "tensorboard", "bf16", "fp32", "l1", "slim"]
WORDS += [
    "decouple",
    "onnx",
    "test",
    "train",
    "none",
    "kd",
    "dkd",
    "topk",
    "sim",
    "pt_sim",
    "ls",
    "shift=1",
    "flip",
    "1B",
]
WORDS += [
    "crop=0.5,flip",
    f"shift={MANY}",
    "seed=-1,flip",
    "shift=99999999999,flip",
    "crop=nan",
    "pointwise",
    "=",
    ",",
    "a=b",
]
SETS = [
    "lr=1",
    "=",
    ".=1",
    "..a=1",
    "a.b.c=1",
    '"=1',
    "lr=[1]",
    "lr={}",
    "phases.kd.lr=1",
    "phases.kd=1",
    "phases=1",
    "lr",
]
SETS += [
    f"lr={MANY}",
    f"seed={MANY}",
    "lr=" + "[" * 3000,
    "epochs=2020-01-01",
    "out=x",
    "method=none",
    "phases.a.b.c=1",
]
ODD = [MANY, LONG, "\x7f", "é" * 130, "%s{}", "--", "\\", "'", '"', "🙂", "\n", " "]


def mixed(*pools: list[str]) -> st.SearchStrategy[str]:
    """A word of one of the pools, or any text at all (without NUL and surrogates, which no command line can have)."""
    text = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=12)
    return st.one_of(*map(st.sampled_from, pools), text)


DATA_SPECS = st.one_of(
    mixed(DATA, PATHS),
    st.builds("{}:{}".format, st.sampled_from(KINDS), mixed(PATHS, DATA)),
    st.builds("synthetic:{}={}".format, st.sampled_from(DIALS), st.sampled_from(NUMBERS)),
)
MODEL_SPECS = st.one_of(mixed(MODELS, PATHS), st.builds("zoo:mlp?hidden={}".format, st.sampled_from(NUMBERS)))
VALUES = mixed(NUMBERS, WORDS, PATHS, ODD)


def value_of(option: str) -> st.SearchStrategy[str]:
    """Values for an option by its name: what may be meant for it, and what may not."""
    if option in ("teacher", "student", "model"):
        return MODEL_SPECS
    return {"data": DATA_SPECS, "set": mixed(SETS, PATHS)}.get(option, VALUES)


@st.composite
def commands(draw: st.DrawFn) -> list[str]:
    """A command line that would do something, changed by a few options of the command, or of any other."""
    name = draw(st.sampled_from(list(COMMANDS)))
    words = [name, *COMMANDS[name]]
    own = [p for p in app.command(name).params if p.opts[0].startswith("--")]
    for option in draw(st.lists(st.sampled_from(own), max_size=3)) if own else ():
        flag = option.opts[0]
        if getattr(option, "is_flag", False):
            words.append(flag)
        else:
            words += [flag, draw(value_of(flag.removeprefix("--")))]
    for _ in range(draw(st.sampled_from([0, 0, 0, 0, 0, 1]))):
        at = draw(st.integers(0, len(words)))
        words[at : at + draw(st.integers(0, 1))] = [draw(VALUES)]
    if "--overwrite" in words:  # then a run may be replaced
        words = [word for at, word in enumerate(words) if not (word.startswith("teacher") and words[at - 1] == "--out")]
    return words


def json_values(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Nested lists and tables of such leaves."""
    return st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=5,
    )


PLAIN = st.one_of(
    st.booleans(),
    st.integers(-3, 12),
    st.sampled_from([2**31, 2**63 - 1, 10**9, -(2**62)]),
    st.floats(),
    st.text(max_size=6).filter(lambda text: ":" not in text),
    st.sampled_from(["zoo:mlp", "kd", "none", "digits", LONG, "prepared:a", "teacher/student", "nowhere:thing"]),
)
TOML = json_values(PLAIN | st.dates() | st.times() | st.datetimes())
KEYS = sorted({key for method in METHODS for key in recipe_type(method).model_fields})
RECIPES = st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=5), TOML | VALUES, max_size=4)
GOOD = {
    "student": "zoo:mlp?hidden=4",
    "data": "digits",
    "samples": 40,
    "epochs": 1,
    "batch_size": 20,
    "precision": "fp32",
}


class World:
    """A folder with a teacher and files of the user's; what it holds must not change where a command ends with 2."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "notes").mkdir()
        (folder / "notes" / "thesis.txt").write_text("years of work")
        for number in range(6):
            (path := folder / "photos" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8, 8), 40 * number, np.uint8)).save(path / f"{number}.png")
        (folder / "words.txt").write_text("a b c d a b c\n" * 40)
        (folder / "study.toml").write_text(
            tomli_w.dumps({"name": "s", "seeds": [0], "recipe": {**GOOD, "method": "none"}})
        )
        os.mkfifo(folder / "pipe")
        (folder / "loop").symlink_to("loop")
        protege.train("zoo:mlp?hidden=16", "digits", folder / "teacher", epochs=3, lr=0.3, precision="fp32")
        self.files = self.look()

    def look(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for root, folders, names in os.walk(self.folder):
            for name in (*folders, *names):
                path = os.path.join(root, name)
                status = os.lstat(path)
                found[path] = (status.st_mode, status.st_size, None if name in folders else status.st_mtime_ns)
        return found

    def check(self, wrote_nothing: bool, what: Any) -> None:
        """Raise where files that were there changed, or were added though nothing should be; remove those added."""
        found = self.look()
        changed = [path for path, before in self.files.items() if found.get(path) != before]
        added = [path for path in found if path not in self.files]
        for path in added:
            with contextlib.suppress(OSError):
                shutil.rmtree(path) if os.path.isdir(path) and not os.path.islink(path) else os.unlink(path)
        report = [path for path in changed if path.endswith("/report.html") and "report" in what]  # asked for
        assert changed == report, f"{what} changed {changed}"
        if report:
            self.files = self.look()
        assert not (wrote_nothing and added), f"{what} ended with a sentence and yet wrote {added}"


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Iterator[World]:
    """The world, as the working directory; nothing trains, nothing is exported, and memory is limited."""

    def curtain(*_: object, **__: object) -> None:
        raise Curtain

    def hung(*_: object) -> None:
        raise Curtain("hung")

    folder = tmp_path_factory.mktemp("world")
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    now = 1024 * int(re.findall(r"VmSize:\s*(\d+)", Path("/proc/self/status").read_text())[0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PROTEGE_CACHE", str(tmp_path_factory.mktemp("fuzz-cache")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.chdir(folder)
        made = World(folder)
        patch.setattr("sklearn.datasets.load_digits", cache(load_digits))
        for owner, name in ((Loop, "run"), (Worker, "__init__"), (Format, "make")):
            patch.setattr(owner, name, curtain)
        before = signal.signal(signal.SIGALRM, hung)
        resource.setrlimit(resource.RLIMIT_AS, (now + (4 << 30), hard))
        try:
            yield made
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
            signal.signal(signal.SIGALRM, before)


def ends_well(world: World, words: list[str], seconds: int = 20) -> None:
    """Call the command line in this process and judge how it ends."""
    out, error = io.StringIO(), io.StringIO()
    status: Any = None
    signal.alarm(seconds)
    try:
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
            patch.setattr(sys, "argv", ["protege", *words])
            app.main()
    except SystemExit as ended:
        status = ended.code
    except Curtain as ended:
        status = str(ended) or "would train"
    finally:
        signal.alarm(0)
    told = error.getvalue()
    world.check(status == 2, words)
    assert status in (0, 2, "would train"), f"{words} ends with {status}: {told[-500:]}"
    assert "Traceback" not in told, f"{words}: {told[-500:]}"
    if status == 2:
        assert re.search(r"^(error: .*[.?]|Usage: )", told, re.MULTILINE), f"{words} says {told[-500:]!r}"


def fuzzed(examples: int, **given_by: Any) -> Any:
    """Run a test on as many examples; with FUZZ_SECONDS on others, again and again until its share has passed."""

    def decorate(test: Any) -> Any:
        how = {"derandomize": not SECONDS, "print_blob": bool(SECONDS), "database": None, "deadline": None}
        once = settings(max_examples=examples, suppress_health_check=list(HealthCheck), **how)(given(**given_by)(test))

        def longer(world: World) -> None:
            end = time.monotonic() + SECONDS / TESTS
            while time.monotonic() < end:
                once(world=world)

        longer.__name__ = test.__name__
        return pytest.mark.timeout(0)(longer if SECONDS else once)

    return decorate


@fuzzed(560, words=commands())
def test_options(world, words):
    ends_well(world, words)


@fuzzed(400, recipe=RECIPES, method=st.sampled_from([*METHODS, "auto", 5]), whole=st.booleans())
def test_recipes(world, recipe, method, whole):
    base = {**GOOD, "method": method, "teacher": "teacher/student"} if whole else {}
    write(world, "recipe.toml", tomli_w.dumps(base | recipe).encode(errors="replace"))
    ends_well(world, ["distill", "recipe.toml", "--out", "out"])


@fuzzed(
    120,
    text=st.binary(max_size=40)
    | st.text(max_size=40).map(lambda text: text.encode(errors="replace"))
    | st.integers(0, 3000).map(lambda deep: b"x = " + b"[" * deep)
    | st.builds(
        lambda at, byte: (good := tomli_w.dumps(GOOD).encode())[:at] + bytes([byte]) + good[at:],
        st.integers(0, 90),
        st.integers(0, 255),
    ),
)
def test_recipes_of_any_bytes(world, text):
    write(world, "recipe.toml", text)
    ends_well(world, ["distill", "recipe.toml", "--method", "none", "--out", "out"])


STUDY_KEYS = sorted(Study.model_fields)


@fuzzed(
    200,
    study=st.dictionaries(
        st.sampled_from(STUDY_KEYS) | st.text(max_size=4),
        TOML | st.dictionaries(st.sampled_from(["a", "b", "lr", "method"]), TOML | RECIPES, max_size=2),
        max_size=3,
    ),
)
def test_studies(world, study):
    base = {"name": "s", "seeds": [0], "recipe": {**GOOD, "method": "none"}}
    write(world, "recipe.toml", tomli_w.dumps(base | study).encode(errors="replace"))
    ends_well(world, ["study", "recipe.toml", "--out", "out"])


def write(world: World, name: str, data: bytes) -> None:
    """A file of the world, known to it."""
    (world.folder / name).parent.mkdir(exist_ok=True)
    (world.folder / name).write_bytes(data)
    world.files = world.look()


@st.composite
def configs(draw: st.DrawFn) -> Any:
    """How to change a valid `config.json`: where (a path of keys or numbers), and into what."""
    return draw(
        st.lists(
            st.tuples(
                st.lists(st.integers(0, 20), min_size=1, max_size=3), json_values(PLAIN | st.none()), st.booleans()
            ),
            min_size=1,
            max_size=2,
        )
    )


def changed(config: Any, path: list[int], value: Any, drop: bool) -> Any:
    """A copy in which what lies at the path is another value, or is missing."""
    keys = list(config) if isinstance(config, dict) else list(range(len(config))) if isinstance(config, list) else []
    if not keys:
        return value
    copy = dict(config) if isinstance(config, dict) else list(config)
    key = keys[path[0] % len(keys)]
    if len(path) > 1:
        copy[key] = changed(copy[key], path[1:], value, drop)
    elif drop:
        del copy[key]
    else:
        copy[key] = value
    return copy


@fuzzed(320, changes=configs())
def test_configs(world, changes):
    config = json.loads((world.folder / "teacher" / "student" / "config.json").read_text())
    for path, value, drop in changes:
        config = changed(config, path, value, drop)
    model(world, json.dumps(config).encode(errors="replace"))
    ends_well(world, ["evaluate", "--model", "model", "--data", "digits"])


@fuzzed(
    120,
    data=st.binary(max_size=40)
    | json_values(PLAIN | st.none()).map(lambda value: json.dumps(value).encode(errors="replace"))
    | st.integers(0, 100_000).map(lambda deep: b"[" * deep)
    | st.just(b"9" * 5000),
)
def test_configs_of_any_bytes(world, data):
    model(world, data)
    ends_well(world, ["evaluate", "--model", "model", "--data", "digits"])


def model(world: World, config: bytes) -> None:
    """A model folder with the teacher's weights and another config.json."""
    write(world, "model/config.json", config)
    if not (world.folder / "model" / "model.safetensors").exists():
        shutil.copy(world.folder / "teacher" / "student" / "model.safetensors", world.folder / "model")
        world.files = world.look()


ANY: st.SearchStrategy[Any] = st.one_of(
    PLAIN,
    st.none(),
    st.sampled_from(
        [10**5000, -(10**400), 1e308, b"x", "a\0b", "\udc80", object(), int, [], {}, (), {1: 2}, [None], {"kd": 5}]
    ),
    st.sampled_from(
        [Path("nowhere"), Path("a\0b"), np.int64(3), np.float32(0.5), np.zeros(3), np.zeros((2, 0, 0, 3), np.uint8)]
    ),
    st.sampled_from(PATHS),
)
CALLS: dict[str, tuple[Any, dict[str, Any]]] = {
    "distill": (protege.distill, {**GOOD, "teacher": "teacher/student", "out": "out"}),
    "train": (protege.train, {**GOOD, "out": "out"}),
    "preview": (protege.preview, {**GOOD, "teacher": "teacher/student"}),
    "evaluate": (protege.evaluate, {"model": "teacher/student", "data": "digits"}),
    "diagnose": (protege.diagnose, {"teacher": "teacher/student", "data": "digits", "samples": 40}),
    "shrink": (protege.shrink, {"model": "teacher/student", "ratio": 0.5, "out": "out"}),
    "export": (protege.export, {"model": "teacher/student", "to": "onnx", "out": "out"}),
    "load_model": (protege.load_model, {"spec": "zoo:mlp", "num_classes": 3}),
    "load_data": (protege.load_data, {"spec": "digits"}),
    "InputSpec": (protege.InputSpec, {}),
}


@st.composite
def calls(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """A public function with one or two arguments of any kind."""
    name = draw(st.sampled_from(list(CALLS)))
    known = [key for key, p in inspect.signature(CALLS[name][0]).parameters.items() if p.kind is not p.VAR_KEYWORD]
    known += KEYS if name in ("distill", "train", "preview") else []
    return name, {key: draw(ANY) for key in draw(st.lists(st.sampled_from(known), min_size=1, max_size=2))}


@fuzzed(360, call=calls())
def test_arguments(world, call):
    name, changes = call
    function, usual = CALLS[name]
    ended = ""
    signal.alarm(20)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            function(**{**usual, **changes})
    except (protege.UserError, Curtain) as error:
        ended = "refused" if isinstance(error, protege.UserError) else str(error)
    finally:
        signal.alarm(0)
    assert ended != "hung", f"{call} hangs"
    world.check(ended == "refused", call)
