"""Success that is none: what is no better than a count of labels is said to be so, and rare classes can be weighed."""

import json
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tools import CLASSES, model, pictures, plan, setup_of
from torch import nn
from torch.utils.data import TensorDataset

from protege import InputSpec, Model, diagnose, distill, evaluate, train
from protege.data import InMemory, load_data
from protege.data.labels import UNLABELLED
from protege.errors import UserError
from protege.losses import class_weights, cross_entropy
from protege.methods import METHODS
from protege.run.recipe import make_recipe
from protege.run.study import run_study
from protege.tasks import TASKS
from protege.tasks.guess import guesses, judged, learned, remark
from protege.training.evaluate import evaluate as measure

SHARES = [0.9, 0.04, 0.03, 0.03]
SPEC = InputSpec(channels=1, size=(8, 8), mean=(0.5,), std=(0.25,))


def stripes(count: int, seed: int) -> TensorDataset:
    """Grey noise with a bright stripe where the class says; nine of ten are of class 0."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.multinomial(torch.tensor(SHARES), count, True, generator=generator)
    images = torch.randint(0, 150, (count, 1, 8, 8), dtype=torch.uint8, generator=generator)
    for n in range(count):
        images[n, 0, :, 2 * labels[n] : 2 * labels[n] + 2] += 60
    return TensorDataset(images, labels)


class Lazy(nn.Module):
    """Cannot tell anything apart."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(classes))

    def forward(self, x):
        return self.bias + 0 * x.mean((1, 2, 3))[:, None]


def linear() -> Model:
    torch.manual_seed(0)
    return Model(nn.Sequential(nn.Flatten(), nn.Linear(64, 4)), SPEC)


def page(folder: Path) -> str:
    text = (folder / "report.html").read_text(encoding="utf-8")
    text = re.sub("<style.*?</style>|<script.*?</script>|<[^>]+>", " ", text, flags=re.DOTALL)
    return " ".join(text.replace("\u00a0", " ").split())


@pytest.fixture(scope="module")
def data() -> tuple[TensorDataset, TensorDataset]:
    return stripes(600, 0), stripes(400, 1)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, data) -> Model:
    return train(linear(), data, out=tmp_path_factory.mktemp("t") / "run", epochs=20, lr=0.1).student


def test_a_student_that_says_one_class_is_told_so(tmp_path, data, teacher, capsys) -> None:
    run = distill(teacher, Model(Lazy(), SPEC), data, out=tmp_path / "run", epochs=3)
    share = float((data[1].tensors[1] == 0).float().mean())
    assert run.metrics["accuracy"] == pytest.approx(share)
    assert run.metrics["balanced_accuracy"] == pytest.approx(0.25)
    assert run.metrics["macro_f1"] == pytest.approx(2 * share / (1 + share) / 4)
    student = run.result["student"]
    assert student["chance"]["accuracy"] == pytest.approx(share)
    assert student["commonest_guess"] == {"class": 0, "share": 1.0}
    sentence = f"That is no better than guessing: the commonest class alone has {100 * share:.1f} %."
    shown, printed = page(tmp_path / "run"), capsys.readouterr().err.replace("\u00a0", " ")
    for text in (shown, printed):
        assert "The student says class" in text
        assert "for all images" in text
        assert sentence in text
    assert "of its accuracy" not in shown
    assert f"guess to beat: {100 * share:.1f} %" in shown
    assert f"(guess to beat: {share:.4f})" in printed
    found = evaluate(run.student, data)
    assert found == pytest.approx(run.metrics)
    printed = capsys.readouterr().err.replace("\u00a0", " ")
    assert "The model says class '0' for all images. " + sentence in printed


def test_a_student_that_has_learned_is_measured_by_its_lead(tmp_path, data, teacher) -> None:
    torch.manual_seed(1)
    student = Model(nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 4)), SPEC)
    run = distill(teacher, student, data, out=tmp_path / "run", epochs=15, lr=0.1)
    share = run.result["student"]["chance"]["accuracy"]
    theirs = run.result["teacher"]["metrics"]["accuracy"]
    assert share < run.metrics["accuracy"] < theirs
    lead = 100 * (run.metrics["accuracy"] - share) / (theirs - share)
    shown = page(tmp_path / "run")
    found = re.search(r"keeps ([\d.]+) % of its lead over the commonest class alone \(([\d.]+) %\)", shown)
    assert found, shown[:400]
    assert float(found[1]) == pytest.approx(lead, abs=1)
    assert float(found[2]) == pytest.approx(100 * share, abs=0.1)
    assert "no better than guessing" not in shown


def test_a_lazy_teacher_may_not_teach_and_one_of_weighed_classes_may(tmp_path, data) -> None:
    lazy = train(Model(Lazy(), SPEC), data, out=tmp_path / "lazy", epochs=3).student
    with pytest.raises(UserError, match=r"is at chance level on the transfer set \(accuracy 0\.897, chance 0\.897"):
        distill(lazy, linear(), data, out=tmp_path / "no", epochs=1)
    seen = diagnose(lazy, data).result
    assert "that is chance" in seen["verdicts"][0]["evidence"]
    heeding = train(linear(), data, out=tmp_path / "heeding", epochs=3, lr=0.01, class_weights="balanced")
    share = heeding.result["student"]["chance"]
    assert heeding.metrics["accuracy"] < share["accuracy"]
    assert heeding.metrics["nll"] > share["nll"], "by every measure but one worse than a count"
    assert "The commonest class alone has" in page(tmp_path / "heeding")
    distill(heeding.student, linear(), data, out=tmp_path / "yes", epochs=1)
    seen = diagnose(heeding.student, data, student=Model(Lazy(), SPEC)).result
    assert "chance" not in seen["verdicts"][0]["evidence"]
    assert not seen["student"]["trained"]


def test_pixels_of_one_class(tmp_path) -> None:
    """Nine of ten are background, and a network that says nothing else."""
    labels = (torch.rand(8, 6, 6, generator=torch.Generator().manual_seed(0)) < 0.1).long()
    logits = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1).expand(8, 2, 6, 6)
    metrics = TASKS["segmentation"].metrics(2)
    metrics.update(logits, labels)
    part = {"metrics": metrics.compute(), **metrics.details()}
    share = float((labels == 0).float().mean())
    assert part["chance"]["accuracy"] == pytest.approx(share)
    assert guesses(part)["pixel_accuracy"] == pytest.approx(part["metrics"]["pixel_accuracy"])
    for name in ("miou", "balanced_accuracy", "macro_f1"):
        assert guesses(part)[name] == pytest.approx(part["metrics"][name])
    assert learned(part) is False
    text = remark(part, "miou", ["street", "car"]).replace("\u00a0", " ")
    assert text.startswith("The student says class 'street' for all pixels. That is no better than guessing")
    assert f"({100 * share:.1f} % of the pixels)" in text


@pytest.mark.parametrize(
    "kept", [(), ("nll",), ("accuracy",), ("balanced_accuracy",), ("accuracy", "nll"), ("macro_f1",)]
)
def test_a_task_may_have_other_metrics(kept) -> None:
    """One from outside names what it measures; what the guess is in that, nobody knows."""
    metrics = TASKS["classification"].metrics(4)
    metrics.update(F.one_hot(torch.zeros(40).long(), 4).float(), torch.arange(40) % 4)
    measured = {name: value for name, value in metrics.compute().items() if name in kept}
    found = judged({"metrics": {"score": 0.5, **measured}, **metrics.details()}, "score", list("abcd"))
    assert found["guess"].keys() == set(kept)
    assert found["learned"] in (None, False)
    assert "has" not in found["remark"]


def test_words_by_their_counts(tmp_path) -> None:
    """A network that says each word as often as it stands there is the guess; one that knows more is not."""
    (tmp_path / "train.txt").write_text("a a a b c\n" * 60)
    samples = load_data(f"text:{tmp_path}?length=5&context=0").test
    shares = samples.tokens.bincount(minlength=5).double() / len(samples.tokens)

    class Unigram(nn.Module):
        def forward(self, tokens):
            return shares.log().float().expand(*tokens.shape, 5)

    metrics, details = measure(Unigram(), samples, TASKS["language"].metrics(5))
    part = {"metrics": metrics, **details}
    assert metrics["perplexity"] == pytest.approx(guesses(part)["perplexity"])
    assert metrics["accuracy"] == pytest.approx(guesses(part)["accuracy"])
    assert learned(part) is False
    assert "no better than guessing: a count of the words has" in remark(part, "perplexity", ())
    assert learned({**part, "metrics": {**metrics, "nll": 0.5 * metrics["nll"]}})


def test_classes_that_do_not_occur_count_for_nothing() -> None:
    """Neither one that is never asked for, even where it is guessed."""
    metrics = TASKS["classification"].metrics(4)
    metrics.update(F.one_hot(torch.tensor([0, 0, 3, 1]), 4).float(), torch.tensor([0, 0, 0, 1]))
    found = metrics.compute()
    assert found["balanced_accuracy"] == pytest.approx((2 / 3 + 1) / 2)
    assert found["macro_f1"] == pytest.approx((2 * 2 / (3 + 2) + 1) / 2)
    assert metrics.details()["chance"]["classes"] == 2


def test_a_study_tells_the_guess(tmp_path, monkeypatch) -> None:
    """Balanced accuracy stands in the table unless it is the accuracy itself."""
    file = tmp_path / "study.toml"
    common = 'student = "zoo:mlp?hidden=8"\ndata = "digits"\nepochs = 1\n'
    file.write_text(f'name = "s"\nseeds = [0]\n[recipe]\n{common}method = "none"\n[grid]\nlr = [0.05]\n')
    found = run_study(file, tmp_path / "out")
    row = found["rows"][0]
    table = (tmp_path / "out" / "study.md").read_text()
    assert "| balanced accuracy | macro F1 |" in table
    assert f"Guess to beat: {100 * row['chance']['accuracy']:.1f} %." in table
    assert "guess to beat" in page(tmp_path / "out")
    from protege.report.table import study_markdown

    for run in found["rows"]:
        run["metrics"]["balanced_accuracy"] = run["metrics"]["accuracy"]
    assert "macro F1" not in study_markdown(found)


# ---- weights of classes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("wanted", ["balanced", (1.0, 2.0, 0.0, 5.0)])
def test_the_weighted_loss_is_torchs(smoothing, wanted) -> None:
    """Over all samples, whose mean weight is 1; and the mean over batches of any size is that over all."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.multinomial(torch.tensor(SHARES), 60, True, generator=generator)
    labels[:4] = torch.arange(4)
    logits = torch.randn(60, 4, generator=generator)
    counts = labels.bincount()
    weights = class_weights(wanted, counts)
    assert weights[labels].mean().item() == pytest.approx(1)
    if wanted == "balanced":
        assert (weights * counts).tolist() == pytest.approx([15.0] * 4)
    else:
        assert (weights / weights[0]).tolist() == pytest.approx(list(wanted))
    theirs = F.cross_entropy(logits, labels, weights, label_smoothing=smoothing)
    assert cross_entropy(logits, labels, smoothing, weights).item() == pytest.approx(theirs.item(), rel=1e-5)
    parts = [
        cross_entropy(*piece, smoothing, weights) for piece in zip(logits.split(20), labels.split(20), strict=True)
    ]
    assert torch.stack(parts).mean().item() == pytest.approx(theirs.item(), rel=1e-5)
    padded = torch.cat([labels, torch.full((9,), UNLABELLED)])
    more = torch.cat([logits, torch.randn(9, 4)])
    assert cross_entropy(more, padded, smoothing, weights).item() == pytest.approx(theirs.item(), rel=1e-5)


def test_classes_without_samples_get_no_weight() -> None:
    assert class_weights("balanced", torch.tensor([30, 0, 10])).tolist() == pytest.approx([2 / 3, 0, 2])


def uneven() -> InMemory:
    samples = pictures()
    return InMemory(samples.pixels, samples.labels.clamp(max=1))


@pytest.mark.parametrize("method", [name for name in METHODS if name != "fskd"])
def test_every_method_that_reads_labels_weighs_them(method) -> None:
    """The labels' loss of a step, against torch's; the teacher's term is as it was."""
    own = METHODS[method].settings(class_weights="balanced")
    samples = uneven()
    role = setup_of(model(), model(seed=1), TASKS["classification"], own, samples)
    assert role.class_weights is not None
    counts = samples.labels.bincount(minlength=CLASSES)
    expected = class_weights("balanced", counts)
    assert torch.equal(role.class_weights, expected)
    logits, labels = torch.randn(48, CLASSES), samples.labels
    loss = role.task_loss(logits, labels, torch.ones(48))
    assert loss.item() == pytest.approx(F.cross_entropy(logits, labels, expected).item())


def test_kd_weighs_the_labels_and_not_the_teacher() -> None:
    student, teacher = model(), model(seed=1)
    phases = {
        w: plan("kd", student, teacher, class_weights=w, weight=0.3) for w in (None, (3.0,) + (1.0,) * (CLASSES - 1))
    }
    batch = next(
        iter(setup_of(student, teacher, TASKS["classification"], METHODS["kd"].settings()).transfer.batches(48))
    )
    batch.signals["teacher"] = {"logits": teacher(batch.inputs).detach()}
    plain, weighed = (phase[0].step(student, batch) for phase in phases.values())
    assert weighed["kd_loss"].item() == pytest.approx(plain["kd_loss"].item())
    weights = torch.tensor([3.0] + [1.0] * (CLASSES - 1))
    expected = F.cross_entropy(student(batch.inputs), batch.labels, weights)
    assert weighed["task_loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    total = 0.7 * weighed["task_loss"] + 0.3 * weighed["kd_loss"]
    assert weighed["loss"].item() == pytest.approx(total.item(), rel=1e-5)


def test_weights_of_pixels_are_counted_in_their_masks() -> None:
    masks = torch.zeros(48, 6, 6, dtype=torch.uint8)
    masks[:, 0] = 1
    masks[:, 1] = 255
    network = Model(nn.Conv2d(1, 2, 1), InputSpec(channels=1))
    own = METHODS["none"].settings(class_weights="balanced")
    role = setup_of(network, None, TASKS["segmentation"], own, InMemory(pictures().pixels, masks))
    assert role.class_weights.tolist() == pytest.approx([30 / 24 / 2, 30 / 6 / 2])


def test_weights_raise_what_rare_classes_reach(tmp_path, data) -> None:
    plain = train(linear(), data, out=tmp_path / "plain", epochs=4, lr=0.01).metrics
    found = train(linear(), data, out=tmp_path / "weighed", epochs=4, lr=0.01, class_weights="balanced", select="best")
    assert found.metrics["balanced_accuracy"] > plain["balanced_accuracy"] + 0.1
    assert 'class_weights = "balanced"' in (tmp_path / "weighed" / "recipe.toml").read_text()
    logged = [json.loads(line) for line in (tmp_path / "weighed" / "metrics.jsonl").read_text().splitlines()]
    kept = found.result["phases"][0]["best"]
    measured = [event["eval"]["balanced_accuracy"] for event in logged if event["event"] == "epoch" and "eval" in event]
    assert kept["balanced_accuracy"] == max(measured), "the best state is the one best over classes"
    again = train(linear(), data, out=tmp_path / "list", epochs=1, class_weights=torch.tensor([1, 10, 10, 10]))
    assert "class_weights = [" in (tmp_path / "list" / "recipe.toml").read_text()
    assert again.metrics


@pytest.mark.parametrize(
    "given", ["1, 2,0.5", [1, 2, 0.5], (1.0, 2.0, 0.5), torch.tensor([1.0, 2.0, 0.5]), "[1,2,0.5]"]
)
def test_weights_are_given_as_text_or_list(given) -> None:
    recipe = make_recipe({"student": "s", "data": "d", "method": "none", "class_weights": given})
    assert recipe.class_weights == (1.0, 2.0, 0.5)


@pytest.mark.parametrize("given", ["balance", [1, -1], [0, 0], [], "1,x", [float("nan"), 1], 3, {"a": 1}])
def test_weights_that_cannot_be_meant(given) -> None:
    with pytest.raises(UserError, match=r"class_weights = .* does not fit: expected balanced, or a number from 0"):
        make_recipe({"student": "s", "data": "d", "method": "none", "class_weights": given})


def test_weights_are_refused_where_they_have_no_sense(tmp_path, data, teacher) -> None:
    """Before anything is written."""
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "train.txt").write_text("a b c\n" * 99)
    text, out = f"text:{tmp_path / 'text'}?length=5", tmp_path / "out"
    images = data[0].tensors[0]
    for refused, message in (
        (
            lambda: train(linear(), data, out=out, class_weights=[1, 2]),
            "has 2 values for 4 classes; expected one for each",
        ),
        (lambda: train("zoo:lstm?hidden=4", text, out=out, class_weights="balanced"), "do not suit text"),
        (lambda: distill(teacher, linear(), data, "kd", out, weight=1, class_weights="balanced"), "weight = 1 leaves"),
        (lambda: distill(teacher, linear(), data, "fskd", out, class_weights="balanced"), "fskd reads no label"),
        (lambda: distill(teacher, linear(), unlabelled(images), "kd", out, class_weights="balanced"), "need labels"),
    ):
        with pytest.raises(UserError, match=message):
            refused()
    assert not out.exists()


def unlabelled(images) -> TensorDataset:
    return TensorDataset(images, torch.full((len(images),), UNLABELLED))
