"""Recipes: reading, merging and naming settings, and that file, option, --set and argument are one and the same."""

from __future__ import annotations

import json
import shlex
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tools import loop, model, plan, planned

import protege
from protege.commands import app
from protege.commands.options import parse_sets
from protege.errors import UserError, nearest
from protege.methods import METHODS
from protege.run.folder import resumed_settings
from protege.run.recipe import Recipe, make_recipe, recipe_type, size_in_bytes, with_task_defaults
from protege.run.toml import merge, read_toml, write_toml
from protege.tasks import TASKS
from protege.training import Fit

BASE = {"student": "zoo:mlp", "data": "digits", "method": "none"}
GIVEN: dict[str, Any] = {  # every key of kd, each with a value that is not its default
    "trust": True,
    "task": "embeddings",
    "teacher": "runs/teacher",
    "student": "zoo:mlp",
    "data": "digits",
    "classes": "names.txt",
    "method": "kd",
    "fraction": 0.5,
    "samples": 100,
    "validation": 0.2,
    "views": 3,
    "augment": "shift=1",
    "image_size": 8,
    "decoded_size": 8,
    "skip_bad": 1,
    "memory_limit": "1GiB",
    "workers": 1,
    "seed": 7,
    "precision": "fp32",
    "compile": "off",
    "deterministic": True,
    "cache": "signals",
    "cache_budget": "1GiB",
    "checkpoint_seconds": 5.0,
    "log_with": "tensorboard",
    "phases": {"kd": {"epochs": 3}},
    "epochs": 4,
    "batch_size": 32,
    "optimizer": "adamw",
    "lr": 0.01,
    "momentum": 0.8,
    "weight_decay": 1e-4,
    "schedule": "onecycle",
    "warmup": 0.1,
    "clip": 1.0,
    "ema": 0.9,
    "accumulate": 2,
    "select": "best",
    "patience": 3,
    "eval_every": 2,
    "label_smoothing": 0.1,
    "class_weights": "balanced",
    "temperature": 2.0,
    "weight": 0.5,
    "target": "topk",
    "k": 5,
    "epsilon": 0.2,
    "tau": 0.3,
    "mix": 0.5,
    "alpha": 2.0,
    "beta": 4.0,
}
ELSEWHERE: dict[str, tuple[str, Any]] = {  # a method for every key that kd does not have
    "stages": ("skd", "layer1=layer1"),
    "inherit": ("skd", True),
    "finetune_epochs": ("skd", 2),
    "feature_weight": ("at", 10.0),
    "finetune_lr": ("skd", 0.5),
    "solve": ("fskd", "kernel"),
    "ridge": ("fskd", 0.1),
    "augmented": ("fskd", 2),
    "sweeps": ("fskd", 2),
    "finetune_steps": ("fskd", 20),
    "ratio": ("gpd", 3),
    "branches": ("gpd", ("average",)),
    "gap_weight": ("gpd", 2.0),
    "gap_smoothing": ("gpd", 0.2),
    "perturbation": ("gpd", 0.1),
}


def command(*arguments: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["protege", *arguments])
        with pytest.raises(SystemExit) as ended:
            app.main()
    return int(ended.value.code or 0)


@pytest.mark.parametrize(
    ("assignments", "expected"),
    [
        ([], {}),
        (["lr=0.1"], {"lr": 0.1}),
        (["epochs=3", "select=best"], {"epochs": 3, "select": "best"}),
        (["data=images:a=b"], {"data": "images:a=b"}),
        (["cache="], {"cache": ""}),
        (["views=all"], {"views": "all"}),
        (["a=true", 'b="true"', "c=[1, 2]"], {"a": True, "b": "true", "c": [1, 2]}),
        (["phases.kd.epochs=5", "phases.kd.lr=1e-3"], {"phases": {"kd": {"epochs": 5, "lr": 1e-3}}}),
        (["phases={kd = {epochs = 5}}", "phases.kd.lr=1"], {"phases": {"kd": {"epochs": 5, "lr": 1}}}),
        (["lr=1", "lr=2"], {"lr": 2}),
        (['variants."kd, T 0.5".lr=1', "variants.a b.lr=2"], {"variants": {"kd, T 0.5": {"lr": 1}, "a b": {"lr": 2}}}),
        (["data=2024-01-01"], {"data": "2024-01-01"}),
        (['variants."kd, T=4".lr=1'], {"variants": {"kd, T=4": {"lr": 1}}}),
        (["#x=1"], {"#x": 1}),
        (['a="b=c"'], {"a": "b=c"}),
    ],
)
def test_parse_sets(assignments, expected):
    assert parse_sets(assignments) == expected


@pytest.mark.parametrize("assignments", [["lr"], ["=1"], [""], ["phases=1", "phases.kd.lr=1"]])
def test_parse_sets_refuses(assignments):
    with pytest.raises(UserError, match=r"--set .*expected"):
        parse_sets(assignments)


def test_merge_is_deep_and_leaves_its_arguments_alone():
    base = {"lr": 1, "phases": {"kd": {"epochs": 1, "lr": 2}, "head": {"epochs": 3}}}
    changes = {"seed": 4, "phases": {"kd": {"lr": 5}}}
    copy = json.loads(json.dumps([base, changes]))
    expected = {"lr": 1, "seed": 4, "phases": {"kd": {"epochs": 1, "lr": 5}, "head": {"epochs": 3}}}
    assert merge(base, changes) == expected
    assert [base, changes] == copy
    assert merge({"phases": 3}, {"phases": {"kd": {}}}) == {"phases": {"kd": {}}}
    assert merge({"phases": {"kd": {}}}, {"phases": 3}) == {"phases": 3}


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("500", 500),
        ("500B", 500),
        ("1.5 KiB", 1536),
        ("2kb", 2000),
        ("500MB", 500 * 10**6),
        ("4GiB", 4 * 2**30),
        ("1TiB", 2**40),
    ],
)
def test_sizes(text, size):
    recipe = make_recipe({**BASE, "memory_limit": text})
    assert size_in_bytes(recipe.memory_limit) == size


@pytest.mark.parametrize("text", ["", "GiB", "4 apples", "-1GiB", "1e3", "4GiB more"])
def test_sizes_refused(text):
    with pytest.raises(UserError, match=r"memory_limit = .*such as 4GiB.*memory_limit="):
        make_recipe({**BASE, "memory_limit": text})


def test_nearest():
    assert nearest("epohcs", Recipe.model_fields) == "did you mean 'epochs'"
    assert nearest("temprature", recipe_type("kd").model_fields).startswith("did you mean 'temperature'")
    assert nearest("xyz", ["b", "a"]) == "choose one of a, b"
    assert nearest("xyz", map(str, range(100))).endswith(" and 88 more")


@pytest.mark.parametrize(("given", "views"), [(4, 4), ("4", 4), ("all", "all"), (None, None)])
def test_views(given, views):
    assert make_recipe({**BASE, "views": given}).views == views


@pytest.mark.parametrize("views", [0, "0", -1, "-1", "some", "", 1.5, "1.5"])
def test_views_refused(views):
    with pytest.raises(UserError, match=r"views = .* change it with views="):
        make_recipe({**BASE, "views": views})


def test_text_means_what_the_number_means():
    typed = {"lr": 0.1, "epochs": 3, "seed": 4, "views": 2, "fraction": 0.5}
    assert make_recipe({**BASE, **typed}) == make_recipe({**BASE, **{k: str(v) for k, v in typed.items()}})


def test_the_phase_that_picks_its_best_state_needs_held_out_samples(tmp_path):
    for chosen in ({"phases": {"labels": {"select": "best"}}}, {"patience": 2}):
        with pytest.raises(UserError, match="held-out"):
            protege.train("zoo:mlp", "digits", out=tmp_path / "run", epochs=1, validation=0, **chosen)
    assert not (tmp_path / "run").exists()


def test_a_key_of_another_method_is_told():
    with pytest.raises(UserError, match=r"'temperature' belongs to method kd.*, but the method is 'none'"):
        make_recipe({**BASE, "temperature": 2})


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"optimizer": "adamw", "lr": 3e-3, "clip": 1.0, "ema": 0.0}),
        ({"lr": 0.5}, {"optimizer": "adamw", "lr": 0.5, "clip": 1.0}),
        ({"optimizer": "sgd"}, {"optimizer": "sgd", "lr": None, "weight_decay": 5e-4, "clip": 1.0}),
        ({"method": "skd"}, {"optimizer": "adamw", "lr": 3e-2, "weight_decay": 5e-4, "clip": 1.0, "patience": 3}),
        ({"method": "skd", "optimizer": "sgd"}, {"optimizer": "sgd", "lr": None, "select": "best"}),
        ({"method": "skd", "optimizer": "sgd", "lr": 0.3}, {"optimizer": "sgd", "lr": 0.3}),
        ({"method": "simultaneous"}, {"optimizer": "adamw", "lr": 3e-3}),
        ({"method": "gpd"}, {"optimizer": "adamw", "lr": 3e-3, "clip": 5.0, "ema": 0.995}),
    ],
)
def test_a_tasks_defaults_give_way_to_the_methods_and_the_users(given, expected):
    recipe = make_recipe({"teacher": "t", "student": "s", "data": "text:x", **given})
    chosen = with_task_defaults(recipe, TASKS["language"].defaults)
    assert {key: getattr(chosen, key) for key in expected} == expected
    assert with_task_defaults(recipe, TASKS["classification"].defaults) == recipe
    assert with_task_defaults(chosen, TASKS["language"].defaults) == chosen, "resumed as written"


def test_toml_there_and_back(tmp_path):
    recipe = make_recipe({key: value for key, value in GIVEN.items() if key != "samples"})
    write_toml(tmp_path / "recipe.toml", recipe.model_dump())
    assert [p.name for p in tmp_path.iterdir()] == ["recipe.toml"]
    assert make_recipe(read_toml(tmp_path / "recipe.toml")) == recipe


def test_every_key_is_an_option_of_distill():
    options = {parameter.name: parameter for parameter in app.command("distill", ("--help",)).params}
    for method in METHODS:
        for key in recipe_type(method).model_fields:
            if key == "phases":  # a table: written in a file, or by --set phases.NAME.KEY=VALUE
                assert "--set" in options["sets"].opts
                continue
            assert f"--{key.replace('_', '-')}" in options[key].opts
            assert options[key].help, key
    learned = {parameter.name for parameter in app.command("train").params}
    assert set(recipe_type("none").model_fields) - learned == {"teacher", "method", "cache", "cache_budget", "phases"}
    assert "--model" in next(p for p in app.command("train").params if p.name == "student").opts


@pytest.fixture
def seen(monkeypatch) -> list[Recipe]:
    """The settings that reach a run, in place of running it."""
    found: list[Recipe] = []

    def prepared(settings: Recipe, objects: Any, out: Path, resume: bool) -> None:
        found.append(settings)
        raise UserError("stopped.")

    monkeypatch.setattr("protege.run.run.prepare_alike", prepared)
    return found


def test_every_key_is_an_argument_of_distill(seen, tmp_path):
    every = {key for method in METHODS for key in recipe_type(method).model_fields}
    assert GIVEN.keys() | ELSEWHERE.keys() | {"time"} == every  # that is for method auto alone: tests/test_choice.py
    cases = {**{key: ("kd", value) for key, value in GIVEN.items()}, **ELSEWHERE}
    for key, (method, value) in cases.items():
        needed = {"teacher": "runs/teacher", "student": "zoo:mlp", "data": "digits", "method": method}
        with pytest.raises(UserError, match=r"^stopped\.$"):
            protege.distill(**{**needed, key: value}, out=tmp_path / "out")
        assert getattr(seen[-1], key) == value


def test_every_key_is_read_from_the_option(seen, tmp_path):
    options = [f"--{key.replace('_', '-')}={value}" for key, value in GIVEN.items() if key not in ("phases", "samples")]
    assert command("distill", *options, "--set", "phases.kd.epochs=3", "--out", str(tmp_path / "out")) == 2
    expected = make_recipe({key: value for key, value in GIVEN.items() if key != "samples"})
    assert seen == [expected]


def test_options_win_over_the_recipe_and_set_over_both(seen, tmp_path):
    file, out = tmp_path / "recipe.toml", str(tmp_path / "out")
    file.write_text(
        'student = "zoo:mlp"\ndata = "digits"\nmethod = "none"\nepochs = 1\nlr = 0.1\nseed = 1\n'
        "[phases.labels]\nepochs = 1\nlr = 0.5\n"
    )
    options = ["--lr", "0.2", "--seed", "2", "--set", "seed=3", "--set", "phases.labels.lr=0.25", "--out", out]
    assert command("distill", str(file), *options) == 2
    assert (seen[-1].epochs, seen[-1].lr, seen[-1].seed) == (1, 0.2, 3)
    assert seen[-1].phases == {"labels": {"epochs": 1, "lr": 0.25}}
    with pytest.raises(UserError, match="stopped"):
        protege.distill(recipe=file, lr=0.2, seed=3, phases={"labels": {"lr": 0.25}}, out=out)
    assert seen[-1] == seen[-2]


@pytest.mark.parametrize("line", ['method = "kd"', 'teacher = "zoo:mlp"'])
def test_train_refuses_a_recipe_of_distillation(line, seen, tmp_path, capsys):
    file = tmp_path / "recipe.toml"
    file.write_text(f'student = "zoo:mlp"\ndata = "digits"\n{line}\n')
    with pytest.raises(UserError, match="expected labels only"):
        protege.train(recipe=file, out=tmp_path / "out")
    assert command("train", str(file), "--out", str(tmp_path / "out")) == 2
    assert "expected labels only" in " ".join(capsys.readouterr().err.split())
    assert seen == []


def test_a_run_writes_a_recipe_that_runs_again(tmp_path, monkeypatch):
    monkeypatch.setenv("PROTEGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    learn = "train --model zoo:mlp --data digits --epochs 3 --lr 0.5 --precision fp32 --out teacher"
    assert command(*shlex.split(learn)) == 0
    again = "distill --teacher teacher --student zoo:mlp?hidden=16 --data digits --samples 100 --batch-size 50"
    again += " --views 2 --temperature 2 --set phases.kd.epochs=2 --select best --precision fp32 --seed 3 --out first"
    assert command(*shlex.split(again)) == 0
    assert command("distill", "first/recipe.toml", "--out", "second") == 0
    first, second = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("first", "second"))
    assert first["student"]["metrics"] == second["student"]["metrics"]
    assert first["phases"][0]["epochs"] == second["phases"][0]["epochs"] == 2
    assert first["data"]["train_samples"] == second["data"]["train_samples"] == 90
    weights = [(tmp_path / name / "student" / "model.safetensors").read_bytes() for name in ("first", "second")]
    assert weights[0] == weights[1]
    texts = [(tmp_path / name / "recipe.toml").read_text() for name in ("first", "second")]
    assert texts[0] == texts[1]
    assert tomllib.loads(texts[0])["temperature"] == 2.0


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({"optimizer": "adamw"}, ("adamw", None, 5e-4)),
        ({"optimizer": "adamw", "lr": 0.2, "weight_decay": 0.1}, ("adamw", 0.2, 0.1)),
        ({"optimizer": "sgd"}, ("sgd", 0.7, 0.3)),
        ({"epochs": 4}, ("sgd", 0.7, 0.3)),
    ],
)
def test_an_optimizer_of_one_phase_has_its_own_rate(own, expected, tmp_path):
    student = model(seed=1)
    phases = plan("kd", student, model(seed=2))
    made = planned(loop(student, tmp_path, lr=0.7, weight_decay=0.3, phases={"kd": own}), phases).plan
    settings = made.settings_of(phases[0])
    assert (settings.optimizer, settings.lr, settings.weight_decay) == expected


@pytest.mark.parametrize("own", [{"optimizer": "adamw"}, {"batch_size": 16}, {"epochs": 7}, {"lr": 0.3}])
def test_what_a_phase_derives_from_its_own_settings_stays_when_the_recipe_is_read_again(own, tmp_path):
    """lr, epochs and batch size depend on each other; the common ones must not take the place of a phase's."""
    student, teacher = model(seed=1), model(seed=2)
    phases = [*plan("kd", student, teacher), Fit("other", student, plan("none", student, None)[0].step)]
    first = planned(loop(student, tmp_path, phases={"kd": own}), phases).plan
    written = first.settings.model_dump(exclude_none=True) | first.defaults()
    again = replace(first, settings=make_recipe(written), overrides=written["phases"])
    assert again.describe() == first.describe()
    assert again.defaults() == first.defaults()


def test_a_resumed_run_may_be_told_its_settings_again_in_other_words(tmp_path):
    begun = {"method": "gpd", "student": "zoo:resnet8", "data": "digits", "branches": ["pointwise", "average"]}
    write_toml(tmp_path / "recipe.toml", {**begun, "lr": 0.1, "phases": {"gpd": {"lr": 0.1, "epochs": 3}}})
    again = {"branches": "pointwise, average", "lr": "1e-1", "phases": {"gpd": {"lr": 0.1}}, "samples": None}
    assert resumed_settings(tmp_path, again)["branches"] == ["pointwise", "average"]
    for other in ({"branches": "pointwise"}, {"lr": "0.2"}, {"phases": {"gpd": {"epochs": 4}}}, {"method": "kd"}):
        with pytest.raises(UserError, match="was begun with"):
            resumed_settings(tmp_path, other)
