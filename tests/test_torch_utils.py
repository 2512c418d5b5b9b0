"""A network that is only tried out is afterwards what it was, and so are the random numbers of the process."""

import random

import numpy as np
import torch
from torch import nn

from protege.torch_utils import as_it_was, is_unmade, seeded, untouched


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
