"""`compress`: the budget is met by what comes out, and what is wrong with a budget is said in a sentence."""

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

import protege
from protege.compression.ways import Ways
from protege.data import load_data
from protege.diagnosis.recommend import Facts, recommend
from protege.models import load_model
from protege.run.shrinking import example_of
from protege.surgery import decouple, plan_alignment, shrink
from protege.surgery.counting import count_macs
from protege.surgery.pruning import compose, path_of
from protege.surgery.tracing.walk import Walk


def lopsided():
    """Two of the first layer's channels carry all that is read; the others are large and read by nobody."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.LazyLinear(5)
    )
    network(torch.zeros(1, 3, 8, 8))
    with torch.no_grad():
        network[0].weight[:2] *= 0.1
        network[2].weight[:, 2:] = 0
    return network.eval()


def test_channels_that_nobody_needs_go_first_however_large_they_are():
    network, x = lopsided(), torch.randn(16, 3, 8, 8)
    path = path_of(network, x[:2], [x])
    first = next(number for number, group in enumerate(path.groups) if "0" in group.layers)
    order = [unit for place in path.places if place.group == first for unit in place.step.units]
    assert set(order[:6]) == {2, 3, 4, 5, 6, 7}
    count = max(
        n for n, place in enumerate(path.places) if place.group == first and set(place.step.units) <= set(range(2, 8))
    )
    free = {n: path.places[n].step.cost for n in range(count + 1) if path.places[n].group == first}
    assert max(free.values()) < 1e-6


def test_the_path_tells_what_is_left():
    network, x = lopsided(), torch.randn(16, 3, 8, 8)
    path = path_of(network, x[:2], [x])
    for count in (1, len(path.places) // 2, len(path.places)):
        place, cut = path.places[count - 1], path.cut(count).network
        assert count_macs(cut, x[:1]) / count_macs(network, x[:1]) == pytest.approx(place.macs, rel=1e-6)


def test_a_model_is_compressed_within_its_budget_and_goes_on_where_it_was_stopped(tmp_path):
    out = tmp_path / "small"
    teacher = protege.train("zoo:cnn_tiny", "digits", out=tmp_path / "teacher", epochs=15, lr=0.05).student
    call = {"macs": 0.5, "to": "folder", "epochs": 1, "time": "40s", "out": out}
    result = protege.compress(tmp_path / "teacher" / "student", "digits", **call)
    x = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    assert count_macs(result.student, x) <= 0.5 * count_macs(teacher, x)
    record = json.loads((out / "compress.json").read_text())
    assert record["finished"]
    assert (out / "report.html").is_file()
    assert protege.evaluate(out / "student", "digits")["accuracy"] == pytest.approx(
        record["student"]["test"]["accuracy"]
    )
    again = protege.compress(tmp_path / "teacher" / "student", "digits", **call, resume=True)
    assert [each["metrics"] for each in again.frontier] == [each["metrics"] for each in result.frontier]
    with pytest.raises(protege.UserError, match="was begun with"):
        protege.compress(tmp_path / "teacher" / "student", "digits", **{**call, "macs": 0.4}, resume=True)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "no budget"),
        ({"macs": 1.5}, "less than the whole"),
        ({"size": "5 apples"}, "unit"),
        ({"latency": "-8ms"}, "unit"),
        ({"accuracy_drop": 2}, "fraction"),
        ({"macs": 0.5, "to": "nothing"}, "unknown"),
    ],
)
def test_a_budget_that_is_none_is_refused_in_a_sentence(tmp_path, options, words):
    with pytest.raises(protege.UserError, match=words):
        protege.compress("zoo:mlp", "digits", out=tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def ways():
    """Of a fresh residual network on images of 16 pixels."""
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (40, 3, 16, 16), dtype=torch.uint8, generator=draw)
    data = load_data(TensorDataset(images, torch.arange(40) % 10))
    teacher = load_model("zoo:resnet8", data=data).eval()
    raw = example_of(teacher, data)
    return Ways(teacher, data, raw, "macs", lambda: [teacher.prepared(images[:8])])


@pytest.mark.parametrize("how", ["path", "pixels", "decouple", "l1"])
def test_each_way_leaves_the_share_that_is_asked_for(ways, how):
    model, _ = ways.model(how, 0.5)
    assert count_macs(model, ways.raw) / count_macs(ways.teacher, ways.raw) == pytest.approx(0.5, abs=0.05)
    assert model.kept
    assert model(ways.raw).shape == ways.teacher(ways.raw).shape


def test_within_blocks_is_no_way_of_its_own_where_nothing_else_would_go(ways):
    with pytest.raises(protege.UserError, match="stays whole"):
        ways.model("hidden", 0.95)


def test_on_smaller_images_the_network_is_the_same(ways):
    model, _ = ways.model("pixels", 0.5)
    size = model.input.size
    assert size is not None
    assert size[0] < 16
    for name, value in ways.teacher.network.state_dict().items():
        assert torch.equal(model.network.state_dict()[name], value)
    with torch.no_grad():
        smaller = F.interpolate(ways.raw, size, mode="bilinear", antialias=True, align_corners=False)
        expected = ways.teacher.network(replace(ways.teacher.input, size=None)(smaller))
        torch.testing.assert_close(model(ways.raw), expected)


def test_within_blocks_nothing_that_all_blocks_share_is_removed(ways):
    path = ways.path("hidden")
    whole, thin = ways.teacher.network, path.cut(len(path.places)).network
    stream = {name for group in ways.path().groups if group.part == "stream" for name in group.layers}
    hidden = {name for group in path.groups for name in group.layers}
    assert stream - hidden
    for name in stream - hidden:
        assert thin.get_submodule(name).weight.shape[0] == whole.get_submodule(name).weight.shape[0]
    assert any(thin.get_submodule(name).weight.shape != whole.get_submodule(name).weight.shape for name in hidden)


def test_a_decoupled_network_that_is_shrunk_again_is_aligned_whole():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.LazyLinear(5)
    )
    x = torch.randn(2, 3, 10, 10)
    network(x)
    pairs = decouple(network.eval(), 2)
    thin = shrink(pairs.network, x, ratio=0.5)
    kept = compose(pairs.kept, thin.kept)
    points = plan_alignment(Walk(thin.network, "student", x), Walk(network, "teacher", x), kept, True)
    assert not points.left


def test_a_size_of_a_quarter_is_met_in_int8_and_measured_on_the_file_that_is_left(tmp_path):
    pytest.importorskip("onnxruntime")
    teacher = protege.train("zoo:cnn_small", "digits", out=tmp_path / "teacher", epochs=2).student
    result = protege.compress(teacher, "digits", size="29%", epochs=0, time="5s", out=tmp_path / "out")
    assert result.file.name == "model_int8.onnx"
    figures = {role: result.result[role]["figures"]["size"] for role in ("teacher", "student")}
    assert figures["student"] == result.file.stat().st_size <= 0.29 * 1.02 * figures["teacher"]
    assert result.result["file"]["compared"]["agreement"] > 0.9


def test_images_without_labels_are_judged_by_agreement(tmp_path):
    images = torch.randint(0, 256, (60, 3, 16, 16), dtype=torch.uint8)
    data = TensorDataset(images, torch.full((60,), -100))
    result = protege.compress(
        "zoo:resnet8?num_classes=5", data, params=0.5, to="folder", epochs=0, out=tmp_path / "out"
    )
    assert result.result["metric"] == "agreement"
    assert result.metrics.keys() == {"agreement", "error"}
    assert result.result["student"]["figures"]["params"] <= 0.5 * result.result["teacher"]["figures"]["params"]


def test_a_solved_network_is_taught_at_a_lower_rate_first():
    known = Facts("classification", 10, 300, labelled=False, shrunk=True)
    assert [each.method for each in recommend(known).candidates][:2] == ["fskd", "fskd"]
    solved = recommend(replace(known, solved=True)).candidates
    assert all(each.method != "fskd" for each in solved)
    assert solved[0].settings["lr"] < solved[1].settings["lr"]


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """A small network for digits, as a folder."""
    out = tmp_path_factory.mktemp("teacher")
    protege.train("zoo:cnn_tiny", "digits", out=out, epochs=15, lr=0.05, overwrite=True)
    return out / "student"


def test_a_call_whose_time_is_over_goes_on_with_all_that_was_made(taught, tmp_path):
    call = {"macs": 0.5, "to": "folder", "epochs": 1, "time": "60s", "out": tmp_path / "out"}
    first = protege.compress(taught, "digits", **call)
    record = json.loads((tmp_path / "out" / "compress.json").read_text())
    (tmp_path / "out" / "compress.json").write_text(json.dumps({**record, "finished": False, "seconds": 1000.0}))
    again = protege.compress(taught, "digits", **call, resume=True)
    assert [each["name"] for each in again.frontier] == [each["name"] for each in first.frontier]
    assert again.metrics == first.metrics
    assert protege.compress(taught, "digits", **call, resume=True).metrics == first.metrics  # finished


def test_another_model_does_not_go_on(taught, tmp_path):
    call = {"macs": 0.5, "to": "folder", "epochs": 0, "time": "3s", "out": tmp_path / "out"}
    protege.compress(taught, "digits", **call)
    other = protege.load_model(taught, network=None)
    with torch.no_grad():
        next(other.network.parameters()).add_(1)
    other.save(tmp_path / "other")
    record = json.loads((tmp_path / "out" / "compress.json").read_text())
    (tmp_path / "out" / "compress.json").write_text(json.dumps({**record, "model": str(tmp_path / "other")}))
    with pytest.raises(protege.UserError, match="another model"):
        protege.compress(tmp_path / "other", "digits", **call, resume=True)


def test_a_model_that_was_shrunk_before_is_solved_for_like_others(taught, tmp_path):
    half = protege.shrink(taught, ratio=0.2, data="digits", out=tmp_path / "half")
    result = protege.compress(half, "digits", macs=0.8, to="folder", epochs=0, time="30s", out=tmp_path / "out")
    path = next(each for each in result.frontier if each["how"] == "path")
    assert path["layers"]
    assert path["metrics"]["agreement"] > path["before"]["agreement"] - 0.05


def test_the_smallest_within_a_loss_is_found_and_the_search_ends(taught, tmp_path):
    result = protege.compress(taught, "digits", accuracy_drop=0.9, to="folder", epochs=0, out=tmp_path / "out")
    assert result.result["met"] == {"accuracy_drop": True}
    least = min(each["figures"]["macs"] for each in result.frontier)
    assert result.result["student"]["figures"]["macs"] == least


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch": 0}, "batch is 0"),
        ({"threads": -1}, "threads is -1"),
        ({"epochs": -3}, "epochs is -3"),
        ({"seed": -1}, "seed"),
        ({"to": "folder", "int8": True}, "int8=True does not go with"),
        ({"to": "litert", "int8": True}, "int8=True does not go with"),
    ],
)
def test_options_out_of_range_are_refused_before_anything_is_made(tmp_path, options, words):
    with pytest.raises(protege.UserError, match=words):
        protege.compress("zoo:mlp", "digits", macs=0.5, out=tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
