"""Images without classes: what can teach on them, and that all else says so before it begins."""

import copy
import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import protege
from protege.data import CLEAN, Augment, choose, load_data
from protege.errors import UserError
from protege.models import Model, load_model
from protege.models.inputs import InputSpec
from protege.report import write_report
from protege.run.shrinking import shrink


def draw(folder, count=12, seed=0):
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{number}.png")
    return folder


def model(seed=0):
    torch.manual_seed(seed)
    convs = [nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Conv2d(12, 12, 3), nn.ReLU()]
    network = nn.Sequential(*convs, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 3))
    return Model(network, InputSpec(size=(8, 8), mean=(0.5,) * 3, std=(0.25,) * 3), classes=("a", "b", "c"))


def shrunk(teacher):
    return shrink(teacher, ratio=0.5, dry_run=True)


class Alone(torch.utils.data.Dataset):
    """Items that are images and nothing else."""

    def __init__(self, count=12):
        self.pixels = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, position):
        return Image.fromarray(self.pixels[position])


@pytest.mark.parametrize("kind", ["tensor", "array", "grey tensor"])
def test_arrays_without_labels_are_images_not_scenes(kind):
    pixels = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8)
    sets = {"tensor": pixels, "array": pixels.permute(0, 2, 3, 1).numpy(), "grey tensor": pixels[:, :1]}
    items = list(sets[kind])
    data = load_data(items)
    assert (data.task, len(data.train), data.labelled) == ("classification", 6, False)
    fetched = data.train.fetch(torch.arange(6), CLEAN, Augment()).inputs
    assert torch.equal(fetched, sets["tensor" if kind == "array" else kind])
    with pytest.raises(UserError, match=r"label 0\.0; an integer from 0 is expected: give class numbers as integers"):
        load_data((pixels, torch.zeros(6)))


def test_images_without_classes_are_data(tmp_path):
    data = load_data(f"images:{draw(tmp_path / 'some')}")
    assert (len(data.train), data.classes, data.test, data.labelled) == (12, (), None, False)
    assert bool((data.train.labels == -100).all())


def test_a_training_folder_may_lack_the_labels_that_the_test_folder_has(tmp_path):
    draw(tmp_path / "train")
    for name in ("b", "a"):
        draw(tmp_path / "test" / name, 3)
    data = load_data(f"images:{tmp_path}")
    assert (data.classes, data.labelled, len(data.test)) == (("a", "b"), False, 6)


@pytest.mark.parametrize(
    ("made", "told"),
    [
        ({"a": 0}, "holds no class folders; .* or images without classes directly in it"),
        ({"a": 2, "a/b": 2}, "only one class, 'b'; at least two are expected, or images without classes"),
        ({"a/train": 2, "a/test": 2}, "data path .*test holds no class folders; put each class's images in a folder"),
    ],
)
def test_what_is_neither_is_told(made, told, tmp_path):
    for name, count in made.items():
        draw(tmp_path / name, count)
    with pytest.raises(UserError, match=told):
        load_data(f"images:{tmp_path / 'a'}")


def agreed(student, teacher, data, positions=range(12)):
    """How often both choose the same class, one image at a time."""
    samples = load_data(data).train
    images = [samples.fetch(torch.tensor([at]), CLEAN, Augment()).inputs for at in positions]
    return sum(int(student(x).argmax() == teacher(x).argmax()) for x in images) / len(images)


def test_images_that_did_not_teach_judge(tmp_path):
    teacher, data = model(), f"images:{draw(tmp_path / 'some', 30)}"
    common = {"data": data, "method": "kd", "epochs": 1, "precision": "fp32"}
    found = protege.distill(teacher, model(1), samples=10, out=tmp_path / "run", **common)
    assert found.result["student"]["measured_on"] == {"samples": 20, "unseen": True}
    taught = set(choose(None, samples=10, seed=0, count=30).tolist())
    others = [at for at in range(30) if at not in taught]
    assert found.metrics["agreement"] == agreed(found.student, teacher, data, others)
    assert found.result["student"]["before"]["agreement"] == agreed(model(1), teacher, data, others)
    assert "chooses the teacher’s class, on 20 images that did not teach" in (found.out / "report.html").read_text()
    few = protege.distill(teacher, copy.deepcopy(teacher), samples=25, lr=1e-9, out=tmp_path / "few", **common)
    assert few.metrics == {"agreement": 1.0}
    assert few.result["student"]["measured_on"] == {"samples": 25, "unseen": False}, "five are too few to judge"


def test_a_teacher_of_one_class_is_told(tmp_path, caplog):
    brightest = nn.Linear(3, 3)
    brightest.weight.data, brightest.bias.data = 100 * torch.eye(3), torch.zeros(3)
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), brightest)
    teacher = Model(network, InputSpec(size=(8, 8), mean=(0.5,) * 3, std=(0.25,) * 3), classes=("a", "b", "c"))
    common = {"data": f"images:{draw(tmp_path / 'some')}", "method": "kd", "epochs": 1, "precision": "fp32"}
    protege.distill(teacher, model(1), out=tmp_path / "sound", **common)
    assert "one class for all" not in caplog.text
    brightest.bias.data[1] = 1000.0
    protege.distill(teacher, model(1), out=tmp_path / "run", **common)
    assert "chooses one class for all of 12 images" in caplog.text


@pytest.mark.parametrize("source", ["folder", "dataset"])
def test_recovery_runs_and_reports_without_labels(source, tmp_path):
    data = f"images:{draw(tmp_path / 'some')}" if source == "folder" else Alone()
    teacher = model()
    found = protege.distill(teacher, shrunk(teacher), data, method="fskd", finetune_steps=2, out=tmp_path / "run")
    assert found.metrics == {"agreement": agreed(found.student, teacher, data)}
    assert found.result["student"]["measured_on"] == {"samples": 12, "unseen": False}
    values = found.result["phases"][0]["best"]
    assert values["after"] < values["before"]
    assert found.result["classes"] == ["a", "b", "c"]
    page = (tmp_path / "run" / "report.html").read_text()
    assert "how often it chooses the teacher’s class, on 12 images that it learned from, as there are no others" in page
    assert "protege evaluate" not in page, "which would be refused"
    assert protege.load_model(found.out / "student", network=found.student.network).classes == ("a", "b", "c")


def test_the_teacher_tells_how_many_classes_there_are(tmp_path):
    data = f"images:{draw(tmp_path / 'some')}"
    found = protege.distill(model(), "zoo:cnn_tiny", data, method="kd", epochs=1, out=tmp_path / "run")
    assert found.student(torch.zeros(2, 3, 8, 8, dtype=torch.uint8)).shape == (2, 3)
    with pytest.raises(UserError, match=r"does not say how many classes it has; write zoo:cnn_tiny\?num_classes"):
        protege.distill("zoo:cnn_tiny", model(), data, method="kd", out=tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("told", "settings"),
    [
        ("method 'skd' needs labels, which the data", {"method": "skd"}),
        ("method 'none' needs labels, which the data", {"method": "none"}),
        ("method 'gpd' needs labels, which the data", {"method": "gpd"}),
        ("target 'pt' needs labels", {"method": "kd", "target": "pt"}),
        ("select = best and patience need labels", {"method": "fskd", "finetune_steps": 2, "select": "best"}),
        (r"validation = 0\.2 needs labels", {"method": "kd", "validation": 0.2}),
    ],
)
def test_what_needs_labels_says_so(told, settings, tmp_path):
    teacher = model()
    with pytest.raises(UserError, match=told):
        protege.distill(teacher, shrunk(teacher), Alone(), out=tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


def test_nothing_is_measured_on_them():
    with pytest.raises(UserError, match="has no labels to measure by"):
        protege.evaluate(model(), Alone(), split="train")


def test_an_export_is_shown_beside_those_it_comes_from(tmp_path):
    """Teacher and student before are found through the run's result, and only where they are folders."""
    from protege.run.exporting import _forerunners

    teacher = model()
    teacher.save(tmp_path / "teacher")
    teacher.save(tmp_path / "run" / "student")
    setup = {"teacher": {"spec": "os:getcwd", "params": 7, "macs": 9}, "student": {"spec": "zoo:cnn_tiny"}}
    (tmp_path / "run" / "result.json").write_text(json.dumps(setup))
    raw = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    found = _forerunners(tmp_path / "run" / "student", raw, None)
    assert found == _forerunners(tmp_path / "run", raw, None), "which names the same model"
    assert found == [
        {"role": "teacher", "spec": "os:getcwd", "params": 7, "macs": 9, "metrics": {}, "latency": None}
    ], "a result names no function to call"
    assert _forerunners(tmp_path / "teacher", raw, None) == []
    found += [{"role": "int8", "spec": "<b>", "params": 7, "bytes": 99, "metrics": {"accuracy": 0.5}, "latency": 1e-4}]
    (tmp_path / "export.json").write_text(json.dumps({"to": "int8", "file": "model_int8.pt2", "networks": found}))
    page = write_report(tmp_path).read_text().replace("\u00a0", " ")
    for shown in ("The student as int8 is 99 bytes", "os:getcwd", "&lt;b&gt;", "0.1 ms", "50.0 %", "100 %"):
        assert shown in page, shown


class Labelled(Alone):
    """Alone's images with a label each."""

    def __init__(self, labels, count=30):
        super().__init__(count)
        self.labels = labels

    def __getitem__(self, position):
        return super().__getitem__(position), int(self.labels[position])


def test_few_samples_are_drawn_without_a_look_at_their_labels(tmp_path):
    """The same student from two labellings, with fewer samples than classes; a teacher is not tried on the labels."""
    teacher, students = model(), []
    for number, labels in enumerate((np.arange(30) % 3, np.random.default_rng(1).permutation(np.arange(30) % 3))):
        settings = {"method": "fskd", "samples": 2, "out": tmp_path / str(number)}
        data = (Labelled(labels), Labelled(np.arange(30) % 3))
        students.append(protege.distill(teacher, shrunk(teacher), data, **settings).student.state_dict())
    assert all(torch.equal(value, students[1][key]) for key, value in students[0].items())
    settings = {"weight": 1.0, "samples": 1, "epochs": 1, "out": tmp_path / "kd"}
    assert protege.distill(teacher, shrunk(teacher), data, method="kd", **settings).result["data"]["train_samples"] == 1
    with pytest.raises(UserError, match="fewer than the 3 classes"):
        protege.distill(teacher, shrunk(teacher), data, method="skd", **settings | {"out": tmp_path / "skd"})


def test_a_teacher_at_chance_is_told_of_where_labels_may_be_anything(tmp_path, caplog, monkeypatch):
    """A method that reads no labels refuses nobody for them, but says what the test set shows."""
    monkeypatch.setenv("PROTEGE_CACHE", str(tmp_path / "cache"))
    teacher = model()
    data = load_data("digits")
    teacher = load_model("zoo:cnn_small", data=data)
    protege.distill(teacher, shrunk(teacher), data, method="fskd", samples=20, out=tmp_path / "run")
    assert "at chance level on the test set" in caplog.text
    with pytest.raises(UserError, match="at chance level on the transfer set"):
        protege.distill(teacher, shrunk(teacher), data, method="kd", weight=1.0, samples=20, out=tmp_path / "kd")


def test_figures_before_a_run_are_remembered_by_network_and_data(tmp_path, monkeypatch):
    """Each folder's network has its own, a fresh student has none, and modes stay as they are."""
    monkeypatch.setenv("PROTEGE_CACHE", str(tmp_path / "cache"))
    told = {}
    for number, name in enumerate(("teacher", "student")):
        data = load_data("digits")
        found = protege.train("zoo:cnn_small", data, out=tmp_path / name, epochs=1 + number, seed=number)
        told[name] = found.result["student"]["metrics"]
    assert not (tmp_path / "cache" / "evaluations").exists()  # both were fresh
    specs = {name: str(tmp_path / name / "student") for name in told}
    for again in (0, 1):
        run = protege.distill(**specs, data="digits", method="kd", epochs=1, samples=50, out=tmp_path / f"kd{again}")
        assert run.result["teacher"]["metrics"] == pytest.approx(told["teacher"])
        assert run.result["student"]["before"] == pytest.approx(told["student"])
        assert len(list((tmp_path / "cache" / "evaluations").iterdir())) == 2
    student = load_model("zoo:cnn_small", data=data).train()
    with pytest.raises(UserError, match="select = best"):
        protege.distill(specs["teacher"], student, data, method="kd", select="best", validation=0.0, out=tmp_path / "x")
    assert student.training


def test_the_last_line_says_what_agreement_was_measured_on(tmp_path, capfd):
    protege.distill(model(), model(1), Alone(), method="kd", epochs=1, out=tmp_path / "run")
    assert "with the teacher, on 12 images that it learned from; the student is in" in " ".join(
        capfd.readouterr().err.split()
    )


def test_the_items_of_a_tensor_dataset_of_images_are_images():
    pixels = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8)
    data = load_data(torch.utils.data.TensorDataset(pixels))
    assert not data.labelled
    assert torch.equal(data.train.fetch(torch.arange(6), CLEAN, Augment()).inputs, pixels)
