"""The task without labels: a student learns the vectors of a headless encoder, and takes its place."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from protege import Model, distill, evaluate, load_data, load_model, train
from protege.data import CLEAN, Augment
from protege.errors import UserError
from protege.models.zoo import build
from protege.tasks import TASKS

COMMON = {"task": "embeddings", "samples": 120, "epochs": 2, "seed": 0, "precision": "fp32"}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Model:
    """A network of images that learned digits, without its head: [N, 64]."""
    model = train("zoo:resnet20", "digits", out=tmp_path_factory.mktemp("t") / "t", epochs=2, seed=0).student
    model.network.fc = nn.Identity()
    return model


def vectors(model: Model, split: str = "test") -> Tensor:
    samples = getattr(load_data("digits"), split)
    with torch.no_grad():
        return model.eval()(samples.fetch(torch.arange(len(samples)), CLEAN, Augment()).inputs)


def naive(ours: Tensor, theirs: Tensor) -> dict[str, float]:
    """Mean cosine and recall of nearest neighbours, pair by pair in double precision."""
    a, b = ours.double().numpy(), theirs.double().numpy()

    def cosine(x, y) -> float:
        return float(x @ y / np.sqrt((x @ x) * (y @ y)))

    def nearest(rows, n) -> int:
        return max((m for m in range(len(rows)) if m != n), key=lambda m: cosine(rows[n], rows[m]))

    count = len(a)
    hits = sum(nearest(a, n) == nearest(b, n) for n in range(count))
    return {"cosine": sum(map(cosine, a, b)) / count, "recall_at_1": hits / count}


@pytest.mark.parametrize("method", ["kd", "skd"])
def test_a_student_comes_near_its_teacher(encoder, method, tmp_path):
    result = distill(encoder, "zoo:resnet8", "digits", method, tmp_path, **COMMON)
    before = result.result["student"]["before"]
    assert result.metrics["cosine"] > max(0.6, before["cosine"] + 0.2)
    assert list(result.metrics) == ["cosine", "recall_at_1"]
    assert result.result["teacher"]["metrics"] == pytest.approx({"cosine": 1, "recall_at_1": 1})
    ours, theirs = vectors(result.student), vectors(encoder)
    assert ours.shape == theirs.shape == (360, 64)  # it can take the teacher's place
    few = TASKS["embeddings"].taught_by(nn.Identity()).metrics(0)
    for start in range(0, 60, 25):
        few.update(ours[start : min(60, start + 25)], torch.zeros(0), theirs[start : min(60, start + 25)])
    assert few.compute() == pytest.approx(naive(ours[:60], theirs[:60]), abs=1e-6)
    assert result.metrics["cosine"] == pytest.approx(F.cosine_similarity(ours, theirs).mean().item(), abs=1e-5)
    config = json.loads((tmp_path / "student" / "config.json").read_text())
    assert config["task"] == "embeddings"
    page = (tmp_path / "report.html").read_text()
    assert "recall at 1" in page
    assert "cosine" in page


@pytest.mark.parametrize("method", ["fitnets", "at", "fsp", "simultaneous", "none"])
def test_every_method_that_needs_no_classes_learns_vectors(encoder, method, tmp_path):
    result = distill(encoder, "zoo:resnet8", "digits", method, tmp_path, **{**COMMON, "epochs": 1})
    assert result.metrics["cosine"] > result.result["student"]["before"]["cosine"]


def test_labels_are_not_read(encoder, tmp_path):
    """The same images with other labels, and without any, make the same student."""
    made = []
    for n, scramble in enumerate((lambda labels: labels, lambda labels: labels.flip(0))):
        data = load_data("digits")
        train_set, test_set = data.train, data.test
        images = [
            torch.utils.data.TensorDataset(s.pixels.permute(0, 3, 1, 2), scramble(s.labels))
            for s in (train_set, test_set)
        ]
        made.append(distill(encoder, "zoo:resnet8", tuple(images), "kd", tmp_path / str(n), **COMMON))
    first, second = (result.student.state_dict() for result in made)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert made[0].metrics == made[1].metrics


def test_a_student_without_a_head_learns_stage_by_stage(encoder, tmp_path):
    """What follows its last cut only pools: that stage is then the head."""
    torch.manual_seed(0)
    student = build("resnet8", {"num_classes": 10})
    student.fc = nn.Identity()
    result = distill(encoder, student, "digits", "skd", tmp_path, **COMMON)
    assert [phase["name"] for phase in result.result["phases"]] == ["layer1", "layer2", "head"]
    assert result.metrics["cosine"] > 0.6


def test_photos_without_labels_and_a_resumed_run(encoder, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (30, 16, 16), dtype=np.uint8)
    for n, image in enumerate(noise):
        Image.fromarray(image).save(folder / f"{n}.png")
    settings = {"task": "embeddings", "epochs": 2, "seed": 0}
    first = distill(encoder, "zoo:resnet8?channels=1", f"images:{folder}", "kd", tmp_path / "run", **settings)
    assert first.result["student"]["measured_on"] == {"samples": 30, "unseen": False}
    assert set(first.metrics) == {"cosine", "recall_at_1"}
    (tmp_path / "run" / "result.json").unlink()  # as if it had been killed at the end
    again = distill(encoder, data=f"images:{folder}", out=tmp_path / "run", resume=True)
    assert again.metrics == first.metrics


def test_its_student_teaches_vectors_and_no_classes(encoder, tmp_path):
    student = distill(encoder, "zoo:resnet8", "digits", "kd", tmp_path / "a", **COMMON).student
    again = distill(str(tmp_path / "a" / "student"), "zoo:resnet8", "digits", "kd", tmp_path / "b", **COMMON)
    assert again.student.task == "embeddings"
    with pytest.raises(UserError, match=r"the teacher has learned the task 'embeddings'.*set task='embeddings'"):
        distill(student, "zoo:resnet8", "digits", "kd", tmp_path / "c", epochs=1)
    with pytest.raises(UserError, match="the model has learned the task 'embeddings'"):
        evaluate(load_model(tmp_path / "a" / "student"), "digits")
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"student": "zoo:resnet8?num_classes=32"}, "gives 32 values for each image and the teacher 64"),
        ({"method": "gpd"}, "method 'gpd' teaches by class probabilities.*choose kd or skd"),
        ({"method": "auto"}, "method 'auto' goes by what a teacher says about classes.*choose kd or skd"),
        ({"target": "topk"}, "target 'topk' teaches classes.*expected vectors"),
        ({"label_smoothing": 0.1}, "label_smoothing reads labels.*leave label_smoothing out"),
        ({"class_weights": "balanced"}, "class_weights reads labels"),
        ({"teacher": None, "method": "none"}, "has no teacher, whose vectors are what is learned"),
        ({"task": "segmentation"}, "task = 'segmentation' does not suit.*expected classification or embeddings"),
        ({"task": "embedding"}, "task = 'embedding' does not fit.*did you mean 'embeddings'"),
    ],
)
def test_what_has_no_meaning_is_refused(encoder, given, message, tmp_path):
    settings = {"teacher": encoder, "student": "zoo:resnet8", "data": "digits", "method": "kd", **COMMON, **given}
    with pytest.raises(UserError, match=message):
        distill(out=tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


def test_a_teacher_whose_vectors_are_all_alike_is_refused(tmp_path):
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.value = nn.Parameter(torch.ones(8))

        def forward(self, x):
            return self.value.expand(len(x), 8)

    with pytest.raises(UserError, match=r"at chance level on the transfer set \(spread of its vectors 0.000"):
        distill(Constant(), "zoo:resnet8", "digits", "kd", tmp_path / "run", **COMMON)


def test_the_task_of_the_data_may_be_named(tmp_path):
    results = [
        distill(
            student="zoo:resnet8", data="digits", method="none", out=tmp_path / str(n), epochs=1, samples=50, **more
        )
        for n, more in enumerate(({}, {"task": "classification"}))
    ]
    assert results[0].metrics == results[1].metrics
