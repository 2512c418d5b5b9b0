"""Networks are timed in turns, so that a busy machine changes no ratio; and within the time that is given."""

import time

import pytest
import torch
from torch import nn

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

    def slow_down(module, inputs):  # threefold in the course of the turns
        first.slower = second.slower = 1 + 2 * min(1.0, (time.perf_counter() - began) / 0.4)

    for network in (first, second):
        network.register_forward_pre_hook(slow_down)
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
    state = {name: value.clone() for name, value in network.state_dict().items()}
    (measured,) = latencies([network], raw(), batch=4, threads=before + 1, seconds=0.01)
    assert measured.threads == before + 1
    assert torch.get_num_threads() == before
    assert network.training
    assert network.bn.training
    assert network.sizes == []
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
