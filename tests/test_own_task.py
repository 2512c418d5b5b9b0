"""A task from outside the package, by every door: its name, the class itself, recipes, studies, resume, its student."""

import json
import sys
from importlib import import_module
from pathlib import Path

import forks
import pytest
import tomli_w
import torch
from safetensors.torch import load_file
from test_own_method import assert_same

import protege
from protege import UserError
from protege.run.study import run_study
from protege.training.loop import Loop

PAGE = (Path(__file__).parents[1] / "docs" / "extend.md").read_text(encoding="utf-8")
FOCAL = next(block.split("```")[0] for block in PAGE.split("```python\n") if "class Focal" in block)
PLUGIN = (
    FOCAL
    + """

from protege.tasks import Embeddings, Task


class Dots(Embeddings):
    name = "dots"

    def loss(self, rows, truth, weights, smoothing=0.0, class_weights=None):
        return average(-(rows * truth).sum(1), weights)


def make():
    return Focal()


class Top3:
    def __init__(self):
        self.right = self.count = 0

    def update(self, outputs, labels, inputs=None):
        self.right += int((outputs.topk(3, 1).indices == labels[:, None]).sum())
        self.count += len(labels)

    def compute(self):
        return {"top3": self.right / max(1, self.count)}

    def details(self):
        return {}


class ThreeGuesses(Classification):
    name = "three_guesses"
    metric = "top3"

    def metrics(self, classes, device="cpu"):
        return Top3()


class Unmeasured(ThreeGuesses):
    metric = "top5"


class Late(ThreeGuesses):
    def better(self, new, old):
        raise ZeroDivisionError("too late")


def faulty():
    class Faulty(Classification):
        def loss(self, rows, labels, weights, smoothing=0.0, class_weights=None):
            return rows.nothing

    return Faulty()


def other():
    return "a task"


class Unfinished(Task):
    name = "unfinished"
    of = "classification"


class Nameless(Classification):
    name = None
"""
)
RUN = {"student": "zoo:cnn_tiny", "data": "digits", "samples": 300, "epochs": 2, "batch_size": 100}


@pytest.fixture
def here(tmp_path, monkeypatch) -> str:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PROTEGE_CACHE", str(tmp_path / "cache"))
    name = f"tasks_{abs(hash(str(tmp_path)))}"
    Path(f"{name}.py").write_text(PLUGIN)
    return name


def test_every_door_leads_to_the_same_student(here):
    task = f"{here}:Focal"
    result = protege.train(**RUN, task=task, out="name")
    assert result.result["task"] == "classification", "which its outputs are"
    protege.train(**RUN, out="plain")
    plain, focal = (load_file(Path(out) / "student" / "model.safetensors") for out in ("plain", "name"))
    assert any(not torch.equal(plain[key], focal[key]) for key in plain), "it learns by another loss"
    module = sys.modules[here]
    protege.train(**RUN, task=module.Focal, out="class")
    protege.train(**RUN, task=f"{here}:make", out="made")
    options = [f"--{key.replace('_', '-')}={value}" for key, value in {**RUN, "task": task}.items()]
    by_command = forks.run("train", *options, "--out=command")
    assert by_command.returncode == 0, by_command.stderr
    Path("recipe.toml").write_text(tomli_w.dumps({**RUN, "method": "none", "task": task}))
    protege.distill(recipe="recipe.toml", out="recipe")
    protege.train(**RUN, task=f"{task}?gamma=2", out="argument")
    for out in ("class", "made", "command", "recipe", "argument"):
        assert_same("name", out)
    sharper = protege.train(**RUN, task=f"{task}?gamma=5", out="sharper")
    assert sharper.result["phases"] != result.result["phases"]


def test_a_study_finds_it(here):
    recipe = {**RUN, "method": "none", "task": f"{here}:Focal"}
    Path("study.toml").write_text(tomli_w.dumps({"name": "own", "seeds": [0], "recipe": recipe, "grid": {"lr": [0.1]}}))
    run_study(Path("study.toml"), Path("study"))
    protege.train(**RUN, lr=0.1, task=f"{here}:Focal", out="alone")
    (run,) = Path("study/runs").iterdir()
    assert_same("alone", str(run))


def test_a_run_goes_on_with_the_same_task_alone(here, monkeypatch):
    whole = protege.train(**RUN, task=f"{here}:Focal", checkpoint_seconds=0, out="whole")
    end_epoch = Loop._end_epoch

    def killed(loop, fit, evaluate):
        end_epoch(loop, fit, evaluate)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_end_epoch", killed)
        with pytest.raises(KeyboardInterrupt):
            protege.train(**RUN, task=f"{here}:Focal", checkpoint_seconds=0, out="cut")
    with pytest.raises(UserError, match="task"):
        protege.train(task="classification", out="cut", resume=True)
    again = protege.train(out="cut", resume=True)
    assert again.metrics == whole.metrics
    assert_same("whole", "cut")
    source = Path(f"{here}.py")
    source.write_text(source.read_text().replace("2.0", "3.0"))
    del sys.modules[here]
    with pytest.raises(UserError, match="another code of the task"):
        protege.train(out="cut", resume=True)


def test_a_task_with_a_name_of_its_own_leaves_a_student_that_loads(here):
    encoder = torch.nn.Sequential(
        torch.nn.Conv2d(1, 6, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(216, 5)
    )
    student = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 5))
    result = protege.distill(
        encoder, student, "digits", "kd", task=f"{here}:Dots", samples=100, epochs=3, weight=0.0, out="vectors"
    )
    assert result.metrics["cosine"] > result.result["student"]["before"]["cosine"]
    events = [json.loads(line) for line in Path("vectors/metrics.jsonl").read_text().splitlines()]
    assert min(event["train"]["loss"] for event in events if "train" in event) < 0, "which only its own loss can be"
    assert protege.load_model("vectors/student", network=student).task == f"{here}:Dots"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("other", "makes 'a task'; expected a protege.tasks.Task"),
        ("nothing", "has no 'nothing'"),
        ("Unfinished", "cannot be made with TypeError: .*abstract.*metrics.*shortfall"),
        ("Nameless", "has no name; expected a text"),
        ("faulty", "fails with AttributeError.*correct it"),
        ("Focal?gama=3", "has no argument 'gama'; did you mean 'gamma'"),
        ("Unmeasured", "is judged by 'top5', which its metrics do not give; expected one of top3"),
    ],
)
def test_what_is_no_task_is_refused_before_anything_is_written(here, name, says):
    with pytest.raises(UserError, match=says):
        protege.train(**RUN, task=f"{here}:{name}", out="out")
    assert not Path("out").exists()


def test_a_task_for_other_data_and_an_unknown_name_are_refused(here):
    Path(f"{here}.py").write_text(
        PLUGIN + "\n\nfrom protege.tasks import Language\n\n\nclass Words(Language):\n    pass\n"
    )
    with pytest.raises(UserError, match="does not suit the data 'digits', which is for classification"):
        protege.train(**RUN, task=f"{here}:Words", out="out")
    with pytest.raises(UserError, match=r"input should be .*'embeddings' or package.module:name \(.*'embeddings'"):
        protege.train(**RUN, task="embedings", out="out")


def test_metrics_of_ones_own_are_judged_shown_and_remembered_apart(here, digits_teacher):
    plain = protege.distill(str(digits_teacher), method="kd", **RUN, out="plain")
    result = protege.distill(str(digits_teacher), method="kd", **RUN, task=f"{here}:ThreeGuesses", out="three")
    assert set(result.metrics) == {"top3"}
    teacher, digits = protege.load_model(str(digits_teacher)), protege.load_data("digits").test
    logits, labels = [], []
    for batch in protege.data.batches(digits, [torch.arange(len(digits))], -1, protege.data.Augment()):
        logits.append(teacher.eval()(batch.inputs).detach())
        labels.append(batch.labels)
    right = (torch.cat(logits).topk(3, 1).indices == torch.cat(labels)[:, None]).any(1).double().mean().item()
    assert result.result["teacher"]["metrics"] == {"top3": pytest.approx(right)}
    assert "accuracy" in plain.result["teacher"]["metrics"], "figures of other tasks are not taken for these"
    again = protege.distill(str(digits_teacher), method="kd", **RUN, out="again")
    assert again.result["teacher"]["metrics"] == plain.result["teacher"]["metrics"]


def test_what_fails_late_is_one_sentence(here):
    with pytest.raises(UserError, match=r"the task '.*:Late' fails with ZeroDivisionError: too late; correct it"):
        protege.train(**RUN, task=f"{here}:Late", select="best", validation=0.2, out="late")


def test_tasks_given_in_python_are_known_by_what_they_hold(here):
    sys.path.insert(0, ".")
    focal = import_module(here).Focal
    protege.train(**RUN, task=focal(gamma=2.0), out="run")
    protege.train(task=focal(gamma=2.0), out="run", resume=True)
    with pytest.raises(UserError, match="another code of the task"):
        protege.train(task=focal(gamma=50.0), out="run", resume=True)

    class Local(import_module(here).ThreeGuesses):
        name = "local"

    protege.train(**RUN, task=Local, out="local")
    assert protege.load_model("local/student").task == "classification", "the kind that it derives from"
