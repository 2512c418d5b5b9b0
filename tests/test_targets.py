"""The laws of targets: what each must be by its definition, and its loss and gradients against the dense form."""

import logging

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tools import CLASSES, Net, events, loop, model, perform, pictures, plan, setup_of
from torch import nn

from protege.data import Augment, Batch, InMemory
from protege.data.labels import UNLABELLED
from protege.errors import UserError
from protege.losses import decoupled, divergence, kd, pt, pt_sim, sim, smoothed, topk, true_probability
from protege.losses.relations import Relations, calibrate
from protege.methods.relations import logit_layer, predictions
from protege.methods.targets import TARGETS
from protege.methods.teaching import TargetSettings, teaching
from protege.models.zoo import arguments_of, build
from protege.signals import Logits, SignalCache, TopK
from protege.tasks import TASKS

SEEDS = st.integers(0, 10**6)
CLASSIFICATION = TASKS["classification"]
LABELLED = [name for name, task in TASKS.items() if task.labelled]
UNLABELLED_TOO = ("kd", "topk", "vectors")  # they need no labels


def rows(seed: int, m: int, classes: int):
    """Student logits, teacher logits, labels, class vectors, in double precision."""
    g = torch.Generator().manual_seed(seed)
    z, v = torch.randn(2, m, classes, generator=g, dtype=torch.float64) * 3
    return z, v, torch.randint(0, classes, (m,), generator=g), torch.randn(classes, 5, generator=g)


def all_targets(seed: int, m: int, classes: int, k: int, temperature: float, epsilon: float):
    """One of each, by name."""
    _, v, labels, vectors = rows(seed, m, classes)
    p = (v / temperature).softmax(1)
    truth, related = true_probability(v, labels), Relations(vectors, 0.3)(labels).double()
    return {
        "kd": kd(v, temperature),
        "topk": topk(*p.topk(k, dim=1), classes),
        "ls": smoothed(labels, epsilon, classes),
        "pt": pt(truth, labels, classes),
        "sim": sim(related),
        "compose": pt_sim(truth, related, labels),
        "mix": pt_sim(truth, related, labels, epsilon),
    }


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.integers(1, 5), st.integers(2, 9), st.integers(1, 9), st.sampled_from([1.0, 4.0]), st.floats(0, 1))
def test_rows_sum_to_one_and_loss_is_that_of_the_dense_form(seed, m, classes, k, temperature, epsilon):
    """And so are the gradients, for any weights of the rows."""
    z, _, labels, _ = rows(seed, m, classes)
    weights = torch.rand(m, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    for name, target in all_targets(seed, m, classes, min(k, classes), temperature, epsilon).items():
        dense = target.dense(classes).double()
        assert dense.shape == (m, classes)
        assert bool((dense >= 0).all()), name
        torch.testing.assert_close(dense.sum(1), torch.ones(m).double(), rtol=0, atol=1e-6)
        ours, theirs = z.clone().requires_grad_(), z.clone().requires_grad_()
        found = divergence(ours, target, temperature)
        expected = F.kl_div((theirs / temperature).log_softmax(1), dense, reduction="none").sum(1)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6, msg=name)
        (found * weights).sum().backward()
        (expected * weights).sum().backward()
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-6, atol=1e-7, msg=name)
    own = labels[:, None]
    found = all_targets(seed, m, classes, min(k, classes), temperature, epsilon)
    dense = {name: target.dense(classes).double() for name, target in found.items()}
    truth = dense["pt"].gather(1, own)
    torch.testing.assert_close(dense["compose"].gather(1, own), truth)
    others = [dense[name].scatter(1, own, 0.0) for name in ("compose", "sim")]
    shares = [part / part.sum(1, keepdim=True).clamp(min=1e-300) for part in others]
    torch.testing.assert_close(shares[0] * (truth < 1), shares[1] * (truth < 1), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(dense["mix"], epsilon * dense["pt"] + (1 - epsilon) * dense["sim"])


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.integers(1, 5), st.integers(2, 9), st.sampled_from([1.0, 4.0]), st.floats(0, 0.99))
def test_limits(seed, m, classes, temperature, epsilon):
    _, v, labels, _ = rows(seed, m, classes)
    p = (v / temperature).softmax(1)
    whole = topk(*p.topk(classes, dim=1), classes)
    torch.testing.assert_close(whole.dense(classes), kd(v, temperature).dense(classes))
    right = v.argmax(1)
    one, confident = topk(*v.softmax(1).topk(1, dim=1), classes), pt(true_probability(v, right), right, classes)
    torch.testing.assert_close(one.dense(classes), confident.dense(classes))
    constant = torch.full((m,), 1 - epsilon + epsilon / classes)
    expected = smoothed(labels, epsilon, classes).dense(classes)
    torch.testing.assert_close(pt(constant, labels, classes).dense(classes), expected)
    by_hand = (1 - epsilon) * F.one_hot(labels, classes).float() + epsilon / classes
    torch.testing.assert_close(expected, by_hand)
    torch.testing.assert_close(true_probability(v, labels), v.softmax(1)[torch.arange(m), labels])


def test_divergence_is_cross_entropy_less_what_no_weight_changes():
    z, v, _, _ = rows(0, 4, 6)
    other = z + torch.randn(4, 6).double()
    p = v.softmax(1)
    entropy = [F.cross_entropy(x, p, reduction="none") - divergence(x, kd(v, 1.0)) for x in (z, other)]
    torch.testing.assert_close(entropy[0], entropy[1])
    torch.testing.assert_close(divergence(v + 3, kd(v, 1.0)), torch.zeros(4).double(), rtol=0, atol=1e-6)


def test_many_pieces_and_several_backward_passes():
    """More rows than one piece holds, in half precision too; gradients add up as autograd's do."""
    z = (torch.randn(300, 1001, generator=torch.Generator().manual_seed(0)) * 3).requires_grad_()
    labels = torch.arange(300)
    target = smoothed(labels, 0.1, 1001)
    loss = divergence(z, target).mean()
    loss.backward(retain_graph=True)
    first = z.grad.clone()
    loss.backward()
    torch.testing.assert_close(z.grad, 2 * first)
    expected = F.kl_div(z.detach().log_softmax(1), target.dense(1001), reduction="batchmean")
    torch.testing.assert_close(loss.detach(), expected)
    full = kd(z.detach() + torch.randn_like(z), 4.0)
    exact = divergence(z.detach(), full, 4.0)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(divergence(z.detach(), full, 4.0), exact)
    half = z.detach().bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        found = divergence(half, target, 2.0)
    assert found.dtype == torch.float32
    found.mean().backward()
    assert half.grad.dtype == torch.bfloat16
    again = z.detach().bfloat16().float().requires_grad_()
    divergence(again, target, 2.0).mean().backward()
    torch.testing.assert_close(half.grad.float(), again.grad, rtol=1e-2, atol=1e-6)


def test_no_dense_target_is_made():
    """With 32,000 classes, the largest tensor beside the logits and their gradient is a piece of rows."""
    from torch.profiler import ProfilerActivity, profile

    m, classes = 64, 32_000
    z = torch.randn(m, classes).requires_grad_()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        target = topk(torch.full((m, 10), 0.05), torch.arange(10).repeat(m, 1), classes)
        divergence(z, target).mean().backward()
    sizes = sorted((e.nbytes() for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"), reverse=True)
    full = m * classes * 4
    assert sizes[0] == full  # the gradient
    assert sizes[1] <= full / 8


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.integers(1, 5), st.integers(3, 8), st.sampled_from([1.0, 4.0]))
def test_decoupled(seed, m, classes, temperature):
    """Its parts add up to classic KD, and each is what its definition says, in value and gradient."""
    z, v, labels, _ = rows(seed, m, classes)
    leaf, other = z.clone().requires_grad_(), z.clone().requires_grad_()
    first, second = decoupled(leaf, v, labels, temperature)
    truth = true_probability(v, labels, temperature)
    torch.testing.assert_close(first + (1 - truth) * second, divergence(z, kd(v, temperature), temperature))
    keep = F.one_hot(labels, classes) == 0
    p, q = ((x / temperature).softmax(1) for x in (v, other))
    two_p, two_q = (torch.stack([x[~keep], (x * keep).sum(1)], dim=1) for x in (p, q))
    torch.testing.assert_close(first, (two_p * (two_p / two_q).log()).sum(1))
    p, q = ((x / temperature)[keep].view(m, -1).softmax(1) for x in (v, other))
    torch.testing.assert_close(second, (p * (p / q).log()).sum(1))
    (first + 8 * second).sum().backward()
    ((two_p * (two_p / two_q).log()).sum() + 8 * (p * (p / q).log()).sum()).backward()
    torch.testing.assert_close(leaf.grad, other.grad)


def test_decoupled_of_extreme_rows_is_finite():
    z = torch.tensor([[200.0, 0, 0], [0, 0, 200.0]]).requires_grad_()
    parts = decoupled(z, torch.tensor([[0.0, 300, 0], [0, 0, 300.0]]), torch.tensor([0, 2]), 1.0)
    sum(part.sum() for part in parts).backward()
    assert all(bool(part.isfinite().all()) for part in (*parts, z.grad))


@settings(max_examples=5, deadline=None)
@given(st.integers(2, 5))
def test_no_rows(classes):
    """A batch whose every pixel is without a label."""
    z, v, labels, _ = rows(0, 0, classes)
    z.requires_grad_()
    for target in all_targets(0, 0, classes, 2, 1.0, 0.1).values():
        assert divergence(z, target).shape == (0,)
    (divergence(z, kd(v, 1.0)).sum() + sum(part.sum() for part in decoupled(z, v, labels, 1.0))).backward()
    assert z.grad.shape == (0, classes)


# ---- class relations --------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.integers(3, 12), st.floats(0.2, 0.98))
def test_calibration(seed, classes, truth):
    """Classes are on average as sure of themselves as the teacher is, wherever a τ can make them so."""
    vectors = torch.randn(classes, 6, generator=torch.Generator().manual_seed(seed))
    truth = max(truth, 1.2 / classes)
    tau = calibrate(vectors, truth)
    cosines = F.cosine_similarity(vectors[:, None], vectors[None], dim=2)
    expected = (cosines / tau).softmax(1)
    assert expected.diagonal().mean().item() == pytest.approx(truth, abs=1e-3)
    relations = Relations(vectors, tau)
    labels = torch.arange(classes).flip(0)
    torch.testing.assert_close(relations(labels), expected[labels], rtol=1e-4, atol=1e-6)
    relations.table = None  # as with too many classes for one
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(relations(labels), expected[labels], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["resnet8", "vgg8", "mobilenetv2", "vit_tiny", "mlp", "cnn_tiny", "lstm", "gpt_tiny"])
def test_the_logit_layer_is_found(name):
    small = {
        "lstm": {"hidden": 8, "embedding": 8},
        "gpt_tiny": {"width": 8, "heads": 2},
        "mobilenetv2": {"width": 0.25},
    }
    sized = {"image_size": 32} if "image_size" in arguments_of(name) else {}
    network = build(name, {"num_classes": 7, **sized, **small.get(name, {})})
    language = name in ("lstm", "gpt_tiny")
    task = TASKS["language"] if language else CLASSIFICATION
    layer = logit_layer(network, 7, torch.arange(6).view(2, 3) if language else torch.rand(2, 3, 32, 32), task)
    assert layer is not None
    assert layer.weight.shape[0] == 7


def test_a_network_for_pixels_has_a_convolution_there():
    network = build("unet10", {"num_classes": 5})
    assert logit_layer(network, 5, torch.rand(1, 3, 32, 32), TASKS["segmentation"]) is None


def test_a_linear_layer_that_does_not_make_the_logits_is_passed_over():
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.idle, self.last = nn.Linear(4, 3), nn.Linear(4, 3), nn.Linear(3, 3)

        def forward(self, x):
            return self.last(self.fc(x)).square()

    assert logit_layer(Odd(), 3, torch.rand(2, 4), CLASSIFICATION) is None


def test_mean_predictions():
    z, _, labels, _ = rows(0, 12, 4)
    labels = labels.clamp(max=2)  # no row of the last class
    labels[3] = UNLABELLED
    batches = [Batch(z[i : i + 5].float(), labels[i : i + 5], torch.arange(5), 0) for i in (0, 5, 10)]
    truth, means = predictions(nn.Identity(), batches, CLASSIFICATION, 4)
    p, known = z.softmax(1).float(), [i for i in range(12) if i != 3]
    assert truth == pytest.approx(sum(p[i, labels[i]].item() for i in known) / 11, rel=1e-5)
    for k in range(3):
        torch.testing.assert_close(means[k], p[labels == k].mean(0))
    torch.testing.assert_close(means[3], F.one_hot(torch.tensor(3), 4).float())


# ---- the term ---------------------------------------------------------------------------------------------------


def term(target: str, task: str = "classification", teacher: nn.Module | None = None, samples=None, **given):
    settings = TargetSettings(target=target, **given)
    return teaching(settings, setup_of(model(), teacher or model(seed=3), TASKS[task], settings, samples))


@pytest.mark.parametrize("task", LABELLED)
@pytest.mark.parametrize("target", list(TARGETS))
def test_rows_without_a_label(target, task):
    """Classification: kd, topk and vectors teach them, others leave them out. Pixels and tokens without one count
    nowhere."""
    m = 12
    z, v, labels, _ = rows(1, m, CLASSES)
    z, v = z.float(), v.float()
    labels[[0, 5]] = UNLABELLED
    shape = {"classification": (m, -1), "segmentation": (3, 2, 2, -1), "language": (3, 4, -1)}[task]

    def outputs(x):
        return x.view(shape).movedim(-1, TASKS[task].class_dim)

    made = term(target, task, Dense(task), samples(task))
    said = {}
    for signal in made.signals:
        said |= signal.fields(outputs(v), TASKS[task])
    said = {name: value if value.is_floating_point() else value.long() for name, value in said.items()}
    batch = Batch(torch.zeros(m), labels.view(shape[:-1]) if task != "classification" else labels, torch.arange(m), 0)
    batch.signals["teacher"] = said
    z = z.requires_grad_()
    value = made.loss(*TASKS[task].rows(outputs(z), batch.labels), batch)
    value.backward()
    silent = z.grad.abs().sum(1) == 0
    expected = torch.zeros(m, dtype=torch.bool)
    if target not in UNLABELLED_TOO or task != "classification":
        expected[[0, 5]] = True
    assert torch.equal(silent, expected)
    if not made.signals or target == "dkd":
        return
    keep = ~expected
    fresh = z.detach()[keep]
    if target == "kd" or target == "topk":  # k = 10 is more than there are classes
        heat = 1.0 if task == "language" else 4.0  # by default
        loss = heat**2 * divergence(fresh, kd(v[keep], heat), heat).mean()
        assert value.item() == pytest.approx(loss.item(), rel=1e-4)
    elif target == "pt":
        truth = true_probability(v[keep], labels[keep])
        loss = divergence(fresh, pt(truth, labels[keep], CLASSES)).mean()
        assert value.item() == pytest.approx(loss.item(), rel=1e-4)


class Dense(nn.Module):
    """A teacher of pixels or tokens by a linear layer."""

    def __init__(self, task: str) -> None:
        super().__init__()
        self.task, self.fc = task, nn.Linear(1, CLASSES)

    def forward(self, x):
        x = self.fc(x.float().movedim(1, -1))
        if self.task == "classification":
            return x.mean((1, 2))
        return x.movedim(-1, 1) if self.task == "segmentation" else x.flatten(1, 2)


def samples(task: str) -> InMemory:
    found = pictures(6)
    if task == "classification":
        return found
    masks = found.labels.view(-1, 1, 1).expand(-1, 6, 6).to(torch.uint8)
    return (InMemory if task == "segmentation" else Words)(found.pixels, masks)


class Words(InMemory):
    """Pixels as if they were words."""

    def _fetch(self, index, view, augment):
        batch = super()._fetch(index, view, augment)
        batch.labels = batch.labels.flatten(1)
        return batch


def test_a_convolutional_head_falls_back_to_predictions(caplog):
    class Conv(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Conv2d(1, CLASSES, 1)

        def forward(self, x):
            return self.head(x).mean((2, 3))

    with caplog.at_level(logging.INFO, logger="protege"):
        made = term("sim", teacher=model(Conv()))
    assert "no linear logit layer" in caplog.text
    assert "τ" in caplog.text
    assert made.signals == ()
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="protege"):
        term("sim", teacher=model(seed=2), tau=0.2)
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"k": 3}, r"k = 3 does not belong to target 'kd'; expected it with target topk"),
        ({"target": "pt", "temperature": 4}, r"temperature = 4.0 .* expected it with target kd, topk, dkd"),
        ({"target": "sim", "mix": 0.5}, r"mix .* pt_sim"),
    ],
)
def test_settings_of_another_target_are_refused(given, message):
    with pytest.raises(UserError, match=message):
        term(**{"target": "kd", **given})


@pytest.mark.parametrize("target", list(TARGETS))
def test_no_labels_at_all(target):
    unlabelled = InMemory(pictures().pixels, torch.full((48,), UNLABELLED))
    if target in UNLABELLED_TOO:
        assert term(target, samples=unlabelled).signals
    else:
        with pytest.raises(UserError, match=f"target '{target}' needs labels.*expected kd or topk"):
            term(target, samples=unlabelled)


@pytest.mark.parametrize("target", list(TARGETS))
def test_every_target_trains_a_student_from_the_cache(target, tmp_path):
    """And what is stored is what the target needs: of topk, k numbers; of ls and sim, nothing."""
    student, teacher = model(seed=1), model(Net(width=8), seed=2)
    extra = {"k": 2} if target == "topk" else {}
    phases = plan("kd", student, teacher, target=target, **extra)
    made = loop(student, tmp_path, views=1, epochs=4, batch_size=16, augment=Augment(), lr=0.05, folder=tmp_path / "c")
    state = perform(made, phases)
    epochs = [event["train"] for event in events(tmp_path) if event["event"] == "epoch"]
    assert epochs[-1]["kd_loss"] < epochs[0]["kd_loss"]
    if target in ("ls", "sim"):
        assert state.forwarded == 0
        assert not phases[0].sources
    else:
        assert (state.forwarded, state.served) == (48, 4 * 48)
        assert phases[0].sources[0].signals == ((TopK(2, 4.0),) if target == "topk" else (Logits(),))


def test_a_cache_of_topk_is_small(tmp_path):
    logits = torch.randn(2, 32_000)
    sizes = {}
    for signal in (Logits(), TopK(10, 4.0)):
        cache = SignalCache(
            tmp_path / type(signal).__name__,
            {},
            signal.fields(logits, CLASSIFICATION),
            total=100,
            used=100,
            budget=2**30,
        )
        sizes[type(signal)] = cache.view_bytes / 100
    assert sizes == {Logits: 64_004, TopK: 44}
