"""Studies: a grid of runs in processes of their own, what they need first, and the table they end in."""

import json
import shutil
import sys
from collections import Counter
from pathlib import Path

import pytest
import tomli_w
import torch
from forks import NEW_PYTHON
from safetensors.torch import load_file

from protege import distill
from protege.data import CLEAN, Augment, choose, hold_out, load_data
from protege.errors import UserError
from protege.models import load_model
from protege.numerics import WORKSPACE
from protege.run import study, workers
from protege.run.study import load_study, run_study
from protege.run.summary import interval95, summarise
from protege.run.toml import read_toml
from protege.run.workers import Worker, gpus

PLAN = {
    "name": "a tiny study",
    "seeds": [0, 1],
    "baseline": {"variant": "tuned"},
    "recipe": {
        **{"teacher": "prepared:teacher", "student": "prepared:half", "data": "digits", "samples": 40},
        **{"image_size": 8, "views": 1, "validation": 0.2},
    },
    "variants": {"solved": {"method": "fskd"}, "tuned": {"method": "kd", "weight": 1.0, "epochs": 1, "lr": 0.001}},
    "prepare": {
        "teacher": {
            **{"command": "train", "model": "zoo:cnn_tiny", "data": "digits", "epochs": 2, "batch_size": 32},
            **{"lr": 0.05},
        },
        "half": {"command": "shrink", "model": "prepared:teacher", "ratio": 0.4},
    },
}


def write(path: Path, **changes) -> Path:
    path.write_text(tomli_w.dumps({**PLAN, **changes}))
    return path


def counted(patch: pytest.MonkeyPatch) -> list[object]:
    """The processes that workers will have started."""
    started: list[object] = []
    start = workers.start
    patch.setattr(workers, "start", lambda environment: started.append(environment) or start(environment))
    return started


@pytest.fixture(scope="module")
def performed(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PROTEGE_CACHE", str(folder / "cache"))
        patch.setenv("OMP_NUM_THREADS", "1")
        started = counted(patch)
        run_study(write(folder / "study.toml"), folder / "out", jobs=2)
    assert len(started) == 3, "one of all threads for what is prepared, and two for the four runs"
    return folder / "out"


def test_a_worker_does_one_after_the_other_what_a_process_of_its_own_does(performed, tmp_path, monkeypatch):
    """Its second run has the bits of one that ran alone; what it is told wrong is one sentence in the log."""
    monkeypatch.setenv("PROTEGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(workers, "start", NEW_PYTHON)
    recipe = read_toml(performed / "logs" / "variant-tuned_seed-0.toml")
    distill(**recipe, out=tmp_path / "alone")
    alone = load_file(tmp_path / "alone" / "student" / "model.safetensors")
    with Worker(1) as worker:
        command = ["distill", str(performed / "logs" / "variant-tuned_seed-0.toml"), "--out"]
        told = worker.call([*command, str(tmp_path / "wrong"), "--epochs", "never"], tmp_path / "wrong.log")
        assert "epochs" in told
        assert not (tmp_path / "wrong").exists()
        for name in ("first", "second"):
            assert worker.call([*command, str(tmp_path / name)], tmp_path / f"{name}.log") == ""
            assert "accuracy" in (tmp_path / f"{name}.log").read_text()
            for key, value in load_file(tmp_path / name / "student" / "model.safetensors").items():
                assert torch.equal(value, alone[key]), key


def test_what_a_run_of_a_study_lost_is_made_again(performed, tmp_path, monkeypatch):
    monkeypatch.setenv("PROTEGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    out = shutil.copytree(performed, tmp_path / "out")
    weights = out / "runs" / "variant-tuned_seed-0" / "student" / "model.safetensors"
    before = weights.read_bytes()
    weights.unlink()
    assert {run["status"] for run in run_study(write(tmp_path / "study.toml"), out, resume=True)["runs"]} == {"done"}
    assert weights.read_bytes() == before


def test_the_table_holds_what_the_runs_measured(performed):
    found = json.loads((performed / "study.json").read_text())
    assert [row["setting"] for row in found["rows"]] == [{"variant": "solved"}, {"variant": "tuned"}]
    for row in found["rows"]:
        name = row["setting"]["variant"]
        results = [
            json.loads((performed / "runs" / f"variant-{name}_seed-{seed}" / "result.json").read_text())
            for seed in PLAN["seeds"]
        ]
        values = [result["student"]["metrics"]["accuracy"] for result in results]
        assert row["metrics"]["accuracy"]["values"] == values
        assert row["metrics"]["accuracy"]["mean"] == pytest.approx(sum(values) / 2)
        assert row["metrics"]["accuracy"]["interval95"] == pytest.approx(interval95(values))
        assert row["before"]["accuracy"]["mean"] == results[0]["student"]["before"]["accuracy"]
    solved, tuned = (row["metrics"]["accuracy"]["values"] for row in found["rows"])
    expected = sum(a - b for a, b in zip(solved, tuned, strict=True)) / 2
    assert found["rows"][0]["difference"]["accuracy"]["mean"] == pytest.approx(expected)
    assert found["rows"][1]["difference"] is None
    table = (performed / "study.md").read_text()
    assert "| before | held out | accuracy |" in table
    assert f"{100 * found['rows'][0]['metrics']['accuracy']['mean']:.2f}" in table


def test_the_table_tells_what_students_do_on_samples_held_out_of_training(performed):
    rows, data = json.loads((performed / "study.json").read_text())["rows"], load_data("digits")
    values = []
    for seed in PLAN["seeds"]:
        chosen = choose(data.train.labels, samples=40, seed=seed, count=len(data.train), each=True)
        _, held = hold_out(chosen, data.train.labels, 0.2, seed)
        student = load_model(str(performed / "runs" / f"variant-tuned_seed-{seed}" / "student"))
        batch = data.train.fetch(held, CLEAN, Augment())
        values.append(float((student.eval()(batch.inputs).argmax(1) == batch.labels).double().mean()))
    assert len(held) == 8
    assert rows[1]["held_out"]["accuracy"]["mean"] == pytest.approx(sum(values) / 2)


def test_what_runs_need_is_made_once(performed):
    assert (performed / "prepared" / "teacher" / "student" / "config.json").exists()
    config = json.loads((performed / "prepared" / "half" / "config.json").read_text())
    assert config["kept"]
    made = (performed / "prepared" / "half" / "model.safetensors").stat().st_mtime_ns
    before = (performed / "study.json").read_text()
    run_study(performed / "study.toml", performed, resume=True)
    assert (performed / "prepared" / "half" / "model.safetensors").stat().st_mtime_ns == made
    assert (performed / "study.json").read_text() == before


def test_resume_may_add_seeds_and_rows_but_change_no_run(performed, tmp_path, monkeypatch):
    out, file = tmp_path / "out", tmp_path / "more.toml"
    shutil.copytree(performed, out)
    monkeypatch.setattr(Worker, "call", lambda self, arguments, log: f"ran {Path(arguments[-1]).name}")

    def again(**changes):
        return run_study(write(file, **changes), out, resume=True)

    for changes, expected in (
        (
            {"recipe": {**PLAN["recipe"], "views": 2}},
            "runs/variant-solved_seed-0 lies, which was begun with another 'views'",
        ),
        (
            {"prepare": {**PLAN["prepare"], "half": {**PLAN["prepare"]["half"], "ratio": 0.5}}},
            "prepared/half lies, which was begun with another 'ratio'",
        ),
    ):
        with pytest.raises(UserError, match=expected):
            again(**changes)
    changed = {**PLAN["variants"], "tuned": {**PLAN["variants"]["tuned"], "lr": 0.002}}
    first, second = (out / "runs" / f"variant-tuned_seed-{seed}" for seed in (0, 1))
    (first / "result.json").unlink()
    shutil.rmtree(first / "checkpoint", ignore_errors=True)  # as after a first update that was not finite
    with pytest.raises(UserError, match="variant-tuned_seed-1 lies, which was begun with another 'lr'"):
        again(variants=changed)
    assert (first / "metrics.jsonl").exists(), "nothing is removed where something is refused"
    shutil.rmtree(second)
    found = again(variants=changed)
    assert [run["status"][:4] for run in found["runs"]] == ["done", "done", "ran ", "ran "]
    assert not (first / "metrics.jsonl").exists(), "which was begun otherwise"
    shutil.rmtree(out)
    shutil.copytree(performed, out)
    variants = {**PLAN["variants"], "other": {"method": "kd", "epochs": 1}}
    found = again(seeds=[0, 1, 2], variants=variants, baseline={"variant": "solved"})
    assert {run["out"]: run["status"] for run in found["runs"]} == {
        f"runs/variant-{name}_seed-{seed}": "done"
        if name in PLAN["variants"] and seed in PLAN["seeds"]
        else "ran " + place
        for name in variants
        for seed in (0, 1, 2)
        for place in [f"variant-{name}_seed-{seed}"]
    }
    assert [row["runs"] for row in found["rows"]] == [2, 2]
    assert found["rows"][1]["difference"] is not None


def test_overwrite_makes_everything_anew(performed, tmp_path, monkeypatch):
    """What was prepared too, and runs that stopped before they had a log; what is not a run's stays."""
    out = tmp_path / "out"
    shutil.copytree(performed, out)
    begun, foreign = out / "runs" / "variant-solved_seed-0", out / "runs" / "variant-tuned_seed-0" / "notes.txt"
    for item in begun.iterdir():
        if item.is_file() and item.name != "recipe.toml":
            item.unlink()
    foreign.write_text("mine")
    calls = []

    def stopped(self, arguments, log):
        calls.append(arguments)
        return "stopped" if len(calls) == 2 else ""

    monkeypatch.setattr(Worker, "call", stopped)
    with pytest.raises(UserError, match=r"prepare\.half could not be made \(stopped\)"):
        run_study(performed / "study.toml", out, overwrite=True)
    assert [call[0] for call in calls] == ["train", "shrink"]
    assert not any("--resume" in call for call in calls)
    assert not (out / "prepared" / "teacher" / "student" / "config.json").exists()
    assert not (out / "prepared" / "half" / "config.json").exists(), "which --resume would take"
    assert not begun.exists()
    assert [item.name for item in foreign.parent.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"prepare": {}}, r"names prepared:\w+, which is not made"),
        ({"prepare": {**PLAN["prepare"], "half": {"command": "export"}}}, "command 'export'; expected one of"),
        (
            {"prepare": {**PLAN["prepare"], "half": {"command": "shrink", "rato": 0.5}}},
            "key 'rato'; did you mean 'ratio'",
        ),
        ({"prepare": {**PLAN["prepare"], "half": {"command": "train", "epohcs": 5}}}, r"prepare\.half: .*'epohcs'"),
        (
            {"prepare": {**PLAN["prepare"], "half": {"command": "train", "method": "kd"}}},
            "half: .*labels only",
        ),
        ({"grid": {"sampels": [1]}}, "'sampels' is unknown"),
        ({"grid": {"lr": [1, 1.0]}}, "two runs named"),
        ({"grid": {"samples": []}}, "grid.samples is empty"),
        ({"grid": {"seed": [1]}}, r"seeds = \[…\]"),
        ({"recipe": {**PLAN["recipe"], "seed": 3}}, r"recipe has the key 'seed'; expected it as seeds"),
        ({"baseline": {"variant": "other"}}, "is no row of the study"),
        ({"sedes": [1]}, "study key 'sedes'"),
        ({"seeds": [-1]}, "seeds"),
    ],
)
def test_refused_before_anything_runs(changes, expected, tmp_path):
    with pytest.raises(UserError, match=expected):
        run_study(write(tmp_path / "study.toml", **changes), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_cases_vary_several_settings_together(tmp_path):
    cases = {"easy": {"data": "digits", "samples": 40}, "hard": {"data": "digits", "samples": 20}}
    plan = load_study(write(tmp_path / "s.toml", cases=cases))
    assert [tuple(row.values()) for row in plan.settings()] == [
        (case, variant) for case in cases for variant in PLAN["variants"]
    ]
    assert [plan.recipe_of(row, 0)["samples"] for row in plan.settings()] == [40, 40, 20, 20]
    with pytest.raises(UserError, match=r"expected it as \[cases.NAME\]"):
        load_study(write(tmp_path / "s.toml", grid={"case": ["easy"]}))


def test_a_baseline_is_its_row_however_its_number_is_written(tmp_path):
    grid, baseline = {"weight": [0.0, 1.0]}, {"weight": 1}
    plan = load_study(write(tmp_path / "study.toml", grid=grid, baseline=baseline, variants={}))
    runs = []
    for setting, seed in plan.planned():
        folder = tmp_path / "runs" / f"{setting['weight']}-{seed}"
        folder.mkdir(parents=True)
        student = {"spec": "zoo:mlp", "before": {}, "metrics": {"accuracy": 0.5 + 0.1 * setting["weight"]}}
        result = {"student": student, "seconds": 1, "student_samples_seen": 1, "teacher_samples_forwarded": 1}
        (folder / "result.json").write_text(json.dumps({**result, "environment": {}}))
        out = str(folder.relative_to(tmp_path))
        runs.append({"setting": setting, "seed": seed, "out": out, "status": "done"})
    rows = summarise(plan, runs, tmp_path)["rows"]
    assert rows[0]["difference"]["accuracy"]["mean"] == pytest.approx(-0.1)
    assert rows[1]["difference"] is None


def test_options_of_shrink_in_a_table(tmp_path, monkeypatch):
    step = {"command": "shrink", "model": "zoo:mlp", "ratio": {"fc1": 0.5, "fc2": 0.25}, "layers": ["fc1", "fc2"]}
    called = []
    monkeypatch.setattr(Worker, "call", lambda self, arguments, log: called.extend(arguments) or "")
    study._prepare("half", step, tmp_path, Worker(1))
    assert called[:4] == ["shrink", "--model=zoo:mlp", "--ratio=fc1=0.5,fc2=0.25", "--layers=fc1,fc2"]


def test_what_cannot_be_prepared_is_told_in_its_own_words(tmp_path, monkeypatch):
    steps = {"teacher": PLAN["prepare"]["teacher"] | {"data": "images:nowhere"}, "half": PLAN["prepare"]["half"]}
    with pytest.raises(UserError, match=r"prepare\.teacher could not be made .*nowhere"):
        run_study(write(tmp_path / "study.toml", prepare=steps), tmp_path / "out")


def test_a_run_that_fails_is_named_and_the_others_go_on(tmp_path, monkeypatch):
    """In one process, which a failing run does not end."""
    started = counted(monkeypatch)
    plan = {
        "name": "one of them cannot be",
        "seeds": [0],
        "recipe": {"student": "zoo:mlp?hidden=4", "data": "digits", "samples": 20, "epochs": 1, "method": "none"},
        "grid": {"lr": [0.01, 1e30]},
    }
    (tmp_path / "study.toml").write_text(tomli_w.dumps(plan))
    found = run_study(tmp_path / "study.toml", tmp_path / "out")
    statuses = {run["setting"]["lr"]: run["status"] for run in found["runs"]}
    assert statuses[0.01] == "done"
    assert "finite" in statuses[1e30]
    assert len(started) == 1
    assert "lr-1e+30" in (tmp_path / "out" / "study.md").read_text()


@pytest.mark.parametrize(
    ("visible", "count", "expected"),
    [
        (None, 0, []),
        ("", 0, []),
        ("-1", 0, []),
        (None, 2, ["0", "1"]),
        ("3, 5,1", 3, ["3", "5", "1"]),
        ("1,9", 1, ["1"]),
        ("GPU-8a,GPU-9b", 2, ["GPU-8a", "GPU-9b"]),
        ("MIG-1,MIG-2", 1, ["MIG-1", "MIG-2"]),
    ],
)
def test_gpus_by_the_names_that_the_user_gave_them(visible, count, expected, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    assert gpus() == expected


@pytest.mark.parametrize(("count", "expected"), [(0, {"left": 3}), (2, {"4": 2, "6": 1})])
def test_each_worker_sees_one_gpu_in_turn(count, expected, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6" if count else "left")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    seen = {}

    def call(self, arguments, log):
        seen.setdefault(arguments[0], {})[id(self)] = self._environment["CUDA_VISIBLE_DEVICES"]
        return ""

    monkeypatch.setattr(Worker, "call", call)
    run_study(write(tmp_path / "study.toml", seeds=list(range(3))), tmp_path / "out", jobs=3)
    assert list(seen["train"].values()) == ["4" if count else "left"]
    assert Counter(seen["distill"].values()) == expected


@pytest.mark.parametrize("wanted", [[False], [False, True]])
def test_workers_of_deterministic_runs_begin_as_these_need_it(wanted, tmp_path, monkeypatch):
    """What a worker does before may use the GPU already."""
    monkeypatch.delenv(WORKSPACE, raising=False)
    seen = set()
    monkeypatch.setattr(Worker, "call", lambda self, *_: seen.add(self._environment.get(WORKSPACE)) or "")
    plan = {"name": "one", "seeds": [0], "grid": {"deterministic": wanted}}
    plan["recipe"] = {"student": "zoo:mlp", "data": "digits", "method": "none"}
    (tmp_path / "study.toml").write_text(tomli_w.dumps(plan))
    run_study(tmp_path / "study.toml", tmp_path / "out")
    assert seen == ({":4096:8"} if True in wanted else {None})


def test_recipes_of_a_study_read_back(performed):
    plan = load_study(performed / "study.toml")
    assert plan.recipe_of({"variant": "tuned"}, 1)["seed"] == 1
    assert plan.recipe_of({"variant": "tuned"}, 1)["weight"] == 1.0


def test_a_failed_command_is_told_by_its_own_error(tmp_path, monkeypatch):
    """Whatever is written after it, and not by that of an earlier try."""
    command, log = tmp_path / "python", tmp_path / "logs" / "a.log"
    monkeypatch.setattr(sys, "executable", str(command))
    monkeypatch.setattr(workers, "start", NEW_PYTHON)

    def told(script: str) -> str:
        command.write_text(f"#!/bin/sh\nread command\n{script}\n")
        command.chmod(0o755)
        with Worker(1) as worker:
            return worker.call(["distill"], log)

    lines = "error: first", "error: second", "a warning"
    assert told("".join(f"echo {line} >> {log}\n" for line in lines) + "echo 2") == "error: second"
    assert told(f"echo Killed >> {log}; kill -KILL $$") == "Killed"
    assert told("exit 0") == "failed with status 0 and no answer"
    assert told(f"echo error: harmless >> {log}; echo 0") == ""


def test_a_study_of_another_version_is_not_resumed(performed, tmp_path):
    shutil.copytree(performed, tmp_path / "out")
    file = tmp_path / "out" / "study.toml"
    file.write_text("retired = 1\n" + file.read_text())
    with pytest.raises(UserError, match=r"is of another version .*name another folder"):
        run_study(write(tmp_path / "study.toml"), tmp_path / "out", resume=True)
