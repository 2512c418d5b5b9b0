"""Whole photos are brought to a network's size by its own rule wherever it is judged; training views stay."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from test_data_images import write_images
from torch import nn
from torch.utils.data import Dataset

import protege
from protege import InputSpec, Model, distill, evaluate, load_data, load_model
from protege.data import CLEAN, Augment
from protege.data.framing import RESAMPLING, Frame
from protege.errors import UserError
from protege.models import framed_for, seen_by

SIZES = [(61, 40), (40, 67), (53, 53), (90, 41), (44, 97), (70, 71)]
RULE = {"size": (24, 24), "interpolation": "bicubic", "crop_share": 0.8, "crop_mode": "center"}


def photo(number: int) -> Image.Image:
    width, height = SIZES[number % len(SIZES)]
    noise = np.random.default_rng(number).integers(0, 256, (9, 12, 3), np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def by_hand(image: Image.Image, size: int = 24) -> torch.Tensor:
    """Shorter side to size / 0.8, bicubic, and the middle."""
    side = int(size / 0.8)
    scale = side / min(image.size)
    whole = tuple(side if edge == min(image.size) else int(edge * scale + 1e-9) for edge in image.size)
    left, top = (round((edge - size) / 2) for edge in whole)
    cut = image.resize(whole, Image.Resampling.BICUBIC).crop((left, top, left + size, top + size))
    return torch.from_numpy(np.array(cut)).permute(2, 0, 1)


class Brightness(nn.Module):
    """Two classes: the red in the middle of an image, and what it is not."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x):
        middle = x[:, :, 6:-6, 6:-6].mean((2, 3))
        return torch.stack([middle[:, 0] - middle[:, 1], middle[:, 1] - middle[:, 0]], 1) * self.scale


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    def named(part, n):  # by what the network says of the photo as it wants it
        said = Brightness()(by_hand(photo(n)).float()[None])[0].argmax()
        return f"{part}/{'ab'[int(said)]}/{n}.png"

    parts = [("train", n) for n in range(12)] + [("test", n) for n in range(12, 24)]
    return write_images(tmp_path_factory.mktemp("photos"), {named(*part): photo(part[1]) for part in parts})


def model(**rule) -> Model:
    return Model(Brightness(), InputSpec(**RULE | rule), classes=("a", "b"))


def clean(samples) -> torch.Tensor:
    return samples.fetch(torch.arange(len(samples)), CLEAN, Augment()).inputs


def shown(folder) -> torch.Tensor:
    files = sorted(folder.glob("test/*/*"))
    return torch.stack([by_hand(Image.open(path)) for path in files])


@pytest.mark.parametrize("how", [{}, {"memory_limit": 1}, {"image_size": 24}])
def test_photos_are_framed_as_the_network_wants_them(folder, how):
    data = load_data(f"images:{folder}", **how)
    framed = framed_for(model(), data)
    assert framed.train.shape == (3, 24, 24)
    assert torch.equal(clean(framed.test), shown(folder))
    assert framed.test.fingerprint() != data.test.fingerprint()
    assert framed_for(model(), framed) is framed
    assert framed.test.in_memory == data.test.in_memory == ("memory_limit" not in how)
    back = framed.framed(Frame())
    assert torch.equal(clean(back.test), clean(data.test))
    assert back.test.fingerprint() == data.test.fingerprint()


def test_an_image_size_that_was_asked_for_stays(folder):
    data = framed_for(model(), load_data(f"images:{folder}", image_size=40))
    assert torch.equal(clean(data.test)[0], by_hand(Image.open(min(folder.glob("test/*/*"))), 40))


def test_training_views_stay(folder):
    data, augment, at = load_data(f"images:{folder}", image_size=24), Augment(crop=0.3, flip=True), torch.arange(6)
    framed = framed_for(model(), data)
    for view in range(3):
        assert torch.equal(*(part.train.fetch(at, view, augment).inputs for part in (data, framed)))
    part = framed.train.part(torch.tensor([3, 1])).relabelled(torch.tensor([1, 0]))
    again = part.framed(Frame()).framed(model().input.frame)
    for other in (part.copied("cpu"), again):
        assert torch.equal(clean(other), clean(framed.train)[[3, 1]])
        assert torch.equal(other.fetch(at[:2], 0, augment).inputs, part.fetch(at[:2], 0, augment).inputs)
        assert torch.equal(other.labels, part.labels)


@pytest.mark.parametrize("how", [{}, {"memory_limit": 1}])
def test_photos_of_a_dataset_are_framed_where_they_are_resized(how):
    class Photos(Dataset):
        def __len__(self):
            return 6

        def __getitem__(self, at):
            return photo(at), at % 2

    wanted = torch.stack([by_hand(photo(n)) for n in range(6)])
    framed = framed_for(model(), load_data(Photos(), image_size=24, whole=True, **how))
    assert torch.equal(clean(framed.test), wanted)
    alike = load_data([(photo(2), 0), (photo(2), 1)], whole=True)
    assert framed_for(model(), alike) is alike  # as large as they were given: they may be framed already


def test_small_images_keep_their_size(folder, tmp_path):
    data = load_data(f"images:{write_images(tmp_path, {f'{n % 2}/{n}.png': photo(2) for n in range(8)})}")
    assert framed_for(model(), data) is data


def test_a_network_is_judged_on_photos_as_it_wants_them(folder):
    assert evaluate(model(), f"images:{folder}")["accuracy"] == 1
    assert evaluate(model(crop_share=None, interpolation="bilinear"), f"images:{folder}")["accuracy"] < 1


def test_a_fresh_student_sees_what_its_teacher_sees(folder, tmp_path):
    run = distill(model(), "zoo:resnet8", f"images:{folder}", out=tmp_path / "run", epochs=1, samples=8, image_size=30)
    assert (
        run.result["teacher"]["metrics"]["accuracy"] == evaluate(model(), f"images:{folder}", image_size=30)["accuracy"]
    )
    assert run.student.input.frame == model().input.frame
    assert run.student.input.size == (30, 30)
    assert evaluate(tmp_path / "run" / "student", f"images:{folder}") == pytest.approx(run.metrics)
    assert load_model(tmp_path / "run").input == run.student.input


def test_teacher_and_student_may_want_other_photos(folder, tmp_path):
    student = Model(Brightness(), InputSpec(size=(20, 20)), classes=("a", "b"))
    run = distill(model(), student, f"images:{folder}", out=tmp_path / "run", epochs=1, image_size=24, lr=1e-9)
    assert run.result["teacher"]["metrics"]["accuracy"] == 1
    assert run.student.input.crop_share is None
    assert run.metrics["accuracy"] == pytest.approx(evaluate(student, f"images:{folder}", image_size=24)["accuracy"])


def test_a_spec_without_a_rule_is_that_of_before(tmp_path):
    spec = InputSpec(size=(20, 20), mean=(0.5,) * 3)
    before = (
        "kind='image', channels=3, size=(20, 20), mean=(0.5, 0.5, 0.5), std=(1.0, 1.0, 1.0), order='rgb', ranges=()"
    )
    assert repr(spec) == f"InputSpec({before})"  # which is in the fingerprints of caches and runs
    assert set(spec.to_dict()) == {"kind", "channels", "size", "mean", "std", "order"}
    folder = model().save(tmp_path / "model")
    written = json.loads((folder / "config.json").read_text())["input"]
    assert {key: written[key] for key in RULE} == RULE | {"size": [24, 24]}
    assert InputSpec.from_dict(model().input.to_dict()) == model().input
    assert "crop_share=0.8" in repr(model().input)


@pytest.mark.parametrize("how", RESAMPLING)
def test_batches_are_resized_as_pillow_does(how):
    raw = torch.randint(90, 170, (2, 3, 41, 33), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    spec = InputSpec(size=(23, 37), interpolation=how)
    images = [Image.fromarray(image.permute(1, 2, 0).numpy()).resize((37, 23), RESAMPLING[how]) for image in raw]
    wanted = torch.stack([torch.from_numpy(np.array(image)) for image in images]).permute(0, 3, 1, 2) / 255
    assert (spec(raw) - wanted).abs().max() < 2.1 / 255
    assert (spec(raw / 255) - wanted).abs().mean() < 1 / 255


@pytest.mark.parametrize(
    "wrong", [{"interpolation": "cubic"}, {"crop_share": 87.5}, {"crop_share": True}, {"crop_mode": "middle"}]
)
def test_what_is_no_rule_is_refused(wrong):
    with pytest.raises(UserError, match=min(wrong)):
        InputSpec(**wrong)


def test_samples_that_are_no_photos_stay():
    data = protege.load_data("digits")
    assert seen_by(model(), data.test) is data.test
