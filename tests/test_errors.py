"""Bad input through the command line's entry point: status 2, one sentence, and nothing written or overwritten."""

from __future__ import annotations

import ast
import contextlib
import errno
import io
import json
import os
import pickle
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from tools import Curtain

import protege
from protege.commands import app
from protege.commands.flags import in_flags
from protege.data import load_data
from protege.models import load_model
from protege.run import folder as runfolder

SMALL = "--student zoo:mlp?hidden=8 --data digits --samples 50 --batch-size 50 --epochs 1 --precision fp32"
TRAIN = f"train {SMALL}"
KD = f"distill {SMALL} --teacher {{i}}/teacher/student"
STUDY = '[recipe]\nstudent = "zoo:mlp"\ndata = "digits"\nmethod = "none"\nsamples = 50\nepochs = 1\n'


def png(value: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(out, "png")
    return out.getvalue()


def images(root: Path, counts: dict[str, int]) -> Path:
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            (root / name / f"{i}.png").write_bytes(png(i))
    return root


def parquet(root: Path, labels: list[int]) -> None:
    root.mkdir()
    table = pa.table({"image": [png(i) for i in range(len(labels))], "label": labels})
    names = {"names": '["a", "b"]'}
    pq.write_table(table.replace_schema_metadata(names), root / "train.parquet")


def tree(*roots: Path) -> dict[str, bytes | None]:
    """Every path below, with its content."""
    return {str(p): p.read_bytes() if p.is_file() else None for root in roots for p in root.rglob("*")}


def call(*arguments: str) -> int:
    """The status with which the command line ends, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["protege", *arguments])
        with pytest.raises(SystemExit) as ended:
            app.main()
    code = ended.value.code
    assert isinstance(code, int)
    return code


def check_sentence(error: str, expected: str) -> None:
    assert "Traceback" not in error
    lines = error.strip().splitlines()
    assert len(lines) == 1, error
    assert lines[0].startswith("error: ")
    assert lines[0].endswith((".", "?"))
    assert not re.search(r"[.?!] [A-Z]", lines[0]), f"several sentences: {lines[0]}"
    assert re.search(expected, lines[0]), f"{expected!r} is not told by: {lines[0]}"


@pytest.fixture(scope="session")
def inputs(tmp_path_factory) -> Path:
    """A teacher, a finished run, and one of every bad thing; no test may change anything in it."""
    here: Path = tmp_path_factory.mktemp("inputs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PROTEGE_CACHE", str(here / "cache"))
        learn = "train --model zoo:mlp --data digits --epochs 4 --lr 0.5 --precision fp32 --out"
        assert call(*shlex.split(f"{learn} {here}/teacher")) == 0
        run = f"{KD} --out {{i}}/run --cache {{i}}/signals".format(i=here)
        assert call(*shlex.split(run)) == 0
        torch.manual_seed(0)  # one that guesses
        load_model("zoo:mlp", data=load_data("digits")).save(here / "fresh")
        other = load_model(str(here / "teacher"))
        with torch.no_grad():
            other.network.fc.weight *= 0.9  # as good, but not the same
        other.save(here / "other")

    images(here / "empty-class", {"cat": 2, "dog": 2, "eel": 0})
    images(here / "one-class", {"cat": 3})
    images(here / "two-classes", {"cat": 5, "dog": 5})
    (images(here / "corrupt", {"cat": 5, "dog": 5}) / "cat" / "1.png").write_bytes(b"not an image")
    parquet(here / "out-of-range", [0, 1, 7, 1, 0, 1])

    (here / "empty").mkdir()
    (here / "teacher.pkl").write_bytes(pickle.dumps({"weight": 1}))
    (here / "pickled").mkdir()
    (here / "pickled" / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": 1}))
    (here / "damaged").mkdir()
    whole = here / "teacher" / "student"
    (here / "damaged" / "config.json").write_bytes((whole / "config.json").read_bytes())
    (here / "damaged" / "model.safetensors").write_bytes((whole / "model.safetensors").read_bytes()[:2000])

    (here / "full").mkdir()
    (here / "full" / "thesis.tex").write_text("years of work")
    (here / "diary").mkdir()
    (here / "diary" / "logs").mkdir()
    (here / "diary" / "logs" / "monday.txt").write_text("not a run's")

    recipes = {
        "unknown-key": "epohcs = 3",
        "wrong-type": 'epochs = "many"',
        "not-toml": "epochs 3",
        "has-out": 'out = "x"',
        "number-as-model": 'student = 5\ndata = "digits"\nmethod = "none"',
        "phase-unknown": "[phases.head]\nepochs = 3",
        "phase-key": "[phases.kd]\nepohcs = 3",
        "phase-value": "[phases.kd]\nepochs = 0",
        "phases-number": "phases = 3",
    }
    studies = {
        "study-key": f'nmae = "x"\n{STUDY}',
        "study-recipe-key": f'name = "x"\n{STUDY}epohcs = 3\n',
        "study-no-recipe": 'name = "x"\n',
        "study-baseline": f'name = "x"\nbaseline = {{lr = 0.2}}\n{STUDY}[grid]\nlr = [0.1]\n',
        "study-baseline-key": f'name = "x"\nbaseline = {{method = "kd"}}\n{STUDY}[grid]\nlr = [0.1]\n',
        "study-empty": f'name = "x"\n{STUDY}[grid]\nlr = []\n',
        "study-no-list": f'name = "x"\n{STUDY}[grid]\nlr = 0.1\n',
        "study-seed": f'name = "x"\n{STUDY}[grid]\nseed = [1, 2]\n',
        "study-twice": f'name = "x"\nseeds = [1, 1]\n{STUDY}',
        "study-teacher": f'name = "x"\n{STUDY}[grid]\nmethod = ["none", "kd"]\n',
        "study-value": f'name = "x"\n{STUDY}[grid]\nlr = [0.1, -1.0]\n',
    }
    for name, text in (recipes | studies).items():
        (here / f"{name}.toml").write_text(f"{text}\n")
    return here


@pytest.fixture
def quiet(inputs, tmp_path, monkeypatch, capsys):
    """Call the command line with ``{i}`` (the inputs) and ``{o}`` (this test's own folder); returns stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PROTEGE_CACHE", str(tmp_path / "cache"))

    def run(command: str, status: int = 2) -> str:
        capsys.readouterr()
        assert call(*shlex.split(command.format(i=inputs, o=tmp_path))) == status
        return capsys.readouterr().err

    return run


OUT = "--out {o}/out"
CASES: dict[str, tuple[str, str]] = {
    # data
    "data missing": (f"{KD} --data images:{{i}}/nowhere {OUT}", r"/nowhere does not exist; give a folder"),
    "data scheme": (f"{KD} --data picture:x {OUT}", r"'picture:x' is not known; give digits, parquet:PATH"),
    "empty class": (f"{KD} --data images:{{i}}/empty-class {OUT}", r"empty-class/eel holds no images.*remove"),
    "one class": (f"{KD} --data images:{{i}}/one-class {OUT}", r"only one class, 'cat'; at least two"),
    "label out of range": (f"{KD} --data parquet:{{i}}/out-of-range {OUT}", r"label 7 in row 2 of .*0 to 1"),
    "corrupt image": (f"{KD} --data images:{{i}}/corrupt {OUT}", r"cat/1.png cannot be decoded .*replace or remove"),
    "image size": (f"{KD} --image-size 2 {OUT}", r"image_size = '2'.*greater than or equal to 4.*--image-size"),
    "fraction and samples": (f"{KD} --fraction 0.1 {OUT}", r"fraction and samples are both given.*remove"),
    "fraction 0": (f"{TRAIN} --set fraction=0 {OUT}", r"fraction = 0 .*greater than 0; change it with --fraction"),
    "fewer samples than classes": (f"{TRAIN} --samples 5 {OUT}", r"samples 5 is fewer than the 10 classes; give"),
    "more samples than there are": (f"{KD} --samples 5000 {OUT}", r"samples 5000 is more than the 1437 .*give at most"),
    "nothing to hold out": (f"{KD} --samples 10 --select best {OUT}", r"validation = 0.1 holds out none of 10 samples"),
    "size": (f"{KD} --memory-limit '4 apples' {OUT}", r"memory_limit = '4 apples' .*such as 4GiB.*--memory-limit"),
    "augment": (f"{KD} --augment spin=3 {OUT}", r"augment 'spin=3' .*'spin'; choose one of crop, cutmix, flip"),
    "views 0": (f"{KD} --views 0 {OUT}", r"views = 0 .*greater than or equal to 1; change it with --views"),
    "views as text": (f"{KD} --views many {OUT}", r"views = 'many' .*a number from 1, or 'all'.*--views"),
    # models
    "other class count": (
        f"{KD} --data images:{{i}}/two-classes --samples 4 {OUT}",
        r"the teacher '.*/student' has 10 outputs but the data has 2 classes; use",
    ),
    "zoo": (f"{KD} --student zoo:resnet88 {OUT}", r"the zoo has no model 'resnet88'; did you mean 'resnet8'"),
    "model scheme": (f"{KD} --student zo:resnet8 {OUT}", r"'zo:resnet8' .*did you mean 'zoo:'"),
    "model of a number": (f"distill {{i}}/number-as-model.toml {OUT}", r"model 5 is a int; give a spec string"),
    "teacher missing": (f"{KD} --teacher {{i}}/nowhere {OUT}", r"no model folder '.*/nowhere'; name a folder"),
    "teacher without config": (
        f"{KD} --teacher {{i}}/empty {OUT}",
        r"/empty' has no config.json; a model folder holds",
    ),
    "pickle": (f"{KD} --teacher {{i}}/teacher.pkl {OUT}", r"teacher.pkl' is .*pickle.*could run code.*convert it"),
    "pickle in a folder": (f"{KD} --teacher {{i}}/pickled {OUT}", r"the pickle file 'pytorch_model.bin'.*convert it"),
    "damaged weights": (f"{KD} --teacher {{i}}/damaged {OUT}", r"damaged/model.safetensors' is damaged .*again"),
    "teacher at chance": (f"{KD} --teacher {{i}}/fresh {OUT}", r"teacher '.*/fresh' is at chance level .*check that"),
    # settings
    "no teacher": (f"distill {SMALL} {OUT}", r"method 'kd' has no teacher; .*add --teacher"),
    "method": (f"{KD} --method kdd {OUT}", r"the method 'kdd' is unknown; did you mean 'kd'"),
    "method of a paper": (
        f"{KD} --method Hinton {OUT}",
        r"'Hinton' is unknown; did you mean 'kd' \(the methods are at, .*\)",
    ),
    "soft targets": (f"{KD} --method 'soft targets' {OUT}", r"'soft targets' is unknown; did you mean 'kd'"),
    "no method": (f"{KD} --method scratch {OUT}", r"'scratch' is unknown; did you mean 'none'"),
    "method we have not": (
        f"{KD} --method overhaul {OUT}",
        r"'overhaul' is unknown; choose one of at, auto, fitnets, fskd, ",
    ),
    "target as method": (f"{KD} --method dkd {OUT}", r"it is a target: use --method kd and --target dkd"),
    "target": (
        f"{KD} --target hinton {OUT}",
        r"target = 'hinton' .*'dkd'.* \(did you mean 'kd'\); change it with --target",
    ),
    "optimizer": (f"{KD} --optimizer adam {OUT}", r"optimizer = 'adam' .*did you mean 'adamw'.*--optimizer"),
    "schedule": (f"{KD} --schedule linear {OUT}", r"schedule = 'linear' .*'cosine', 'onecycle' or 'constant'; change"),
    "key by another name": (f"{KD} --set num_epochs=3 {OUT}", r"'num_epochs' is unknown here; did you mean 'epochs'"),
    "train with a method": (f"{TRAIN} --set method=kd {OUT}", r"method = 'kd'; expected labels only: .*use distill"),
    "key of another method": (
        f"{KD} --method none --temperature 3 {OUT}",
        r"'temperature' belongs to method kd.*leave",
    ),
    "key": (f"distill {{i}}/unknown-key.toml {OUT}", r"'epohcs' is unknown here; did you mean 'epochs'"),
    "key by --set": (f"{KD} --set epohcs=3 {OUT}", r"'epohcs' is unknown here; did you mean 'epochs'"),
    "type": (
        f"distill {{i}}/wrong-type.toml --student zoo:mlp --data digits {OUT}",
        r"epochs = 'many' .*integer.*--ep",
    ),
    "range": (f"{KD} --weight 1.5 {OUT}", r"weight = '1.5' .*less than or equal to 1; change it with --weight"),
    "seed": (f"{KD} --seed 99999999999999999999 {OUT}", r"seed = '9+' .*less than 4294967296; .*--seed"),
    "precision": (f"{KD} --precision fp64 {OUT}", r"precision = 'fp64' .*'auto', 'bf16' or 'fp32'.*--precision"),
    "best on no validation": (
        f"{KD} --select best --validation 0 {OUT}",
        r"select = best .*expected validation above 0",
    ),
    "missing key": (f"distill --student zoo:mlp --method none {OUT}", r"'data' is missing; expected it as --data"),
    "recipe missing": (f"distill {{i}}/nowhere.toml {OUT}", r"nowhere.toml' does not exist; .*check the path"),
    "recipe is a folder": (f"distill {{i}}/empty {OUT}", r"/empty' is not readable as TOML .*directory"),
    "not TOML": (f"distill {{i}}/not-toml.toml {OUT}", r"not readable as TOML \(.*line 1.*mend"),
    "out in a recipe": (f"distill {{i}}/has-out.toml {OUT}", r"'out' stands in a recipe; .*--out only"),
    "--set without =": (
        f"{KD} --set lr {OUT}",
        r"--set 'lr' has no key and value; .* such as --set lr=0.05",
    ),
    "--set without key": (f"{KD} --set =3 {OUT}", r"--set '=3' has no key and value"),
    "phase": (f"{KD} {{i}}/phase-unknown.toml {OUT}", r"the phase 'head' does not exist; expected one of kd"),
    "key of a phase": (
        f"{KD} {{i}}/phase-key.toml {OUT}",
        r"phases.kd has the unknown key 'epohcs'; did you mean 'epochs'",
    ),
    "value of a phase": (f"{KD} {{i}}/phase-value.toml {OUT}", r"phases.kd.epochs = 0 .*--set phases.kd.epochs=VALUE"),
    "phases not a table": (f"{KD} {{i}}/phases-number.toml {OUT}", r"phases = 3 .*dictionary"),
    "tracker": (f"{KD} --log-with abacus {OUT}", r"log_with = 'abacus' is no tracker .*installed.*leave it out"),
    # output and cache
    "no out": (KD, r"'out' is missing; expected the folder for this run as --out"),
    "out not empty": (
        f"{KD} --out {{i}}/full",
        r"/full' is not empty; .*another, or add --overwrite to start beside",
    ),
    "out is a run": (f"{KD} --out {{i}}/run", r"/run' is not empty"),
    "out is a file": (f"{KD} --out {{i}}/teacher.pkl", r"teacher.pkl' is a file; expected a folder"),
    "out below a file": (f"{KD} --out {{i}}/teacher.pkl/x", r"/x' cannot be written \(.*\); .*another folder"),
    "out where nothing can be": (f"{KD} --out /proc/protege/x", r"'/proc/protege/x' cannot be written \("),
    "out too long": (f"{KD} --out {{o}}/{'x' * 300}", r"cannot be written \(File name too long\)"),
    "overwrite what is no run's": (
        f"{KD} --overwrite --out {{i}}/diary",
        r"replace 'logs' .*no metrics.jsonl.*another",
    ),
    "overwrite its own teacher": (
        f"{KD} --overwrite --out {{i}}/teacher",
        r"would replace the teacher .*/teacher/student', which lies in .*change --out",
    ),
    "out among the images": (
        f"{KD} --data images:{{i}}/two-classes --out {{i}}/two-classes/run",
        r"lies among the images of .*/two-classes' .*change --out",
    ),
    "out is the images": (
        f"{KD} --data images:{{i}}/two-classes --overwrite --out {{i}}/two-classes",
        r"lies among the images of .*change --out",
    ),
    "overwrite the run it learns from": (
        f"distill {SMALL} --teacher {{i}}/run --overwrite --out {{i}}/run",
        r"would replace the teacher .*/run', which lies in .*change --out",
    ),
    "resume no run": (
        f"{KD} --resume --out {{i}}/full",
        r"/full' holds no run to resume; expected metrics.jsonl",
    ),
    "resume otherwise": (
        f"{KD} --resume --epochs 7 --out {{i}}/run",
        r"epochs = '7', .*begun with 1; .*leave epochs out",
    ),
    "resume at another rate": (f"{KD} --resume --lr 7 --out {{i}}/run", r"lr = '7', .*begun with 0\.0625"),
    "resume otherwise than default": (
        f"{KD} --resume --clip 7 --out {{i}}/run",
        r"clip = '7', .*begun with its default",
    ),
    "resume and overwrite": (f"{KD} --resume --overwrite --out {{i}}/run", r"both given; .*remove the other"),
    "cache of another teacher": (
        f"{KD} --teacher {{i}}/other --cache {{i}}/signals {OUT}",
        r"/signals' was made by another teacher .*weights.*--cache",
    ),
    "cache for other pixels": (
        f"{KD} --augment shift=2 --cache {{i}}/signals {OUT}",
        r"/signals' was made by another teacher or for other pixels .*augmentation.*--cache",
    ),
    "cache with other files": (f"{KD} --cache {{i}}/full {OUT}", r"/full' holds other files; .*another with --cache"),
    "cache is a file": (f"{KD} --cache {{i}}/teacher.pkl {OUT}", r"teacher.pkl' cannot be written .*--cache"),
    # other commands
    "split": (
        "evaluate --model {i}/teacher/student --data digits --split dev",
        r"split 'dev' .*train, val, test or all",
    ),
    "no such split": ("evaluate --model {i}/teacher/student --data digits --split val", r"'digits' has no val split"),
    "precision of evaluate": (
        "evaluate --model {i}/teacher/student --data digits --precision fp64",
        r"precision 'fp64' is unknown; expected auto, bf16 or fp32",
    ),
    "evaluate other classes": (
        "evaluate --model {i}/teacher/student --data images:{i}/two-classes",
        r"has 10 outputs but the data has 2 classes",
    ),
    "report on nothing": (
        "report {i}/empty",
        r"/empty holds no run .*, study, diagnosis or export: name the folder of",
    ),
    "report on a missing folder": ("report {i}/nowhere", r"/nowhere"),
    "study missing": (f"study {{i}}/nowhere.toml {OUT}", r"nowhere.toml' does not exist"),
    "study key": (f"study {{i}}/study-key.toml {OUT}", r"study key 'nmae' is unknown; did you mean 'name'"),
    "study's recipe": (f"study {{i}}/study-recipe-key.toml {OUT}", r"'epohcs' is unknown here; did you mean 'epochs'"),
    "study without recipe": (f"study {{i}}/study-no-recipe.toml {OUT}", r"'recipe' in .*field required.*mend"),
    "study's baseline": (f"study {{i}}/study-baseline.toml {OUT}", r"baseline .*0.2.* is no row .*the grid has"),
    "study's baseline key": (f"study {{i}}/study-baseline-key.toml {OUT}", r"baseline names 'method'; .*columns lr"),
    "study's empty axis": (f"study {{i}}/study-empty.toml {OUT}", r"grid.lr is empty; expected a list of values"),
    "study's axis without list": (f"study {{i}}/study-no-list.toml {OUT}", r"'grid.lr' .*valid list.*mend"),
    "study's seed": (f"study {{i}}/study-seed.toml {OUT}", r"the grid has the key 'seed'; expected it as seeds"),
    "study's runs twice": (f"study {{i}}/study-twice.toml {OUT}", r"two runs named '[^']*1'; .*remove or rename"),
    "study without teacher": (f"study {{i}}/study-teacher.toml {OUT}", r"method 'kd' has no teacher"),
    "study's value": (f"study {{i}}/study-value.toml {OUT}", r"lr = -1.0 .*greater than 0"),
    "study not empty": ("study {i}/study-teacher.toml --set recipe.teacher=x --out {i}/full", r"is not empty"),
    # words the parser does not know
    "option": (
        f"distill --epohcs 3 {OUT}",
        r"no such option --epohcs; did you mean '--epochs'; see protege distill --help",
    ),
    "missing option": ("evaluate --data digits", r"missing option '--model'; see protege evaluate --help"),
    "command": (
        "distil",
        r"no such command 'distil'; did you mean 'distill' \(the commands are compress, demo, .*\); see protege --help",
    ),
    "option by another name": (
        f"distill --learning-rate 1 {OUT}",
        r"no such option --learning-rate; did you mean '--lr'",
    ),
    "option of distill": (
        f"{TRAIN} --temperature 3 {OUT}",
        r"no such option --temperature; it is one of distill and diagnose; see",
    ),
    "command by another name": ("prune", r"no such command 'prune'; did you mean 'shrink'"),
    "command unlike any": (
        "dance",
        r"no such command 'dance'; choose one of compress, demo, diagnose, distill, .*train; see",
    ),
    "argument": (f"distill a.toml b.toml {OUT}", r"unexpected extra argument.*b.toml.*; see protege distill --help"),
    "jobs": (f"study {{i}}/study-key.toml --jobs 0 {OUT}", r"'--jobs'.*1.*; see protege study --help"),
}


@pytest.mark.parametrize(("command", "expected"), CASES.values(), ids=CASES)
def test_refused(quiet, inputs, tmp_path, command, expected):
    before = tree(inputs, tmp_path)
    check_sentence(quiet(command), expected)
    assert tree(inputs, tmp_path) == before


def test_refused_in_a_process_of_its_own(inputs, tmp_path):
    environment = {**os.environ, "PROTEGE_CACHE": str(tmp_path / "cache")}
    commands = [
        ([sys.executable, "-m", "protege"], "data missing"),
        ([str(Path(sys.executable).with_name("protege"))], "key by --set"),
    ]
    before = tree(inputs, tmp_path)
    started = [
        subprocess.Popen(
            [*program, *shlex.split(CASES[name][0].format(i=inputs, o=tmp_path / program[0].rpartition("/")[2]))],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for program, name in commands
    ]
    for process, (_, name) in zip(started, commands, strict=True):
        out, error = process.communicate()
        assert process.returncode == 2
        assert out == ""
        check_sentence(error, CASES[name][1])
    assert tree(inputs, tmp_path) == before


def test_debug_shows_where(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["protege", "report", "/nowhere", "--debug"])
    with pytest.raises(Exception, match="/nowhere"):
        app.main()


def test_an_error_of_the_program_is_status_1_and_one_line(monkeypatch, capsys):
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a long line " * 20 + "\nand a second one")

    monkeypatch.setattr("protege.run.api.evaluate", broken)
    assert call("evaluate", "--model", "x", "--data", "digits") == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("internal error: RuntimeError: a long line")
    assert "--debug" in error


def test_a_full_disk_is_status_2_and_one_line(monkeypatch, capsys):
    def broken(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("protege.run.api.evaluate", broken)
    assert call("evaluate", "--model", "x", "--data", "digits") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "the disk is full" in error
    assert "free some and run it again" in error, "there is nothing to resume"


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ("--lr 1e9 --epochs 6", r"the (loss|nll) of phase 'labels' is (nan|inf) in epoch \d; expected a finite .*--lr"),
        (
            "--lr 3e38 --warmup 0 --schedule constant",
            r"(not finite after training|of phase 'labels' is nan in epoch 1); expected .*lower --lr",
        ),
    ],
    ids=["loss", "weights after the last update"],
)
def test_a_run_that_is_not_finite_leaves_its_record_but_no_student(quiet, inputs, tmp_path, more, expected):
    command = f"{TRAIN} --out {{o}}/out --set"
    before = tree(inputs)
    lines = quiet(f"{command} seed=1 {more}").strip().splitlines()
    check_sentence(lines[-1], expected)
    left = {p.name for p in (tmp_path / "out").iterdir()}
    assert {"recipe.toml", "metrics.jsonl"} <= left <= {"recipe.toml", "metrics.jsonl", "checkpoint"}
    assert tree(inputs) == before
    quiet(f"{command} lr=0.01 --overwrite", status=0)
    assert (tmp_path / "out" / "student" / "config.json").exists()


def test_overwrite_removes_a_run_and_nothing_else(quiet, tmp_path):
    out = tmp_path / "out"
    quiet(f"{TRAIN} --out {{o}}/out", status=0)
    first = (out / "recipe.toml").read_bytes()
    others = {out / "notes.txt": "mine", out / "plots" / "a.svg": "<svg/>", tmp_path / "beside.txt": "x"}
    for path, text in others.items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    (out / "checkpoint" / "99999999.json").write_text("{}")
    (out / "report.html").write_text("old")
    quiet(f"{TRAIN} --seed 5 --out {{o}}/out --overwrite", status=0)
    assert {path: path.read_text() for path in others} == others
    assert (out / "recipe.toml").read_bytes() != first
    assert not (out / "checkpoint" / "99999999.json").exists()
    assert (out / "report.html").read_text() != "old"
    assert json.loads((out / "result.json").read_text())["seed"] == 5


def test_a_run_half_removed_can_be_removed_again(quiet, tmp_path, monkeypatch):
    quiet(f"{TRAIN} --out {{o}}/out", status=0)

    def killed(folder):
        raise Curtain

    with monkeypatch.context() as patch:
        patch.setattr(runfolder, "remove", killed)
        with pytest.raises(Curtain):
            runfolder.clear(tmp_path / "out")
    quiet(f"{TRAIN} --overwrite --out {{o}}/out", status=0)


def test_a_project_with_a_recipe_of_its_own_is_no_run(tmp_path, quiet):
    (tmp_path / "student").mkdir()
    (tmp_path / "student" / "mine.py").write_text("x = 1")
    (tmp_path / "recipe.toml").write_text('method = "none"')
    before = tree(tmp_path)
    quiet(f"{TRAIN} --overwrite --out {tmp_path}", status=2)
    assert tree(tmp_path) == before
    run = tmp_path / "run"
    quiet(f"{TRAIN} --out {run}", status=0)
    (run / "student" / "mine.py").write_text("x = 1")
    quiet(f"{TRAIN} --overwrite --out {run}", status=0)
    assert (run / "student" / "mine.py").exists()
    assert (run / "student" / "config.json").exists()


@pytest.mark.parametrize(
    ("begun", "told"), [(True, "stopped; go on with protege train --resume --out "), (False, "stopped\n")]
)
def test_a_stopped_command_offers_only_what_there_is(begun, told, tmp_path, monkeypatch, capsys):
    def stopped(*_args, **_kwargs):
        raise KeyboardInterrupt

    (tmp_path / "out").mkdir()
    if begun:
        begin = {"event": "start", "method": "none", "task": "classification", "student": {}}
        (tmp_path / "out" / "metrics.jsonl").write_text(json.dumps(begin) + "\n")
    monkeypatch.setattr(app.program, "main", stopped)
    monkeypatch.setattr(sys, "argv", ["protege", "train", "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as exit:
        app.main()
    assert exit.value.code == 130
    captured = capsys.readouterr()
    assert told in captured.out + captured.err


def test_resume_of_a_finished_run_changes_nothing(quiet, inputs):
    before = tree(inputs)
    quiet("distill --resume --out {i}/run", status=0)
    assert tree(inputs) == before


def test_a_failing_run_is_named_in_the_study(quiet, tmp_path, monkeypatch):
    def in_this_process(_: object, arguments: list[str], log: Path) -> str:
        told = io.StringIO()
        with contextlib.redirect_stderr(told):
            status = call(*arguments)
        return told.getvalue().strip().splitlines()[-1] if status else ""

    monkeypatch.setattr("protege.run.study.Worker.call", in_this_process)
    (tmp_path / "study.toml").write_text(f'name = "x"\nseeds = [0]\n{STUDY}[grid]\nlr = [0.1, 1e38]\nwarmup = [0.0]\n')
    error = quiet("study {o}/study.toml --out {o}/out", status=1)
    assert "Traceback" not in error
    table = (tmp_path / "out" / "study.md").read_text()
    found = json.loads((tmp_path / "out" / "study.json").read_text())
    assert [row["setting"]["lr"] for row in found["rows"]] == [0.1]
    (failed,) = [run for run in found["runs"] if run["status"] != "done"]
    assert failed["setting"]["lr"] == 1e38
    assert failed["status"].startswith("error: the ")
    assert f"- {Path(failed['out']).name}: {failed['status']}" in table


def test_only_the_command_line_names_options():
    """Sentences that Python users meet, too, name arguments; `in_flags` says them in the command line's words."""
    package = Path(protege.__file__).parent
    for path in package.rglob("*.py"):
        if path.parent.name == "commands":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "UserError":
                texts = [each.value for each in ast.walk(node) if isinstance(each, ast.Constant)]
                named = [text for text in texts if isinstance(text, str) and re.search(r"(?<![\w-])--[a-z]", text)]
                assert not [text for text in named if "--set" not in text], f"{path.name}:{node.lineno}"


def test_arguments_become_options_where_the_command_has_them():
    options = app.command("distill").params
    for text, told in {
        "lower lr=…, or set clip=1.": "lower --lr, or set --clip 1.",
        "use method='kd' (image_size=64).": "use --method kd (--image-size 64).",
        "start anew with overwrite=True.": "start anew with --overwrite.",
        "out='my runs/x' is a file": "--out 'my runs/x' is a file",
        "change it with phases.kd.epochs=….": "change it with --set phases.kd.epochs=VALUE.",
        "zoo:mlp?hidden=8 in 'lr=3' has jobs=2 and lr = 3": "zoo:mlp?hidden=8 in 'lr=3' has jobs=2 and lr = 3",
    }.items():
        assert in_flags(text, options) == told
