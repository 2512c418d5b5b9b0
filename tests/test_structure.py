"""Structure as plain JSON: what `record` tells, `rebuild` makes again; model folders carry it; bad ones are refused."""

import json

import pytest
import torch
from torch import nn

from protege import load_model, shrink
from protege.errors import UserError
from protege.models import InputSpec, Model
from protege.surgery import decouple, rebuild, record
from protege.surgery import shrink as prune


def pixels(side=8, channels=3):
    return torch.randint(0, 256, (3, channels, side, side), dtype=torch.uint8)


class Everything(nn.Module):
    """One layer of each kind, none of which is run."""

    def __init__(self, n=4, bias=True):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv1d(3, n, 3, bias=bias), nn.Conv2d(2 * n, 2 * n, 3, groups=n, bias=bias)
        self.up = nn.ConvTranspose2d(2 * n, n, 2, groups=n)
        self.bn, self.ln, self.gn = nn.BatchNorm1d(n), nn.LayerNorm((2, n)), nn.GroupNorm(n, 2 * n)
        self.act, self.words, self.fc = nn.PReLU(n), nn.Embedding(n + 5, n), nn.Linear(n, 2 * n, bias=bias)
        self.norm = nn.InstanceNorm2d(n, affine=True, track_running_stats=True)
        self.token = nn.Parameter(torch.zeros(1, n))
        self.width = n


@pytest.mark.parametrize("bias", [True, False])
def test_every_kind_of_layer_is_told_and_made_again(bias):
    small = Everything(3, bias)
    edits = json.loads(json.dumps(record(Everything(5), small)))
    again = rebuild(Everything(5), edits)
    assert record(again, small) == []
    again.load_state_dict(small.state_dict())
    assert str(again) == str(small)
    assert again.width == 3
    assert record(rebuild(again, edits), small) == []  # sizes, not differences
    assert record(small, small) == []


@pytest.mark.parametrize(
    "name", ["vgg8_bn?width=0.125&image_size=8", "resnet8", "mobilenetv2?width=0.25", "mlp?image_size=8&depth=2"]
)
def test_a_pruned_model_saves_and_loads_like_any_other(name, tmp_path):
    model = load_model(f"zoo:{name}", num_classes=4).eval()
    pruned = prune(model.network, model.input(pixels()), ratio=0.5)
    small = Model(pruned.network, model.input, model.source, kept=pruned.kept).eval()
    loaded = load_model(small.save(tmp_path / "small"))
    raw = pixels()
    assert torch.equal(loaded(raw), small(raw))
    assert loaded.kept == pruned.kept
    assert loaded.source == model.source
    again = load_model(loaded.save(tmp_path / "again"))  # as a run saves what it was given
    assert (again.structure, again.kept) == (loaded.structure, loaded.kept)
    assert torch.equal(again(raw), small(raw))
    text = (tmp_path / "small" / "config.json").read_text()
    assert max(len(line) for line in text.splitlines() if "[" not in line) < 120
    assert json.loads(text)["kept"] == pruned.kept


def test_shrinking_twice_and_in_two_ways(tmp_path):
    torch.manual_seed(0)
    source = "zoo:resnet8?num_classes=10&channels=1"
    load_model(source, num_classes=10).save(tmp_path / "source")
    first = shrink(tmp_path / "source", how="l1", ratio=0.3, data="digits", out=tmp_path / "first")
    second = shrink(tmp_path / "first", how="l1", macs=0.6, data="digits", out=tmp_path / "second")
    third = shrink(tmp_path / "second", how="decouple", rank=3, data="digits", out=tmp_path / "third")
    raw = pixels(channels=1)
    for model, name in ((first, "first"), (second, "second"), (third, "third")):
        torch.testing.assert_close(load_model(tmp_path / name)(raw), model.eval()(raw))  # in another layout
    assert third.kept == second.kept
    original = load_model(tmp_path / "source").network.conv1.weight
    assert torch.equal(second.network.conv1.weight, original[second.kept["conv1"]])
    told = json.loads((tmp_path / "second" / "shrink.json").read_text())
    assert abs(told["after"]["macs"] / told["before"]["macs"] - 0.6) <= 0.02
    assert 0 <= told["after"]["metrics"]["accuracy"] <= 1
    assert [edit["rank"] for edit in third.structure if edit["type"] == "Decoupled"] == [3] * 6


def test_a_dry_run_writes_nothing_and_full_folders_are_kept(tmp_path):
    options = {"how": "l1", "data": "digits"}
    small = shrink("zoo:cnn_tiny", ratio=0.5, out=tmp_path / "out", dry_run=True, **options)
    assert not (tmp_path / "out").exists()
    assert small.network.fc.in_features == 8
    shrink("zoo:cnn_tiny", ratio=0.5, out=tmp_path / "out", **options)
    with pytest.raises(UserError, match="not empty"):
        shrink("zoo:cnn_tiny", ratio=0.25, out=tmp_path / "out", **options)
    shrink("zoo:cnn_tiny", ratio=0.25, out=tmp_path / "out", overwrite=True, **options)
    assert load_model(tmp_path / "out").network.fc.in_features == 12


def test_a_users_own_network_shrinks_too(tmp_path):
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    small = shrink(Model(network, InputSpec(size=(8, 8))), ratio=0.5, out=tmp_path / "own")
    raw = pixels()
    loaded = load_model(tmp_path / "own", network=small.network)
    assert torch.equal(loaded(raw), small.eval()(raw))


@pytest.mark.parametrize(
    ("told", "edit"),
    [
        ("unknown type 'Exec'", {"module": "fc", "type": "Exec"}),
        ("changes 'nothing'", {"module": "nothing", "type": "Linear", "in_features": 1, "out_features": 1}),
        ("takes 'fc' for a Conv2d but it is a Linear", {"module": "fc", "type": "Conv2d"}),
        ("out_features = None; expected whole numbers", {"module": "fc", "type": "Linear", "in_features": 4}),
        ("in_features = -1", {"module": "fc", "type": "Linear", "in_features": -1, "out_features": 4}),
        ("takes 'fc' for a Conv2d", {"module": "fc", "type": "Decoupled", "in_channels": 1}),
        ("expected whole numbers for some of", {"module": "", "type": "Attributes", "values": {"forward": 1}}),
        ("is not usable", "fc"),
        ("does not fit", {"module": "fc", "type": "Linear", "in_features": 4, "out_features": 9, "bias": True}),
    ],
)
def test_a_structure_that_does_not_fit_is_refused(told, edit, tmp_path):
    load_model("zoo:cnn_tiny", num_classes=4).save(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "structure": [edit]}))
    with pytest.raises(UserError) as caught:
        load_model(tmp_path / "model")
    assert told in str(caught.value)


def test_what_sizes_cannot_tell_is_named():
    source = load_model("zoo:cnn_tiny", num_classes=4).network
    other = load_model("zoo:cnn_tiny", num_classes=4).network
    other.fc = nn.Sequential(nn.Linear(16, 4))
    with pytest.raises(UserError, match="'fc' is a Sequential where its source has a Linear"):
        record(source, other)
    other = decouple(source, 2, layers=["layer1.0"]).network
    assert [edit["type"] for edit in record(source, other)] == ["Decoupled"]


@pytest.mark.parametrize(
    ("told", "options"),
    [
        ("how = 'magic'", {"how": "magic", "ratio": 0.5}),
        ("does not go with how='decouple'", {"how": "decouple", "ratio": 0.5}),
        ("does not go with how='l1'", {"how": "l1", "rank": 2}),
        ("'out' is missing", {"ratio": 0.5, "out": None}),
        ("expected one of them", {"ratio": 0.5, "macs": 0.5}),
        ("any size and none is given", {"ratio": 0.5, "data": None, "model": "zoo:cnn_tiny?num_classes=3"}),
    ],
)
def test_bad_options_leave_nothing_behind(told, options, tmp_path):
    given = {"model": "zoo:cnn_tiny", "data": "digits", "out": tmp_path / "out", **options}
    with pytest.raises(UserError) as caught:
        shrink(given.pop("model"), **given)
    assert told in str(caught.value)
    assert not (tmp_path / "out").exists()
