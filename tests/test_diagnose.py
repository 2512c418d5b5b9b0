"""Reading a teacher: numbers against independent references, and verdicts on teachers that were made to fail."""

import copy
import json
import math
import tomllib
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

import protege
from protege.commands.app import program
from protege.data import CLEAN, Augment, Batch, InMemory, load_data
from protege.data.labels import UNLABELLED
from protege.data.synthetic import Dials, centres
from protege.diagnosis import Facts, facts_about, judge, kinship, recommend
from protege.diagnosis.measure import crossing, omega, reading, rescaling
from protege.diagnosis.relations import class_order, cosines, prediction_similarity, within_minus_between
from protege.diagnosis.rows import TEMPERATURES, TOP, read_rows, row_numbers
from protege.diagnosis.verdict import FAILING, HEALTHY, RISK, UNKNOWN, temperature_range
from protege.errors import UserError
from protege.methods.teaching import beside
from protege.models import Model, load_model
from protege.run.diagnose import diagnose
from protege.tasks import TASKS

CLASSIFICATION = TASKS["classification"]
DATA = "synthetic:classes=12,superclasses=3,correlation=0.5,noise=0.25,samples=1200,dim=32"


@pytest.fixture(scope="module")
def data():
    return load_data(DATA)


def taught(data, *, epochs, smoothing=0.0, wrong=0.0, lr=1e-2, hidden=64, spec=""):
    """A small network taught with Adam; `wrong` is the share of labels replaced by others."""
    torch.manual_seed(0)
    model = load_model(spec or f"zoo:mlp?hidden={hidden}", data=data)
    x, y = data.train.pixels.permute(0, 3, 1, 2), data.train.labels.clone()
    bad = torch.randperm(len(y))[: round(wrong * len(y))]
    y[bad] = (y[bad] + torch.randint(1, len(data.classes), (len(bad),))) % len(data.classes)
    optimiser = torch.optim.Adam(model.parameters(), lr=lr)
    for _ in range(epochs):
        for part in torch.randperm(len(y)).split(300):
            optimiser.zero_grad()
            F.cross_entropy(model(x[part]), y[part], label_smoothing=smoothing).backward()
            optimiser.step()
    return model.eval()


@pytest.fixture(scope="module")
def healthy(data):
    return taught(data, epochs=20)


def status(found) -> dict[str, str]:
    return {finding.name: finding.status for finding in found.findings}


# ---- rows and measures ------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=25)
@given(st.integers(2, 9), st.integers(1, 6), st.sampled_from([0.1, 1.0, 20.0]), st.integers(0, 9))
def test_the_numbers_of_a_row_are_those_of_a_naive_loop(classes, count, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(count, classes, generator=generator)
    truth = torch.randint(0, classes, (count,), generator=generator)
    found = row_numbers(logits, truth)
    for m in range(count):
        z, t = logits[m].double(), int(truth[m])
        p = (z - z.max()).exp() / (z - z.max()).exp().sum()
        rest = sum(float(p[j]) for j in range(classes) if j != t)
        others = [z[j] for j in range(classes) if j != t]
        assert found["log_p"][m] == pytest.approx(float(p[t].log()), rel=1e-4, abs=1e-5)
        assert found["log_rest"][m].exp() == pytest.approx(rest, rel=1e-3, abs=1e-12)
        assert found["confidence"][m] == pytest.approx(float(p.max()), rel=1e-4)
        assert found["square"][m] == pytest.approx(float((p**2).sum()), rel=1e-4)
        assert bool(found["right"][m]) == (int(z.argmax()) == t)
        ranked = p.sort(descending=True).values
        for n, k in enumerate(TOP):
            assert found["top"][m, n] == pytest.approx(float(ranked[:k].sum()), rel=1e-4)
        for n, temperature in enumerate(TEMPERATURES):
            soft = (z / temperature).softmax(0)
            assert found["truth_at"][m, n] == pytest.approx(float(soft[t]), rel=1e-3, abs=1e-7)
            assert found["entropy_at"][m, n] == pytest.approx(float(-(soft * soft.log()).nansum()), rel=1e-3, abs=1e-5)
        if classes > 2:
            share = torch.stack(others).softmax(0)
            entropy = float(-torch.special.xlogy(share, share).sum()) / math.log(classes - 1)
            assert found["others"][m] == pytest.approx(entropy, rel=1e-3, abs=1e-5)
        else:
            assert found["others"].isnan().all()


@settings(deadline=None, max_examples=20)
@given(st.integers(4, 9), st.floats(0.1, 50), st.floats(-30, 30))
def test_isolation_does_not_depend_on_scale_or_shift(classes, scale, shift):
    logits, truth = torch.randn(5, classes, dtype=torch.float64), torch.zeros(5, dtype=torch.int64)
    plain, moved = (row_numbers(z, truth)["isolation"] for z in (logits, scale * logits + shift))
    torch.testing.assert_close(plain, moved, rtol=1e-2, atol=1e-2)


def test_a_teacher_that_rounds_to_one_still_has_an_order_among_the_others():
    one = row_numbers(torch.tensor([[90.0, 2.0, 1.0, -3.0]]), torch.tensor([0]))
    assert one["log_p"].exp() == 1.0
    assert one["log_rest"].item() == pytest.approx(math.log(math.e**2 + math.e + math.e**-3) - 90, rel=1e-5)
    share = torch.tensor([2.0, 1.0, -3.0]).softmax(0)
    assert one["others"].item() == pytest.approx(float(-(share * share.log()).sum() / math.log(3)), rel=1e-5)


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 8), st.floats(0, 1), st.integers(0, 9))
def test_omega_is_the_ratio_of_gradients_by_autograd(classes, weight, seed):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(4, classes, generator=generator, dtype=torch.float64, requires_grad=True)
    v = 2 * torch.randn(4, classes, generator=generator, dtype=torch.float64)
    truth = torch.randint(0, classes, (4,), generator=generator)
    plain = F.cross_entropy(z, truth, reduction="sum")
    kd = (1 - weight) * plain - weight * (v.softmax(1) * z.log_softmax(1)).sum()
    by_kd, by_labels = (torch.autograd.grad(loss, z, retain_graph=True)[0] for loss in (kd, plain))
    ratio = (by_kd / by_labels).gather(1, truth[:, None])[:, 0]
    teacher, student = row_numbers(v, truth), row_numbers(z.detach(), truth)
    found = omega(teacher["log_rest"].double(), student["log_rest"].double(), weight)
    torch.testing.assert_close(found, ratio, rtol=1e-4, atol=1e-5)


def read(model, data, split="test", task=CLASSIFICATION, **kwargs):
    samples = getattr(data, split)
    kwargs = {"view": CLEAN, "augment": Augment(), **kwargs}
    return read_rows(model, samples, torch.arange(len(samples)), task, len(data.classes), **kwargs)


def test_accuracy_nll_and_ece_are_those_of_an_evaluation(data, healthy):
    found = reading(read(healthy, data))
    expected = protege.evaluate(healthy, data, precision="fp32")
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-5)
    assert sum(found["truth"]["histogram"]) == pytest.approx(1)
    assert found["top"]["1"] == pytest.approx(found["confidence"])
    assert found["temperatures"][0]["left"] == pytest.approx(1)


def test_a_reading_leaves_modes_as_they_were_and_repeats_itself(data):
    model = load_model("zoo:cnn_tiny", data=data).train()
    model.network.fc.eval()
    before = [module.training for module in model.modules()]
    first, again = read(model, data), read(model, data)
    assert [module.training for module in model.modules()] == before
    assert torch.equal(first.log_p, again.log_p)


def test_omega_rises_with_confidence_whatever_the_student(data, healthy):
    rows = read(healthy, data, "train")
    fresh = rescaling(rows, None, 0.9)
    assert fresh["rank_correlation"] == pytest.approx(1)
    assert not fresh["measured"]
    real = rescaling(rows, read(taught(data, epochs=2), data, "train"), 0.9)
    assert real["measured"]
    assert real["rank_correlation"] > 0.5
    medians = [one["median"] for one in real["bins"]]
    assert medians[-1] > medians[0]


def test_crossing_finds_where_a_curve_falls_to_a_level():
    curve = [{"temperature": t, "x": 1 - math.log(t) / 4} for t in TEMPERATURES]
    assert crossing(curve, "x", 0.6) == pytest.approx(math.exp(1.6), rel=1e-6)
    assert crossing(curve, "x", 1.5) == 1.0
    assert crossing(curve, "x", 0.01) is None


class Dense(nn.Module):
    """A network of the test's own: outputs looked up by the value of the input's first element."""

    def __init__(self, outputs: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("outputs", outputs)

    def forward(self, raw):
        return self.outputs[raw.flatten(1)[:, 0].long()]


class Labelled(InMemory):
    """Samples whose labels are per pixel or token."""

    def __init__(self, dense: torch.Tensor) -> None:
        count = len(dense)
        super().__init__(torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1), torch.zeros(count))
        self.dense, self.labels = dense, None

    def fetch(self, index, view, augment) -> Batch:
        return Batch(self.pixels[index].permute(0, 3, 1, 2), self.dense[index], index, view)


@pytest.mark.parametrize("task", ["segmentation", "language"])
def test_pixels_and_tokens_are_rows_like_images(task):
    torch.manual_seed(0)
    labels = torch.randint(0, 5, (6, 4, 3) if task == "segmentation" else (6, 12))
    labels[0, 0] = UNLABELLED
    outputs = torch.randn(*labels.shape, 5)
    network = Dense(outputs.movedim(-1, TASKS[task].class_dim).contiguous())
    found = read_rows(network, Labelled(labels), torch.arange(6), TASKS[task], 5, view=CLEAN, augment=Augment())
    known = labels.flatten() != UNLABELLED
    flat = row_numbers(outputs.reshape(-1, 5)[known], labels.flatten()[known])
    torch.testing.assert_close(found.log_p, flat["log_p"])
    assert len(found) == int(known.sum())
    assert found.counts.sum() == len(found)
    metrics = TASKS[task].metrics(5)
    metrics.update(outputs.movedim(-1, TASKS[task].class_dim), labels)
    assert reading(found)["nll"] == pytest.approx(metrics.compute()["nll"], rel=1e-5)


# ---- relations --------------------------------------------------------------------------------------------------


def test_predictions_of_a_network_that_mirrors_its_weights_show_their_cosines():
    torch.manual_seed(0)
    weights = torch.randn(7, 20)
    weights -= weights.mean(0)  # what softmax does not see
    samples = InMemory(torch.arange(7, dtype=torch.uint8).view(-1, 1, 1, 1), torch.arange(7))
    rows = read_rows(
        Dense(weights @ weights.T), samples, torch.arange(7), CLASSIFICATION, 7, view=CLEAN, augment=Augment()
    )
    torch.testing.assert_close(prediction_similarity(rows), cosines(weights), rtol=1e-3, atol=1e-3)


def test_the_hierarchy_of_synthetic_centres_shows_as_their_correlation():
    dials = Dials(classes=9, superclasses=3, correlation=0.7)
    matrix = cosines(torch.from_numpy(centres(dials)))
    assert within_minus_between(matrix, dials.superclass) == pytest.approx(0.7)
    mixed = torch.randperm(9)
    order = class_order(matrix[mixed][:, mixed], None)  # found without being told
    groups = [dials.superclass[int(mixed[n])] for n in order]
    assert sum(a != b for a, b in pairwise(groups)) == 2


# ---- the verdict ------------------------------------------------------------------------------------------------

MADE = {
    "smoothed": {"epochs": 40, "smoothing": 0.2},
    "overconfident": {"epochs": 100, "hidden": 128},
    "wrong": {"epochs": 120, "wrong": 0.3, "hidden": 256},
}


def test_nothing_is_said_against_a_healthy_teacher(data, healthy):
    found = diagnose(healthy, data, student="zoo:mlp?hidden=32")
    assert set(status(found).values()) == {HEALTHY}
    assert found.primary is None
    assert found.recommendation.method == "kd"
    assert found.recommendation.settings["temperature"] == 4


@pytest.mark.parametrize("failure", MADE)
def test_a_teacher_made_to_fail_is_told_by_its_failure(data, failure):
    found = diagnose(taught(data, **MADE[failure]), data)
    assert found.primary.name == failure
    assert status(found)[failure] == FAILING
    assert found.primary.advice


def test_a_teacher_at_chance_level_is_told_as_such(data):
    found = diagnose(nn.Sequential(nn.Flatten(), nn.Linear(32, 12)), data)
    assert found.primary.name == "wrong"
    assert "chance" in found.primary.evidence


def test_classes_in_another_order_are_less_than_chance(data, healthy):
    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = copy.deepcopy(healthy.network)

        def forward(self, x):
            return self.network(x).roll(1, dims=1)

    found = diagnose(Model(Shifted(), healthy.input), data)
    assert "less than chance" in found.primary.evidence
    assert "order" in found.primary.advice
    assert all(status(found)[name] == UNKNOWN for name in ("smoothed", "overconfident", "temperature"))


def test_probabilities_are_no_logits(data, healthy, tmp_path):
    class Soft(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = copy.deepcopy(healthy.network)

        def forward(self, x):
            return self.network(x).softmax(1)

    def soft():
        return Model(Soft(), healthy.input)

    expected = r"the teacher.* gives probabilities .* expected logits"
    with pytest.raises(UserError, match=expected):
        diagnose(soft(), data)
    with pytest.raises(UserError, match=expected):
        protege.distill(soft(), "zoo:mlp?hidden=8", data, out=tmp_path / "run")
    with pytest.raises(UserError, match=r"the student.* gives probabilities"):
        protege.distill(healthy, soft(), data, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_smoothing_shows_on_images_too():
    digits = replace(load_data("digits"), augment=Augment())  # as these networks are taught
    assert diagnose(taught(digits, epochs=25, smoothing=0.2), digits).primary.name == "smoothed"
    assert status(diagnose(taught(digits, epochs=6), digits))["smoothed"] == HEALTHY


def test_smoothing_shows_in_a_convolutional_network_too():
    digits = replace(load_data("digits"), augment=Augment())
    plain = taught(digits, epochs=40, spec="zoo:cnn_tiny")
    smooth = taught(digits, epochs=25, smoothing=0.2, spec="zoo:cnn_tiny")
    assert status(diagnose(plain, digits))["smoothed"] == HEALTHY
    assert diagnose(smooth, digits).primary.name == "smoothed"


def test_heat_is_judged_by_what_it_leaves(data, healthy):
    hot = diagnose(healthy, data, temperature=20)
    assert status(hot)["temperature"] == FAILING
    assert status(diagnose(healthy, data, temperature=2))["temperature"] == HEALTHY
    bounds = hot.result["temperature_range"]
    assert bounds["high"] < 20
    assert hot.recommendation.settings["temperature"] <= bounds["high"]


def test_what_is_left_is_measured_by_what_is_said_at_one(data, healthy):
    readings = [
        diagnose(healthy, data, temperature=heat).result["teacher"]["transfer"]["temperatures"] for heat in (0.5, 4)
    ]
    assert readings[0][0]["temperature"] == 0.5
    assert [at["left"] for at in readings[0][1:]] == [at["left"] for at in readings[1]]


def test_fewer_samples_than_classes_are_enough(data, healthy):
    found = diagnose(healthy, data, samples=3)
    assert found.result["facts"]["samples"] == 3


def test_temperature_at_which_mass_and_accuracy_are_equal():
    readings = [
        {"temperature": heat, "truth": mass, "confidence": mass, "left": mass}
        for heat, mass in ((1.0, 0.9), (2.0, 0.7), (4.0, 0.5))
    ]
    assert temperature_range({"temperatures": readings, "accuracy": 0.8})["matched"] == pytest.approx(2**0.5)
    assert temperature_range({"temperatures": readings, "accuracy": 0.95})["matched"] is None
    assert temperature_range({"temperatures": readings, "accuracy": 0.4})["matched"] is None


def test_a_gap_is_told_by_size_before_training_and_by_accuracy_after(data, healthy):
    far = diagnose(taught(data, epochs=20, hidden=512), data, student="zoo:mlp?hidden=4")
    assert status(far)["gap"] in (RISK, FAILING)
    assert far.recommendation.method == "gpd"
    assert not far.result["student"]["trained"]
    near = diagnose(healthy, data, student=copy.deepcopy(healthy))
    assert status(near)["gap"] == HEALTHY
    assert near.result["student"]["trained"]
    behind = diagnose(healthy, data, student=taught(data, epochs=3, hidden=16))
    assert status(behind)["gap"] in (RISK, FAILING)


class Cumulative(nn.Module):
    """Four numbers, each the sum of those before it: nothing that can be widened."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(32, 4), nn.Linear(4, 12)

    def forward(self, x):
        return self.last(self.first(x.flatten(1)).cumsum(1))


def test_gpd_is_not_recommended_where_it_cannot_run(data):
    found = diagnose(taught(data, epochs=20, hidden=512), data, student=Cumulative())
    assert status(found)["gap"] in (RISK, FAILING)
    assert found.recommendation.method == "kd"
    assert "gpd would suit, but does not take these networks: Cumulative" in found.recommendation.reasons[0]
    assert "cannot be widened" in found.result["facts"]["refused"]["gpd"]
    unlabelled = Facts("classification", 12, 5000, labelled=False, shrunk=False)
    advised = recommend(replace(unlabelled, labelled=True), found.result)
    assert advised.method == "gpd"
    assert advised.settings["weight"] == 0.5, "labels and teacher weigh the same in gpd"
    assert recommend(unlabelled, found.result).method == "kd", "without labels nothing would teach the dynamic teacher"


def test_skd_is_not_recommended_where_stages_do_not_correspond(data):
    found = diagnose(taught(data, epochs=20, hidden=512), data, student="zoo:mlp?hidden=128", samples=480)
    assert "skd" in found.result["facts"]["refused"]
    assert found.recommendation.method == "kd"
    assert "skd would suit, but does not take these networks: no stages" in found.recommendation.reasons[0]
    digits = load_data("digits")
    staged = diagnose(taught(digits, epochs=5, spec="zoo:cnn_tiny"), digits, student="zoo:cnn_tiny", samples=300)
    assert staged.recommendation.method == "skd"
    assert not staged.result["facts"]["refused"]


ADVISED = {"target": "kd", "weight": 0.6, "temperature": 4.0}


def test_a_surer_teacher_is_softened_more(data, healthy):
    measured = diagnose(healthy, data).result
    facts = Facts("classification", 12, 5000, labelled=True, shrunk=False)

    def heat(scale):
        class Sure(nn.Module):
            def __init__(self):
                super().__init__()
                self.network = copy.deepcopy(healthy.network)

            def forward(self, x):
                return scale * self.network(x)

        found = diagnose(Model(Sure(), healthy.input), data)
        return recommend(facts, found.result).settings["temperature"]

    assert recommend(facts, measured).settings["temperature"] == heat(1) == 4
    assert 4 < heat(30) <= 8
    assert heat(1000) == 8, "not even the highest T measured softens it"


@pytest.mark.parametrize(
    ("advised", "own", "expected"),
    [
        (ADVISED, {"epochs": 3}, ADVISED),
        (ADVISED, {"temperature": 2.0, "weight": 0.5}, {"target": "kd"}),
        (ADVISED, {"target": "pt"}, {"weight": 0.6}),
        (ADVISED, {"k": 3}, {"target": "topk", "weight": 0.6, "temperature": 4.0}),
        ({"target": "sim", "weight": 0.9}, {"temperature": 2.0}, {"target": "kd", "weight": 0.9}),
        ({}, {"temperature": 2.0}, {}),
    ],
)
def test_advice_stands_beside_what_the_user_set(advised, own, expected):
    assert beside(advised, own) == expected


def test_auto_takes_what_is_set(data, healthy, tmp_path, caplog):
    caplog.set_level("INFO", logger="protege")
    found = protege.distill(
        healthy, "zoo:mlp?hidden=8", data, method="auto", target="pt", weight=0.5, epochs=1, out=tmp_path / "run"
    )
    recipe = tomllib.loads((found.out / "recipe.toml").read_text())
    assert (recipe["method"], recipe["target"], recipe["weight"]) == ("kd", "pt", 0.5)
    assert "weight = 0.5 as you set it." in caplog.text
    assert "The advice on temperature does not suit that and is left out." in caplog.text


def test_it_says_when_it_cannot_tell(data, healthy):
    found = diagnose(healthy, data, samples=36)
    assert status(found) == dict.fromkeys(["wrong", "smoothed", "overconfident", "temperature", "gap"], UNKNOWN)
    assert found.result["cannot_tell"] == list(status(found))

    rows = read(healthy, data)
    unlabelled = type(rows)(**{**vars(rows), "labelled": torch.zeros(len(rows), dtype=torch.bool)})
    measured = {**diagnose(healthy, data).result}
    measured["teacher"] = {**measured["teacher"], "transfer": reading(unlabelled), "test": None}
    told = {finding.name: finding.status for finding in judge(measured)}
    assert told["wrong"] == told["smoothed"] == UNKNOWN
    assert told["overconfident"] == told["temperature"] == HEALTHY
    advised = recommend(Facts("classification", 12, 5000, labelled=False, shrunk=False), measured)
    assert advised.settings["weight"] == 1.0
    assert advised.settings["target"] in ("kd", "topk")


def test_two_classes_have_no_relations():
    data = load_data("synthetic:classes=2,superclasses=1,samples=200,dim=8")
    found = diagnose(taught(data, epochs=5), data)
    assert status(found)["smoothed"] == UNKNOWN
    assert status(found)["wrong"] != UNKNOWN


# ---- what to do -------------------------------------------------------------------------------------------------


def test_the_method_follows_from_data_labels_and_kinship():
    def method(samples=50_000, labelled=True, shrunk=False, task="classification"):
        return recommend(Facts(task, 100, samples, labelled, shrunk))

    assert method().method == "kd"
    assert method(samples=500, shrunk=True).method == "fskd"
    assert method(samples=500, shrunk=True).settings == {"solve": "kernel"}
    assert method(labelled=False, shrunk=True).method == "fskd"
    assert method(shrunk=True).method == "kd"
    assert method(samples=5000).method == "skd"
    assert method(samples=5000).settings == {"inherit": True}
    assert method(samples=5000, task="language").method == "kd"
    assert method(samples=100, task="segmentation").method == "skd"
    assert method(samples=500, task="segmentation").method == "kd"
    assert method(shrunk=True).settings == {"lr": 0.01}
    assert method(labelled=False).settings == {"weight": 1.0}
    assert [c.name for c in method(samples=5000).candidates] == ["skd, inherit", "kd", "simultaneous"]
    assert [c.name for c in method().candidates] == ["kd", "simultaneous", "skd, inherit"]
    assert [c.name for c in method(labelled=False).candidates] == ["kd"]
    assert all(method(samples=n).reasons for n in (100, 5000, 50_000))


def test_kin_have_the_same_names_and_smaller_shapes(data):
    def made(spec):
        return load_model(spec, data=data)

    teacher = made("zoo:mlp?hidden=64")
    assert kinship(made("zoo:mlp?hidden=32"), teacher) == "alike"
    assert kinship(made("zoo:mlp?hidden=64"), teacher) == ""
    assert kinship(made("zoo:mlp?hidden=128"), teacher) == ""
    assert kinship(made("zoo:mlp?depth=2"), teacher) == ""
    cut = made("zoo:mlp?hidden=32")
    cut.kept = {"layers.0": list(range(32))}
    assert kinship(cut, teacher) == "shrunk"
    some = torch.arange(100)
    assert facts_about(data, some, cut, teacher) == Facts("classification", 12, 100, labelled=True, shrunk=True)
    assert not facts_about(data, some, made("zoo:mlp?hidden=32"), teacher).shrunk
    assert facts_about(data, some, made("zoo:mlp?hidden=32"), teacher, trained=True).shrunk


# ---- files, page, command ---------------------------------------------------------------------------------------


def strict(text: str):
    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_the_folder_holds_all_numbers_and_a_page_that_needs_nothing_else(tmp_path, data, healthy):
    out = tmp_path / "found"
    found = protege.diagnose(healthy, data, student="zoo:mlp?hidden=32", out=out)
    held = strict((out / "diagnosis.json").read_text())
    assert held == found.result
    assert {one["name"] for one in held["verdicts"]} == {"wrong", "smoothed", "overconfident", "temperature", "gap"}
    page = (out / "report.html").read_text()
    shown = page.replace(protege.report.page.drawing(), "")
    for part in ("http://", "https://", "<img", "<link", " src="):
        assert part not in shown
    assert "s0/c00" in page
    assert all(finding.title in page for finding in found.findings)
    assert page.count("<figure") >= 8
    before = page
    protege.report.write_report(out)
    assert (out / "report.html").read_text() == before
    assert sorted(path.name for path in out.iterdir()) == ["diagnosis.json", "report.html"]


def test_nothing_is_overwritten_unasked(tmp_path, data, healthy):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty") as caught:
        diagnose(healthy, data, out=tmp_path)
    assert "--resume" not in str(caught.value)
    out = tmp_path / "d"
    diagnose(healthy, data, out=out)
    with pytest.raises(UserError, match="overwrite=True"):
        diagnose(healthy, data, out=out)
    diagnose(healthy, data, out=out, overwrite=True)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"teacher": "no/such/folder"}, "no/such/folder"),
        ({"teacher": "zoo:mlp?num_classes=3"}, "the teacher 'zoo:mlp"),
        ({"student": "zoo:mlp?num_classes=3"}, "the student 'zoo:mlp"),
        ({"data": "synthetic:classes=1"}, "classes=1"),
        ({"temperature": 0.0}, "temperature=…"),
        ({"weight": 1.5}, "weight=…"),
        ({"seed": -1}, "seed=…"),
        ({"samples": 10**6}, "samples 1000000"),
        ({"precision": "fp8"}, "fp8"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(tmp_path, change, told):
    given_ = {"teacher": "zoo:mlp", "data": DATA, **change}
    with pytest.raises(UserError) as caught:
        diagnose(given_.pop("teacher"), given_.pop("data"), out=tmp_path / "out", **given_)
    assert told in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_the_command_prints_the_verdict(tmp_path, healthy):
    healthy.save(tmp_path / "teacher")
    out = tmp_path / "out"
    arguments = [
        "diagnose",
        "--teacher",
        str(tmp_path / "teacher"),
        "--data",
        DATA,
        "--out",
        str(out),
        "--samples",
        "300",
    ]
    done = CliRunner().invoke(program, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    assert "healthy  Over-confident teacher" in done.stdout
    assert (out / "report.html").is_file()


def broken(data):
    """A network whose every output is not a number."""
    network = load_model("zoo:mlp?hidden=8", data=data)
    with torch.no_grad():
        network.network.fc.weight.fill_(torch.nan)
    return network


def test_a_teacher_at_chance_recommends_nothing(data, tmp_path):
    torch.manual_seed(0)  # one draw in many is above chance
    fresh = load_model("zoo:mlp?hidden=8", data=data)
    found = diagnose(fresh, data)
    assert found.recommendation.method == "none"
    assert found.recommendation.settings == {}
    assert "chance level" in found.recommendation.reasons[0]
    with pytest.raises(UserError, match=r"method auto: .* at chance level .*method='none'"):
        protege.distill(fresh, "zoo:mlp?hidden=8", data, method="auto", out=tmp_path / "auto")
    assert not (tmp_path / "auto").exists()


def test_values_that_are_not_finite_are_no_measurement(data, healthy, tmp_path):
    with pytest.raises(UserError, match="values that are not finite"):
        diagnose(broken(data), data)
    with pytest.raises(UserError, match="the model gives values that are not finite"):
        protege.evaluate(broken(data), data)
    with pytest.raises(UserError, match=r"the student .* values that are not finite"):
        protege.distill(healthy, broken(data), data, method="kd", epochs=1, out=tmp_path / "kd")
    assert not (tmp_path / "kd").exists()


def test_all_of_a_single_dataset_is_evaluated():
    items = [(torch.full((1, 8, 8), number / 40), number % 2) for number in range(40)]
    network = load_model("zoo:mlp?hidden=4", data=protege.load_data(items))

    class Counted(list):
        read, targets = 0, [0, 1] * 200

        def __getitem__(self, at):
            Counted.read += 1
            return super().__getitem__(at)

    protege.evaluate(network, Counted(items * 10))
    assert 400 <= Counted.read < 400 + 300  # once, and some of them again to see that they stay the same
    shares = [protege.evaluate(network, part)["accuracy"] for part in (items, items[:20], items[20:])]
    assert shares[0] == pytest.approx((shares[1] + shares[2]) / 2)


def test_a_folder_without_splits_is_measured_whole_or_as_a_run_would(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8)
    for number, image in enumerate(pixels):
        (tmp_path / "set" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / "set" / "ab"[number % 2] / f"{number:02}.png")
    data = f"images:{tmp_path / 'set'}"
    network = load_model("zoo:mlp?hidden=4", data=protege.load_data(data))
    items = [(image, number % 2) for number, image in enumerate(pixels)]
    whole = protege.evaluate(network, data, split="all")
    assert whole == pytest.approx(protege.evaluate(network, items))
    held = protege.load_data(data).test
    assert 0 < len(held) < 20
    assert protege.evaluate(network, data) != pytest.approx(whole)
    with pytest.raises(UserError, match="has splits; expected train, val or test"):
        protege.evaluate(network, "digits", split="all")
