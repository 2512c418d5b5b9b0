"""Segmentation from network to report: U-Nets, figures per class, the audition, pictures, and whole runs."""

import json
import math
import re
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scenes import write_scenes
from tools import apart
from torch import nn

from protege import distill, evaluate, train
from protege.data import InMemory, load_data
from protege.data.labels import UNLABELLED
from protege.errors import UserError
from protege.models import InputSpec, Model, check_classes, count_parameters, load_model, zoo
from protege.models.unet import FACTORIES
from protege.tasks import TASKS
from protege.tasks.pictures import NO_LABEL, palette
from protege.tasks.task import Shown
from protege.training.loop import Loop

TINY = "zoo:unet10?width=8"  # with 4 channels oneDNN 3.x of torch 2.13 corrupts its heap in a strided 1×1 convolution


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("scenes"), train=24, val=4, test=6)


@pytest.fixture(scope="module")
def teacher(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("teacher") / "run"
    train(TINY, f"segmentation:{folder}", out, epochs=6, batch_size=4, optimizer="adamw", lr=0.01, augment="flip")
    return out


# ---- networks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FACTORIES)
def test_unets_label_every_pixel(name):
    network = zoo.build(name, {"num_classes": 5, "channels": 2, "width": 8}).eval()
    graph = torch.fx.symbolic_trace(network)
    for height, width in ((64, 96), (37, 51), (1, 5)):
        x = torch.randn(2, 2, height, width)
        assert network(x).shape == (2, 5, height, width)
        assert torch.equal(graph(x), network(x))
    network.train()(torch.randn(2, 2, 37, 51)).square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in network.parameters())


def test_the_stages_of_a_unet():
    network = zoo.build("unet18", {"num_classes": 5, "width": 8}).eval()
    sizes = {}
    stages = [name for name, _ in network.named_children()]
    for name in stages:
        getattr(network, name).register_forward_hook(lambda m, i, out, name=name: sizes.update({name: out.shape[2:]}))
    network(torch.randn(1, 3, 180, 240))
    assert stages == [
        "stem",
        "pool",
        *(f"layer{n}" for n in range(1, 5)),
        *(f"decoder{n}" for n in range(1, 5)),
        "head",
    ]
    assert list(sizes) == stages
    halves = [90, 45, 45, 23, 12, 6, 12, 23, 45, 90, 180]
    assert [size[0] for size in sizes.values()] == halves


def test_the_encoder_is_the_residual_network():
    """Its layers hold what a ResNet with the same blocks holds, so weights can be moved over by name."""
    unet = zoo.build("unet34", {"num_classes": 11, "width": 4})
    resnet = zoo.build("resnet34", {"num_classes": 11, "width": 4, "stem": "imagenet"})
    for n in range(1, 5):
        ours, theirs = (getattr(network, f"layer{n}").state_dict() for network in (unet, resnet))
        assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}
    encoder = count_parameters(resnet) - count_parameters(resnet.fc)
    decoders = sum(count_parameters(getattr(unet, f"decoder{n}")) for n in range(1, 5)) + count_parameters(unet.head)
    assert count_parameters(unet) == encoder + decoders


class Coarse(nn.Module):
    """Logits at half the image's size."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, num_classes, 3, stride=2, padding=1)

    def forward(self, x):
        return self.conv(x)


def test_networks_that_do_not_label_pixels(folder):
    data = load_data(f"segmentation:{folder}")
    with pytest.raises(UserError, match=r"labels 12×16 pixels but the data's masks have 24×32; outputs as large as"):
        check_classes(load_model(Coarse(3), data=data), data)
    with pytest.raises(UserError, match=r"shape \[2, 3\] where logits for each pixel.* such as zoo:unet18"):
        check_classes(load_model("zoo:resnet20", data=data), data)
    with pytest.raises(UserError, match=r"has 4 outputs but the data has 3 classes"):
        check_classes(load_model(TINY, num_classes=4), data)
    digits = load_data("digits")
    with pytest.raises(UserError, match=r"shape \[2, 10, 8, 8\] where one row of logits an image is expected"):
        check_classes(load_model(TINY, data=digits), digits)


def test_a_unet_takes_any_size(folder):
    model = load_model(TINY, data=load_data(f"segmentation:{folder}"))
    assert model.input.size is None
    assert model(torch.zeros(1, 3, 50, 41, dtype=torch.uint8)).shape == (1, 3, 50, 41)


# ---- figures ----------------------------------------------------------------------------------------------------


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 6), st.integers(1, 3), st.booleans())
def test_figures_against_a_loop(seed, classes, cut, pieces):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(4, classes, 5, 3, generator=generator) * 2
    labels = torch.randint(0, max(1, classes - 1), (4, 5, 3), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.3] = UNLABELLED
    metrics = TASKS["segmentation"].metrics(classes)
    for part in range(0, 4, cut if pieces else 4):
        step = slice(part, part + (cut if pieces else 4))
        metrics.update(logits[step], labels[step])
    found, details = metrics.compute(), metrics.details()
    both, either, right, total, nll = [0] * classes, [0] * classes, 0, 0, 0.0
    truths, guesses = [0] * classes, [0] * classes
    for n in range(4):
        for y in range(5):
            for x in range(3):
                truth = int(labels[n, y, x])
                if truth == UNLABELLED:
                    continue
                values = logits[n, :, y, x].double()
                guess = int(values.argmax())
                total, right = total + 1, right + (guess == truth)
                truths[truth] += 1
                guesses[guess] += 1
                nll += float(values.logsumexp(0) - values[truth])
                for k in range(classes):
                    both[k] += guess == truth == k
                    either[k] += k in (guess, truth)
    overlaps = [b / e if e else None for b, e in zip(both, either, strict=True)]
    known = [v for v in overlaps if v is not None]
    expected = {"miou": sum(known) / len(known), "pixel_accuracy": right / total, "nll": nll / total}
    occurring = [k for k in range(classes) if truths[k]]
    expected["balanced_accuracy"] = sum(both[k] / truths[k] for k in occurring) / len(occurring)
    expected["macro_f1"] = sum(2 * both[k] / (truths[k] + guesses[k]) for k in occurring) / len(occurring)
    assert found == pytest.approx(expected, rel=1e-5)
    assert details["per_class_iou"] == [v if v is None else pytest.approx(v) for v in overlaps]


def test_many_pixels_are_looked_at_in_parts(monkeypatch):
    logits, labels = torch.randn(6, 3, 4, 4), torch.randint(0, 3, (6, 4, 4))
    whole, parts = (TASKS["segmentation"].metrics(3) for _ in range(2))
    whole.update(logits, labels)
    monkeypatch.setattr("protege.tasks.metrics.AT_ONCE", 100)  # two images
    parts.update(logits, labels)
    assert parts.compute() == pytest.approx(whole.compute(), rel=1e-6)


# ---- runs -------------------------------------------------------------------------------------------------------


def test_train(teacher, folder):
    result = json.loads((teacher / "result.json").read_text())
    assert result["task"] == "segmentation"
    assert result["classes"] == ["0", "1", "2"]
    metrics = result["student"]["metrics"]
    assert set(metrics) == {"miou", "pixel_accuracy", "balanced_accuracy", "macro_f1", "nll"}
    assert metrics["miou"] > 0.5
    assert len(result["student"]["per_class_iou"]) == 3
    again = evaluate(str(teacher / "student"), f"segmentation:{folder}", precision="fp32")
    assert again["miou"] == pytest.approx(metrics["miou"], abs=0.02)


@pytest.mark.parametrize("memory_limit", ["1GiB", "1KiB"])
def test_distil(teacher, folder, tmp_path, memory_limit):
    data = f"segmentation:{folder}"
    settings = {"epochs": 2, "batch_size": 4, "views": 1, "fraction": 0.5, "memory_limit": memory_limit, "workers": 0}
    result = distill(str(teacher / "student"), TINY, data, "kd", tmp_path / "run", **settings).result
    assert result["data"]["train_samples"] == 12
    assert result["teacher"]["metrics"]["miou"] > 0.5
    assert math.isfinite(result["student"]["metrics"]["miou"])


@pytest.mark.parametrize("memory_limit", ["1GiB", "1KiB"])
def test_stage_by_stage(teacher, folder, tmp_path, monkeypatch, memory_limit):
    """Skip connections cross the cuts: earlier stages stay bit for bit, and caches give what forward passes give."""
    fit, seen = Loop._fit, []

    def watched(loop, phase, saved):
        outcome = fit(loop, phase, saved)
        own = {name.split("stages.0.")[-1] for name in phase.trainee.state_dict()}
        seen.append((phase.name, own, {name: value.clone() for name, value in loop.student.state_dict().items()}))
        return outcome

    monkeypatch.setattr(Loop, "_fit", watched)
    settings = {"epochs": 1, "batch_size": 4, "views": 1, "memory_limit": memory_limit, "workers": 0}
    settings |= {"precision": "fp32", "optimizer": "sgd", "select": "last", "patience": 0, "validation": 0}
    ends = []
    for budget in ("1GiB", "0"):
        seen.clear()
        out, data = tmp_path / budget, f"segmentation:{folder}"
        distill(str(teacher / "student"), TINY, data, "skd", out, cache_budget=budget, **settings)
        assert len(seen) > 5
        for (_, _, before), (name, own, after) in pairwise(seen):
            changed = {key for key in after if not torch.equal(before[key], after[key])}
            assert changed, name
            assert changed <= own, name
        ends.append((seen[0][2], seen[-1][2]))
    (_, cached), (start, online) = ends
    assert apart(cached, online) < 0.02 * apart(start, online)


def test_a_teacher_that_looks_away_is_refused(folder, tmp_path):
    """One that calls every pixel the commonest class has a fair pixel accuracy, and knows nothing."""
    data = load_data(f"segmentation:{folder}")
    blind = load_model(TINY, data=data)
    with torch.no_grad():
        blind.network.head.conv2.weight.zero_()
        blind.network.head.conv2.bias.copy_(torch.tensor([0.0, 0.0, 5.0]))
    with pytest.raises(UserError, match=r"at chance level .*mean accuracy of the classes 0.333, chance 0.333"):
        distill(blind, TINY, data, "kd", tmp_path / "run", epochs=1)
    assert not (tmp_path / "run").exists()


# ---- pictures ---------------------------------------------------------------------------------------------------


class Says(nn.Module):
    """Calls every pixel one class."""

    def __init__(self, label: int) -> None:
        super().__init__()
        self.label = label

    def forward(self, x):
        logits = torch.zeros(len(x), 3, *x.shape[2:])
        logits[:, self.label] = 1
        return logits


def draw(data, out, **networks) -> None:
    """Pictures of the first and the last scene of the test split."""
    batch = data.test.fetch(torch.tensor([0, 5]), -1, data.augment)
    TASKS["segmentation"].pictures(Shown(batch.inputs, batch.labels, [0, 5], networks, data.classes), out)


@pytest.mark.parametrize("grey", [False, True])
def test_pictures(folder, tmp_path, grey):
    data = load_data(f"segmentation:{folder}")
    if grey:
        data = replace(data, test=InMemory(data.test.pixels[..., :1], data.test.masks))
    student, teacher = (Model(Says(n), InputSpec(), task="segmentation") for n in (1, 2))
    student.train()
    draw(data, tmp_path, teacher=teacher, student=student)
    assert student.training
    index = json.loads((tmp_path / "pictures" / "index.json").read_text())
    assert index["legend"]["classes"][2] == [data.classes[2], "#{:02x}{:02x}{:02x}".format(*palette(3)[2])]
    assert [scene["position"] for scene in index["scenes"]] == [0, 5]
    for scene in index["scenes"]:
        files = {name: Image.open(tmp_path / "pictures" / file) for name, file in scene["files"].items()}
        assert list(files) == ["image", "truth", "teacher", "student", "difference"]
        truth = np.asarray(files["truth"]).astype(np.int64)
        expected = data.test.fetch(torch.tensor([scene["position"]]), -1, data.augment).labels[0].numpy()
        assert (np.where(expected == UNLABELLED, 255, expected) == truth).all()
        assert (np.asarray(files["student"]) == 1).all()
        assert (np.asarray(files["teacher"]) == 2).all()
        assert scene["right"]["student"] == pytest.approx((truth == 1).sum() / (truth != 255).sum())
        colours = files["truth"].convert("RGB")
        assert colours.getpixel((0, 0)) == NO_LABEL
        assert colours.getpixel((31, 23)) == palette(3)[truth[23, 31]]


def test_colours_differ():
    assert len(set(palette(255))) > 250
    assert palette(40)[:5] == palette(5)
    for n, a in enumerate(palette(20)):
        assert all(sum(abs(x - y) for x, y in zip(a, b, strict=True)) > 30 for b in [*palette(n), NO_LABEL])


def test_the_report_shows_scenes_and_classes(teacher, folder, tmp_path):
    from protege.report import write_run_report
    from protege.report.page import drawing

    run = tmp_path / "run"
    run.mkdir()
    for name in ("result.json", "recipe.toml", "metrics.jsonl"):
        (run / name).write_bytes((teacher / name).read_bytes())
    data = load_data(f"segmentation:{folder}")
    student = load_model(teacher)
    draw(data, run, student=student)
    page = write_run_report(run).read_text().replace(drawing(), "")
    assert len(re.findall(r'<img src="data:image/(png|jpeg);base64,', page)) == 2 * 4
    assert "img-src data:" in page
    assert "Class by class: intersection over union" in page
    assert "the student is wrong" in page
    assert "http" not in page.replace("http-equiv", "")
    (run / "pictures" / "index.json").write_text("{")  # damaged pictures are left out
    (run / "pictures" / "0-image.jpg").unlink()
    assert "<img" not in write_run_report(run).read_text().replace(drawing(), "")
