"""What version 0.1 (then called `understudy`) left on disk still loads: models, runs, recipes (`tests/data/v01`)."""

import json
import shutil
import sys
from pathlib import Path

import pytest

import protege
from protege.models import load_model
from protege.report import write_run_report

OLD = Path(__file__).parent / "data" / "v01"


@pytest.fixture(autouse=True)
def old(tmp_path, monkeypatch) -> Path:
    """A copy of the folders as the working directory, as the runs name their teacher relative to it."""
    shutil.copytree(OLD, tmp_path / "old")
    monkeypatch.chdir(tmp_path / "old")
    monkeypatch.delitem(sys.modules, "nets", raising=False)
    return tmp_path / "old"


@pytest.mark.parametrize(
    ("folder", "accuracy"), [("teacher", 0.8639), ("named", 0.6), ("finished", 0.1), ("shrunk", 0.2083)]
)
def test_models_answer_as_they_did(folder, accuracy):
    measured = protege.evaluate(folder, "digits", precision="fp32", trust=True)["accuracy"]
    assert measured == pytest.approx(accuracy, abs=0.003)  # one image of 360: another processor rounds otherwise


def test_a_network_that_lay_in_the_old_package_is_found_in_the_new_one():
    model = load_model("zoo:mlp", data=protege.load_data("digits"))
    model.save("mlp")
    config = json.loads(Path("mlp/config.json").read_text()) | {"model": "understudy.models.small:mlp"}
    Path("mlp/config.json").write_text(json.dumps(config))
    assert protege.evaluate("mlp", "digits", trust=True) == protege.evaluate(model, "digits")


def test_a_run_that_was_begun_goes_on():
    result = protege.distill(out="begun", resume=True).result
    epochs = [json.loads(line) for line in Path("begun/metrics.jsonl").read_text().splitlines() if '"epoch"' in line]
    numbers = [one["epoch"] for one in epochs if one["event"] == "epoch"]
    assert numbers == list(range(1, 41))  # the first ones are those of version 0.1
    assert result["phases"][0]["epochs"] == 40
    assert load_model("begun").classes == tuple("0123456789")


def test_a_finished_run_is_finished():
    before = json.loads(Path("finished/result.json").read_text())
    assert protege.distill(out="finished", resume=True).result == before
    write_run_report(Path("finished"))
    assert "protege.load_model" in Path("finished/report.html").read_text()


def test_recipes_repeat_their_run():
    result = protege.distill(recipe="finished/recipe.toml", out="again")
    assert (
        result.result["student_samples_seen"]
        == json.loads(Path("finished/result.json").read_text())["student_samples_seen"]
    )
