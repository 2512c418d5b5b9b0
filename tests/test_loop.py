"""The loop against plain loops and independent formulas."""

import copy
import json
import math
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from tools import (
    CLASSES,
    SHIFT,
    Curtain,
    Net,
    apart,
    events,
    loop,
    model,
    perform,
    pictures,
    plan,
    planned,
    same,
    surroundings,
    weights,
)
from torch import nn

from protege.data import CLEAN, Augment, cache_root
from protege.errors import UserError
from protege.signals import Logits, Source
from protege.tasks import TASKS
from protege.training import Fit, FitSettings, Solve
from protege.training.evaluate import evaluate
from protege.training.journal import Journal
from protege.training.loop import Loop
from protege.training.schedule import (
    MovingAverage,
    default_batch_size,
    default_epochs,
    factor,
    load_optimizer,
    make_optimizer,
)

TASK = TASKS["classification"]


# ---- schedules and optimisers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("warmup", [0.0, 0.05, 0.4])
def test_cosine_and_constant(warmup):
    for step in range(1000):
        t = step / 1000
        if t < warmup:
            expected = flat = t / warmup
        else:
            expected, flat = math.cos(math.pi / 2 * (t - warmup) / (1 - warmup)) ** 2, 1.0
        assert factor("cosine", warmup, t) == pytest.approx(expected, abs=1e-12)
        assert factor("constant", warmup, t) == pytest.approx(flat)


def test_one_cycle_is_torchs():
    steps = 3000
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0, momentum=0.9)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.7, total_steps=steps)
    for step in range(steps):
        assert 0.7 * factor("onecycle", 0.0, step / steps) == pytest.approx(schedule.get_last_lr()[0], abs=2e-3)
        optimizer.step()
        if step < steps - 1:
            schedule.step()
    assert factor("onecycle", 0.0, 0.3) == 1
    assert factor("onecycle", 0.0, 0.0) == pytest.approx(1 / 25)
    assert factor("onecycle", 0.0, 1.0) == pytest.approx(1e-4 / 25)


@pytest.mark.parametrize("schedule", ["cosine", "onecycle", "constant"])
def test_the_rate_of_each_update(schedule, tmp_path, monkeypatch):
    student, rates = model(), []
    original = Journal.save_when_due

    def watch(self, fit, now=False):
        if not now and self.state.step:
            rates.append([group["lr"] for group in fit.optimizer.param_groups])
        original(self, fit, now)

    monkeypatch.setattr(Journal, "save_when_due", watch)
    made = loop(student, tmp_path, epochs=4, batch_size=16, schedule=schedule, warmup=0.25, lr=0.3)
    perform(made, plan("none", student, None))
    assert [len(rate) for rate in rates] == [2] * 12
    for step, (weights_rate, biases_rate) in enumerate(rates):
        assert weights_rate == biases_rate == pytest.approx(0.3 * factor(schedule, 0.25, (step + 0.5) / 12))


def test_no_decay_on_biases_and_normalisation():
    network = Net(norm=True)
    network.conv2.weight.requires_grad_(False)
    for name in ("sgd", "adamw"):
        optimizer = make_optimizer(network, FitSettings(optimizer=name, weight_decay=0.3, lr=0.1), 128)
        decayed = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
        for key, parameter in network.named_parameters():
            if key == "conv2.weight":
                assert id(parameter) not in decayed
            else:
                assert decayed[id(parameter)] == (0.3 if key in ("conv1.weight", "fc.weight") else 0.0)


def test_defaults():
    assert [default_batch_size(n) for n in (1, 10, 100, 500, 5000)] == [1, 10, 16, 50, 128]
    assert [default_epochs(n) for n in (1, 20, 100, 400)] == [300, 150, 30, 30]
    rates = [make_optimizer(Net(), FitSettings(), size).param_groups[0]["lr"] for size in (512, 128, 32)]
    assert rates == pytest.approx([0.1, 0.1, 0.05])
    assert make_optimizer(Net(), FitSettings(optimizer="adamw"), 32).param_groups[0]["lr"] == 1e-3


# ---- the loop ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"lr": 0.1, "weight_decay": 1e-2},
        {"lr": 0.01, "optimizer": "adamw", "schedule": "onecycle", "weight_decay": 0.1, "clip": 0.3},
        {"lr": 0.1, "momentum": 0.0, "schedule": "constant", "warmup": 0.0, "accumulate": 3},
    ],
    ids=["sgd", "adamw", "plain"],
)
def test_a_hand_written_loop_ends_with_the_same_weights(settings, tmp_path):
    """Kd on two views, with dropout: the same order of samples, and torch's optimiser from its textbook."""
    network = {"norm": settings["lr"] == 0.1, "drop": 0.4}  # Adam would blow up the rounding of biases before a norm
    if "accumulate" in settings:  # pieces have statistics and random numbers of their own
        network = {}
    student, teacher = model(**network), model(seed=9, width=8)
    mine, samples = copy.deepcopy(student), pictures(50)
    made = loop(student, tmp_path, samples=samples, views=2, budget=0, epochs=4, batch_size=16, **settings)
    orders = [made._order(epoch, 4) for epoch in range(4)]
    start: list[torch.Tensor] = []
    phases = plan("kd", student, teacher, temperature=3.0, weight=0.7)
    step = phases[0].step
    phases[0].step = lambda *given: (start.append(torch.get_rng_state()), step(*given))[1]
    perform(made, phases)

    torch.set_rng_state(start[0])
    decayed = [p for p in mine.parameters() if p.dim() > 1]
    rest = [p for p in mine.parameters() if p.dim() <= 1]
    decay = settings.get("weight_decay", 5e-4)
    groups = [{"params": decayed, "weight_decay": decay}, {"params": rest, "weight_decay": 0.0}]
    if settings.get("optimizer") == "adamw":
        optimizer = torch.optim.AdamW(groups, lr=1.0)
    else:
        momentum = settings.get("momentum", 0.9)
        optimizer = torch.optim.SGD(groups, lr=1.0, momentum=momentum, nesterov=momentum > 0)
    mine.train()
    for update in range(16):
        batch = samples.fetch(orders[update // 4][update % 4], update // 4 % 2, SHIFT)
        for group in optimizer.param_groups:
            group["lr"] = settings["lr"] * factor(
                settings.get("schedule", "cosine"), settings.get("warmup", 0.05), (update + 0.5) / 16
            )
        logits = mine(batch.inputs)
        with torch.no_grad():
            soft = (teacher(batch.inputs).half().float() / 3.0).softmax(1)  # as a cache would remember it
        kl = (soft * (soft.log() - (logits / 3.0).log_softmax(1))).sum(1).mean()
        loss = 0.3 * F.cross_entropy(logits, batch.labels) + 0.7 * 9.0 * kl
        optimizer.zero_grad()
        loss.backward()
        if "clip" in settings:
            torch.nn.utils.clip_grad_norm_(mine.parameters(), settings["clip"])
        optimizer.step()
    assert apart(weights(student), weights(mine)) < 1e-6
    assert apart(weights(student), weights(model(**network))) > 1e-2


def test_the_order_of_samples(tmp_path):
    positions = torch.arange(0, 94, 2)
    made = loop(model(), tmp_path, samples=pictures(96), positions=positions)
    for epoch in range(3):
        order = made._order(epoch, 6)
        assert sorted(torch.cat(order).tolist()) == positions.tolist()
        assert {len(part) for part in order} == {7, 8}
    assert not torch.equal(torch.cat(made._order(0, 1)), torch.cat(made._order(1, 1)))
    again = loop(model(), tmp_path, samples=pictures(96), positions=positions, seed=1)
    assert not torch.equal(torch.cat(made._order(0, 1)), torch.cat(again._order(0, 1)))


@pytest.mark.parametrize("size", [16, 15])
def test_accumulation_changes_nothing(size, tmp_path):
    found = []
    for accumulate in (1, 4):
        student = model()
        made = loop(
            student, tmp_path / str(accumulate), samples=pictures(50), epochs=3, batch_size=size, accumulate=accumulate
        )
        perform(made, plan("none", student, None))
        found.append(
            (
                weights(student),
                [e["train"]["loss"] for e in events(tmp_path / str(accumulate)) if e["event"] == "epoch"],
            )
        )
    assert apart(found[0][0], found[1][0]) < 1e-5
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-5)


def test_moving_average(tmp_path, monkeypatch):
    student, seen = model(norm=True), []
    original = Journal.save_when_due

    def watch(self, fit, now=False):
        if self.state.step:
            seen.append(weights(fit.trainee))
        original(self, fit, now)

    monkeypatch.setattr(Journal, "save_when_due", watch)
    perform(loop(student, tmp_path, epochs=6, batch_size=16, ema=0.6), plan("none", student, None))
    average = {name: value.double() for name, value in seen[0].items()}
    for count, now in enumerate(seen[1:], 1):
        decay = min(0.6, (1 + count) / (10 + count))
        average = {name: decay * value + (1 - decay) * now[name].double() for name, value in average.items()}
    found = weights(student)
    for name, value in found.items():
        if value.is_floating_point():
            torch.testing.assert_close(value.double(), average[name], rtol=1e-5, atol=1e-6)
    assert found["network.bn1.num_batches_tracked"] == 18
    assert apart(found, seen[-1]) > 1e-4


class Remembering(Net):
    """Keeps what it makes of its weights until it is trained on, as LeViT does of its biases; or makes it each time."""

    def __init__(self, keeps):
        super().__init__()
        self.keeps, self.kept, self.scale = keeps, {}, nn.Parameter(torch.zeros(CLASSES))

    def train(self, mode=True):
        self.kept = {} if mode else self.kept
        return super().train(mode)

    def forward(self, x):
        scale = (20 * self.scale).exp()
        if self.keeps and not self.training:
            scale = self.kept.setdefault("scale", scale.detach())
        return super().forward(x) * scale


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_no_evaluation_is_of_former_weights(ema, tmp_path):
    evaluated = []
    for keeps in (True, False):
        student, out = model(Remembering(keeps)).eval(), tmp_path / str(keeps)
        held = (pictures(30, seed=1), torch.arange(30))
        evaluate(student, held[0], TASK.metrics(CLASSES))
        state = perform(
            loop(student, out, epochs=6, select="best", ema=ema, lr=0.5, held=held, eval_every=1, batch_size=16),
            plan("none", student, None),
        )
        values, _ = evaluate(student, held[0], TASK.metrics(CLASSES))
        evaluated.append([*[e["eval"] for e in events(out) if "eval" in e], values, state.done[0]["best"]])
    assert evaluated[0] == evaluated[1]


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_what_may_not_learn_stays_bit_for_bit(ema, tmp_path):
    student = model(norm=True)
    student.network.conv1.bias.requires_grad_(False)
    before = weights(student)
    step = plan("none", student, None)[0].step
    learns = lambda name: name.startswith(("network.conv2", "network.bn2", "network.conv1"))  # noqa: E731
    made = loop(student, tmp_path, epochs=2, batch_size=16, ema=ema, optimizer="adamw", lr=0.01)
    perform(made, [Fit("part", student, step, learns=learns)])
    for name, value in student.state_dict().items():
        learning = name.startswith(("network.conv2", "network.bn2", "network.conv1.weight"))
        assert torch.equal(value, before[name]) != learning, name
    still = {name for name, parameter in student.named_parameters() if not parameter.requires_grad}
    assert still == {"network.conv1.bias"}


def test_nothing_to_learn(tmp_path):
    student = model()
    step = plan("none", student, None)[0].step
    with pytest.raises(UserError, match="'part' has nothing to learn"):
        planned(loop(student, tmp_path, epochs=1), [Fit("part", student, step, learns=lambda name: False)]).check()


def test_a_loss_that_is_not_finite(tmp_path):
    student = model()
    made = loop(student, tmp_path, epochs=3, batch_size=16, checkpoint_seconds=0)
    student.network.fc.weight.data[0, 0] = float("inf")
    with pytest.raises(UserError, match=r"loss of phase 'labels' is (nan|inf) in epoch 1; .*lr="):
        perform(made, plan("none", student, None))
    assert [path.name for path in tmp_path.glob("checkpoint/*.pt")] == ["00000001.pt"], "what it began with"


# ---- which state is kept ----------------------------------------------------------------------------------------


def scripted(monkeypatch, values: list[float]) -> list[dict]:
    """Let evaluations find these accuracies; returns the weights evaluated, as they come."""
    seen: list[dict] = []

    def evaluate(self, network, samples, positions=None, title=""):
        seen.append(weights(network))
        return {"accuracy": values[len(seen) - 1]}, {}

    monkeypatch.setattr(Loop, "evaluate", evaluate)
    return seen


HELD = {"held": (pictures(12, seed=1), torch.arange(12)), "eval_every": 1, "batch_size": 16}


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_the_best_state_is_kept(ema, tmp_path, monkeypatch):
    student = model(norm=True)
    seen = scripted(monkeypatch, [0.1, 0.5, 0.2, 0.5, 0.4])
    state = perform(loop(student, tmp_path, epochs=5, select="best", ema=ema, **HELD), plan("none", student, None))
    assert same(weights(student), seen[1])
    assert not same(seen[1], seen[4])
    assert state.done[0]["best"] == {"epoch": 2, "accuracy": 0.5}
    assert state.done[0]["epochs"] == 5


def test_the_last_state_is_kept(tmp_path, monkeypatch):
    student = model()
    seen = scripted(monkeypatch, [0.1, 0.5, 0.2])
    state = perform(loop(student, tmp_path, epochs=3, **HELD), plan("none", student, None))
    assert same(weights(student), seen[2])
    assert state.done[0]["best"] == {"epoch": 3, "accuracy": 0.2}


def test_patience(tmp_path, monkeypatch):
    student = model()
    seen = scripted(monkeypatch, [0.1, 0.3, 0.2, 0.3, 0.9])
    made = loop(student, tmp_path, epochs=5, select="best", patience=2, **HELD)
    state = perform(made, plan("none", student, None))
    assert len(seen) == state.done[0]["epochs"] == 4
    assert state.done[0]["best"]["epoch"] == 2
    assert same(weights(student), seen[1])


def test_evaluations_now_and_then(tmp_path):
    student = model()
    perform(loop(student, tmp_path, epochs=5, **{**HELD, "eval_every": 2}), plan("none", student, None))
    epochs = [event for event in events(tmp_path) if event["event"] == "epoch"]
    assert [e["epoch"] for e in epochs if "eval" in e] == [2, 4, 5]
    assert {e["eval_on"] for e in epochs if "eval" in e} == {"validation"}


@pytest.mark.parametrize("where", ["held", "monitor"])
def test_selection_by_the_phases_own_loss(where, tmp_path):
    """The loss of the phase on the samples held out, unaugmented, its teacher's signals included."""
    student, teacher = model(norm=True), model(seed=9)
    samples, positions = pictures(20, seed=4), torch.arange(3, 17)
    phase = plan("kd", student, teacher)[0]
    phase.select_by = "loss"
    made = loop(
        student, tmp_path / "run", views=2, epochs=4, eval_every=1, batch_size=16, folder=tmp_path / "cache",
        **{where: (samples, positions)}, select="best", validation=0.1,
    )  # fmt: skip
    state = perform(made, [phase])
    found = [e["eval"]["loss"] for e in events(tmp_path / "run") if e["event"] == "epoch"]
    batch = samples.fetch(positions, CLEAN, Augment())
    batch.signals["teacher"] = {"logits": teacher(batch.inputs).detach()}
    student.eval()
    assert state.done[0]["best"]["loss"] == pytest.approx(min(found))
    assert {path.name.rpartition("-")[0] for path in (tmp_path / "cache").iterdir()} == {
        "teacher_train",
        "teacher_other",
    }
    assert not list(cache_root().glob("*/cache.json"))  # all signals lie where the user wants them
    assert phase.step(student, batch)["loss"].item() == pytest.approx(min(found), rel=1e-3)


# ---- plans of several phases --------------------------------------------------------------------------------------


def three_phases(student):
    step = plan("none", student, None)[0].step

    def solve(report):
        with torch.no_grad():
            student.network.fc.weight.mul_(0.5).add_(torch.randn(student.network.fc.weight.shape) * 0.01)
        report(1, 1)
        return {"halved": 1.0}

    return [
        Fit("first", student, step, overrides={"epochs": 2}),
        Solve("halve", solve),
        Fit("second", student, step, learns=lambda name: "fc" in name),
    ]


def test_a_solve_between_two_fits(tmp_path):
    student = model(norm=True)
    snapshots = []
    phases = three_phases(student)
    solve = phases[1].solve
    phases[1].solve = lambda report: (
        snapshots.append(weights(student)),
        solve(report),
        snapshots.append(weights(student)),
    )[1]
    made = loop(student, tmp_path, epochs=3, batch_size=16, phases={"second": {"lr": 0.01, "batch_size": 24}})
    steps: list[int] = []
    made.accelerator.log = lambda values, step: steps.append(step)
    state = perform(made, phases)
    assert [(p["name"], p["kind"], p["epochs"]) for p in state.done] == [
        ("first", "fit", 2),
        ("halve", "solve", 0),
        ("second", "fit", 3),
    ]
    assert state.done[1]["best"] == {"halved": 1.0}
    assert all(p["seconds"] >= 0 for p in state.done)
    assert state.seen == 5 * 48
    kinds = [(e["event"], e.get("phase")) for e in events(tmp_path) if e["event"] != "start"]
    assert kinds == [("epoch", "first")] * 2 + [("solve", "halve")] + [("epoch", "second")] * 3
    assert [e["step"] for e in events(tmp_path) if e.get("phase") == "second"] == [2, 4, 6]
    assert steps == [3, 6, 8, 10, 12]  # a tracker's never go back
    final = weights(student)
    for name in final:  # the second phase began with what was solved, and learned the last layer only
        assert torch.equal(final[name], snapshots[1][name]) == ("fc" not in name)
    assert not same(snapshots[0], snapshots[1])


def begin(out):
    student = model(norm=True)
    return student, loop(student, out, epochs=3, batch_size=16, checkpoint_seconds=0), three_phases(student)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed")
    student, made, phases = begin(out)
    return out, student, perform(made, phases)


@pytest.mark.parametrize(
    "moment", ["in the first", "after the first", "in the solve", "after it", "in the second", "at the end"]
)
def test_plans_resume(moment, undisturbed, tmp_path, monkeypatch):
    student, made, phases = begin(tmp_path / "b")
    saves, original = 0, Journal.save
    stop = {"in the first": 4, "after the first": 8, "after it": 9, "in the second": 14, "at the end": 19}.get(moment)

    def save(self, running):
        nonlocal saves
        original(self, running)
        saves += 1
        if saves == stop:
            raise Curtain

    def failing(report):
        with torch.no_grad():
            student.network.fc.weight.zero_()
        raise Curtain

    if stop is None:
        phases[1].solve = failing
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "save", save)
        with pytest.raises(Curtain):
            perform(made, phases)
    student, made, phases = begin(tmp_path / "b")
    found = perform(made, phases, resume=True)
    out, expected_student, expected = undisturbed
    assert same(weights(student), weights(expected_student))
    assert [{**p, "seconds": 0} for p in found.done] == [{**p, "seconds": 0} for p in expected.done]
    assert events(out) == events(tmp_path / "b")
    assert (found.seen, found.forwarded) == (expected.seen, expected.forwarded)


class Doubled(nn.Module):
    """A trainee that is not the student: a copy of it beside a correction that is read out at the end."""

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.inner = copy.deepcopy(student)
        self.gain = nn.Parameter(torch.ones(CLASSES))

    def forward(self, raw):
        return self.inner(raw) * self.gain


def read_out(trainee: nn.Module) -> nn.Module:
    found = copy.deepcopy(trainee.inner)
    with torch.no_grad():
        found.network.fc.weight.mul_(trainee.gain.unsqueeze(1))
        found.network.fc.bias.mul_(trainee.gain)
    return found


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_a_wrapped_trainee_is_read_out(ema, tmp_path):
    student = model()
    before, trainee = weights(student), Doubled(student)
    step = plan("none", student, None)[0].step
    held = (pictures(30, seed=5), torch.arange(30))
    phase = Fit("wide", trainee, step, readout=read_out)
    made = loop(student, tmp_path, epochs=3, batch_size=16, ema=ema, held=held, eval_every=1)
    state = perform(made, [phase])
    inputs = pictures(9, seed=2).fetch(torch.arange(9), 0, SHIFT).inputs
    torch.testing.assert_close(student(inputs), trainee(inputs), rtol=1e-4, atol=1e-5)
    assert not same(weights(student), before)
    assert trainee.gain.ne(1).any()
    student.eval()
    accuracy = (
        sum(
            student(held[0].fetch(torch.tensor([i]), CLEAN, Augment()).inputs).argmax().item() == held[0].labels[i]
            for i in range(30)
        )
        / 30
    )
    assert state.done[0]["best"]["accuracy"] == pytest.approx(accuracy)


def test_two_sources_and_a_step_that_uses_both(tmp_path):
    student, one, two = model(), model(seed=2), model(seed=3)
    seen = []

    def step(network, batch):
        seen.append(batch)
        target = batch.signals["one"]["logits"] + batch.signals["two"]["logits"]
        return {"loss": (network(batch.inputs) - target).square().mean()}

    sources = tuple(Source(name, network, [Logits()], TASK) for name, network in (("one", one), ("two", two)))
    state = perform(
        loop(student, tmp_path, views=1, epochs=2, batch_size=16, accumulate=2),
        [Fit("both", student, step, sources=sources)],
    )
    assert state.forwarded == 2 * 48
    for batch in seen[:3]:
        for name, network in (("one", one), ("two", two)):
            torch.testing.assert_close(
                batch.signals[name]["logits"], network(batch.inputs).detach(), rtol=2e-3, atol=1e-3
            )
    assert len(seen) == 12
    assert len({entry["path"] for entry in state.caches}) == 2


# ---- evaluation -------------------------------------------------------------------------------------------------


def test_evaluation_against_a_plain_loop():
    network, samples = model(norm=True), pictures(40)
    network.network.bn1.eval()
    modes = [module.training for module in network.modules()]
    before = weights(network)
    positions = torch.tensor([3, 30, 8, 9, 20])
    found, details = evaluate(network, samples, TASK.metrics(CLASSES), positions=positions)
    assert [module.training for module in network.modules()] == modes
    assert same(weights(network), before)
    network.eval()
    right, nll = 0, 0.0
    for i in positions.tolist():
        logits = network(samples.fetch(torch.tensor([i]), CLEAN, Augment()).inputs)[0].detach()
        right += int(logits.argmax() == samples.labels[i])
        nll -= logits.log_softmax(0)[samples.labels[i]].item()
    assert found["accuracy"] == right / 5
    assert found["nll"] == pytest.approx(nll / 5, rel=1e-5)
    assert sum(map(sum, details["confusion"])) == 5


def test_modes_come_back_when_an_evaluation_fails():
    network = model(drop=0.5)
    network.network.fc = nn.Linear(3, 3)
    with pytest.raises(RuntimeError):
        evaluate(network, pictures(4), TASK.metrics(CLASSES))
    assert all(module.training for module in network.modules())


def test_metrics_of_a_killed_epoch_are_not_logged_twice(tmp_path):
    student = model()
    made = loop(student, tmp_path, epochs=2, batch_size=16, checkpoint_seconds=0)
    perform(made, plan("none", student, None))
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"event": "epoch", "half a li')
    student = model()
    perform(loop(student, tmp_path, epochs=2, batch_size=16), plan("none", student, None), resume=True)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in lines if "start" not in line] == ["epoch", "epoch"]


def test_thin_residual_networks_train_without_harm(tmp_path):
    """A strided 1×1 convolution of few channels spoils the heap on channels-last images, and GroupNorm on images that
    need no gradient ends the process, in torch itself."""
    script = """
import sys
import torch
import protege
common = {"data": "digits", "epochs": 1, "batch_size": 32}
protege.train("zoo:resnet10?width=4", out=sys.argv[1], samples=200, **common)
protege.distill(student="zoo:resnet10?width=4", method="gpd", out=sys.argv[1] + "-gpd", samples=60, **common)
first, last = torch.nn.Conv2d(1, 4, 3).requires_grad_(False), torch.nn.Linear(36, 10)
normed = torch.nn.Sequential(first, torch.nn.GroupNorm(2, 4), torch.nn.MaxPool2d(2), torch.nn.Flatten(), last)
protege.train(normed, out=sys.argv[1] + "-normed", samples=60, **common)
"""
    environment = surroundings(MALLOC_CHECK_=3)
    run = subprocess.run([sys.executable, "-c", script, str(tmp_path / "run")], env=environment, capture_output=True)
    assert run.returncode == 0, run.stderr.decode()[-500:]


def test_the_moving_average_moves_a_shared_tensor_once():
    """By the share of its count, whatever the number of its names; whole numbers are copied."""
    network = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3))
    network[2].weight = network[0].weight
    average = MovingAverage(network, 0.9)
    for count in range(4):
        before = {name: value.clone() for name, value in average.module.state_dict().items()}
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.normal_()
            network(torch.randn(5, 3))
        average.update()
        share = 1 - min(0.9, (1 + count) / (10 + count)) if count else 1.0
        for name, value in network.state_dict().items():
            expected = torch.lerp(before[name], value, share) if value.is_floating_point() else value
            torch.testing.assert_close(average.module.state_dict()[name], expected)
    assert average.module[2].weight is average.module[0].weight


def test_an_optimizer_goes_on_with_the_kernels_of_the_device_it_is_on():
    """Those of a GPU count updates there, in a checkpoint of a processor too, and the other way round."""
    there = [nn.Parameter(torch.zeros(2, device=device)) for device in ("cpu", "meta")]
    here = [torch.optim.AdamW([p], capturable=p.is_meta, foreach=False) for p in there]
    there[0].grad = torch.ones(2)
    here[0].step()
    saved = here[0].state_dict()
    load_optimizer(here[1], saved)
    assert here[1].param_groups[0]["capturable"]
    assert here[1].state[there[1]]["step"].is_meta
    assert saved["param_groups"][0]["capturable"] is False
    saved["param_groups"][0]["capturable"] = True
    load_optimizer(here[0], saved)
    assert here[0].param_groups[0]["capturable"] is False


def test_an_epoch_without_updates_left_has_no_rate(tmp_path, monkeypatch):
    def fresh():
        student = model()
        return loop(student, tmp_path, epochs=1, batch_size=16, checkpoint_seconds=0), plan("none", student, None)

    def dying(self, fit, evaluate):
        raise Curtain

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_end_epoch", dying)
        with pytest.raises(Curtain):
            perform(*fresh())
    perform(*fresh(), resume=True)
    *_, epoch = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert epoch["images_per_second"] is None
    assert epoch["train"]["loss"] > 0
