"""`compress`: the budget is met by what comes out, and what is wrong with a budget is said in a sentence."""

import json

import pytest
import torch
from torch import nn

import protege
from protege.surgery.counting import count_macs
from protege.surgery.pruning import path_of


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
        ({"macs": 1.5}, "share"),
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
