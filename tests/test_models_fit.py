"""Whether a model fits the data, how its outputs are read, and what a loaded one is like at once."""

import os
import sys
from collections import OrderedDict
from types import SimpleNamespace

import pytest
import torch
from test_models_load import Pictures, Plain, pictures, refused
from torch import nn

from protege.errors import UserError
from protege.models import InputSpec, Model, check_classes, load_model


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (("bee", "ant", "cat"), "output 0 of the model is class 'bee' but class 0 of the data is 'ant'"),
        (("ant", "cat", "bee"), "output 1 of the model is class 'cat' but class 1 of the data is 'bee'"),
        (("dog", "eel", "fox"), "output 0 of the model is class 'dog' but class 0 of the data is 'ant'"),
    ],
)
def test_class_names_must_agree(names, told, tmp_path):
    folder = load_model("zoo:cnn_tiny", data=Pictures(classes=names)).save(tmp_path / "model")
    with pytest.raises(UserError, match=told):
        check_classes(load_model(folder), Pictures())


def test_class_names_that_do_not_contradict():
    numbers = Pictures(classes=("0", "1", "2"))
    for ours, theirs in ((Pictures(), numbers), (numbers, Pictures()), (Pictures(classes=("ant", "bee", "puma")),) * 2):
        check_classes(load_model("zoo:cnn_tiny", data=ours), theirs)
    check_classes(load_model("zoo:cnn_tiny", data=Pictures(classes=("ant", "bee", "puma"))), Pictures())
    check_classes(Model(Plain(), InputSpec()), Pictures())


class Answers(Plain):
    """A network whose output is more than its logits."""

    def __init__(self, wrap):
        super().__init__()
        self.wrap = wrap

    def forward(self, x):
        return self.wrap(super().forward(x))


def test_logits_are_taken_out_of_outputs_that_name_them():
    for wrap in (
        lambda x: {"loss": None, "logits": x},
        lambda x: SimpleNamespace(logits=x, hidden_states=None),
        lambda x: OrderedDict(out=x, aux=2 * x),
        lambda x: {"scores": x},
        lambda x: (x,),
        lambda x: [x],
        lambda x: x[:, :, None, None],
    ):
        model = load_model(Answers(wrap), data=Pictures())
        check_classes(model, Pictures())
        assert torch.equal(model(pictures()), Plain.forward(model.network, model.input(pictures())))


@pytest.mark.parametrize(
    ("wrap", "told"),
    [
        (lambda x: (x, x), "gives a tuple"),
        (lambda x: OrderedDict(a=x, b=x), "gives an OrderedDict"),
        (lambda x: {"logits": [x]}, "gives a list"),
    ],
)
def test_other_outputs_are_refused(wrap, told):
    with pytest.raises(UserError, match=f"{told} where one tensor of logits is expected"):
        check_classes(load_model(Answers(wrap), data=Pictures()), Pictures())


@pytest.mark.parametrize(
    ("wrap", "told"),
    [
        (lambda x: x[:, 0], r"one number an image, .* torch\.cat\(\[torch\.zeros_like\(z\), z\], 1\)"),
        (lambda x: x[:, :1], r"one number an image, .* torch\.cat\(\[torch\.zeros_like\(z\), z\], 1\)"),
        (lambda x: x.squeeze(), r"shape \[3\] for one image where \[1, 3\] is expected"),
    ],
)
def test_outputs_that_lack_a_dimension(wrap, told):
    with pytest.raises(UserError, match=told):
        check_classes(load_model(Answers(wrap), data=Pictures()), Pictures())


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16, torch.float16])
def test_a_network_of_another_precision(kind):
    model = load_model(Plain().to(kind), data=Pictures())
    check_classes(model, Pictures())
    assert model.dtype == kind
    logits = model.eval()(pictures())
    expected = Plain.forward(model.network.float(), model.input(pictures()))
    torch.testing.assert_close(logits, expected, atol=0.05, rtol=0.05)


def test_a_network_of_several_precisions_that_fails_is_told_how_to_mend():
    network = Plain()
    network.conv.double()
    with pytest.raises(UserError, match=r"float64 weights and fails .* convert it with `\.float\(\)`"):
        check_classes(load_model(network, data=Pictures()), Pictures())


class Each(nn.Module):
    """Filters each channel by the same convolution of one."""

    def __init__(self):
        super().__init__()
        self.filter, self.fc = nn.Conv2d(1, 2, 3), nn.Linear(6, 3)

    def forward(self, x):
        seen = torch.cat([self.filter(x[:, c : c + 1]) for c in range(x.shape[1])], 1)
        return self.fc(seen.mean((2, 3)))


class Repeats(nn.Module):
    """Repeats grey images, as for a network trained on colour."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3)

    def forward(self, x):
        return self.conv(x.repeat(1, 3, 1, 1)).mean((2, 3))


class Late(nn.Module):
    """A first convolution, by name, of what is computed after others."""

    def __init__(self, channels=3):
        super().__init__()
        self.second, self.first = nn.Conv2d(8, 3, 1), nn.Conv2d(channels, 8, 3)

    def forward(self, x):
        return self.second(self.first(x)).mean((2, 3))


class Folds(nn.Module):
    """Takes grey images, and colours for samples of their own."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3)

    def forward(self, x):
        return self.conv(x.reshape(-1, 1, *x.shape[2:])).mean((2, 3))


def lazy():
    return nn.Sequential(nn.LazyConv2d(4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(3))


@pytest.mark.parametrize(
    ("network", "images", "taken"),
    [
        (Each, 3, 3),
        (Repeats, 1, 1),
        (lazy, 1, 1),
        (lazy, 3, 3),
        (lazy, 4, 4),
        (Late, 3, 3),
        (Late, 1, 3),
        (lambda: Late(1), 3, 1),
        (lambda: Late(4), 4, 4),
        (lambda: Late(5), 1, 5),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(108, 3)), 3, 3),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(36, 3)), 3, 1),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(108, 3)), 1, 3),
        (Folds, 3, 1),
        (lambda: Late(3).double(), 1, 3),
    ],
)
def test_a_network_is_given_the_channels_that_it_is_found_to_take(network, images, taken):
    data = Pictures((images, 6, 6), mean=(0.3,) * images, std=(0.1,) * images)
    torch.manual_seed(0)
    model = load_model(network(), data=data)
    assert model.input.channels == taken
    check_classes(model, data)
    assert model.eval()(pictures(4, images, 6)).shape == (4, 3)


def test_channels_that_no_network_takes_are_told():
    data = Pictures((4, 6, 6), mean=(0.3,) * 4, std=(0.1,) * 4)
    with pytest.raises(UserError, match=r"fails on an input of shape \[2, 4, 6, 6\] .*InputSpec\(channels=…"):
        check_classes(load_model(Late(3), data=data), data)


class Viewed(nn.Module):
    """A user's network that only runs on contiguous memory."""

    def __init__(self, channels=3, convolves=True):
        super().__init__()
        self.conv = nn.Conv2d(channels, 2, 3, padding=1) if convolves else nn.Identity()
        self.norm = nn.BatchNorm2d(2 if convolves else channels)
        self.fc = nn.LazyLinear(3)

    def forward(self, x):
        x = self.norm(self.conv(x))
        return self.fc(x.view(x.shape[0], -1))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("convolves", [True, False])
def test_a_network_that_needs_contiguous_memory_works(channels, convolves):
    data = Pictures((channels, 6, 6), mean=(0.3,) * channels, std=(0.1,) * channels)
    model = load_model(Viewed(channels, convolves), data=data)
    state = {name: value.clone() for name, value in model.network.norm.state_dict().items()}
    check_classes(model, data)
    grey_pixels = channels == 1 and not convolves  # the same memory in both layouts
    assert model.layout == ("channels_last" if grey_pixels else "contiguous")
    assert all(torch.equal(value, state[name]) for name, value in model.network.norm.state_dict().items())
    assert model.training
    raw = pictures(4, channels, 6)
    last = raw.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    assert torch.equal(model.eval()(last), model(raw))
    check_classes(model, data)


def test_grey_images_stay_contiguous_for_a_network_never_checked():
    network = Viewed(1)
    network(torch.zeros(1, 1, 6, 6))
    model = load_model(network, data=Pictures((1, 6, 6), mean=(0.3,), std=(0.1,)))
    assert model.eval()(pictures(4, 1, 6)).shape == (4, 3)


@pytest.mark.parametrize("name", ["cnn_tiny", "vit_tiny?depth=1", "resnet8", "mlp"])
def test_the_zoo_runs_channels_last(name):
    model = load_model(f"zoo:{name}", data=Pictures())
    check_classes(model, Pictures())
    assert model.layout == "channels_last"
    convolutions = [m.weight for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size != (1, 1)]
    assert all(weight.is_contiguous() for weight in convolutions), "the probe leaves the network as it was"


def test_a_network_that_cannot_be_copied_is_run_contiguous():
    class Single(Plain):
        def __deepcopy__(self, memo):
            raise TypeError("only one of me")

    model = load_model(Single(), data=Pictures())
    check_classes(model, Pictures())
    assert model.layout == "contiguous"


def test_a_loaded_model_is_ready_to_be_asked(tmp_path):
    for name, network in (("resnet8", None), ("mine", Viewed())):
        model = load_model(network or f"zoo:{name}", data=Pictures())
        check_classes(model, Pictures())
        again = load_model(model.save(tmp_path / name), network=network)
        assert not any(module.training for module in again.modules())
        before = {key: value.clone() for key, value in again.state_dict().items()}
        torch.testing.assert_close(again(pictures())[:1], again(pictures()[:1]))
        assert all(torch.equal(value, before[key]) for key, value in again.state_dict().items())


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_files_have_the_permissions_of_the_users_other_files(mask, tmp_path):
    before = os.umask(mask)
    try:
        folder = load_model("zoo:cnn_tiny", data=Pictures()).save(tmp_path / "model")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o666 & ~mask}


def test_all_that_a_factory_tells_is_passed_on(tmp_path, monkeypatch):
    (tmp_path / "my_nets_d.py").write_text(
        "from torch import nn\n"
        "def old(num_classes):\n"
        "    net = nn.Linear(4, num_classes)\n"
        "    net.load_state_dict(nn.Linear(4, 7).state_dict())\n"
        "    return net\n"
        "def chatty(num_classes):\n    raise ValueError('word ' * 500)\n"
    )
    monkeypatch.chdir(tmp_path)
    refused("size mismatch for weight", spec="my_nets_d:old", data=Pictures())
    assert len(refused("word…; correct the call", spec="my_nets_d:chatty", data=Pictures())) < 420


def test_a_folder_whose_module_is_elsewhere(tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "my_nets_e.py").write_text(
        "from torch import nn\ndef small():\n    return nn.Conv2d(3, 3, 32)\n"
    )
    monkeypatch.chdir(tmp_path / "there")
    folder = load_model("my_nets_e:small", data=Pictures()).save(tmp_path / "model")
    del sys.modules["my_nets_e"]
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != os.getcwd()])
    monkeypatch.chdir(tmp_path)
    refused("run it where my_nets_e.py is, or put its folder on PYTHONPATH", spec=folder, trust=True)
