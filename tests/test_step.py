"""A step is one function of tensors: on a device it makes no tensor of the processor and asks nothing, and recorded or
compiled it comes to what it comes to as it is."""

import random
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from weakref import WeakSet

import pytest
import torch
from tools import CLASSES, Net, events, loop, model, perform, plan, planned
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from protege.data import Augment, Batch, InMemory, Samples
from protege.data.rendering import Renderer
from protege.data.text import Text
from protege.data.views import VOID
from protege.methods import METHODS, Setup
from protege.models import InputSpec, Model
from protege.models.captured import Captured
from protege.models.placing import place
from protege.models.zoo import build
from protege.signals import Views
from protege.signals.rows import widened
from protege.signals.source import Fields
from protege.signals.views import shuffled
from protege.tasks import TASKS
from protege.torch_utils import eval_mode
from protege.training import Fit
from protege.training import journal as journals
from protege.training import loop as looping
from protege.training.drawn import Drawn
from protege.training.step import Anonymous, Step, compiled, tensors_of

PAGE = Path(__file__).parents[1] / "docs" / "gpu.md"
STEADY = {"schedule": "constant", "warmup": 0.0, "lr": 0.05, "batch_size": 16, "epochs": 3}


def traced(function: Callable, inputs: dict) -> tuple[Callable, object]:
    """A recording without a GPU, which repeats as a CUDA graph does: the same operations on the same memory, whatever
    Python would do the next time."""
    names, outputs = list(inputs), {}

    def flat(*values: Tensor) -> list[Tensor]:
        made = function(dict(zip(names, values, strict=True))) or {}
        outputs.update(dict.fromkeys(made))
        return list(made.values())

    graph = torch.no_grad()(make_fx(flat)(*inputs.values()).forward)
    outputs.update(zip(outputs, graph(*inputs.values()), strict=True))

    def replay() -> None:
        for output, value in zip(outputs.values(), graph(*inputs.values()), strict=True):
            output.copy_(value)

    return replay, outputs


def trained(out: Path, monkeypatch, method: str, network: nn.Module | None = None, record=None, compile="auto", **how):
    """(the student's state, losses by epoch, what was told) of a run whose steps are recorded by ``record``."""
    said: list[str] = []
    monkeypatch.setattr(looping, "Step", partial(Step, record=record))
    student, teacher = model(network, seed=1, norm=True), model(seed=2)
    made = loop(student, out, **{**STEADY, **how})
    made.compile = compile
    monkeypatch.setattr(made, "_tell", said.append)
    perform(made, plan(method, student, None if method == "none" else teacher))
    losses = [event["train"] for event in events(out) if event["event"] == "epoch"]
    return student.state_dict(), losses, said


def close(one: dict, other: dict, within: float) -> bool:
    return all(torch.allclose(one[name].double(), other[name].double(), within, within) for name in one)


@pytest.mark.parametrize(
    ("method", "how"),
    [
        ("kd", {"ema": 0.9, "clip": 1.0, "views": 2}),
        ("kd", {"accumulate": 3}),
        ("skd", {}),
        ("gpd", {"ema": 0.9}),
        ("at", {}),
    ],
)
def test_a_recorded_step_does_what_the_step_does(tmp_path, monkeypatch, method, how):
    plain, losses, _ = trained(tmp_path / "plain", monkeypatch, method, **how)
    recorded, its_losses, said = trained(tmp_path / "recorded", monkeypatch, method, record=traced, **how)
    assert not said
    assert close(recorded, plain, 1e-5)
    assert its_losses == [pytest.approx(epoch, rel=1e-5) for epoch in losses]


@pytest.mark.parametrize(
    ("samples", "batch", "world"), [(48, 16, 1), (101, 16, 1), (997, 128, 3), (7, 7, 2), (130, 64, 4)]
)
def test_batches_have_two_sizes_at_most_in_a_process_and_show_every_sample_once(samples, batch, world):
    steps = -(-samples // batch)
    positions = 3 * torch.arange(samples)
    seen = []
    for rank in range(world):
        mine = [part.tensor_split(world)[rank] for part in shuffled(positions, steps, 5, 0, 2)]
        sizes = {len(part) for part in mine}
        assert max(sizes) - min(sizes) <= 1  # so a step is recorded twice at most
        seen += mine
    assert torch.equal(torch.cat(seen).sort().values, positions)


class Counting(Net):
    """Looks at the number of its calls."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x) * (2 if self.calls > 9 else 1)


class Drawing(Net):
    """Draws a number of Python's."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (0.5 + random.random())


class Replacing(Net):
    """Puts a new tensor in the place of a buffer, in place of changing it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        z = super().forward(x)
        self.seen = 0.9 * self.seen + z.detach().mean(0)
        return z - self.seen


class Averaging(Replacing):
    """Uses what it has put there in eval mode only."""

    def forward(self, x: Tensor) -> Tensor:
        z = Net.forward(self, x)
        if not self.training:
            return z - self.seen
        self.seen = 0.9 * self.seen + z.detach().mean(0)
        return z


@pytest.mark.parametrize("network", [Counting, Drawing, Replacing, Averaging])
def test_a_network_that_a_recording_would_not_follow_runs_as_it_is(tmp_path, monkeypatch, network):
    torch.manual_seed(1)
    plain, losses, _ = trained(tmp_path / "plain", monkeypatch, "kd", network())
    torch.manual_seed(1)
    recorded, its_losses, said = trained(tmp_path / "recorded", monkeypatch, "kd", network(), record=traced)
    assert len(said) == 1
    assert re.match(r"the step of phase 'kd' cannot be recorded \(.*\) and runs as it is, which is slower\.$", said[0])
    assert close(recorded, plain, 0)
    assert its_losses == losses


def test_a_step_that_asks_which_samples_it_has_runs_as_it_is(tmp_path, monkeypatch):
    def step(student: nn.Module, batch: Batch) -> dict[str, Tensor]:
        assert batch.index.max() < 48
        return {"loss": student(batch.inputs).square().mean()}

    said: list[str] = []
    monkeypatch.setattr(looping, "Step", partial(Step, record=traced))
    student = model()
    made = loop(student, tmp_path, **STEADY)
    monkeypatch.setattr(made, "_tell", said.append)
    state = perform(made, [Fit("own", student, step)])
    assert state.past == 9
    assert len(said) == 1
    assert "a step that is compiled or recorded has no 'index' of its batch" in said[0]


def test_what_was_recorded_of_a_phase_is_gone_when_the_next_begins(tmp_path, monkeypatch):
    kept: WeakSet[Tensor] = WeakSet()

    def record(function: Callable, inputs: dict) -> tuple[Callable, object]:
        kept.update(inputs.values())
        return traced(function, inputs)

    def first(student: nn.Module, batch: Batch) -> dict[str, Tensor]:
        return {"loss": student(batch.inputs).square().mean()}

    def second(student: nn.Module, batch: Batch) -> dict[str, Tensor]:
        left.append(len(kept))
        return first(student, batch)

    left: list[int] = []
    monkeypatch.setattr(looping, "Step", partial(Step, record=record))
    student = model()
    perform(loop(student, tmp_path, **STEADY), [Fit("first", student, first), Fit("second", student, second)])
    assert left[0] == 0
    assert max(left) > 0


def test_recordings_are_given_up_where_there_is_no_memory_beside_them():
    total, failed = torch.zeros(()), []

    def add(tensors: dict) -> None:
        if len(tensors["x"]) == 3 and adding._recorded:
            raise torch.OutOfMemoryError("CUDA out of memory")
        total.add_(tensors["x"].sum())

    adding = Captured(add, total.device, state=lambda: [total], failed=failed.append, record=traced)
    for size in (2, 2, 2, 2, 3, 2, 3):
        adding({"x": torch.ones(size)})
    assert total == 16
    assert [type(error) for error in failed] == [torch.OutOfMemoryError]


@pytest.mark.parametrize(("noisy", "others", "taken"), [(1, 3, True), (1, 2, False), (0, 1, True)])
def test_a_recording_may_have_other_noise_in_little_of_what_it_moves(noisy, others, taken):
    numbers, failed, state = random.Random(1), [], [torch.zeros(100) for _ in range(noisy + others)]

    def move(tensors: dict) -> None:  # as sums on a GPU are, which are made in no fixed order
        for n, value in enumerate(state):
            value.add_(
                torch.randn(100, generator=torch.Generator().manual_seed(numbers.getrandbits(9) if n < noisy else n))
            )

    def record(function: Callable, tensors: dict) -> tuple[Callable, None]:
        return partial(function, tensors), None

    moving = Captured(move, state[0].device, state=lambda: state, failed=failed.append, record=record)
    for _ in range(5):
        moving({"x": torch.ones(1)})
    assert bool(moving._recorded) == taken
    assert [str(error) for error in failed] == ([] if taken else ["it comes to other numbers each time"])


def test_whole_numbers_of_a_recording_are_those_of_the_function():
    failed, total = [], torch.tensor(10**9)

    def record(function: Callable, tensors: dict) -> tuple[Callable, None]:
        return lambda: total.add_(2), None

    counting = Captured(
        lambda tensors: total.add_(1), total.device, state=lambda: [total], failed=failed.append, record=record
    )
    for _ in range(5):
        counting({"x": torch.ones(1)})
    assert total == 10**9 + 5
    assert len(failed) == 1


@pytest.mark.slow
@pytest.mark.parametrize(("method", "how"), [("kd", {"ema": 0.9}), ("skd", {}), ("gpd", {"clip": 1.0}), ("at", {})])
def test_a_compiled_step_does_what_the_step_does(tmp_path, monkeypatch, method, how):
    plain, losses, _ = trained(tmp_path / "plain", monkeypatch, method, **how)
    state, its_losses, said = trained(tmp_path / "compiled", monkeypatch, method, compile="on", **how)
    assert all(line.startswith("compiling the step of phase ") for line in said)
    assert close(state, plain, 2e-3)
    assert its_losses == [pytest.approx(epoch, rel=2e-3) for epoch in losses]


class Reader(nn.Module):
    """A recurrent layer with dropout above something that learns."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.lstm = nn.Linear(36, 6), nn.LSTM(6, 6, num_layers=2, dropout=0.5, batch_first=True)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(self.embed(x.flatten(1))[:, None])[0][:, -1])


def test_a_frozen_recurrent_layer_is_in_a_mode_in_which_cudnn_goes_back_and_drops_nothing(tmp_path):
    seen = []

    def step(student: nn.Module, batch: Batch) -> dict[str, Tensor]:
        lstm = student.network.lstm
        seen.append((lstm.training, lstm.dropout))
        outputs = student(batch.inputs)
        with eval_mode(student):
            assert torch.equal(outputs, student(batch.inputs))
        return {"loss": outputs.square().mean()}

    student = model(Reader())
    made = loop(student, tmp_path, **STEADY)
    planned(made, [Fit("own", student, step, learns=lambda name: "lstm" not in name)])
    made.rehearse()
    assert seen == [(True, 0.0)]
    assert student.network.lstm.dropout == 0.5
    perform(made, made.plan.phases)
    assert set(seen) == {(True, 0.0)}
    assert student.network.lstm.dropout == 0.5


# ---- on a device, as tensors without values show it ---------------------------------------------------------------

META = torch.device("meta")
CROP = Augment(crop=0.35, flip=True)


class Operations(TorchDispatchMode):
    """Counts what a device would be asked to compute, and refuses a tensor of the processor."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for value in tree_leaves((args, kwargs, made)):
            assert not isinstance(value, Tensor) or value.device == META, f"{function} has a tensor of the processor"
        schema = function._schema
        writes = schema.is_mutable or not any(value.alias_info for value in schema.returns)
        self.count += writes and "empty" not in schema.name
        return made


def counted(function: Callable[[], object]) -> int:
    """The operations of a call that is not the first."""
    function()
    with Operations() as operations:
        function()
    return operations.count


def data_of(task: str) -> tuple[Samples, str, InputSpec, dict]:
    """A few samples of a task with the name of a network that suits it, and what that is made with."""
    images, spec = torch.randint(0, 256, (8, 32, 32, 3), dtype=torch.uint8), InputSpec(mean=(0.5,) * 3, std=(0.25,) * 3)
    if task == "classification":
        return InMemory(images, torch.arange(8)), "resnet8", spec, {"num_classes": 100}
    if task == "segmentation":
        masks = (images[..., 0] % 4).clone()
        masks[:, :3] = VOID
        return InMemory(images, masks), "unet10", spec, {"num_classes": 4, "width": 4}
    text = Text(torch.arange(400) % 50, 50, 0, length=16, context=4)
    return text, "lstm", InputSpec(kind="tokens"), {"num_classes": 50}


def phases_of(
    method: str, task: str = "classification", names: tuple[str, ...] = (), **settings
) -> tuple[Views, list[Fit]]:
    """The phases of a network taught by another, and what they learn from."""
    samples, name, spec, made = data_of(task)
    networks = [Model(build(name, made), spec, task=task) for name in names or (name, name)]
    for network in networks:  # as a run does: torch writes beyond its memory on narrow ones that are not
        place(network, torch.device("cpu"))
    augment = Augment(shift=4, flip=True) if task != "language" else Augment()
    transfer = Views(samples, torch.arange(8), augment, 1, torch.device("cpu"))
    chosen = METHODS[method].settings(**settings)
    setup = Setup(networks[0], None if method == "none" else networks[1], TASKS[task], chosen, transfer)
    return transfer, [phase for phase in METHODS[method].plan(setup) if isinstance(phase, Fit)]


def operations_of(transfer: Views, phase: Fit) -> dict[str, int]:
    """The operations of one step on a device, and of what its sources are asked for."""
    phase.trainee.to(META)
    for name, parameter in phase.trainee.named_parameters():
        parameter.requires_grad_(phase.learns(name))
    phase.trainee.train()
    batch = next(transfer.batches(8, 0)).to(META)
    asked = {}
    for source in phase.sources:
        source.network.to(META)
        asked[source.name] = counted(lambda source=source: source.compute(batch.inputs))
        fields = source.compute(batch.inputs)
        batch.signals[source.name] = Fields({name: widened(value) for name, value in fields.items()})

    def step() -> None:
        phase.step(phase.trainee, batch)["loss"].backward()
        phase.trainee.zero_grad()

    return {"step": counted(step), **asked}


def stated() -> dict[str, int]:
    """The most operations that the page allows, by what is done."""
    rows = re.findall(r"^\| ([^|]+?) +\| +([\d,]+) +\|$", PAGE.read_text(), re.M)
    return {what: int(count.replace(",", "")) for what, count in rows}


@pytest.mark.parametrize(
    ("what", "method", "number"),
    [("`none`", "none", 0), ("`kd`", "kd", 0), ("`skd`, the second stage", "skd", 1), ("`gpd`", "gpd", 0)],
)
def test_a_step_on_a_device_asks_nothing_and_has_as_many_operations_as_the_page_says(what, method, number):
    transfer, phases = phases_of(method, names=("resnet20", "resnet56"))
    counts = operations_of(transfer, phases[number])
    assert counts["step"] <= stated()[what] <= 1.05 * counts["step"]
    if what == "kd":
        assert counts["teacher"] <= stated()["the teacher's logits"] <= 1.05 * counts["teacher"]


@pytest.mark.parametrize(("what", "augment"), [("a shift view", Augment(shift=4, flip=True)), ("a crop view", CROP)])
def test_views_on_a_device_have_as_many_operations_as_the_page_says(what, augment):
    samples = data_of("classification")[0]
    renderer = Renderer(samples.images.pixels.to(META), samples.labels.to(META), augment)
    index, key = torch.arange(8, device=META), torch.zeros((), dtype=torch.int64, device=META)
    count = counted(lambda: renderer(index, key))
    assert count <= stated()[what] <= 1.05 * count


@pytest.mark.parametrize("augment", [Augment(shift=2, flip=True, jitter=0.3), CROP])
def test_recorded_views_are_the_views(augment):
    views = Views(data_of("segmentation")[0], torch.arange(8), augment, 4, torch.device("cpu"))
    render = views.samples.renderer(augment)
    drawn = Drawn(views, render, traced)
    order = [torch.tensor([n, 7 - n]) for n in range(4)]
    for view in (0, 3, 1):
        for ours, theirs in zip([*drawn.batches(order, view)], views.ordered(order, view), strict=True):
            assert torch.equal(ours.inputs, theirs.inputs)
            assert torch.equal(ours.labels, theirs.labels)
            assert torch.equal(ours.index, theirs.index)
    assert drawn._made._recorded


TARGETS = [{"target": target} for target in ("topk", "ls", "pt", "dkd")]


@pytest.mark.parametrize(
    ("method", "task", "settings"),
    [
        *[(name, "classification", {}) for name in METHODS if name not in ("none", "kd", "skd", "gpd", "fskd")],
        *[("kd", "classification", target) for target in TARGETS],
        *[(name, "segmentation", {}) for name in ("kd", "skd", "gpd")],
        *[("kd", "language", {**target, "temperature": 1.0}) for target in ({}, TARGETS[0])],
    ],
)
def test_no_step_asks_the_device(method, task, settings):
    transfer, phases = phases_of(method, task, **settings)
    for phase in phases[-2:]:
        operations_of(transfer, phase)


class Event:
    """A CUDA event, on a device that does everything two seconds after it was asked."""

    asked = 0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        Event.asked += 1
        self.at = 1000.0 * Event.asked + 2000.0

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, other: "Event") -> float:
        return other.at - self.at


def test_on_a_gpu_times_are_those_of_the_work_and_not_of_asking_for_it(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(journals, "UNREAD", 4)
    made = loop(model(), tmp_path)
    journal = made.journal
    monkeypatch.setattr(journal, "accelerator", SimpleNamespace(device=torch.device("cuda")))
    moment = journal.now()
    for name in ("data", "student") * 3:
        moment = journal.spent(name, moment)
    assert 0 < len(journal._spans) < 4  # the last are still on their way
    journal.writes = False
    journal.save({})
    assert made.state.timing == {"data": 3.0, "student": 3.0}


class Failing(Net):
    """Raises once, in its fifth call."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == 5:
            raise ValueError("the fifth")
        return super().forward(x)


@pytest.mark.slow
def test_what_a_compiled_step_itself_raises_goes_on(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="the fifth"):
        trained(tmp_path, monkeypatch, "kd", Failing(), compile="on")


@pytest.mark.slow
@pytest.mark.parametrize("network", [Counting, Drawing])
def test_a_step_that_would_be_compiled_again_and_again_runs_as_it_is(tmp_path, monkeypatch, network):
    plain, _, _ = trained(tmp_path / "plain", monkeypatch, "kd", model(network(), seed=1).network)
    state, _, said = trained(tmp_path / "on", monkeypatch, "kd", model(network(), seed=1).network, compile="on")
    assert "it has to be compiled anew in each update" in said[-1]
    assert close(state, plain, 2e-3)


@pytest.mark.slow
def test_a_compiled_step_draws_the_random_numbers_of_the_step(tmp_path, monkeypatch):
    plain, _, _ = trained(tmp_path / "plain", monkeypatch, "kd", model(drop=0.5, seed=1).network)
    state, _, _ = trained(tmp_path / "on", monkeypatch, "kd", model(drop=0.5, seed=1).network, compile="on")
    assert close(state, plain, 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "name"),
    [
        *[("classification", name) for name in ("resnet8", "vgg8", "mobilenetv2", "vit_tiny")],
        ("segmentation", "unet10"),
        ("language", "lstm"),
    ],
)
def test_compiled_losses_and_gradients_are_those_of_the_step_within_bfloat16(task, name):
    transfer, (phase,) = phases_of(
        "kd", task, names=(name, name), **({"temperature": 1.0} if task == "language" else {})
    )
    place(phase.trainee, transfer.device)
    phase.trainee.train()
    batch, (source,) = next(transfer.batches(8, 0)), phase.sources
    fields = {name: widened(value) for name, value in source.compute(batch.inputs).items()}
    batch.signals["teacher"] = Fields(fields)

    def step(run: Callable, precision: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
        phase.trainee.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            losses = run(tensors_of(batch))
        losses["loss"].backward()
        gradients = {name: p.grad.clone() for name, p in phase.trainee.named_parameters()}
        return {name: value.detach() for name, value in losses.items()} | gradients

    def plain(tensors: dict) -> dict[str, Tensor]:
        return phase.step(phase.trainee, Anonymous.of(tensors))

    exactly, wanted, got = step(plain, torch.float32), step(plain), step(compiled(plain))
    whole = sum(float(value.norm()) ** 2 for value in exactly.values()) ** 0.5
    for name, value in exactly.items():  # a compiled step rounds less often than operations one by one
        assert (got[name] - value).norm() <= 2 * (wanted[name] - value).norm() + 0.003 * whole, name
