"""Loading and saving: every way to name a model, exact round trips, and one clear sentence where it cannot be."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from protege.errors import UserError
from protege.models import InputSpec, Model, check_classes, load_model


@dataclass
class Pictures:
    """Data as far as models ask for it."""

    shape: tuple[int, ...] = (3, 32, 32)
    classes: tuple[str, ...] = ("ant", "bee", "cat")
    task: str = "classification"
    mean: tuple[float, ...] = (0.3, 0.4, 0.5)
    std: tuple[float, ...] = (0.1, 0.2, 0.3)

    @property
    def train(self):
        labels = None if self.task == "segmentation" else torch.zeros(1, dtype=torch.int64)
        return SimpleNamespace(shape=self.shape, labels=labels)

    def statistics(self):
        return self.mean, self.std


DIGITS = Pictures((1, 8, 8), tuple("0123456789"), mean=(0.3,), std=(0.4,))


class Plain(nn.Module):
    """A user's network that can be made without arguments, but not only so."""

    def __init__(self, scale: float = 1.0):
        super().__init__()
        self.scale = scale
        self.conv = nn.Conv2d(3, 4, 3)
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        return self.fc(self.conv(x).mean((2, 3))) * self.scale


class Tied(nn.Module):
    """Two names for one weight, a whole-number buffer, and weights of another memory layout."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        self.first = nn.Linear(4, 4, bias=False)
        self.second = nn.Linear(4, 4, bias=False)
        self.second.weight = self.first.weight
        self.register_buffer("steps", torch.tensor(2**40 + 1))

    def forward(self, x):
        return self.second(self.first(self.conv(x).mean((2, 3))))


@pytest.fixture(autouse=True)
def one_thread():
    """Networks this small only lose by waiting for each other's threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def refused(*told, **arguments):
    """Loading ends in a UserError of one sentence that tells all of `told`."""
    with pytest.raises(UserError, match=r".") as caught:
        load_model(**arguments)
    sentence = str(caught.value)
    assert sentence.endswith(".")
    assert "\n" not in sentence
    for part in told:
        assert part in sentence
    return sentence


def pictures(count=4, channels=3, size=32):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, channels, size, size), dtype=torch.uint8, generator=generator)


# fresh networks


def test_a_zoo_network_is_made_for_the_data():
    model = load_model("zoo:resnet8", data=DIGITS)
    assert model.classes == DIGITS.classes
    assert model.input == InputSpec(channels=1, size=(8, 8), mean=(0.3,), std=(0.4,))
    assert model.source == {"model": "zoo:resnet8", "arguments": {"num_classes": 10, "channels": 1}}
    assert model(pictures(2, 1, 8)).shape == (2, 10)


def test_arguments_of_a_spec_win_over_the_data():
    model = load_model("zoo:resnet18?stem=imagenet&width=8&channels=3", data=DIGITS)
    assert model.network.conv1.weight.shape == (8, 3, 7, 7)
    assert model.input.mean == (0.3, 0.3, 0.3)
    assert model(pictures(2, 1, 8)).shape == (2, 10)


def test_without_data_a_class_count_is_enough_and_needed():
    assert load_model("zoo:vit_tiny?depth=1", num_classes=7).input.size == (32, 32)
    assert len(load_model("zoo:mlp?num_classes=7").classes) == 7
    refused("zoo:mlp", "num_classes", spec="zoo:mlp")


def test_a_model_and_a_module_are_taken_as_they_are():
    network = Plain()
    model = load_model(network, data=Pictures())
    assert model.network is network
    assert model.input.mean == (0.3, 0.4, 0.5)
    assert load_model(model) is model
    refused("Plain", "InputSpec", spec=network)


def test_grey_data_reaches_a_colour_network():
    model = load_model(Plain(), data=DIGITS)
    assert model.input.channels == 3
    assert model(pictures(2, 1, 8)).shape == (2, 3)


class Sized(nn.Module):
    """A network for images of one size, which it names itself or in its configuration."""

    def __init__(self, size, config=None):
        super().__init__()
        if config is None:
            self.image_size = size
        else:
            self.config = SimpleNamespace(image_size=size)
        self.fc = nn.Linear(3 * size * size, 3)

    def forward(self, x):
        return self.fc(x.flatten(1))


@pytest.mark.parametrize("config", [None, "with"])
def test_a_network_of_one_size_is_given_it(config):
    data = Pictures()
    model = load_model(Sized(20, config), data=data)
    assert model.input.size == (20, 20)
    check_classes(model, data)
    assert load_model(Sized(32, config), data=data).input.size == (32, 32)
    any_size = nn.Sequential(nn.Conv2d(3, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    any_size.image_size = 20
    assert load_model(any_size, data=data).input.size == (32, 32)


def test_the_users_factory(tmp_path, monkeypatch):
    (tmp_path / "my_nets_a.py").write_text(
        "from torch import nn\n"
        "def thin(num_classes, width=4):\n"
        "    return nn.Sequential(nn.Conv2d(3, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),\n"
        "                         nn.Linear(width, num_classes))\n"
        "def fixed():\n    return thin(3)\n"
        "def broken(num_classes):\n    raise KeyError('weights')\n"
        "def text():\n    return 'network'\n"
        "number = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    model = load_model("my_nets_a:thin?width=6", data=Pictures())
    assert model.network[0].out_channels == 6
    assert load_model("my_nets_a:fixed", data=Pictures()).network[3].out_features == 3
    again = load_model(model.save(tmp_path / "saved"), trust=True)
    assert torch.equal(again.eval()(pictures()), model.eval()(pictures()))
    refused("KeyError", "weights", spec="my_nets_a:broken", data=Pictures())
    refused("str", "nn.Module", spec="my_nets_a:text")
    refused("'thn'", "did you mean 'thin'", spec="my_nets_a:thn")
    refused("int", spec="my_nets_a:number")
    refused("widht", spec="my_nets_a:thin?widht=6", data=Pictures())


def test_a_factory_module_that_fails_on_import(tmp_path, monkeypatch):
    (tmp_path / "my_nets_b.py").write_text("from no_such_package_here import net\n")
    (tmp_path / "my_nets_c.py").write_text("def net(:\n")
    monkeypatch.chdir(tmp_path)
    refused("my_nets_b", "no_such_package_here", spec="my_nets_b:net", num_classes=3)
    refused("my_nets_c", "SyntaxError", spec="my_nets_c:net", num_classes=3)


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("zoo:resnet21", "did you mean 'resnet"),
        ("zoo:alexnet", "choose one of cnn_small"),
        ("zo:resnet20", "did you mean 'zoo:'"),
        ("hub:resnet20", "names neither"),
        ("no.such.module:net", "names neither"),
        ("hub:owner/model", "there is no model folder"),
        ("resnet20", "'zoo:resnet20'"),
        ("runs/nothing/student", "there is no model folder 'runs/nothing/student'"),
        ("zoo:resnet18?stm=small", "did you mean 'stem'"),
        ("zoo:resnet18?stem=big", "stem 'big'"),
        ("zoo:resnet18?stem", "key=value"),
        ("zoo:resnet20?num_classes=ten", "num_classes='ten'"),
        ("zoo:vit_tiny?patch_size=5", "patch_size 5"),
        ("zoo:vgg8?width=-1", "width"),
        ("zoo:mlp?depth=deep", "depth='deep'"),
        (7, "int"),
    ],
)
def test_specs_that_name_nothing(spec, told):
    refused(told, spec=spec, num_classes=10)


# saving and loading again


ROUND_TRIPS = ["resnet20", "resnet8x4", "resnet14?width=8", "resnet50?width=8&stem=imagenet", "vgg8?width=0.25"]
ROUND_TRIPS += ["vgg11_bn?width=0.25", "mobilenetv2?width=0.5", "vit_tiny?depth=2", "cnn_tiny", "cnn_small", "mlp"]


@pytest.mark.parametrize("name", ROUND_TRIPS)
def test_a_loaded_model_computes_the_same_bits(name, tmp_path):
    model = load_model(f"zoo:{name}", data=Pictures())
    model.train()(pictures())  # move the BatchNorm statistics off their start
    wanted = model.eval()(pictures())
    state = torch.random.get_rng_state()
    again = load_model(model.save(tmp_path / "model"))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(again.eval()(pictures()), wanted)
    assert (again.input, again.classes, again.task, again.source) == (
        model.input,
        model.classes,
        model.task,
        model.source,
    )


def test_a_run_folder_is_its_student(tmp_path):
    model = load_model("zoo:cnn_tiny", data=DIGITS)
    model.save(tmp_path / "run" / "student")
    assert load_model(str(tmp_path / "run")).classes == DIGITS.classes


def test_bfloat16_halves_the_file_and_spares_whole_numbers(tmp_path):
    model = Model(Tied(), InputSpec())
    model.save(tmp_path / "half", dtype="bfloat16")
    stored = load_file(tmp_path / "half" / "model.safetensors")
    assert stored["conv.weight"].dtype == torch.bfloat16
    assert stored["steps"] == 2**40 + 1
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"
    again = load_model(tmp_path / "half", network=Tied()).network
    assert again.conv.weight.dtype == torch.float32
    assert torch.equal(again.conv.weight, model.network.conv.weight.bfloat16().float())
    assert again.steps == 2**40 + 1
    with pytest.raises(UserError, match="float8"):
        model.save(tmp_path / "eighth", dtype="float8")


def test_tied_weights_stay_tied(tmp_path):
    model = Model(Tied(), InputSpec())
    model.save(tmp_path / "model")
    again = load_model(tmp_path / "model")
    assert again.network.second.weight is again.network.first.weight
    assert torch.equal(again(pictures()), model(pictures()))


def test_the_users_own_instance_comes_back_by_its_class(tmp_path):
    model = load_model(Plain(), data=Pictures())
    config = json.loads((model.save(tmp_path / "model") / "config.json").read_text())
    assert config["model"] == f"{Plain.__module__}:Plain"
    assert torch.equal(load_model(tmp_path / "model")(pictures()), model(pictures()))


def test_layers_alone_load_by_what_they_are(tmp_path):
    model = load_model(nn.Sequential(nn.Conv2d(3, 3, 1), nn.Flatten(1)), data=Pictures())
    again = load_model(model.save(tmp_path / "model"))
    assert torch.equal(again(pictures()), model(pictures()))


@pytest.mark.parametrize("network", [Plain(scale=2.0), nn.Sequential(Plain())], ids=["settings", "layers"])
def test_an_instance_of_another_program_needs_trust(network, tmp_path, monkeypatch):
    model = load_model(network, data=Pictures())
    folder = model.save(tmp_path / "model")
    assert torch.equal(load_model(folder)(pictures()), model(pictures()))  # whose class this program has
    monkeypatch.setattr("protege.models.trust.is_commanded", lambda: True)
    refused("trust=True", spec=folder)
    assert torch.equal(load_model(folder, trust=True)(pictures()), model(pictures()))
    assert torch.equal(load_model(folder, network=network)(pictures()), model(pictures()))


def test_a_network_of_a_class_that_is_nowhere_needs_the_instance(tmp_path):
    class Here(Plain):
        pass

    model = load_model(Here(scale=2.0), data=Pictures())
    config = json.loads((model.save(tmp_path / "model") / "config.json").read_text())
    assert config["model"] is None
    assert "network=" in config["note"]
    refused("network=my_network", spec=tmp_path / "model")
    again = load_model(tmp_path / "model", network=model.network)
    assert torch.equal(again(pictures()), model(pictures()))


def test_a_network_changed_since_it_was_built_does_not_claim_its_name(tmp_path):
    model = load_model("zoo:cnn_tiny", data=Pictures()).eval()
    model.network.fc = nn.Sequential(nn.Linear(16, 8), nn.Linear(8, 3))
    model.save(tmp_path / "model")
    again = load_model(tmp_path / "model")
    assert again.source["model"] is None
    assert torch.equal(again(pictures()), model(pictures()))
    assert load_model(tmp_path / "model", network=model.network).network is model.network


def test_an_existing_model_is_kept_unless_told_otherwise(tmp_path):
    first, second = (load_model("zoo:cnn_tiny", data=Pictures()) for _ in range(2))
    folder = first.save(tmp_path / "model")
    with pytest.raises(UserError, match="exists already"):
        second.save(folder)
    assert torch.equal(load_model(folder).network.fc.weight, first.network.fc.weight)
    second.save(folder, overwrite=True)
    assert torch.equal(load_model(folder).network.fc.weight, second.network.fc.weight)
    assert sorted(os.listdir(folder)) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("stop", ["replace", "fsync"])
def test_a_write_that_stops_leaves_no_half_model(stop, tmp_path, monkeypatch):
    model = load_model("zoo:cnn_tiny", data=Pictures())

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, stop, full)
    with pytest.raises(UserError, match="No space left"):
        model.save(tmp_path / "model")
    assert os.listdir(tmp_path / "model") == []


def test_a_file_where_the_folder_should_be(tmp_path):
    (tmp_path / "model").write_text("")
    with pytest.raises(UserError, match="is a file"):
        load_model("zoo:cnn_tiny", data=Pictures()).save(tmp_path / "model")


# folders that hold no usable model


@pytest.fixture
def folder(tmp_path) -> Path:
    return load_model("zoo:cnn_tiny", data=Pictures()).save(tmp_path / "model")


def edited(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    config.update(changes)
    config = {key: value for key, value in config.items() if value != "gone"}
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"format": 9}, "format 9"),
        ({"format": "gone"}, "format None"),
        ({"input": "gone"}, "'input'"),
        ({"model": "gone"}, "'model'"),
        ({"model": "zoo:alexnet"}, "alexnet"),
        ({"model": "a network"}, "a network"),
        ({"model": 5}, "'model'"),
        ({"arguments": []}, "'arguments'"),
        ({"input": {"std": [0, 1, 1]}}, "not above 0"),
        ({"arguments": {"num_classes": 3, "channels": 3, "depth": 4}}, "depth"),
    ],
)
def test_a_config_that_is_wrong(changes, told, folder):
    edited(folder, **changes)
    refused(told, spec=folder)


def test_a_config_that_is_not_json(folder):
    (folder / "config.json").write_text("{'format': 1}")
    refused("config.json", "JSON", spec=folder)
    (folder / "config.json").write_text("[]")
    refused("format 'list'", spec=folder)


def test_missing_parts(folder):
    (folder / "config.json").rename(folder / "gone.json")
    refused("has no config.json", "model.safetensors", spec=folder)
    (folder / "gone.json").rename(folder / "config.json")
    (folder / "model.safetensors").unlink()
    refused("no model.safetensors", spec=folder)


def test_weights_that_do_not_fit(folder):
    edited(folder, arguments={"num_classes": 5, "channels": 3})
    refused("'fc.weight' has shape [3, 16] instead of [5, 16]", "'fc.bias'", "zoo:cnn_tiny", spec=folder)
    weights = load_file(folder / "model.safetensors")
    weights["extra"] = weights.pop("fc.weight")
    save_file(weights, folder / "model.safetensors")
    refused("'fc.weight' is missing", "'extra' is unexpected", "and 1 more", spec=folder)


@pytest.mark.parametrize("length", [0, 20, -100])
def test_damaged_weights(length, folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    refused("damaged", spec=folder)


@pytest.mark.parametrize("name", ["best.pt", "best.pth", "pytorch_model.bin", "net.pkl"])
def test_pickles_are_refused_unopened(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    for spec in (str(path), path, tmp_path):
        refused(name, "weights_only=True", ".save(", spec=spec)


def test_a_file_that_is_no_model(folder):
    refused("is a file", "name the folder", spec=folder / "model.safetensors")


# models and data


def test_class_counts_must_agree():
    model = load_model("zoo:cnn_tiny", data=Pictures())
    model.train()
    check_classes(model, Pictures())
    assert model.training
    with pytest.raises(UserError, match="3 outputs but the data has 10 classes"):
        check_classes(model, DIGITS)


def test_the_class_dimension_of_other_tasks():
    pixels = Pictures(task="segmentation")
    check_classes(Model(nn.Conv2d(3, 3, 1), InputSpec(), task="segmentation"), pixels)
    words = Pictures((12,), classes=("a", "b", "c", "d"), task="language")
    check_classes(load_model(nn.Embedding(4, 4), data=words), words)


@pytest.mark.parametrize(
    ("network", "told"),
    [
        (nn.Conv2d(3, 4, 40), "fails on an input of shape"),
        (nn.Identity(), "outputs of shape"),
        (nn.Flatten(0), "shape [6144]"),
    ],
)
def test_networks_that_cannot_be_used(network, told):
    data = Pictures(classes=("a", "b"))
    with pytest.raises(UserError, match=r".") as caught:
        check_classes(load_model(network, data=data), data)
    assert told in str(caught.value)


@pytest.mark.parametrize("path", ["teacher.pth", "weights", "x.safetensors.bin"])
def test_timm_is_given_no_file_that_it_might_unpickle(path):
    with pytest.raises(UserError, match=r"expected a \.safetensors file"):
        load_model(f"timm:resnet18?checkpoint_path={path}", num_classes=3)
