"""Networks of segmentation-models-pytorch: built, saved, taught stage by stage; skipped where it is missing."""

import inspect

import pytest
import torch
from scenes import scene, write_pair
from tools import events, imported

import protege
from protege.data import load_data
from protege.errors import UserError
from protege.models import load_model
from protege.models.sources import smp_normalisation


@pytest.fixture(scope="module", autouse=True)
def smp():
    """The library, or a skip."""
    return imported("segmentation_models_pytorch")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Scenes of 64×96 pixels: these networks want multiples of 32."""
    made = tmp_path_factory.mktemp("scenes")
    for at, (split, count) in enumerate({"train": 12, "test": 3}.items()):
        for n in range(count):
            write_pair(made, split, f"s{n}", *scene(100 * at + n, 64, 96))
    return made


def test_a_fresh_network_is_saved_and_found_again(folder, tmp_path):
    torch.manual_seed(0)
    model = load_model("smp:unet?encoder_name=resnet18", data=load_data(f"segmentation:{folder}"))
    assert (model.task, model.input.size, len(model.classes)) == ("segmentation", None, 3)
    raw = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    again = load_model(model.save(tmp_path / "model"))
    assert again.source == model.source
    assert torch.equal(again.eval()(raw), model.eval()(raw))
    assert again(raw).shape == (2, 3, 64, 96)


@pytest.mark.parametrize(
    ("student", "stages"),
    [
        ("smp:unet?encoder_name=resnet18", "encoder.layer1,encoder.layer2"),
        ("zoo:unet10?width=8", "layer1=encoder.layer1,layer2=encoder.layer2"),
    ],
)
def test_stage_by_stage(folder, tmp_path, student, stages):
    """A student of the library, and one of the zoo, learn from a teacher of the library through the front door."""
    data, out = f"segmentation:{folder}", tmp_path / "teacher"
    teacher = protege.train("smp:unet?encoder_name=resnet18", data, epochs=4, batch_size=4, lr=0.01, out=out).student
    settings = {"method": "skd", "epochs": 1, "batch_size": 4, "stages": stages, "out": tmp_path / "student"}
    settings |= {"epochs": 6, "lr": 0.01}
    found = protege.distill(teacher, student, data, **settings)
    names = [part.split("=")[0] for part in stages.split(",")]
    assert [phase["name"] for phase in found.result["phases"]] == [*names, "head"]
    for name in names:  # each stage came nearer to the teacher's features
        losses = [e["train"]["loss"] for e in events(tmp_path / "student") if e.get("phase") == name and "train" in e]
        assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("smp:unt", "did you mean 'unet"),
        ("smp:unet?encoder_name=resnt18", "resnt18"),
        ("smp:unet?colour=3", "colour"),
        ("smp:unet?classes=7", "'classes'.*num_classes"),
    ],
)
def test_names_and_arguments_it_does_not_know(spec, told):
    with pytest.raises(UserError, match=told):
        load_model(spec, num_classes=3)


def test_pixels_are_normalised_as_the_encoder_wants_it(smp, monkeypatch):
    """The encoder is the one that is named, else the architecture's own default."""
    asked = []

    def params(encoder, weights):
        asked.append((encoder, weights))
        return {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.2]}

    monkeypatch.setattr(smp.encoders, "get_preprocessing_params", params)
    for name, arguments in (("unet", {}), ("dpt", {}), ("Unet", {"encoder_name": "resnet18"})):
        assert smp_normalisation(name, arguments, "imagenet") == ((0.5, 0.4, 0.3), (0.2, 0.2, 0.2))
    defaults = [
        inspect.signature(smp.MODEL_ARCHITECTURES_MAPPING[n]).parameters["encoder_name"].default
        for n in ("unet", "dpt")
    ]
    assert defaults[0] != defaults[1]
    assert asked == [(name, "imagenet") for name in (*defaults, "resnet18")]
