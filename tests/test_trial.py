"""What a new user ran into: each of these was once silently wrong."""

import copy
import json

import pytest
import torch
from torch import nn

import protege
from protege import InputSpec, Model, UserError
from protege.run.folder import holding

SPEC = InputSpec(channels=1, size=None, mean=(0.3,), std=(0.37,))
COMMON = {"samples": 60, "epochs": 2, "views": 2, "seed": 3}


class Permuting(nn.Module):
    """The same weights behind code that can be changed."""

    def __init__(self, network, change):
        super().__init__()
        self.network, self.change = network, change

    def forward(self, x):
        return self.change(self.network(x))


def of(teacher, change):
    return Model(Permuting(copy.deepcopy(teacher.network), change), teacher.input)


def test_signals_are_not_those_of_the_same_weights_behind_other_code(digits_teacher, tmp_path):
    teacher = protege.load_model(digits_teacher)

    def figures(name, change):
        run = protege.distill(of(teacher, change), "zoo:cnn_tiny", "digits", out=tmp_path / name, **COMMON)
        return run.result["teacher"]["metrics"]["accuracy"], run.result["teacher_samples_forwarded"]

    order = [1, 0, 3, 2, 4, 5, 6, 7, 8, 9]
    wrong, _ = figures("wrong", lambda z: z[:, order])
    right, forwarded = figures("right", lambda z: z)
    assert forwarded == 120
    assert right > wrong + 0.2
    assert figures("softened", lambda z: z / 7)[1] == 120
    assert figures("again", lambda z: z)[1] == 0


def test_a_student_that_shares_weights_with_its_teacher_is_refused(digits_teacher, tmp_path):
    teacher = protege.load_model(digits_teacher)
    before = copy.deepcopy(teacher.state_dict())
    for student in (teacher, teacher.network, Permuting(teacher.network, lambda z: z)):
        with pytest.raises(UserError, match="shares weights with the teacher"):
            protege.distill(teacher, student, "digits", out=tmp_path / "run", **COMMON)
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert not (tmp_path / "run").exists()


class OnTop(nn.Module):
    """A head of its own on another network's outputs."""

    def __init__(self, network):
        super().__init__()
        self.network, self.head = network, nn.Linear(10, 10)

    def forward(self, x):
        return self.head(self.network(x))


def test_a_student_may_stand_on_frozen_weights_of_its_teacher(digits_teacher, tmp_path):
    teacher = protege.load_model(digits_teacher)
    teacher.requires_grad_(False)
    before = copy.deepcopy(teacher.state_dict())
    student = Model(OnTop(teacher.network), teacher.input, classes=teacher.classes)
    head = student.network.head.weight.detach().clone()
    protege.distill(teacher, student, "digits", out=tmp_path / "run", **COMMON)
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert not torch.equal(head, student.network.head.weight)


def test_a_teacher_that_is_not_finite_is_called_that(digits_teacher, tmp_path):
    teacher = protege.load_model(digits_teacher)
    with torch.no_grad():
        next(teacher.parameters())[0] = float("nan")
    with pytest.raises(UserError, match=r"the teacher .* not finite"):
        protege.distill(teacher, "zoo:cnn_tiny", "digits", out=tmp_path / "run", **COMMON)


def test_one_folder_serves_one_run_at_a_time(digits_teacher, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    with holding(out) as hold:
        hold()
        assert (out / ".protege.lock").exists(), "in the folder, which machines may share"
        with pytest.raises(UserError, match="in use by another run"):
            protege.distill(digits_teacher, "zoo:cnn_tiny", "digits", out=out, **COMMON)
    assert not list(out.iterdir())
    protege.distill(digits_teacher, "zoo:cnn_tiny", "digits", out=out, **COMMON)
    assert not list(out.rglob("*.lock"))


def test_the_student_comes_back_ready_for_use(digits_teacher, tmp_path):
    run = protege.distill(digits_teacher, "zoo:cnn_tiny", "digits", out=tmp_path / "run", **COMMON)
    assert not run.student.training
    images = torch.randint(0, 256, (9, 1, 8, 8), dtype=torch.uint8)
    assert torch.allclose(run.student(images)[:2], run.student(images[:2]), atol=1e-5)
    assert len(repr(run)) < 300


def test_the_usual_flatten_works(tmp_path):
    class Viewing(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(256, 10)

        def forward(self, x):
            x = self.conv(x).relu()
            return self.fc(x.view(x.size(0), -1))

    run = protege.train(Model(Viewing(), SPEC), "digits", out=tmp_path / "run", epochs=3, batch_size=32)
    assert run.metrics["accuracy"] > 0.5


def test_resuming_nothing_says_so(tmp_path):
    with pytest.raises(UserError, match="found no run"):
        protege.distill(out=tmp_path / "nothing", resume=True)


def test_a_killed_run_that_was_done_gets_its_report(digits_teacher, tmp_path):
    out = tmp_path / "run"
    protege.distill(digits_teacher, "zoo:cnn_tiny", "digits", out=out, **COMMON)
    (out / "report.html").unlink()
    before = json.loads((out / "result.json").read_text())
    protege.distill(out=out, resume=True)
    assert (out / "report.html").exists()
    assert json.loads((out / "result.json").read_text()) == before


def test_a_factory_that_gives_a_model_can_be_loaded_by_name(digits_teacher, tmp_path, monkeypatch):
    (tmp_path / "mine_trial.py").write_text(
        "import protege\n"
        "from protege.models.zoo import build\n"
        "def small(num_classes):\n"
        "    network = build('cnn_tiny', {'num_classes': num_classes, 'channels': 1})\n"
        "    return protege.Model(network, protege.InputSpec(channels=1, mean=(0.3,), std=(0.4,)))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    out = tmp_path / "run"
    run = protege.distill(digits_teacher, "mine_trial:small", "digits", out=out, **COMMON)
    again = protege.load_model(out / "student", trust=True)
    images = torch.randint(0, 256, (4, 1, 8, 8), dtype=torch.uint8)
    assert torch.allclose(again(images), run.student(images), atol=1e-5)
    assert again.input == InputSpec(channels=1, mean=(0.3,), std=(0.4,))
    assert protege.distill(out=out, resume=True).metrics == run.metrics


def test_a_good_teacher_of_few_samples_is_not_at_chance(tmp_path, digits_teacher):
    run = protege.distill(digits_teacher, "zoo:cnn_tiny", "digits", out=tmp_path / "run", samples=10, epochs=1)
    assert run.result["data"]["train_samples"] == 10


def test_patience_counts_from_the_best_and_not_from_the_last(tmp_path, monkeypatch):
    from protege.training import Loop

    scores = iter([0.9, 0.8, 0.81, 0.8, 0.81, 0.8])
    monkeypatch.setattr(Loop, "_judge", lambda *_: {"accuracy": next(scores)})
    run = protege.train("zoo:cnn_tiny", "digits", out=tmp_path / "run", epochs=6, patience=2, eval_every=1)
    assert run.result["phases"][0]["epochs"] == 3
