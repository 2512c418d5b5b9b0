"""What is saved is what loads: a folder that names its network gives the same one, and others say how to load them."""

import dataclasses
import json
import os
import random
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from test_models_load import Pictures, pictures
from torch import nn

import protege
from protege.errors import UserError
from protege.models import InputSpec, Model, check_classes, load_model
from protege.models.storage import checked_state


class Body(nn.Module):
    """A small network; its kin below differ in where they keep what their weights do not tell."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.drop, self.fc = nn.Dropout(0.1), nn.Linear(8, 3)

    def act(self, x):
        return x.relu()

    def forward(self, x):
        return self.fc(self.drop(self.act(self.norm(self.conv(x))).mean((2, 3))))


class ByFunction(Body):
    def __init__(self, act=F.relu):
        super().__init__()
        self.act = act


class ByTable(Body):
    def __init__(self, table=None):
        super().__init__()
        self.table = table or {"scale": 1.0, "drop": 0.1}

    def act(self, x):
        return F.dropout(x * self.table["scale"], self.table["drop"], self.training)


@dataclasses.dataclass
class Settings:
    scale: float = 1.0
    drop: float = 0.1


class BySettings(Body):
    def __init__(self, settings=None):
        super().__init__()
        self.settings = settings or Settings()

    def act(self, x):
        return F.dropout(x * self.settings.scale, self.settings.drop, self.training)


class ByTensor(Body):
    def __init__(self, scale=1.0):
        super().__init__()
        self.scale = torch.tensor(scale)

    def act(self, x):
        return x * self.scale


class ByArray(Body):
    def __init__(self, scale=1.0):
        super().__init__()
        self.scale = np.array([scale, scale])

    def act(self, x):
        return x * float(self.scale[0])


class ByBuffer(Body):
    def __init__(self, scale=1.0):
        super().__init__()
        self.register_buffer("scale", torch.tensor(scale), persistent=False)

    def act(self, x):
        return x * self.scale


class ByChance(Body):
    """Constants drawn when it is made, which are no weights."""

    def __init__(self):
        super().__init__()
        self.scale = torch.randn(8, 1, 1)

    def act(self, x):
        return x * self.scale


class ByChanceOfNumpy(ByChance):
    def __init__(self):
        super().__init__()
        self.scale = torch.from_numpy(np.random.randn(8, 1, 1).astype("float32")) * random.random()


class Normed(Body):
    def __init__(self):
        super().__init__()
        nn.utils.parametrizations.spectral_norm(self.fc)


class Raising:
    def __eq__(self, other):
        raise RuntimeError("not to be compared")

    __hash__ = None


class Awkward(Body):
    """What cannot be compared, or only after running, and makes no difference."""

    def __init__(self):
        super().__init__()
        self.raising, self.values, self.tensors = Raising(), np.arange(3), [torch.ones(2), [torch.zeros(1)]]
        self.lists, self.nothing = nn.ParameterList([torch.ones(2)]), float("nan")


def with_(make, change):
    def build():
        network = make()
        change(network)
        return network

    return build


def hooked(network):
    network.fc.register_forward_hook(lambda module, inputs, output: output * 2)


def replaced(network):
    network.forward = lambda x: 2 * type(network).forward(network, x)


def weight_norm(network):
    nn.utils.parametrizations.weight_norm(network.fc)


def double_scale(network):
    network.scale.mul_(2)


def zoo(name="resnet8"):
    return load_model(f"zoo:{name}", data=Pictures())


def set_on(path, **values):
    def change(network):
        for key, value in values.items():
            setattr(network.get_submodule(path), key, value)

    return change


CHANGED = {  # what neither a call of its class makes, nor its parts tell
    "forward": with_(Body, replaced),
    "hook": with_(Body, hooked),
    "parametrized": with_(Body, weight_norm),
    "zoo hook": with_(zoo, lambda model: hooked(model.network)),
    "zoo activation": with_(zoo, lambda model: replaced(model.network)),
}
KEPT = {
    "plain": Body,
    "table": ByTable,
    "settings": BySettings,
    "tensor": ByTensor,
    "array": ByArray,
    "buffer": ByBuffer,
    "awkward": Awkward,
    "parametrized": Normed,
    "another activation": lambda: ByFunction(torch.sin),
    "another table": lambda: ByTable({"scale": 2.0, "drop": 0.1}),
    "a table for training": lambda: ByTable({"scale": 1.0, "drop": 0.5}),
    "other settings": lambda: BySettings(Settings(2.0)),
    "settings for training": lambda: BySettings(Settings(drop=0.5)),
    "another tensor": lambda: ByTensor(2.0),
    "another array": lambda: ByArray(2.0),
    "another buffer": lambda: ByBuffer(2.0),
    "buffer in place": with_(ByBuffer, double_scale),
    "drawn": ByChance,
    "drawn with numpy": ByChanceOfNumpy,
    "eps": with_(Body, set_on("norm", eps=1e-2)),
    "momentum": with_(Body, set_on("norm", momentum=0.5)),
    "stride": with_(Body, set_on("conv", stride=(2, 2))),
    "dropout": with_(Body, set_on("drop", p=0.5)),
    "zoo eps": with_(zoo, set_on("network.bn1", eps=1e-2)),
    "zoo momentum": with_(zoo, set_on("network.bn1", momentum=0.5)),
    "layers": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.GELU(), nn.Flatten(), nn.Linear(3600, 10)
    ),
}


def lively(network, seed=0):
    """A model whose statistics and scales are no longer what they were made with."""
    model = load_model(network, data=Pictures())
    torch.manual_seed(seed + 1)
    model.train()(pictures(16))
    return model.eval()


@pytest.mark.parametrize("what", CHANGED)
def test_a_network_that_its_name_does_not_tell_says_so(what, tmp_path, caplog):
    torch.manual_seed(0)
    model = lively(CHANGED[what]())
    torch.manual_seed(0)  # as a run does: what is built again must not draw the same numbers by accident
    model.save(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["model"] is None
    assert "network=" in config["note"]
    assert "network=" in caplog.text
    wanted = model(pictures())
    with pytest.raises(UserError, match="network=my_network"):
        load_model(tmp_path / "model")
    assert torch.equal(load_model(tmp_path / "model", network=model.network)(pictures()), wanted)


@pytest.mark.parametrize("what", KEPT)
def test_a_network_that_its_class_or_its_parts_tell_loads_by_them(what, tmp_path):
    model = lively(KEPT[what]())
    torch.manual_seed(0)  # as a run does: what is built again must not draw the same numbers by accident
    model.save(tmp_path / "model")
    again = load_model(tmp_path / "model", trust=True)
    assert torch.equal(again(pictures()), model(pictures()))
    theirs = {name: vars(module) for name, module in again.network.named_modules()}
    for name, module in model.network.named_modules():  # what training depends on, too
        for key in ("eps", "momentum", "p", "stride"):
            assert theirs[name].get(key) == vars(module).get(key)
    again.save(tmp_path / "again")
    assert torch.equal(load_model(tmp_path / "again", trust=True)(pictures()), model(pictures()))
    model.save(tmp_path / "rounded", dtype="bfloat16")
    rounded = load_model(tmp_path / "rounded", trust=True)
    assert not torch.equal(rounded(pictures()), model(pictures()))
    assert (rounded(pictures()) - model(pictures())).abs().max() < 0.05 * model(pictures()).abs().max()


class Block(nn.Module):
    def __init__(self, width, act, settings):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width, track_running_stats=False)
        self.act, self.settings, self.down = act, settings, None
        self.add_module("shortcut", None)

    def forward(self, x):
        return x + self.settings["scale"] * self.act(self.norm(self.conv(x)))


class Blocks(nn.Module):
    """Sizes, functions and tables that nothing of it names again; weights and layers used twice."""

    def __init__(self, width, depth):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, stride=4)
        self.blocks = nn.ModuleList([Block(width, F.silu, {"scale": 0.5, "sides": (1, 2)}) for _ in range(depth)])
        self.blocks.append(self.blocks[0])
        self.rnn, self.last = nn.GRU(width, width, 2, batch_first=True), [nn.Linear(width, width)]
        self.again, self.out = nn.Linear(width, width, bias=False), nn.Linear(width, 10)
        self.last = self.again
        self.tied = nn.Linear(width, width)
        self.tied.weight = self.again.weight
        self.register_buffer("window", torch.rand(width), persistent=False)
        self.strength = torch.rand(width)  # in training alone

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        x = self.rnn(x.flatten(2).transpose(1, 2))[0][:, -1] * (
            self.window * self.strength if self.training else self.window
        )
        return self.out(self.last(self.tied(self.again(x))))


def test_a_network_whose_class_does_not_tell_its_arguments_loads_part_by_part(tmp_path):
    model = lively(Blocks(6, 2))
    model.save(tmp_path / "model")
    again = load_model(tmp_path / "model")
    assert torch.equal(again(pictures()), model(pictures()))
    assert torch.equal(again(pictures(7)), model(pictures(7)))
    network = again.network
    assert network.tied.weight is network.again.weight
    assert network.blocks[2] is network.blocks[0]
    assert network.last is network.again
    assert network.blocks[0].settings == {"scale": 0.5, "sides": (1, 2)}
    assert [p.shape for p in network.parameters()] == [p.shape for p in model.network.parameters()]
    again.train()(pictures(8)).square().mean().backward()  # it learns on as it did
    assert all(p.grad is not None for p in network.parameters())
    assert torch.equal(network.strength, model.network.strength)
    assert str(network) == str(model.network)


def test_a_shrunk_network_of_ones_own_loads_without_it(tmp_path):
    model = Model(Widened(12), InputSpec(channels=1, size=(8, 8)), classes=10)
    shrunk = protege.shrink(model, ratio=0.5, out=tmp_path / "shrunk").eval()
    again = load_model(tmp_path / "shrunk")
    raw = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8)
    assert sum(p.numel() for p in again.parameters()) < sum(p.numel() for p in model.parameters())
    assert torch.equal(again(raw), shrunk(raw))


class Versioned(Body):
    """As torchvision's MNASNet: a state of no known version is refused."""

    _version = 2

    def _load_from_state_dict(self, state, prefix, local_metadata, *rest):
        if local_metadata.get("version") != 2:
            raise ValueError("version")
        super()._load_from_state_dict(state, prefix, local_metadata, *rest)


def test_a_state_has_the_version_of_the_network(tmp_path):
    model = lively(Versioned())
    again = load_model(model.save(tmp_path / "model"))
    assert torch.equal(again(pictures()), model(pictures()))


class Widened(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width)
        self.second, self.out = nn.Conv2d(width, 2 * width, 3), nn.Linear(2 * width, 10)

    def forward(self, x):
        return self.out(self.second(self.norm(self.first(x)).relu()).relu().mean((2, 3)))


def test_rounding_spares_what_is_no_weight(tmp_path):
    class Placed(Body):
        def __init__(self):
            super().__init__()
            self.register_buffer("places", torch.arange(1000.0, 1008.0).view(8, 1, 1) + 0.5)

        def act(self, x):
            return x * torch.sin(self.places)

    model = lively(Placed())
    model.save(tmp_path / "model", dtype="bfloat16")
    again = load_model(tmp_path / "model", network=Placed())
    assert torch.equal(again.network.places, model.network.places)
    assert (again(pictures()) - model(pictures())).abs().max() < 0.05 * model(pictures()).abs().max()


def test_what_bfloat16_would_spoil_is_refused_before_anything_is_replaced(tmp_path):
    class Steep(Body):
        sum = 0.0

        def act(self, x):
            return x + 1e5 * (self.fc.weight.sum() - self.sum)

    model = lively(Steep())
    model.network.sum = float(model.network.fc.weight.sum())
    model.save(tmp_path / "model")
    before = (tmp_path / "model" / "config.json").read_bytes()
    with pytest.raises(UserError, match="dtype='float32'"):
        model.save(tmp_path / "model", dtype="bfloat16", overwrite=True)
    assert (tmp_path / "model" / "config.json").read_bytes() == before


def test_a_program_s_own_class_gets_a_clear_sentence(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(Widened, "__module__", "__main__")
    load_model(Model(Widened(4), InputSpec(channels=1, size=(8, 8)))).save(tmp_path / "model")
    assert "stands in the program itself" in caplog.text


@pytest.mark.parametrize(
    "part",
    [
        {"class": "os:system"},
        {"class": "test_models_saving:Block", "settings": {"act": {"import": "os:system"}}},
        {"class": "test_models_saving:Block", "settings": {"act": {"import": "torch.nn.functional:importlib.reload"}}},
        {"class": "test_models_saving:Block", "settings": {"path": "/etc/passwd"}},
        {"class": "torch.nn.modules.linear:Linear", "settings": {"f": {"partial": [{"import": "torch:load"}, [], {}]}}},
        {"class": "test_models_saving:Settings"},
    ],
)
def test_parts_that_run_other_code_need_trust(part, tmp_path):
    model = lively(Blocks(4, 1))
    path = model.save(tmp_path / "model") / "config.json"
    config = json.loads(path.read_text())
    config["parts"][2] = config["parts"][2] | part
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match="nobody has checked"):
        load_model(tmp_path / "model")


def test_a_dtype_among_the_parts_is_no_other_attribute_of_torch(tmp_path):
    path = lively(Blocks(4, 1)).save(tmp_path / "model") / "config.json"
    config = json.loads(path.read_text())
    config["parts"][2]["settings"] = {"act": {"dtype": "load"}}
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match="cannot be put together"):
        load_model(tmp_path / "model")


@pytest.mark.parametrize("what", ["forward", "hook", "parametrized"])
def test_a_given_network_that_computes_something_else_is_refused(what, tmp_path):
    model = lively(CHANGED[what]())
    model.save(tmp_path / "model")
    other = type(model.network)()
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(UserError, match=r"is another than was saved|does not fit"):
        load_model(tmp_path / "model", network=other)
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())


def test_saving_leaves_the_network_and_all_random_numbers_alone(tmp_path):
    class Counting(Body):
        def __init__(self):
            super().__init__()
            np.random.rand(3), random.random()
            self.register_buffer("calls", torch.zeros(()))
            self.seen = 0

        def forward(self, x):
            self.seen, self.last = self.seen + 1, x
            self.calls += 1
            return super().forward(x) + 0.01 * torch.rand(())

    model = lively(Counting()).train()
    model.network.conv.eval()

    def numbers():
        return [torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()]

    def state():
        network = model.network
        return [network.seen, float(network.calls), network.last, [m.training for m in network.modules()]]

    before, at = state(), numbers()
    model.save(tmp_path / "model")
    assert state()[:2] == before[:2]
    assert state()[2] is before[2]
    assert state()[3] == before[3]
    assert torch.equal(numbers()[0], at[0])
    assert numbers()[1:] == at[1:]
    assert load_file(tmp_path / "model" / "model.safetensors")["calls"] == before[1]


def test_code_that_has_changed_since_is_told(tmp_path, monkeypatch):
    code = (
        "from torch import nn\nclass Net(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.fc = nn.Linear(3, 3)\n"
        "    def forward(self, x): return self.fc(x.mean((2, 3)).{})\n"
    )
    (tmp_path / "net_that_changes.py").write_text(code.format("sin()"))
    monkeypatch.syspath_prepend(tmp_path)
    folder = load_model("net_that_changes:Net", data=Pictures()).save(tmp_path / "model")
    load_model(folder, trust=True)
    (tmp_path / "net_that_changes.py").write_text(code.format("cos()   "))
    del sys.modules["net_that_changes"]
    with pytest.raises(UserError, match="its code has changed"):
        load_model(folder, trust=True)


# recurrent and other networks, through a whole run


class Recurrent(nn.Module):
    def __init__(self, kind=nn.LSTM):
        super().__init__()
        self.rnn, self.out = kind(8, 6, batch_first=True), nn.Linear(6, 10)

    def forward(self, x):
        return self.out(self.rnn(x[:, 0])[0][:, -1])


class Gated(Recurrent):
    def __init__(self):
        super().__init__(nn.GRU)


class Listed(nn.Module):
    def __init__(self):
        super().__init__()
        self.scales, self.weights = [torch.ones(1), torch.ones(2)], nn.ParameterList([torch.ones(1)])
        self.out, self.grid = nn.Linear(64, 10), np.zeros((2, 2))

    def forward(self, x):
        return self.out(x.flatten(1)) * self.weights[0] * self.scales[0]


class Lazy(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.out = nn.LazyConv2d(4, 3), nn.LazyLinear(10)

    def forward(self, x):
        return self.out(self.conv(x).relu().flatten(1))


@pytest.mark.parametrize("make", [Recurrent, Gated, Listed, Lazy])
def test_students_with_lists_of_tensors_are_saved(make, tmp_path):
    result = protege.train(make(), "digits", out=tmp_path / "run", epochs=1)
    raw = pictures(3, 1, 8)
    assert torch.equal(load_model(tmp_path / "run")(raw), result.student(raw))


def test_a_failure_in_naming_never_loses_the_weights(tmp_path, monkeypatch):
    monkeypatch.setattr("protege.models.saving._probes", lambda model: 1 / 0)
    model = lively(Body())
    model.save(tmp_path / "model")
    again = load_model(tmp_path / "model", network=Body())
    assert torch.equal(again(pictures()), model(pictures()))


class Extra(nn.Linear):
    """A layer with a state of its own that is no tensor."""

    def __init__(self, inputs, outputs, value=None):
        super().__init__(inputs, outputs)
        self.value = value

    def get_extra_state(self):
        return self.value

    def set_extra_state(self, state):
        self.value = state


def flat(layer):
    return nn.Sequential(nn.Flatten(), layer)


@pytest.mark.parametrize("value", [{"v": 1, "names": ["a", None]}, "text", torch.arange(3), 0.5])
def test_extra_state_comes_back(value, tmp_path):
    result = protege.train(flat(Extra(64, 10, value)), "digits", out=tmp_path / "run", epochs=1)
    again = load_model(tmp_path / "run", network=flat(Extra(64, 10)))
    found = again.network[1].value
    assert torch.equal(found, value) if isinstance(value, torch.Tensor) else found == value
    assert torch.equal(again(pictures(3, 1, 8)), result.student(pictures(3, 1, 8)))


class Sparse(nn.Module):
    def __init__(self):
        super().__init__()
        self.out, self.weight = nn.Linear(64, 10), nn.Parameter(torch.eye(3).to_sparse(), requires_grad=False)

    def forward(self, x):
        return self.out(x.flatten(1))


class HalfLazy(nn.Module):
    """With a lazy layer that nothing ever reaches."""

    def __init__(self):
        super().__init__()
        self.out, self.spare = nn.Linear(64, 10), nn.LazyLinear(3)

    def forward(self, x):
        return self.out(x.flatten(1))


def quantised():
    network = flat(nn.Linear(64, 10))
    network.register_buffer("codes", torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.quint8))
    return network


def oddly_named():
    network = flat(nn.Linear(64, 10))
    network.register_buffer("__metadata__", torch.ones(3))
    return network


@pytest.mark.parametrize(
    "make",
    [
        lambda: flat(Extra(64, 10, {1, 2})),
        lambda: flat(Extra(64, 10, (1, 2))),
        lambda: flat(Extra(64, 10, object())),
        lambda: flat(Extra(64, 10, {"weights": torch.ones(2)})),
        Sparse,
        HalfLazy,
        quantised,
        oddly_named,
    ],
    ids=["set", "tuple", "object", "table of tensors", "sparse", "lazy", "quantised", "name"],
)
def test_what_cannot_be_saved_is_told_before_training(make, tmp_path):
    with pytest.raises(UserError, match=r"cannot be saved|uninitialized"):
        protege.train(make(), "digits", out=tmp_path / "run", epochs=1)
    assert not (tmp_path / "run").exists()


def test_numbers_of_many_kinds_come_back(tmp_path):
    network = Body()
    kinds = [torch.bool, torch.uint8, torch.int64, torch.float64, torch.float16, torch.bfloat16, torch.complex64]
    for kind in kinds:
        network.register_buffer(f"of {str(kind)[6:]}", torch.tensor([0, 1, 1]).to(kind))
    network.register_buffer("negative", torch._neg_view(torch.ones(3)))
    network.register_buffer("conjugate", torch.tensor([1 + 2j]).conj())
    network.register_buffer("spread", torch.ones(1).expand(4))
    network.register_buffer("empty", torch.ones(0, 3))
    network.register_buffer("number", torch.tensor(3.0))
    network.register_buffer("a key: 'odd' \"one\"", torch.ones(1))
    Model(network, InputSpec()).save(tmp_path / "model")
    found = load_file(tmp_path / "model" / "model.safetensors")
    state = checked_state(network)
    assert found.keys() == state.keys()
    assert all(found[key].dtype == value.dtype and torch.equal(found[key], value) for key, value in state.items())


class Words(nn.Module):
    def __init__(self, sparse=False, words=10):
        super().__init__()
        self.embed, self.out = nn.Embedding(words, 6, sparse=sparse), nn.Linear(6, words)

    def forward(self, tokens):
        return self.out(self.embed(tokens))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_sparse_gradients_teach_as_dense_ones(optimizer, tmp_path):
    for part in ("train", "valid", "test"):
        (tmp_path / f"{part}.txt").write_text("a b c d e f g h\n" * 20)
    found = []
    for sparse in (False, True):
        torch.manual_seed(0)
        out = tmp_path / f"run{sparse}"
        how = {"optimizer": optimizer, "epochs": 2, "clip": 1.0, "seed": 3}
        student = protege.train(Words(sparse), f"text:{tmp_path}", out=out, **how).student
        found.append(student.network.state_dict())
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


def test_weights_made_in_inference_mode_can_learn(tmp_path):
    with torch.inference_mode():
        network = nn.Sequential(nn.Conv2d(1, 8, 8), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 8), nn.Linear(8, 8))
        network.append(nn.Linear(8, 10))
        network[4].weight = network[3].weight
    result = protege.train(network, "digits", out=tmp_path / "run", epochs=1, lr=0.1)
    assert result.student.network is network
    assert network[4].weight is network[3].weight
    assert load_file(tmp_path / "run" / "student" / "model.safetensors")["1.num_batches_tracked"] > 0


# networks that are given to a folder


class Wide(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.first, self.second, self.fc = nn.Conv2d(3, width, 3), nn.Conv2d(width, width, 3), nn.Linear(width, 3)

    def forward(self, x):
        return self.fc(self.second(self.first(x).relu()).mean((2, 3)))


def small_of(network, folder):
    """The network shrunk and saved so that no name builds it."""
    model = protege.shrink(load_model(network, data=Pictures((3, 8, 8))), ratio=0.5, out=folder)
    return model


def test_a_given_network_of_other_sizes_stays_as_it_is(tmp_path):
    network = Wide()
    small = small_of(network, tmp_path / "small")
    before = {name: value.clone() for name, value in network.state_dict().items()}
    again = load_model(tmp_path / "small", network=network)
    assert again.network is not network
    assert torch.equal(again(pictures(2, 3, 8)), small(pictures(2, 3, 8)))
    assert network.first.out_channels == 8
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert load_model(tmp_path / "small", network=small.network).network is small.network
    with pytest.raises(UserError, match="structure changes 'first'"):
        load_model(tmp_path / "small", network=Body())


# wrappers


@pytest.mark.parametrize(
    "wrap",
    [
        nn.DataParallel,
        lambda network: torch.compile(network, backend="eager"),
        lambda network: torch.compile(nn.DataParallel(network), backend="eager"),
        lambda network: nn.DataParallel(torch.compile(network, backend="eager")),
    ],
    ids=["parallel", "compiled", "compiled parallel", "parallel compiled"],
)
def test_wrapped_students_are_saved_by_plain_names(wrap, tmp_path):
    network = Listed()
    result = protege.train(wrap(network), "digits", out=tmp_path / "run", epochs=1)
    assert result.student.network is network
    again = load_model(tmp_path / "run")
    assert again.source["model"].endswith(":Listed")
    assert torch.equal(again(pictures(3, 1, 8)), result.student(pictures(3, 1, 8)))
    load_model(tmp_path / "run", network=wrap(Listed()))


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda network: torch.compile(network, backend="eager")])
def test_wrapped_parts_are_saved_by_plain_names(wrap, tmp_path):
    network = Listed()
    network.out = wrap(network.out)
    result = protege.train(network, "digits", out=tmp_path / "run", epochs=1)
    assert "out.weight" in load_file(tmp_path / "run" / "student" / "model.safetensors")
    assert torch.equal(load_model(tmp_path / "run")(pictures(3, 1, 8)), result.student(pictures(3, 1, 8)))
    other = Listed()
    other.out = wrap(other.out)
    load_model(tmp_path / "run", network=other)
    assert torch.equal(other.out.state_dict().popitem()[1], network.out.state_dict().popitem()[1])


def test_torchscript_of_a_model_is_refused_plainly():
    with pytest.raises(UserError, match=r"TorchScript of a Model is not supported.*torch\.export"):
        torch.jit.script(zoo())


@pytest.mark.parametrize("make", [torch.jit.script, lambda net: torch.jit.trace(net, torch.zeros(2, 1, 8, 8))])
def test_torchscript_networks_are_refused_plainly(make, tmp_path):
    with pytest.raises(UserError, match="TorchScript, which is not supported"):
        protege.train(make(flat(nn.Linear(64, 10))), "digits", out=tmp_path / "run")


# a torchvision for another torch


def test_what_stands_on_an_unfit_torchvision_can_be_imported(tmp_path, monkeypatch):
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text("from torchvision import parts\n")
    (package / "parts.py").write_text(
        "import torch\n"
        "for name in ('first', 'second'):\n    torch.library.register_fake(f'torchvision::{name}_of_ours')(print)\n"
    )
    (tmp_path / "net_on_torchvision.py").write_text("import torchvision\nfrom torch.nn import Identity as net\n")
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    try:
        assert isinstance(load_model("net_on_torchvision:net", num_classes=3).network, nn.Identity)
        assert sys.modules["torchvision"].parts
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]


# memory and files


def test_a_trained_student_and_its_folder_compute_the_same_bits(tmp_path):
    result = protege.train("zoo:mobilenetv2?width=0.25", "digits", out=tmp_path / "run", epochs=1, samples=64)
    raw = pictures(5, 1, 8)
    again = load_model(tmp_path / "run")
    assert torch.equal(again(raw), result.student(raw))
    assert [p.stride() for p in again.parameters()] == [p.stride() for p in result.student.parameters()]


def test_half_files_of_killed_writes_are_cleared_and_nothing_else(tmp_path):
    folder = zoo().save(tmp_path / "model")
    gone = 2**22 + 1  # beyond the largest number of a process
    left = [folder / f".{name}.{gone}.tmp" for name in ("config.json", "model.safetensors")]
    mine = [folder / name for name in (".notes.5.tmp", "x.tmp", f".config.json.{gone}.tmp.txt")]
    living = folder / f".model.safetensors.{os.getppid()}.tmp"
    for path in [*left, *mine, living]:
        path.write_text("half")
    zoo().save(folder, overwrite=True)
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in [*mine, living])


def test_the_check_of_a_model_knows_the_shape_it_was_tried_on(tmp_path):
    data = Pictures((3, 20, 20))
    model = load_model(Model(nn.Sequential(nn.Flatten(), nn.Linear(1200, 3)), InputSpec()), data=data)
    check_classes(model, data)
    model.save(tmp_path / "model")
    assert json.loads((tmp_path / "model" / "config.json").read_text())["check"]["shape"] == [3, 20, 20]


class Expanded(nn.Module):
    """A buffer of which all numbers lie in one place in memory."""

    def __init__(self):
        super().__init__()
        self.out = nn.Linear(64, 10)
        self.register_buffer("shift", torch.ones(1).expand(10))

    def forward(self, x):
        return self.out(x.flatten(1)) + self.shift


def test_expanded_buffers_are_trained_saved_and_loaded(tmp_path):
    run = protege.train(Expanded(), "digits", tmp_path / "run", samples=40, epochs=1)
    assert torch.equal(run.student.network.shift, torch.ones(10))
    loaded = protege.load_model(tmp_path / "run")
    x = torch.randint(0, 256, (2, 1, 8, 8), dtype=torch.uint8)
    assert torch.equal(loaded(x), run.student(x))
