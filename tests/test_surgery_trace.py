"""Tracing: a graph, or the one reason why there is none; the network stays as it was."""

import pytest
import torch
from torch import nn

from protege.surgery.tracing import Untraceable, trace


class Block(nn.Module):
    """Branches on a number inside a tensor, or not."""

    def __init__(self, branches):
        super().__init__()
        self.branches, self.conv = branches, nn.Conv2d(3, 3, 1)

    def forward(self, x):
        x = self.conv(x)
        return x * 2 if self.branches and x.mean() > 0 else x + 1


class Net(nn.Module):
    def __init__(self, branches):
        super().__init__()
        self.passes = 0
        self.block, self.norm = Block(branches), nn.BatchNorm2d(3)

    def forward(self, x):
        self.passes += 1
        return self.norm(self.block(x)).flatten(1) * x.shape[1]


def modules_called(traced):
    return [str(node.target).removeprefix("network.") for node in traced.nodes if node.op == "call_module"]


def test_it_goes_as_deep_as_it_is_asked_to_and_as_it_can():
    x = torch.randn(2, 3, 4, 4)
    for branches in (False, True):
        network = Net(branches).train()
        state = {name: value.clone() for name, value in network.state_dict().items()}
        shallow = trace(network, x, {network})
        welcome = trace(network, x, {network}, welcome={network.block})
        assert modules_called(shallow) == ["block", "norm"]
        assert modules_called(welcome) == (["block", "norm"] if branches else ["block.conv", "norm"])
        network.eval()
        for traced in (shallow, welcome):
            torch.testing.assert_close(traced.values[traced.nodes[-1]], network(x))
        network.train()
        network.passes -= 2
        assert network.passes == 0
        assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


def test_where_it_must_look_inside_and_cannot_it_says_where():
    network = Net(True)
    with pytest.raises(Untraceable, match="branches on the numbers inside a tensor") as caught:
        trace(network, torch.randn(2, 3, 4, 4), {network, network.block})
    assert caught.value.place == "Block 'block'"
    assert all(module.training for module in network.modules())


def test_samples_that_the_network_does_not_take_are_another_reason():
    network = Net(False)
    with pytest.raises(Untraceable, match="channels") as caught:
        trace(network, torch.randn(2, 5, 4, 4), {network})
    assert caught.value.place == ""
    assert network.passes == 0
