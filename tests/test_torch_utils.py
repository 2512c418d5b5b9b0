"""A network that is only tried out is afterwards what it was, and so are the random numbers of the process."""

import random

import numpy as np
import torch
from torch import nn

from protege.torch_utils import as_it_was, eval_mode, is_unmade, seeded, untouched


class Busy(nn.Module):
    """Changes all it has in a forward pass, and has a buffer of which all numbers are one in memory."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.count, self.seen, self.table = 0, [], {"last": None}
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("mask", torch.ones(1).expand(3))

    def forward(self, x):
        self.count, self.fresh = self.count + 1, x
        self.seen.append(x)
        self.table["last"] = x
        self.mean += x.mean(0)
        return self.layer(x * self.mask) + torch.rand(3) + random.random() + np.random.rand()


def draws():
    return torch.rand(2).tolist(), random.random(), float(np.random.rand())


def test_nothing_lasts_of_a_try():
    network = Busy().train()
    network.layer.eval()
    with seeded(3):
        expected = draws()
    for around in (as_it_was, untouched):
        with seeded(3):
            with around(network):
                network(torch.rand(2, 3))
            assert draws() == expected
        assert (network.count, network.seen, network.table) == (0, [], {"last": None})
        assert not hasattr(network, "fresh")
        assert not network.mean.any()
        assert network.training
        assert not network.layer.training


def test_a_network_can_be_brought_back_several_times():
    network, x = Busy(), torch.rand(2, 3)
    with as_it_was(network) as restore:
        for _ in range(2):
            network(x)
            assert network.count == 1
            restore()


def test_lazy_layers_stay_made():
    network = nn.Sequential(nn.LazyLinear(4))
    network.load_state_dict(nn.Sequential(nn.Linear(3, 4)).state_dict())  # sizes are known before the first input
    assert is_unmade(network)
    with untouched(network):
        network(torch.rand(2, 3))
    assert not is_unmade(network)
    assert network(torch.rand(2, 3)).shape == (2, 4)


def test_modules_that_switch_their_weights_with_their_mode_are_switched():
    class Merging(nn.Linear):
        """Merges a gain into a weight of its own in eval mode, and remembers an offset until it is trained on."""

        def __init__(self):
            super().__init__(3, 3)
            self.gain, self.offset, self.merged, self.kept = (
                nn.Parameter(torch.rand(3)),
                nn.Parameter(torch.rand(3)),
                None,
                {},
            )

        def train(self, mode=True):
            self.merged, self.kept = (None, {}) if mode else (self.gain * self.weight, self.kept)
            return super().train(mode)

        def forward(self, x):
            weight = self.gain * self.weight if self.training else self.merged
            return x @ weight + (self.offset if self.training else self.kept.setdefault("offset", self.offset.clone()))

    network, x = nn.Sequential(Merging(), nn.Linear(3, 3), Merging()), torch.randn(2, 3)
    network[2].eval()
    for _ in range(2):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.mul_(1.5)
            expected = x
            for layer in network:
                weight = layer.gain * layer.weight if layer is not network[1] else layer.weight.T
                expected = expected @ weight + (layer.offset if layer is not network[1] else layer.bias)
            with eval_mode(network):
                torch.testing.assert_close(network(x), expected)
                assert not any(module.training for module in network.modules())
        assert [module.training for module in network.modules()] == [True, True, True, False]
        assert network[0].merged is None
    network.eval()
    with eval_mode(network):
        torch.testing.assert_close(network(x), expected)
