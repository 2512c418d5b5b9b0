"""`protege shrink` says what it left whole and what comes next, and its folder needs no other word."""

import json
import logging

import pytest
import torch
from torch import nn

from protege import Model, distill, evaluate, load_model
from protege.models import InputSpec
from protege.run.shrinking import RECORD, shrink


class Small(nn.Module):
    """Two convolutions; of the second a sigmoid is read, of which zero is a half."""

    def __init__(self, num_classes=10, last=True):
        super().__init__()
        self.last = last
        self.a, self.b = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 8, 3, padding=1)
        self.o = nn.Linear(8 * 16, num_classes)

    def forward(self, x):
        x = nn.functional.max_pool2d(self.b(self.a(x).relu()), 2)
        return self.o((x.sigmoid() if self.last else x.relu()).flatten(1))


class Plain(Small):
    """The same with ReLU."""

    def __init__(self, num_classes=10):
        super().__init__(num_classes, last=False)


def frozen(num_classes=10):
    return Plain(num_classes).requires_grad_(False)


class Counted(Plain):
    """Its outputs depend on how many samples there are, which fskd cannot align."""

    def forward(self, x):
        return super().forward(x) + len(x)


def test_layers_that_stay_whole_are_told_and_recorded(tmp_path, caplog):
    torch.manual_seed(0)
    with caplog.at_level(logging.WARNING):
        shrunk = shrink(Small(), ratio=0.5, data="digits", out=tmp_path / "out")
    record = json.loads((tmp_path / "out" / RECORD).read_text())
    assert [part["layers"] for part in record["left_out"]] == [["b"]]
    assert "'o'" in record["left_out"][0]["why"]
    assert any("left whole: 'b'" in line for line in caplog.messages)
    assert record["fskd"] is None
    assert len(shrunk.kept["a"]) == 8
    assert len(shrunk.kept["b"]) == 8


@pytest.mark.parametrize(("kind", "layer"), [(Counted, "number of its samples"), (Plain, None)])
def test_what_fskd_would_refuse_is_told_before_anything_is_written(kind, layer, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        shrink(kind(), ratio=0.5, data="digits", dry_run=True)
    told = [line for line in caplog.messages if "fskd would refuse" in line]
    assert len(told) == (layer is not None)
    assert layer is None or layer in told[0]
    assert not list(tmp_path.iterdir())


def test_a_network_shrunk_from_a_frozen_teacher_learns(tmp_path):
    torch.manual_seed(0)
    shrunk = shrink(f"{__name__}:frozen", ratio=0.5, data="digits", out=tmp_path / "out")
    for model in (shrunk, load_model(tmp_path / "out", trust=True)):
        assert all(parameter.requires_grad for parameter in model.parameters())
    before = {name: value.clone() for name, value in shrunk.network.state_dict().items()}
    torch.manual_seed(0)
    teacher = load_model(f"{__name__}:frozen", num_classes=10)  # the same weights, but for the last
    nn.init.normal_(teacher.network.o.weight)
    from protege.methods.fskd import recover

    x = torch.rand(16, 1, 8, 8)
    recover(shrunk.network, teacher.network, shrunk.kept, lambda n: (x, x), [0, 1])
    assert any(not torch.equal(value, before[name]) for name, value in shrunk.network.state_dict().items())


@pytest.mark.parametrize("data", ["digits", None])
def test_a_shrunk_folder_knows_its_classes(data, tmp_path):
    torch.manual_seed(0)
    nameless = Model(Plain(), InputSpec(channels=1, size=(8, 8), mean=(0.3,), std=(0.4,)))
    assert nameless.classes == ()
    shrink(nameless, ratio=0.5, data=data, out=tmp_path / "out")
    loaded = load_model(tmp_path / "out")
    assert len(loaded.classes) == (10 if data else 0)
    assert loaded(torch.zeros(2, 1, 8, 8, dtype=torch.uint8)).shape == (2, 10)
    assert 0 <= evaluate(tmp_path / "out", "digits")["accuracy"] <= 1
    distill(tmp_path / "out", tmp_path / "out", "digits", method="none", epochs=1, samples=50, out=tmp_path / "run")


class Blocks(nn.Module):
    """Made of what no folder can hold, so that nobody but its author can build it again."""

    def __init__(self, activation):
        super().__init__()
        self.activation = lambda x: activation(x)
        self.a, self.b, self.o = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 8, 3, padding=1), nn.Linear(8, 3)

    def forward(self, x):
        return self.o(self.b(self.activation(self.a(x))).mean((2, 3)))


def test_a_folder_is_loaded_into_the_network_that_was_shrunk(tmp_path):
    """Into its author's own, as it was before; once and twice shrunk, and after it has learned."""
    raw = torch.randint(0, 256, (4, 1, 8, 8), dtype=torch.uint8)
    model = Model(Blocks(torch.relu), InputSpec(channels=1, size=(8, 8)))
    for turn in ("once", "twice"):
        model = shrink(model, ratio=0.4, out=tmp_path / turn)
        again = load_model(tmp_path / turn, network=Blocks(torch.relu))
        assert torch.equal(again.eval()(raw), model.eval()(raw))
        assert again.network.a.out_channels == model.network.a.out_channels
    with torch.no_grad():
        model.network.o.bias.add_(1)
    again = load_model(model.save(tmp_path / "learned"), network=Blocks(torch.relu))
    assert torch.equal(again.eval()(raw), model(raw))
