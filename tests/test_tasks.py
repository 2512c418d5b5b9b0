"""Rows, metrics and losses of the three tasks, against loops that are too simple to be wrong."""

import json
import math
import sys
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tools import CLASSES, Marked, Net, events, loop, perform, pictures, plan, setup_of
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from protege import evaluate, load_model
from protege.data import CLEAN, Augment
from protege.data.labels import UNLABELLED
from protege.errors import UserError
from protege.losses import cross_entropy, kd_loss
from protege.methods import METHODS
from protege.methods.targets import TARGETS
from protege.models import Model
from protege.models.inputs import InputSpec
from protege.tasks import TASKS, Chance

ATEN = torch.ops.aten
INDEX = ATEN.index.Tensor
ASKING = {ATEN._local_scalar_dense.default, ATEN.nonzero.default, ATEN.bincount.default, ATEN.masked_select.default}
LABELLED = [name for name, task in TASKS.items() if task.labelled]
CLASSIFICATION, SEGMENTATION, LANGUAGE = (TASKS[name] for name in ("classification", "segmentation", "language"))


def example(task: str, seed: int, classes: int = 4, n: int = 5, ignored: float = 0.3):
    """Random outputs and labels of a task, some of the labels ignored."""
    generator = torch.Generator().manual_seed(seed)
    outputs, labels = {"classification": ((n, classes), (n,)), "segmentation": ((n, classes, 3, 2), (n, 3, 2))}.get(
        task, ((n, 6, classes), (n, 6))
    )
    logits = torch.randn(outputs, generator=generator) * 3
    truth = torch.randint(0, classes, labels, generator=generator)
    truth[torch.rand(labels, generator=generator) < ignored] = UNLABELLED
    return logits, truth


def by_hand(task: str, logits, labels) -> list[tuple[list[float], int]]:
    """(logits, label) of each position, sample by sample."""
    found = []
    for i in range(len(logits)):
        if task == "classification":
            found.append((logits[i].tolist(), labels[i].item()))
        elif task == "segmentation":
            for y in range(labels.shape[1]):
                for x in range(labels.shape[2]):
                    found.append((logits[i, :, y, x].tolist(), labels[i, y, x].item()))
        else:
            for t in range(labels.shape[1]):
                found.append((logits[i, t].tolist(), labels[i, t].item()))
    return found


def softmax(row: list[float]) -> list[float]:
    exps = [math.exp(value - max(row)) for value in row]
    return [value / sum(exps) for value in exps]


@pytest.mark.parametrize("task", LABELLED)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 4), ignored=st.sampled_from([0.0, 0.4, 1.0]))
def test_rows(task, seed, n, ignored):
    logits, labels = example(task, seed, n=n, ignored=ignored)
    rows, truth, weights = TASKS[task].rows(logits, labels)
    expected = by_hand(task, logits, labels)
    assert rows.tolist() == [row for row, _ in expected]  # none is left out, so that shapes tell nothing of labels
    assert truth.tolist() == [label for _, label in expected]
    # a sample without a label can still be taught; a pixel or token does not count
    assert weights.tolist() == [float(task == "classification" or label != UNLABELLED) for _, label in expected]


@pytest.mark.parametrize("task", LABELLED)
def test_rows_of_other_widths(task):
    """Top-k signals and features flatten as logits do."""
    _, labels = example(task, 0)
    other, _ = example(task, 1, classes=9)
    assert TASKS[task].rows(other, labels)[0].shape[1] == 9


@pytest.mark.parametrize("task", LABELLED)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), cut=st.integers(1, 10))
def test_metrics(task, seed, cut):
    """In pieces of any size, against naive computations."""
    logits, labels = example(task, seed, n=11)
    metrics = TASKS[task].metrics(4)
    for part in range(0, 11, cut):
        metrics.update(logits[part : part + cut], labels[part : part + cut])
    found = metrics.compute()
    rows = [(softmax(row), label) for row, label in by_hand(task, logits, labels) if label != UNLABELLED]
    guesses = [(max(range(4), key=row.__getitem__), label) for row, label in rows]
    accuracy = sum(guess == label for guess, label in guesses) / len(rows)
    nll = -sum(math.log(row[label]) for row, label in rows) / len(rows)
    expected = {"nll": nll}
    if task == "segmentation":
        overlaps = []
        for k in range(4):
            both = sum(guess == label == k for guess, label in guesses)
            either = sum(k in pair for pair in guesses)
            overlaps += [both / either] if either else []
        expected |= {"pixel_accuracy": accuracy, "miou": sum(overlaps) / len(overlaps)}
    elif task == "language":
        expected |= {"accuracy": accuracy, "perplexity": math.exp(nll)}
    else:
        expected |= {
            "accuracy": accuracy,
            "ece": calibration([(max(row), g == y) for (row, y), (g, _) in zip(rows, guesses, strict=True)]),
        }
    if task != "language":
        truths, said = Counter(y for _, y in guesses), Counter(guess for guess, _ in guesses)
        both = {k: guesses.count((k, k)) for k in truths}  # classes that occur
        expected["balanced_accuracy"] = sum(both[k] / truths[k] for k in truths) / len(truths)
        expected["macro_f1"] = sum(2 * both[k] / (truths[k] + said[k]) for k in truths) / len(truths)
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)
    shares = sorted(Counter(label for _, label in guesses).values())
    assert metrics.details()["chance"] == pytest.approx(
        {
            "accuracy": shares[-1] / len(rows),
            "least": shares[0] / len(rows),
            "nll": -sum(n / len(rows) * math.log(n / len(rows)) for n in shares),
            "rows": len(rows),
            "classes": len(shares),
        }
    )
    if task != "language":
        details = metrics.details()
        for k in range(4):
            of = [guess for guess, label in guesses if label == k]
            assert details["confusion"][k] == [of.count(j) for j in range(4)]
            assert details["per_class"][k] == (pytest.approx(of.count(k) / len(of)) if of else None)


def calibration(rows: list[tuple[float, bool]]) -> float:
    """Expected calibration error in 15 bins of equal width (Guo et al. 2017)."""
    error = 0.0
    for b in range(15):
        inside = [(c, right) for c, right in rows if b / 15 < c <= (b + 1) / 15]
        if inside:
            confidence = sum(c for c, _ in inside) / len(inside)
            accuracy = sum(right for _, right in inside) / len(inside)
            error += abs(confidence - accuracy) * len(inside) / len(rows)
    return error


@pytest.mark.parametrize("task", LABELLED)
def test_metrics_without_labels(task):
    logits, labels = example(task, 0, ignored=1.0)
    metrics = TASKS[task].metrics(4)
    metrics.update(logits, labels)
    assert metrics.compute() == {}
    assert metrics.details() == {}


def test_perplexity_of_nonsense_is_a_number():
    metrics = LANGUAGE.metrics(2)
    metrics.update(torch.tensor([[[0.0, 1e6]]]), torch.tensor([[0]]))
    assert math.isfinite(metrics.compute()["perplexity"])


def test_better():
    assert CLASSIFICATION.better(0.2, None)
    assert CLASSIFICATION.better(0.2, 0.1)
    assert not CLASSIFICATION.better(0.1, 0.1)
    assert LANGUAGE.better(10.0, 11.0)
    assert not LANGUAGE.better(11.0, 10.0)


def test_cross_entropy_counts_labelled_rows_only():
    logits, labels = example("classification", 3, n=9)
    rows = [(softmax(row), label) for row, label in by_hand("classification", logits, labels) if label != UNLABELLED]
    expected = -sum(math.log(row[label]) for row, label in rows) / len(rows)
    assert cross_entropy(logits, labels).item() == pytest.approx(expected, rel=1e-5)
    smooth = sum(-0.9 * math.log(row[y]) - 0.1 / 4 * sum(map(math.log, row)) for row, y in rows) / len(rows)
    assert cross_entropy(logits, labels, 0.1).item() == pytest.approx(smooth, rel=1e-5)
    none = cross_entropy(logits.requires_grad_(), torch.full((9,), UNLABELLED))
    assert none.item() == 0
    none.backward()
    assert not logits.grad.any()  # type: ignore[union-attr]


# ---- the loss of Hinton et al. ----------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(2, 7), st.sampled_from([0.5, 1.0, 4.0, 20.0]))
def test_kd_loss(seed, rows, classes, temperature):
    """The value from the definition, and the gradient ``T (q^T - p^T) / M``, in double precision."""
    generator = torch.Generator().manual_seed(seed)
    student = torch.randn(rows, classes, generator=generator) * 4
    teacher = torch.randn(rows, classes, generator=generator) * 4
    total, gradient = 0.0, []
    for z, v in zip(student.double().tolist(), teacher.double().tolist(), strict=True):
        q, p = softmax([x / temperature for x in z]), softmax([x / temperature for x in v])
        total += sum(pk * (math.log(pk) - math.log(qk)) for pk, qk in zip(p, q, strict=True))
        gradient.append([temperature * (qk - pk) / rows for pk, qk in zip(p, q, strict=True)])
    student.requires_grad_()
    loss = kd_loss(student, teacher, temperature)
    loss.backward()
    assert loss.item() == pytest.approx(temperature**2 * total / rows, rel=1e-4, abs=1e-5 * temperature**2)
    torch.testing.assert_close(student.grad.double(), torch.tensor(gradient).double(), rtol=1e-3, atol=1e-5)  # type: ignore[union-attr]


def test_kd_gradients_do_not_shrink_with_temperature():
    """Why the loss has T²: at high temperatures its gradient tends to that of matching logits (section 2.1)."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 6, 5, generator=generator)
    student, teacher = (x - x.mean(1, keepdim=True) for x in (student, teacher))
    limit = (student - teacher) / (5 * 6)
    for temperature, tolerance in ((10.0, 0.15), (100.0, 0.015), (1000.0, 0.004)):
        leaf = student.clone().requires_grad_()
        kd_loss(leaf, teacher, temperature).backward()
        assert (leaf.grad - limit).abs().max() < tolerance * limit.abs().max()  # type: ignore[operator]


def test_kd_loss_of_equal_logits_is_zero():
    logits = torch.randn(4, 5)
    assert kd_loss(logits, logits + 3, 2.0).item() == pytest.approx(0, abs=1e-5)


class Pixels(nn.Module):
    """[B, 1, 6, 6] → [B, K, 6, 6]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, width, 3, padding=1), nn.Conv2d(width, CLASSES, 1)

    def forward(self, x):
        return self.b(self.a(x).relu())


class Words(nn.Module):
    """Rows of the picture as six tokens: [B, 1, 6, 6] → [B, 6, K]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, width), nn.Linear(width, CLASSES)

    def forward(self, x):
        return self.b(self.a(x.squeeze(1)).relu())


@pytest.mark.parametrize(("task", "kind", "shape"), [("segmentation", Pixels, (6, 6)), ("language", Words, (6,))])
def test_kd_on_pixels_and_tokens(task, kind, shape, tmp_path):
    """The method, the cache and the loop know nothing of the task: the student comes near its teacher."""
    samples = pictures()
    brightness = (samples.pixels.float().squeeze(-1) / 75).long().clamp(max=CLASSES - 1)
    labels = brightness if task == "segmentation" else brightness.float().mean(-1).round().long()
    labels[torch.rand(labels.shape, generator=torch.Generator().manual_seed(0)) < 0.2] = UNLABELLED
    samples = Marked(samples.pixels, labels)
    assert samples.marks.shape == (48, *shape)
    spec = InputSpec(channels=1, mean=(0.5,), std=(0.25,))
    torch.manual_seed(0)
    teacher, student = Model(kind(16), spec, task=task), Model(kind(8), spec, task=task)
    everything = (samples, torch.arange(48))
    common = {"samples": samples, "task": task, "monitor": everything, "augment": Augment(), "batch_size": 16}
    perform(
        loop(teacher, tmp_path / "t", epochs=8, optimizer="adamw", lr=0.02, **common),
        plan("none", teacher, None, TASKS[task]),
    )
    kd = plan("kd", student, teacher, TASKS[task], weight=1.0, temperature=4.0)
    state = perform(loop(student, tmp_path / "s", epochs=8, optimizer="adamw", lr=0.02, views=1, **common), kd)
    assert state.served == 8 * 48
    epochs = [event for event in events(tmp_path / "s") if event["event"] == "epoch"]
    assert epochs[-1]["train"]["kd_loss"] < 0.5 * epochs[0]["train"]["kd_loss"]
    name = TASKS[task].metric
    assert TASKS[task].better(epochs[-1]["eval"][name], epochs[0]["eval"][name])
    batch = samples.fetch(torch.arange(10), 0, Augment())
    z, v = (network(batch.inputs).detach() for network in (student, teacher))
    pairs = zip(by_hand(task, z, batch.labels), by_hand(task, v, batch.labels), strict=True)
    rows = [(a, b) for (a, label), (b, _) in pairs if label != UNLABELLED]
    expected = kd_loss(torch.tensor([a for a, _ in rows]), torch.tensor([b for _, b in rows]), 4.0)
    batch.signals["teacher"] = {"logits": v}
    assert kd[0].step(student, batch)["loss"].item() == pytest.approx(expected.item(), rel=1e-4)


def test_chance_is_what_a_count_of_the_labels_gives():
    """Against a guesser that always names the commonest label, and says the labels' shares."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.multinomial(torch.tensor([0.7, 0.2, 0.1]), 3000, replacement=True, generator=generator)
    chance = Chance.of(torch.cat((labels, torch.full((500,), UNLABELLED))))
    shares = labels.bincount() / len(labels)
    said = shares.log().expand(3000, 3)
    assert chance.accuracy == pytest.approx(float((labels == 0).double().mean()))
    assert chance.nll == pytest.approx(float(cross_entropy(said, labels)))
    assert chance.explains(chance.accuracy, chance.nll)
    hinting = said + 0.8 * nn.functional.one_hot(labels, 3)  # prefers the commonest always, and yet knows
    assert bool((hinting.argmax(1) == 0).all())
    assert not chance.explains(chance.accuracy, float(cross_entropy(hinting, labels)))
    assert not chance.explains(0.9, 4.0), "over-confident, and right"
    assert not chance.is_above(0.1)
    assert chance.is_above(0.05)
    assert Chance.of(torch.full((3,), UNLABELLED)) is None
    assert not Chance.of(torch.zeros(9, dtype=torch.long)).explains(1.0, 0.0), "one class says nothing"


class Waiting(TorchDispatchMode):
    """Fails where a number, or how many rows there are, is asked of the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        chosen = any(tensor.dtype == torch.bool for tensor in (args[1] if func is INDEX else ()) if tensor is not None)
        assert func not in ASKING, func
        assert not chosen, func
        return func(*args, **(kwargs or {}))


def test_metrics_of_a_batch_do_not_wait_for_the_device():
    metrics = CLASSIFICATION.metrics(4)
    logits, labels = example("classification", 0)
    with Waiting():
        metrics.update(logits, labels)
    assert metrics.sums[0] == (labels != UNLABELLED).sum()


INPUT = InputSpec(channels=1, mean=(0.5,), std=(0.25,))
STEPS = [
    ("kd", {}),
    *(("kd", {"target": target}) for target in TARGETS if target != "kd"),
    ("gpd", {"ratio": 2}),
    ("skd", {}),
    ("simultaneous", {}),
    ("at", {}),
    ("none", {"class_weights": "balanced", "label_smoothing": 0.1}),
]


@pytest.mark.parametrize(("method", "given"), STEPS)
@pytest.mark.parametrize("task", ["classification", "segmentation"])
def test_a_step_is_a_function_of_tensors(method, given, task):
    """It asks nothing of the device, forward or backward, and its shapes do not depend on which labels there are."""
    network = Pixels if task == "segmentation" else Net
    student, teacher = Model(network(4), INPUT, task=task), Model(network(6), INPUT, task=task)
    marks = torch.randint(0, CLASSES, (48, 6, 6) if task == "segmentation" else (48,))
    samples = Marked(pictures().pixels, marks) if task == "segmentation" else pictures()
    settings = METHODS[method].settings(**given)
    for phase in METHODS[method].plan(setup_of(student, teacher, TASKS[task], settings, samples)):
        operations = []
        for unlabelled in (slice(0, 0), slice(0, 0), slice(0, 3), slice(0, 8)):  # the first one fills what is kept
            phase.trainee.zero_grad()
            batch = samples.fetch(torch.arange(8), CLEAN, Augment())
            batch.labels[unlabelled] = UNLABELLED
            for source in phase.sources:
                batch.signals[source.name] = source.compute(batch.inputs)
            with Waiting(), Recorded() as recorded:
                phase.step(phase.trainee, batch)["loss"].backward()
            operations.append(recorded.seen)
        assert operations[1] == operations[2] == operations[3]


class Recorded(TorchDispatchMode):
    """Keeps which operations ran, on which shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(f"{func} {[tuple(arg.shape) for arg in args if isinstance(arg, torch.Tensor)]}")
        return func(*args, **(kwargs or {}))


def test_a_models_task_is_one_of_those_that_there_are():
    for task in ("", "two words", "a:b:c"):
        with pytest.raises(UserError, match="is no name; expected that of a task"):
            Model(nn.Linear(2, 2), InputSpec(channels=1), task=task)
    model = Model(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), InputSpec(channels=1), task="nonsense")
    with pytest.raises(UserError, match="'nonsense' is unknown; expected one of classification"):
        evaluate(model, "digits")


def test_a_folder_may_name_a_task_of_somebody_and_no_code_runs(tmp_path, monkeypatch):
    (tmp_path / "strange_task.py").write_text("raise SystemExit('run by reading a folder')")
    monkeypatch.chdir(tmp_path)
    load_model("zoo:mlp?channels=1&image_size=8", num_classes=10).save(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"task": "strange_task:task"}))
    assert load_model(tmp_path / "model").task == "strange_task:task"
    assert "strange_task" not in sys.modules
