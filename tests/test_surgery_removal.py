"""Cutting channels out of one layer: what is left computes what the whole layer computes in these channels."""

import copy

import pytest
import torch
from torch import nn

from protege.surgery.pruning.removal import CannotRemove, Site, remove

GONE = [0, 5, 6, 17, 33, 34, 58]  # enough channels that a set of them has no order to rely on
LEFT = [channel for channel in range(60) if channel not in GONE]


def network(layer):
    """The layer in a network, in double precision, with nothing at its initial values."""
    torch.manual_seed(0)
    for tensor in (*layer.parameters(), *layer.buffers()):
        if tensor.is_floating_point():
            nn.init.uniform_(tensor, 0.5, 1.5)
    return nn.Sequential(layer).double().eval()


def cut(whole, side, gone=GONE):
    pruned = copy.deepcopy(whole)
    remove(pruned, {Site("0", side): gone})
    return pruned


@pytest.mark.parametrize(
    ("layer", "dim"),
    [
        (nn.Conv1d(3, 60, 3), 1), (nn.Conv3d(3, 60, 1), 1), (nn.ConvTranspose2d(3, 60, 2), 1), (nn.Linear(3, 60), -1),
        (nn.Embedding(9, 60), -1),
    ],
)  # fmt: skip
def test_outputs(layer, dim):
    whole = network(layer)
    if isinstance(layer, nn.Embedding):
        x = torch.arange(9)
    else:
        x = torch.randn(2, 3, *[4] * (whole[0].weight.dim() - 2)).double()
    expected = whole(x).index_select(dim, torch.tensor(LEFT))
    torch.testing.assert_close(cut(whole, "out")(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("layer", "dim"),
    [
        (nn.Conv2d(60, 4, 3), 1), (nn.ConvTranspose1d(60, 4, 2), 1), (nn.Linear(60, 4), -1),
        (nn.LSTM(60, 4, num_layers=2, bidirectional=True, batch_first=True), -1),
    ],
)  # fmt: skip
def test_inputs(layer, dim):
    whole = network(layer)
    shape = (2, 5, 60) if dim == -1 else (2, 60, *[4] * (whole[0].weight.dim() - 2))
    x = torch.randn(shape).double().index_fill(dim, torch.tensor(GONE), 0)
    found, expected = cut(whole, "in")(x.index_select(dim, torch.tensor(LEFT))), whole(x)
    if isinstance(found, tuple):
        found, expected = found[0], expected[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(60, 60, 3, groups=60), nn.BatchNorm2d(60), nn.BatchNorm2d(60, affine=False), nn.PReLU(60), nn.PReLU(),
        nn.InstanceNorm2d(60, affine=True, track_running_stats=True), nn.InstanceNorm2d(60),
    ],
)  # fmt: skip
def test_channels_that_go_through(layer):
    whole, x = network(layer), torch.randn(2, 60, 4, 4).double()
    torch.testing.assert_close(cut(whole, "both")(x[:, LEFT]), whole(x)[:, LEFT], rtol=0, atol=1e-12)


def test_norms_over_channels_keep_what_belongs_to_each():
    """Their means are over what is left, so that the tensors are compared."""
    for layer in (nn.LayerNorm(60), nn.LayerNorm(60, bias=False), nn.RMSNorm(60), nn.GroupNorm(1, 60)):
        whole = network(layer)
        pruned = cut(whole, "both")
        for name, value in whole.state_dict().items():
            assert torch.equal(pruned.state_dict()[name], value[LEFT])
        assert pruned(torch.randn(2, 53).double()).shape == (2, 53)


@pytest.mark.parametrize(
    ("layer", "side", "gone"),
    [
        (nn.ConvTranspose2d(8, 12, 2, groups=2), "out", [1, 4, 7, 10]),
        (nn.ConvTranspose2d(8, 12, 2, groups=2), "in", [3, 7]),
        (nn.Conv2d(8, 12, 2, groups=4), "out", [2, 5, 8, 11]),
        (nn.Conv2d(8, 12, 2, groups=4), "in", [0, 2, 4, 6]),
    ],
)
def test_groups_lose_the_same_places(layer, side, gone):
    whole, x = network(layer), torch.randn(2, 8, 5, 5).double()
    left = torch.tensor([channel for channel in range(12 if side == "out" else 8) if channel not in gone])
    if side == "out":
        torch.testing.assert_close(cut(whole, side, gone)(x), whole(x)[:, left], rtol=0, atol=1e-12)
    else:
        x[:, gone] = 0
        torch.testing.assert_close(cut(whole, side, gone)(x[:, left]), whole(x), rtol=0, atol=1e-12)
    with pytest.raises(CannotRemove, match="of which each would lose others"):
        cut(whole, side, gone[1:])


@pytest.mark.parametrize(
    ("layer", "side", "why"),
    [
        (nn.LayerNorm([4, 4]), "both", "is a LayerNorm, whose channels stay as they are"),
        (nn.Conv2d(6, 3, 1, groups=3), "both", "makes one channel of several"),
        (nn.Conv2d(3, 6, 1, groups=3), "both", "makes several channels of one"),
        (nn.LSTM(4, 4), "out", "is a LSTM, whose channels stay as they are"),
        (nn.Softmax(), "both", "is a Softmax"),
    ],
)
def test_what_cannot_be_cut_says_why(layer, side, why):
    with pytest.raises(CannotRemove, match=why):
        cut(network(layer), side, [1])
