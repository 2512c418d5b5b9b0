"""The timm adapter: with timm where it can be imported, and the sentences told where it cannot."""

import copy
import importlib
import sys

import pytest
import torch
from test_models_load import DIGITS, Pictures
from tools import events, imported
from torch.utils.data import TensorDataset

import protege
from protege.errors import UserError
from protege.methods.fskd import recover
from protege.models import check_classes, load_model
from protege.surgery import find_cuts, split


@pytest.fixture(scope="module")
def timm():
    """timm, or a skip."""
    return imported("timm")


def test_a_fresh_network(timm, tmp_path):
    model = load_model("timm:test_resnet", data=Pictures())
    assert model.input.mean == tuple(model.network.pretrained_cfg["mean"])
    assert model.input.size is None
    assert model.source["model"] == "timm:test_resnet"
    check_classes(model, Pictures())
    raw = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    again = load_model(model.save(tmp_path / "model"))
    assert torch.equal(again.eval()(raw), model.eval()(raw))


def test_a_network_of_fixed_size_gets_it(timm):
    model = load_model("timm:test_vit", data=DIGITS)
    assert model.input.size == tuple(model.network.pretrained_cfg["input_size"][1:])
    assert model.input.channels == 3
    check_classes(model, DIGITS)
    assert load_model("timm:test_vit?img_size=32", data=DIGITS).input.size == (32, 32)


def test_an_instance_keeps_its_own_input(timm):
    network = timm.create_model("test_resnet", num_classes=3)
    model = load_model(network)
    assert model.network is network
    assert model.input.std == tuple(network.pretrained_cfg["std"])
    assert model.input.size == tuple(network.pretrained_cfg["input_size"][1:])


@pytest.mark.parametrize(
    ("name", "settings", "size"),
    [
        ("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 8}, (32, 32)),
        ("vit_tiny_patch16_224", {"img_size": (32, 48), "patch_size": 8}, (32, 48)),
        ("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 8, "dynamic_img_size": True}, (32, 32)),
        ("mixer_s32_224", {"img_size": 64}, (64, 64)),
        ("test_vit", {}, (160, 160)),
        ("test_resnet", {}, (160, 160)),
    ],
)
def test_an_instance_is_given_images_of_the_size_it_was_made_for(timm, name, settings, size):
    small = {"depth": 1, "embed_dim": 32, "num_heads": 2} if name.startswith("vit") else {}
    network = timm.create_model(name, num_classes=3, **settings, **small)
    assert load_model(network).input.size == size
    check_classes(load_model(network, data=Pictures()), Pictures())


@pytest.mark.parametrize(
    ("spec", "told"), [("timm:test_resnt", "did you mean 'test_resnet"), ("timm:test_resnet?widht=3", "widht")]
)
def test_names_and_arguments_timm_does_not_know(timm, spec, told):
    with pytest.raises(UserError, match=told):
        load_model(spec, num_classes=3)


def failing(error):
    def importing(name):
        raise error

    return importing


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ModuleNotFoundError("No module named 'timm'", name="timm"), r"pip install 'protege\[timm\]'"),
        (
            ModuleNotFoundError("No module named 'torchvision'", name="torchvision"),
            "timm, which cannot be imported .*; install 'torchvision'",
        ),
        (RuntimeError("operator torchvision::nms does not exist"), "reinstall torchvision"),
    ],
)
def test_timm_that_cannot_be_imported(error, told, monkeypatch):
    monkeypatch.setattr(importlib, "import_module", failing(error))
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    with pytest.raises(UserError, match=told):
        load_model("timm:resnet18", num_classes=3)


@pytest.mark.parametrize("name", ["resnet10t", "resnet18", "regnetx_002", "mobilenetv3_small_050", "torchvision"])
def test_stages_in_a_row_are_the_network(timm, name):
    torch.manual_seed(0)
    if name == "torchvision":
        network = imported("torchvision.models").resnet18(num_classes=3).eval()
    else:
        network = timm.create_model(name, num_classes=3).eval()
    x = torch.randn(2, 3, 64, 64)
    cuts = find_cuts(network, x)
    assert len(cuts) >= 4
    live = (x,)
    for stage in split(network, [cut.name for cut in cuts], x):
        live = stage.eval()(live)
    assert torch.equal(live, network(x))


def test_stage_by_stage(timm, tmp_path):
    """A student of timm learns from a teacher of timm through the front door, by stages found by themselves."""
    labels = torch.arange(36) % 3
    noise = torch.randint(0, 90, (36, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    images = (noise + 80 * labels[:, None, None, None]).to(torch.uint8)  # classes differ in brightness
    both = TensorDataset(images[:24], labels[:24]), TensorDataset(images[24:], labels[24:])
    common = {"batch_size": 8, "augment": "none", "lr": 0.01}
    teacher = protege.train("timm:resnet18", both, epochs=8, out=tmp_path / "teacher", **common).student
    settings = {"method": "skd", "epochs": 4, "select": "last", "patience": 0, **common}
    found = protege.distill(teacher, "timm:resnet10t", both, out=tmp_path / "student", **settings)
    names = [phase["name"] for phase in found.result["phases"]]
    assert names == ["act1", "layer1", "layer2", "layer3", "head"]
    for name in names[:-1]:  # each stage came nearer to the teacher's features
        losses = [e["train"]["loss"] for e in events(tmp_path / "student") if e.get("phase") == name and "train" in e]
        assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("name", "settings", "kernels"),
    [
        ("mobilenetv3_small_050", {}, False),  # a head of timm's class, norms with their nonlinearity
        ("tf_mobilenetv3_small_minimal_100", {}, True),  # convolutions that pad themselves
        ("test_nfnet", {}, False),  # weights that are standardised, with a gain
        ("test_vit", {"img_size": 32}, True),
    ],
)
def test_layers_of_any_type_are_aligned(timm, name, settings, kernels):
    """A copy with other weights comes back."""
    torch.manual_seed(0)
    teacher = timm.create_model(name, num_classes=5, **settings).eval()
    student = copy.deepcopy(teacher)
    with torch.no_grad():
        for weight in (weight for weight in student.parameters() if weight.dim() > 1):
            weight += 0.2 * weight.std(correction=0) * torch.randn(weight.shape)
    x, fresh = torch.randn(24, 3, 32, 32), torch.randn(8, 3, 32, 32)

    def error():
        with torch.no_grad():
            return float((student(fresh) - teacher(fresh)).square().sum())

    before, chunks = error(), x.split(6)
    found = recover(student, teacher, {}, lambda n: (chunks[n], chunks[n]), range(4), kernels=kernels)
    assert found["after"] < found["before"]
    assert error() < before
    assert not found["left"]
