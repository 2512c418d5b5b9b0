"""Networks of segmentation-models-pytorch: built, saved, taught stage by stage; skipped where it is missing."""

import pytest
import torch
from scenes import scene, write_pair
from tools import imported

import understudy
from understudy.data import load_data
from understudy.errors import UserError
from understudy.models import load_model


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
    teacher = understudy.train("smp:unet?encoder_name=resnet18", data, epochs=4, batch_size=4, lr=0.01, out=out).student
    settings = {"method": "skd", "epochs": 1, "batch_size": 4, "stages": stages, "out": tmp_path / "student"}
    assert 0 <= understudy.distill(teacher, student, data, **settings).metrics["miou"] <= 1


@pytest.mark.parametrize(
    ("spec", "told"),
    [("smp:unt", "did you mean 'unet"), ("smp:unet?encoder_name=resnt18", "resnt18"), ("smp:unet?colour=3", "colour")],
)
def test_names_and_arguments_it_does_not_know(spec, told):
    with pytest.raises(UserError, match=told):
        load_model(spec, num_classes=3)
