"""Networks are timed in turns, so that a busy machine changes no ratio; and within the time that is given."""

import json
import time

import pytest
import torch
from torch import nn

from protege import distill, load_model, shrink, train
from protege.run import latency
from protege.run.latency import latencies


class Sleeping(nn.Module):
    """Takes so many seconds for a call, and as many more for each sample; notes the sizes of what it is called on."""

    def __init__(self, call=0.0, sample=0.0):
        super().__init__()
        self.call, self.sample, self.sizes, self.slower = call, sample, [], 1.0
        self.bn = nn.BatchNorm1d(1)

    def forward(self, raw):
        self.sizes.append(len(raw))
        time.sleep(self.slower * (self.call + self.sample * len(raw)))
        return self.bn(raw.float())


@pytest.fixture(autouse=True)
def turns(monkeypatch):
    for name, value in {"LEAST": 3, "MOST": 51, "TURN": 0.0}.items():
        monkeypatch.setattr(latency, name, value)


def raw():
    return torch.zeros(2, 1)


def test_a_ratio_is_that_of_neighbouring_turns_while_the_machine_slows_down():
    first, second = Sleeping(0.002), Sleeping(0.006)
    began = time.perf_counter()

    def slow_down(module, inputs, output):  # threefold in the course of the turns
        first.slower = second.slower = 1 + 2 * min(1.0, (time.perf_counter() - began) / 0.4)

    for network in (first, second):
        network.bn.register_forward_hook(slow_down)
    one, other = latencies([first, second], raw(), seconds=0.4)
    assert one.ratio == 1
    assert other.ratio == pytest.approx(3, rel=0.15)
    assert other.rounds >= 5
    assert other.spread > 0
    assert other.seconds == pytest.approx(3 * one.seconds, rel=0.4)


def test_a_batch_that_takes_too_long_is_halved_and_the_record_says_so():
    began = time.perf_counter()
    (measured,) = latencies([Sleeping(sample=0.002)], raw(), batch=64, seconds=0.1)
    assert time.perf_counter() - began < 0.5
    assert measured.batch in (8, 16)
    assert measured.record()["batch"] == measured.batch
    assert measured.seconds == pytest.approx(measured.batch * 0.002, rel=0.3)
    (quick,) = latencies([Sleeping()], raw(), batch=24, seconds=0.1)
    assert quick.batch == 24


def test_networks_and_threads_are_as_they_were():
    network, before = Sleeping(), torch.get_num_threads()
    network.train()
    asked = []
    network.register_forward_pre_hook(lambda module, inputs: asked.append(inputs))
    state = {name: value.clone() for name, value in network.state_dict().items()}
    (measured,) = latencies([network], raw(), batch=4, threads=before + 1, seconds=0.01)
    assert measured.threads == before + 1
    assert torch.get_num_threads() == before
    assert network.training
    assert network.bn.training
    assert network.sizes == []
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


def sized(part, speed, network, file=None):
    """Whether a part of a record has a network's size, and times at batch 1 and at most 64."""
    assert part["params"] == sum(p.numel() for p in network.parameters())
    assert part["bytes"] > 4 * part["params"]
    assert part["bytes"] == (file.stat().st_size if file else part["bytes"])
    one, many = speed
    assert one["batch"] == 1
    assert 1 < many["batch"] <= 64
    assert one["milliseconds"] > 0
    assert many["milliseconds"] > 0
    assert one["rounds"] >= 3
    assert one["spread"] >= 0
    return one["ratio"], many["ratio"]


@pytest.mark.parametrize("where", ["a folder", "the zoo", "Python"])
def test_runs_tell_size_and_speed_of_teacher_and_student_wherever_they_came_from(where, digits_teacher, tmp_path):
    teacher = load_model(digits_teacher)
    given = {"a folder": digits_teacher, "the zoo": "zoo:mlp?hidden=32", "Python": teacher.network}[where]
    if where == "the zoo":  # one that knows nothing, which is only measured
        result = train(given, "digits", out=tmp_path / "out", samples=50, epochs=1).result
    else:
        student = load_model("zoo:cnn_tiny", num_classes=10).network
        result = distill(given, student, "digits", method="kd", out=tmp_path / "out", samples=50, epochs=1).result
        assert sized(result["teacher"], result["speed"]["teacher"], teacher, digits_teacher / "model.safetensors") == (
            1,
            1,
        )
    student = load_model(tmp_path / "out" / "student")
    ratios = sized(
        result["student"], result["speed"]["student"], student, tmp_path / "out" / "student" / "model.safetensors"
    )
    assert (ratios == (1, 1)) == (where == "the zoo")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Size and speed" in page
    assert "one image" in page
    assert page.count("\u00a0ms ±") == (2 if where == "the zoo" else 4)


def test_a_shrunk_network_and_the_one_before_tell_size_and_speed(digits_teacher, tmp_path):
    shrunk = shrink(digits_teacher, ratio=0.5, data="digits", out=tmp_path / "small")
    record = json.loads((tmp_path / "small" / "shrink.json").read_text())
    sized(record["before"], record["speed"]["before"], load_model(digits_teacher), digits_teacher / "model.safetensors")
    sized(record["after"], record["speed"]["after"], shrunk, tmp_path / "small" / "model.safetensors")


def test_a_run_whose_networks_cannot_be_timed_ends_all_the_same(tmp_path, monkeypatch, caplog):
    def fail(*_, **__):
        raise RuntimeError("no such batch")

    monkeypatch.setattr("protege.run.measure.speeds", fail)
    result = train("zoo:mlp?hidden=8", "digits", out=tmp_path / "out", samples=50, epochs=1).result
    assert "speed" not in result["student"]
    assert "cannot be timed (no such batch)" in caplog.text
    assert "Size and speed" not in (tmp_path / "out" / "report.html").read_text()
