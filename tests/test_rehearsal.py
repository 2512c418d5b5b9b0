"""Batches of one sample, on which normalisation behind global pooling fails, are told before anything is trained."""

import pytest
import torch
from torch import nn

from protege import InputSpec, Model, train
from protege.errors import UserError
from protege.training.rehearsal import smallest_piece


def network(norm=True):
    torch.manual_seed(0)
    last = nn.BatchNorm1d(8) if norm else nn.Identity()
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), last, nn.Linear(8, 10))
    return Model(net, InputSpec(channels=1))


@pytest.mark.parametrize("settings", [{"batch_size": 1}, {"batch_size": 4, "accumulate": 4}])
def test_a_batch_of_one_is_refused_where_it_fails(settings, tmp_path):
    student, how = network(), {"samples": 21, "epochs": 1, "select": "last"}
    with pytest.raises(
        UserError, match=r"phase 'labels' has batches of one sample .*: set batch_size = \d+\."
    ) as caught:
        train(student, "digits", out=tmp_path / "run", **how, **settings)
    assert not (tmp_path / "run").exists()
    assert student.network[3].num_batches_tracked == 0
    remedy = int(str(caught.value).rpartition("= ")[2].rstrip("."))
    train(student, "digits", out=tmp_path / "run", **how, **(settings | {"batch_size": remedy}))


def test_a_batch_of_one_is_taken_where_it_works(tmp_path):
    train(network(norm=False), "digits", out=tmp_path / "run", samples=12, epochs=1, batch_size=1)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_the_smallest_piece_is_that_of_the_loop(world):
    for samples in range(1, 40):
        for batch_size in range(world, 12):
            for accumulate in (1, 2, 3):
                parts = torch.arange(samples).tensor_split(-(-samples // batch_size))
                shares = [mine for part in parts for mine in part.tensor_split(world) if len(mine)]
                pieces = [len(p) for mine in shares for p in mine.split(-(-len(mine) // accumulate))]
                assert smallest_piece(samples, batch_size, world, accumulate) == min(pieces)
