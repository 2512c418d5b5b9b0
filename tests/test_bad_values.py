"""Bad values of every kind end in one sentence, before anything is written; memory is taken for what is shown only."""

from __future__ import annotations

import inspect
import io
import os
import re
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import nn

import protege
from protege import UserError
from protege.commands.options import parse_sets
from protege.data import Augment, Data, InMemory
from protege.errors import out_of_memory
from protege.files import read_text, usable
from protege.methods import METHODS
from protege.run.demo import demo
from protege.run.recipe import checked, make_recipe, recipe_type
from protege.run.study import run_study
from protege.run.study_file import load_study
from protege.tasks import TASKS

LONG = "x" * 300
GOOD = {"student": "zoo:mlp?hidden=4", "data": "digits", "samples": 40, "batch_size": 20, "epochs": 1}


def refused(call, *args, **given) -> str:
    with pytest.raises(UserError) as error:
        call(*args, **given)
    return str(error.value)


# ---- numbers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_no_setting_takes_a_number_that_single_precision_cannot_use(method):
    """Of every method, also settings that are yet to be added: by their types alone."""
    base = {"student": "zoo:mlp", "data": "digits", "teacher": "x", "method": method}
    for key, field in recipe_type(method).model_fields.items():
        if not re.search(r"\b(float|int)\b", str(field.annotation)) or key in ("phases", "class_weights"):
            continue
        for value in (1e39, "1e39", 10**40, 10**5000, -1e39, 1e-39, "1e-320", float("nan"), "inf", "9" * 5000):
            assert key in refused(make_recipe, {**base, key: value}), (key, value)


@pytest.mark.parametrize("value", [1e30, 1e36, 1e308])
@pytest.mark.parametrize("key", ["alpha", "beta", "weight_decay", "clip", "checkpoint_seconds"])
def test_weights_have_a_largest_value(key, value):
    base = {"student": "zoo:mlp", "data": "digits", "teacher": "x", "target": "dkd"}
    assert f"{key} = {value!r}" in refused(make_recipe, {**base, key: value})
    make_recipe({**base, key: 1e9})  # the remedy


def test_what_the_sentences_expect_is_taken():
    base = {"student": "zoo:mlp", "data": "digits", "teacher": "x"}
    assert "at least 1e-12" in refused(make_recipe, {**base, "temperature": 1e-308})
    make_recipe({**base, "temperature": 1e-12})
    assert "class_weights" in refused(make_recipe, {**base, "class_weights": "1,1e308"})
    assert "phases.kd.lr" in refused(make_recipe, {**base, "phases": {"kd": {"lr": 1e300}}})
    assert checked(samples=3, weight=0.9, temperature=None) == {"samples": 3, "weight": 0.9, "temperature": None}


@pytest.mark.parametrize("text", [".=1", "..=1", '"=1', "=", "a"])
def test_sets_without_a_key(text):
    with pytest.raises(UserError, match=r"--set|''"):
        make_recipe({**GOOD, **parse_sets([text])})


def test_numbers_of_thousands_of_digits_are_text(tmp_path):
    many = "9" * 5000
    assert parse_sets([f"lr={many}"]) == {"lr": many}
    (tmp_path / "recipe.toml").write_text(f"lr = {many}")
    assert "not readable as TOML" in refused(protege.distill, recipe=tmp_path / "recipe.toml", out=tmp_path / "out")
    (tmp_path / "recipe.toml").write_text("lr = " + "[" * 100_000)
    assert "not readable as TOML" in refused(protege.distill, recipe=tmp_path / "recipe.toml", out=tmp_path / "out")
    assert len(refused(make_recipe, {**GOOD, "method": "none", "seed": many})) < 400


@pytest.mark.parametrize("shift", [-1, 2**31, 10**20])
def test_shifts_of_no_image(shift):
    assert f"shift={shift}" in refused(Augment, shift=shift)


# ---- paths --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", [LONG, f"a/{LONG}/b", "x/" * 3000, "a\0b", "\udc80", "~nobody-of-that-name/x", "loop", 5]
)
def test_paths_that_cannot_be(path, tmp_path, monkeypatch, digits_teacher):
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    before = sorted(os.listdir())
    refused(usable, path, "out")
    known = {**GOOD, "teacher": digits_teacher, "out": "out"}
    for key in ("out", "cache", "teacher", "student", "recipe"):
        refused(protege.distill, **{**known, key: path})
    for scheme in ("", "images:", "parquet:", "text:", "segmentation:", "hub:", "torchvision:MNIST:"):
        refused(protege.load_data, f"{scheme}{path}")
    for call in (protege.evaluate, protege.diagnose, partial(protege.shrink, ratio=0.5, out="out")):
        refused(call, path, data="digits")
    for call in (
        lambda: protege.diagnose(digits_teacher, "digits", out=path),
        lambda: protege.shrink(digits_teacher, ratio=0.5, out=path),
        lambda: protege.export(digits_teacher, to="onnx", out=path),
        lambda: protege.load_model(digits_teacher).save(path),
        lambda: run_study(path, "out"),
        lambda: demo(path),
    ):
        refused(call) if path != "~nobody-of-that-name/x" else None  # for an output, the name of a folder
    assert sorted(os.listdir()) == before


def test_devices_pipes_and_folders_are_no_files(tmp_path):
    os.mkfifo(pipe := tmp_path / "pipe")
    for path in ("/dev/zero", pipe, tmp_path):
        assert "not readable as TOML" in refused(read_text, path, "TOML")
    for path in ("/dev/zero", "/dev/null", pipe):
        assert str(path) in refused(protege.load_data, f"text:{path}")
        assert str(path) in refused(protege.load_data, f"parquet:{path}")
        assert str(path) in refused(protege.load_data, f"images:{path}")
    end, start = os.pipe()
    os.write(start, b"lr = 1")
    os.close(start)
    assert read_text(f"/dev/fd/{end}", "TOML") == "lr = 1", "what a shell's <(…) gives is read"


# ---- arguments in Python --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["distill", "train", "preview", "evaluate", "diagnose", "shrink", "export", "load_data"]
)
def test_arguments_of_other_kinds(name, tmp_path, monkeypatch, digits_teacher):
    monkeypatch.chdir(tmp_path)
    known = {
        "distill": {**GOOD, "teacher": digits_teacher, "out": "out"},
        "train": {**GOOD, "out": "out"},
        "preview": {**GOOD, "teacher": digits_teacher},
        "evaluate": {"model": digits_teacher, "data": "digits"},
        "diagnose": {"teacher": digits_teacher, "data": "digits", "out": "out"},
        "shrink": {"model": digits_teacher, "ratio": 0.5, "out": "out"},
        "export": {"model": digits_teacher, "to": "onnx", "out": "out"},
        "load_data": {"spec": "digits"},
    }[name]
    wrong = {
        "resume": "no",
        "overwrite": "no",
        "out": 5,
        "recipe": 5,
        "split": 5,
        "image_size": "x",
        "memory_limit": "4GiB",
    }
    wrong |= {
        "samples": "x",
        "seed": "x",
        "layers": 5,
        "how": 5,
        "to": 5,
        "rank": 1.5,
        "method": 5,
        "student": 5,
        "data": 5,
    }
    names = inspect.signature(getattr(protege, name)).parameters
    for key in names.keys() & wrong.keys():
        assert key.split("_")[0] in refused(getattr(protege, name), **{**known, key: wrong[key]}) or key in (
            "data",
            "student",
        )
    assert os.listdir() == []


class Odd(nn.Module):
    def __init__(self, how) -> None:
        super().__init__()
        self.fc, self.how = nn.Linear(64, 10), how

    def forward(self, x):
        return self.how(self.fc(x.flatten(1)).detach())


@pytest.mark.parametrize(
    "how",
    [
        lambda z: z.to("meta"),
        lambda z: z.to_sparse(),
        lambda z: z.to_sparse_csr(),
        lambda z: torch.quantize_per_tensor(z, 0.1, 0, torch.qint8),
        lambda z: torch.nested.nested_tensor(list(z)),
        lambda z: z.to(torch.complex64),
        lambda z: z.long(),
        lambda z: z > 0,
        lambda z: z.to_mkldnn(),
    ],
)
def test_outputs_that_are_no_dense_real_numbers(how, tmp_path):
    told = refused(protege.distill, Odd(how), out=tmp_path / "out", **GOOD)
    assert "a dense one of real numbers" in told
    assert "the teacher" in told
    assert "a dense one" in refused(protege.evaluate, Odd(how), "digits")
    assert not (tmp_path / "out").exists()


def test_weights_without_numbers():
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).to("meta")
    assert "1.weight" in refused(protege.evaluate, network, "digits")


# ---- data -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(0, 0, 3), (0, 5, 3), (0, 0)])
def test_images_without_pixels(shape):
    images, labels = np.zeros((20, *shape), np.uint8), np.arange(20) % 2
    assert re.search(r"item 0 .*×0 pixels", refused(protege.load_data, (images, labels)))
    assert "is empty" in refused(protege.load_data, (images[:0], labels[:0]))


@pytest.mark.parametrize("codec", ["snappy", "gzip", "zstd", "none"])
@pytest.mark.parametrize("memory_limit", [1 << 30, 0])
def test_damaged_pages_end_in_a_sentence(tmp_path, codec, memory_limit):
    random, rows = np.random.default_rng(0), []
    for _ in range(60):
        Image.fromarray(random.integers(0, 255, (8, 8), np.uint8)).save(buffer := io.BytesIO(), "png")
        rows.append(buffer.getvalue())
    table = pa.table({"image": rows, "label": [i % 2 for i in range(60)]})
    pq.write_table(table, path := tmp_path / "train.parquet", compression=codec, use_dictionary=False)
    whole = path.read_bytes()
    for at in range(4, len(whole) - 40, len(whole) // 15):
        path.write_bytes(whole[:at] + b"\xff" * 40 + whole[at + 40 :])
        with suppress(UserError):  # and nothing else; some bytes say nothing
            protege.load_data(f"parquet:{tmp_path}", memory_limit=memory_limit, scratch=tmp_path / f"scratch{at}")


@pytest.mark.parametrize("label", [1_700_000_000, 2**40, -5, 3])
def test_labels_of_data_made_by_hand(label):
    labels = torch.arange(20) % 2
    labels[-1] = label
    samples = InMemory(torch.zeros(20, 8, 8, 1, dtype=torch.uint8), labels)
    data = Data("mine", "classification", samples, None, samples, ("a", "b"), Augment())
    assert f"label {label}" in refused(protege.load_data, data)


def test_many_classes_take_little_memory():
    """A dense matrix of all pairs would take 800 MB; what is counted must agree with a loop over the rows."""
    torch.manual_seed(0)
    classes, rows = 10_000, 64
    logits, labels = torch.randn(rows, classes), torch.randint(0, classes, (rows,))
    logits[torch.arange(0, rows, 2), labels[::2]] += 100
    metrics = TASKS["classification"].metrics(classes)
    assert sum(value.nbytes for value in vars(metrics).values() if isinstance(value, torch.Tensor)) < 1 << 20
    metrics.update(logits, labels)
    found, per_class = metrics.compute(), metrics.details()["per_class"]
    guesses = logits.argmax(1).tolist()
    recalls = {}
    for truth in set(labels.tolist()):
        mine = [guess == truth for guess, each in zip(guesses, labels.tolist(), strict=True) if each == truth]
        recalls[truth] = sum(mine) / len(mine)
    assert found["balanced_accuracy"] == pytest.approx(sum(recalls.values()) / len(recalls))
    assert {k: per_class[k] for k in recalls} == pytest.approx(recalls)
    assert sum(value is not None for value in per_class) == len(recalls)


# ---- memory and caches ----------------------------------------------------------------------------------------------


def test_an_allocator_that_fails_is_told_in_a_sentence(tmp_path, monkeypatch):
    def signal(*_, **__):
        torch.empty(1 << 60, dtype=torch.uint8)

    with pytest.raises(RuntimeError) as error:
        signal()
    told = out_of_memory(error.value, trains=False)
    assert told is not None
    assert "memory does not suffice" in str(told)
    assert "batch_size" not in str(told)
    assert out_of_memory(RuntimeError("shapes do not fit"), trains=True) is None
    monkeypatch.setattr("protege.training.loop.Loop.run", signal)
    told = refused(protege.train, out=tmp_path / "out", **GOOD)
    assert "lower batch_size=" in told


def test_the_default_cache_is_no_run(tmp_path, monkeypatch):
    run = {"student": "zoo:mlp?hidden=4", "data": "digits", "method": "none", "epochs": 1, "samples": 20}
    protege.distill(**run, out=tmp_path / "run")
    for name in ("run", "new"):
        monkeypatch.setenv("PROTEGE_CACHE", str(tmp_path / name))
        with pytest.raises(UserError, match="is the folder of a run"):
            protege.distill(**run, out=tmp_path / "new")
    with pytest.raises(UserError, match="lie in each other"):
        protege.distill(**run, out=tmp_path / "new", cache=tmp_path / "new" / "cache")
    assert not (tmp_path / "new").exists()


def test_a_cache_and_a_run_do_not_lie_in_each_other(tmp_path, digits_teacher):
    out = tmp_path / "out"
    for cache in (out, out / "signals", out / "student", out / "checkpoint" / "x", tmp_path):
        assert "lie in each other" in refused(protege.distill, digits_teacher, out=out, cache=str(cache), **GOOD)
        assert not out.exists()


@pytest.mark.parametrize("text", ["{}", "[]", "5", '{"metrics": 5}', '{"metrics": {"accuracy": "x"}}', "[" * 100_000])
def test_a_memo_that_says_nothing_is_measured_anew(text, tmp_path, cache_folder, digits_teacher):
    first = protege.distill(digits_teacher, out=tmp_path / "a", **GOOD)
    (memo,) = (cache_folder / "evaluations").iterdir()
    memo.write_text(text)
    again = protege.distill(digits_teacher, out=tmp_path / "b", **GOOD)
    assert again.result["teacher"]["metrics"] == first.result["teacher"]["metrics"]


# ---- commands -------------------------------------------------------------------------------------------------------


def test_a_tracker_without_a_name(tmp_path):
    assert "log_with = ''" in refused(protege.train, out=tmp_path / "out", log_with="", **GOOD)


@pytest.mark.parametrize("changes", [{"samples": 0}, {"samples": -5}, {"temperature": 1e-308}, {"fraction": 0.0}])
def test_a_diagnosis_of_nothing(changes, tmp_path, digits_teacher):
    assert next(iter(changes)) in refused(protege.diagnose, digits_teacher, "digits", out=tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("tables", "wrong"),
    [
        ({"a": "prepared:a"}, "prepare.a needs prepared:a"),
        ({"a": "prepared:b", "b": "prepared:a"}, "prepare.a needs prepared:b"),
        ({"a": "prepared:b", "b": "zoo:mlp"}, "prepare.a needs prepared:b"),
    ],
)
def test_what_is_prepared_needs_only_what_is_before_it(tables, wrong, tmp_path):
    text = 'name = "x"\nseeds = [0]\n[recipe]\nstudent = "zoo:mlp"\ndata = "digits"\nmethod = "none"\n'
    for name, model in tables.items():
        text += f'[prepare.{name}]\ncommand = "train"\nmodel = "{model}"\ndata = "digits"\n'
    (tmp_path / "study.toml").write_text(text)
    assert wrong in refused(load_study, tmp_path / "study.toml")


def test_a_demo_replaces_no_run_that_is_not_its_own(tmp_path):
    protege.train(out=tmp_path / "teacher", **GOOD)
    kept = (tmp_path / "teacher" / "result.json").read_bytes()
    refused(demo, tmp_path, overwrite=True)
    assert (tmp_path / "teacher" / "result.json").read_bytes() == kept
