"""Method auto: what it tries, on which samples, and that the run goes on with the best."""

import copy
import json
import tomllib
from dataclasses import replace

import pytest
import torch

import protege
from protege import UserError
from protege.data import load_data
from protege.models import load_model
from protege.run import choice
from protege.run.recipe import make_recipe, seconds_in

SETTINGS = {"method": "auto", "epochs": 10, "samples": 240}


@pytest.fixture(scope="module")
def data():
    return load_data("synthetic:classes=6,superclasses=2,samples=600,dim=8")


@pytest.fixture(scope="module")
def teacher(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("choice") / "teacher"
    protege.train("zoo:mlp?hidden=128", data, out=out, epochs=8)
    return out / "student"


def taught(teacher, data, out, **settings):
    return protege.distill(str(teacher), "zoo:mlp?hidden=8", data, out=out, **{**SETTINGS, **settings})


@pytest.fixture(scope="module")
def run(data, teacher, tmp_path_factory):
    return taught(teacher, data, tmp_path_factory.mktemp("choice") / "run")


def figures(tried):
    return [(seen["name"], seen["epochs"], seen["held_out"]) for seen in tried]


def test_the_best_on_held_out_samples_is_what_the_run_goes_on_with(run):
    made = run.result["choice"]
    assert len(made["tried"]) >= 2
    best = max(made["tried"], key=lambda seen: seen["held_out"])
    assert made["method"] == best["name"]
    assert made["why"]
    assert run.result["method"] == best["method"]
    assert tomllib.loads((run.out / "recipe.toml").read_text())["method"] == best["method"]
    for seen in made["tried"]:
        result = json.loads((run.out / seen["folder"] / "result.json").read_text())
        assert result["data"]["train_samples"] == 192, "a fifth is held out"
        assert result["method"] == seen["method"]
        assert result["student"]["held_out"]["accuracy"] == seen["held_out"]
    assert sum(seen["share"] for seen in made["tried"]) <= 0.4 + 1e-9
    page = (run.out / "report.html").read_text()
    assert "How its method was chosen" in page


def test_the_test_set_is_not_looked_at(run, data, teacher, tmp_path):
    assert data.test is not None
    labels = torch.zeros_like(data.test.labels)
    other = replace(data, test=data.test.part(torch.arange(len(labels))).relabelled(torch.tensor([3, 4, 5, 0, 1, 2])))
    again = taught(teacher, other, tmp_path / "run")
    assert figures(again.result["choice"]["tried"]) == figures(run.result["choice"]["tried"])
    assert again.result["method"] == run.result["method"]
    assert again.metrics != run.metrics


def test_the_run_is_the_one_that_its_recipe_asks_for(run, data, teacher, tmp_path):
    recipe = {k: v for k, v in tomllib.loads((run.out / "recipe.toml").read_text()).items() if k != "data"}
    alone = protege.distill(data=data, recipe=None, out=tmp_path / "alone", **recipe)
    assert "choice" not in alone.result
    for name, value in run.student.state_dict().items():
        assert torch.equal(value, alone.student.state_dict()[name]), name


def test_a_finished_run_is_resumed_with_the_method_that_was_chosen(run, data, teacher):
    again = taught(teacher, data, run.out, resume=True)
    assert again.result["choice"] == run.result["choice"]
    with pytest.raises(UserError, match=r"is not empty.*resume=True"):
        taught(teacher, data, run.out)


def test_a_killed_choice_goes_on_with_what_was_tried(run, data, teacher, tmp_path, monkeypatch):
    out, tries = tmp_path / "run", []
    tried = choice._tried

    def killed(*args):
        if tries:
            raise KeyboardInterrupt
        tries.append(tried(*args))
        return tries[0]

    monkeypatch.setattr(choice, "_tried", killed)
    with pytest.raises(KeyboardInterrupt, match=r"kept in .*run'.*resume=True"):
        taught(teacher, data, out)
    monkeypatch.setattr(choice, "_tried", tried)
    assert sorted(path.name for path in out.iterdir()) == ["choice"]
    first = out / tries[0]["folder"] / "student" / "model.safetensors"
    made = first.stat().st_mtime_ns
    with pytest.raises(UserError, match="is not empty"):
        taught(teacher, data, out)
    again = taught(teacher, data, out, resume=True)
    assert first.stat().st_mtime_ns == made
    assert figures(again.result["choice"]["tried"]) == figures(run.result["choice"]["tried"])
    for name, value in run.student.state_dict().items():
        assert torch.equal(value, again.student.state_dict()[name]), name
    taught(teacher, data, out, overwrite=True, method="kd", epochs=1)
    assert not (out / "choice").exists()


def test_overwriting_chooses_anew(data, teacher, tmp_path):
    taught(teacher, data, tmp_path / "run", method="kd", epochs=1)
    again = taught(teacher, data, tmp_path / "run", overwrite=True)
    assert {seen["epochs"] for seen in again.result["choice"]["tried"]} == {1}
    assert (tmp_path / "run" / again.result["choice"]["tried"][0]["folder"]).is_dir()


def test_a_student_given_in_python_is_taught_once(run, data, teacher, tmp_path):
    torch.manual_seed(0)
    student = load_model("zoo:mlp?hidden=8", data=data)
    before = copy.deepcopy(student.state_dict())
    seen = []
    tried = choice._tried

    def look(*args):
        figure = tried(*args)
        seen.append(all(torch.equal(value, before[name]) for name, value in student.state_dict().items()))
        return figure

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(choice, "_tried", look)
        found = protege.distill(str(teacher), student, data, out=tmp_path / "run", **SETTINGS)
    assert seen == [True] * len(seen)
    assert found.student is student or found.student.network is student.network


def test_a_thinned_copy_and_few_images_without_labels_need_no_trial(data, teacher, tmp_path):
    bare = replace(data, train=data.train.relabelled(torch.full((6,), -100)))
    small = protege.shrink(teacher, ratio=0.3, out=tmp_path / "thin")
    found = protege.distill(str(teacher), small, bare, method="auto", samples=60, out=tmp_path / "run")
    assert found.result["method"] == "fskd"
    assert found.result["choice"]["tried"] == []
    assert not (tmp_path / "run" / "choice").exists()


def test_time_is_read_and_bounds_the_run(data, teacher, tmp_path):
    assert [seconds_in(text) for text in ("90", "90s", "10m", "10 min", "1.5h", 30)] == [90, 90, 600, 600, 5400, 30]
    for text in ("", "ten", "-5", "0", "5d", True):
        with pytest.raises(UserError, match="a time such as 90s"):
            make_recipe({"student": "zoo:mlp", "data": "digits", "method": "none", "time": text})
    with pytest.raises(UserError, match=r"time = '10m' is for method 'auto'.*use epochs=…"):
        taught(teacher, data, tmp_path / "run", method="kd", time="10m")
    assert not (tmp_path / "run").exists()
    found = taught(teacher, data, tmp_path / "run", time="0.1s")
    assert found.result["phases"][0]["epochs"] < 10


def test_what_no_method_of_the_list_has_is_refused(data, teacher, tmp_path):
    with pytest.raises(UserError, match=r"'feature_weight' belongs to method at"):
        taught(teacher, data, tmp_path / "run", feature_weight=2.0)
    assert not (tmp_path / "run").exists()
