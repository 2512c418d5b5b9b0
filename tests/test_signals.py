"""What a tap hears does not depend on what else is asked, and what is damaged is not served."""

import pytest
import torch
from torch import nn

from protege.errors import UserError
from protege.losses import kd_loss
from protege.signals import Feature, Logits, SignalCache, Source
from protege.signals.identity import behaviour
from protege.tasks import TASKS

TASK = TASKS["classification"]


class InPlace(nn.Module):
    """A convolution followed in place, and one activation called twice, as many networks are written."""

    def __init__(self):
        super().__init__()
        self.conv, self.act, self.fc = nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True), nn.Linear(4, 3)

    def forward(self, x):
        return self.fc(self.act(self.act(self.conv(x)).mean((2, 3)) - 0.1))


def test_a_tap_hears_the_same_with_and_without_logits():
    torch.manual_seed(0)
    network, x = InPlace().eval(), torch.randn(5, 1, 8, 8)
    wanted = [Feature("conv"), Feature("act")]
    alone = Source("teacher", network, wanted, TASK).compute(x)
    beside = Source("teacher", network, [*wanted, Logits()], TASK).compute(x)
    with torch.no_grad():
        convolved = network.conv(x)
        for fields in (alone, beside):
            assert torch.equal(fields["feature:conv"], convolved)
            assert torch.equal(fields["feature:act"], convolved.relu())


def damaged(folder, harm):
    """A cache whose file of logits was harmed after it was written, opened again."""

    def opened():
        return SignalCache(
            folder, {"network": "a"}, {"logits": torch.ones(2, 7)}, total=9, used=9, budget=1 << 30
        ).open()

    cache = opened()
    cache.write(0, torch.arange(9), {"logits": torch.ones(9, 7)})
    cache.commit(0)
    harm(next(folder.rglob("logits.float16")))
    return opened()


def test_a_damaged_cache_is_not_served_as_zeros(tmp_path):
    with pytest.raises(UserError, match="is damaged"):
        damaged(tmp_path / "c", lambda path: path.write_bytes(path.read_bytes()[:20])).known(0, torch.arange(9))


def test_a_cache_without_its_files_knows_nothing(tmp_path):
    assert not damaged(tmp_path / "c", lambda path: path.unlink()).known(0, torch.arange(9))


def test_no_rows_teach_nothing():
    z = torch.zeros(0, 4, requires_grad=True)
    loss = kd_loss(z, torch.zeros(0, 4), 4.0)
    loss.backward()
    assert loss.item() == 0


def test_behaviour_is_coarse_but_tells_networks_apart():
    torch.manual_seed(0)
    logits = torch.randn(64, 10) * 3
    same = behaviour({"logits": logits})
    assert behaviour({"logits": logits * (1 + 1e-6)}) == same
    assert behaviour({"logits": logits / 2}) != same
    assert behaviour({"logits": logits[:, [1, 0, *range(2, 10)]]}) != same
    assert behaviour({"logits": logits.softmax(1)}) != same
