"""Gap preserving distillation: its objective, its phase in the loop, resume, and the student it leaves."""

import copy
import shlex

import pytest
import torch
import torch.nn.functional as F
from tools import CLASSES, Curtain, events, loop, model, perform, plan, same, weights
from torch import nn

from protege.commands import app
from protege.data import Batch
from protege.errors import UserError
from protege.losses import decoupled, gap_loss, kd_loss
from protege.methods import METHODS
from protege.methods.gpd import Settings
from protege.models import zoo
from protege.models.placing import place
from protege.surgery import readout
from protege.tasks import TASKS

DRY = "protege distill --method gpd --student zoo:cnn_tiny --data digits --samples 60 --dry-run"


def test_the_gap_loss_is_cross_entropy_with_smoothed_predictions():
    torch.manual_seed(0)
    z, v = torch.randn(6, 4, requires_grad=True), torch.randn(6, 4, requires_grad=True)
    target = 0.9 * v.softmax(1) + 0.1 / 4
    expected = -(target * z.log_softmax(1)).sum(1).mean()
    loss = gap_loss(z, v, 0.1)
    torch.testing.assert_close(loss, expected.detach(), check_dtype=False)
    loss.backward()
    assert v.grad is None  # the dynamic teacher is not drawn down to the student
    assert gap_loss(z[:0], v[:0], 0.1) == 0


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("target", ["kd", "dkd", None])
def test_both_objectives_flow_into_one_set_of_parameters(target, smoothing):
    student = model(seed=1, norm=True)
    teacher = model(seed=2, width=6) if target else None
    settings = {"target": target} if target else {}
    (phase,) = plan("gpd", student, teacher, label_smoothing=smoothing, **settings)
    trainee = phase.trainee.train()
    raw = torch.randint(0, 255, (12, 1, 6, 6), dtype=torch.uint8)
    labels = torch.arange(12) % CLASSES
    said = teacher(raw).detach() if teacher else None
    signals = {"teacher": {"logits": said}} if teacher else {}
    found = Batch(inputs=raw, labels=labels, index=torch.arange(12), view=0, signals=signals)
    losses = phase.step(trainee, found)
    losses["loss"].backward()

    twin = copy.deepcopy(trainee)
    twin.zero_grad()
    wide, narrow = twin(raw)

    def taught(z):
        if target == "kd":
            return kd_loss(z, said, 4.0)
        tempered, distant = decoupled(z, said, labels, 4.0)
        return 16 * (tempered + 8 * distant).mean()

    expected = 3.0 * gap_loss(narrow, wide, 0.1)
    for z in (wide, narrow):  # as in the paper: labels and static teacher weigh the same
        expected = expected + F.cross_entropy(z, labels, label_smoothing=smoothing) + (taught(z) if target else 0.0)
    torch.testing.assert_close(losses["loss"], expected / 2 if target else expected)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in trainee.parameters())
    torch.testing.assert_close(losses["student_nll"], F.cross_entropy(narrow, labels))
    torch.testing.assert_close(losses["dynamic_nll"], F.cross_entropy(wide, labels))
    assert ("static_nll" in losses) == bool(target)


def test_a_run_leaves_the_readout(tmp_path):
    student = model(seed=1, norm=True)
    before = weights(student)
    phases = plan("gpd", student, None)
    assert same(weights(student), before)
    made = loop(student, tmp_path, epochs=3, batch_size=16, lr=0.05, ema=0.9, clip=5.0)
    perform(made, phases)
    kept = readout(phases[0].trainee)
    assert same(weights(student.network), weights(kept))
    assert not same(weights(student), before)
    losses = [event["train"]["loss"] for event in events(tmp_path) if event["event"] == "epoch"]
    assert losses[-1] < losses[0]
    assert {"gap_loss", "dynamic_nll", "student_accuracy"} <= events(tmp_path)[-1]["train"].keys()


def test_an_interrupted_run_ends_as_if_it_had_not_been(tmp_path):
    def fresh(folder):
        student = model(seed=1, norm=True, drop=0.2)
        settings = {"epochs": 3, "batch_size": 16, "lr": 0.05, "ema": 0.9, "checkpoint_seconds": 0}
        return student, plan("gpd", student, None), loop(student, tmp_path / folder, **settings)

    whole, phases, made = fresh("whole")
    perform(made, phases)
    _, phases, made = fresh("cut")
    step, calls = phases[0].step, []

    def dying(trainee: nn.Module, batch: Batch):
        calls.append(1)
        if len(calls) == 5:
            raise Curtain
        return step(trainee, batch)

    phases[0].step = dying
    with pytest.raises(Curtain):
        perform(made, phases)
    resumed, phases, made = fresh("cut")
    perform(made, phases, resume=True)
    assert same(weights(resumed), weights(whole))


class Pixels(nn.Module):
    """[B, 1, H, W] → [B, K, H, W]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, CLASSES, 1)

    def forward(self, x):
        return self.conv2(self.conv1(x).relu())


def test_pixels_without_labels_are_left_out():
    student = model(Pixels(), seed=1)
    (phase,) = plan("gpd", student, None, TASKS["segmentation"])
    raw = torch.randint(0, 255, (4, 1, 6, 6), dtype=torch.uint8)
    labels = torch.randint(0, CLASSES, (4, 6, 6))
    labels[:, 3:] = -100
    found = Batch(inputs=raw, labels=labels, index=torch.arange(4), view=0)
    loss = phase.step(phase.trainee, found)["loss"]
    labels = labels[:, :3].clone()
    wide, narrow = (out[:, :, :3].movedim(1, -1).flatten(0, 2) for out in phase.trainee(raw))
    expected = F.cross_entropy(wide, labels.flatten()) + F.cross_entropy(narrow, labels.flatten())
    torch.testing.assert_close(loss, expected + 3 * gap_loss(narrow, wide, 0.1))


def test_a_unet_of_the_zoo_learns(tmp_path):
    student = model(zoo.build("unet10", {"num_classes": CLASSES, "channels": 1, "width": 2}), seed=1)
    place(student, torch.device("cpu"))
    (phase,) = plan("gpd", student, None, TASKS["segmentation"])
    place(phase.trainee, torch.device("cpu"))  # its student's layers have no weights of their own
    raw = torch.randint(0, 255, (4, 1, 6, 6), dtype=torch.uint8)
    found = Batch(inputs=raw, labels=torch.randint(0, CLASSES, (4, 6, 6)), index=torch.arange(4), view=0)
    phase.step(phase.trainee.train(), found)["loss"].backward()


def test_settings():
    assert Settings(branches="pointwise, average").branches == ("pointwise", "average")
    assert Settings(branches="").branches == ()
    assert METHODS["gpd"].needs_teacher is False
    with pytest.raises(ValueError, match="greater than or equal to 2"):
        Settings(ratio=1)
    for key, value in {"target": "dkd", "weight": 0.3, "k": 5}.items():
        with pytest.raises(UserError, match=f"{key} = .* would do nothing, as there is no static teacher"):
            plan("gpd", model(), None, **{key: value})
    with pytest.raises(UserError, match="weight = 1 leaves nothing for the dynamic teacher"):
        plan("gpd", model(seed=1), model(seed=2), weight=1.0)
    with pytest.raises(UserError, match="branch 'six' is not known"):
        plan("gpd", model(), None, branches=("six",))


@pytest.mark.parametrize("asked", [("--branches", "pointwise,average"), ("--branches", "")])
def test_a_dry_run_prints_settings_as_they_are_typed(asked, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", [*shlex.split(DRY), *asked])
    with pytest.raises(SystemExit) as end:
        app.main()
    assert not end.value.code
    told = " ".join(capsys.readouterr().out.split())
    assert f"branches {asked[1] or 'no'}, perturbation 0.05" in told
    assert "gap weight 3.0" in told
    assert "target" not in told, "which nothing would read"
