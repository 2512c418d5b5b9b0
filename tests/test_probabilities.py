"""Outputs that are probabilities are refused wherever logits are expected, and logits of any size are not."""

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from protege import InputSpec, Model, diagnose, distill, evaluate, train
from protege.errors import UserError
from protege.tasks.probabilities import check_rows, last_operation

LABELS = torch.arange(200) % 4
IMAGES = torch.zeros(200, 1, 4, 4, dtype=torch.uint8)
IMAGES[torch.arange(200), 0, :, LABELS] = 200
DATA = TensorDataset(IMAGES, LABELS)


class Rule(nn.Module):
    """Always right: the logit of a class is how bright its column is."""

    def __init__(self, end=lambda z: z, scale=20.0):
        super().__init__()
        self.weight, self.end = nn.Parameter(torch.tensor(scale)), end

    def forward(self, x):
        return self.end(self.weight * x.mean((1, 2)))


def model(network):
    return Model(network, InputSpec(channels=1))


SQUASHED = {
    "softmax": lambda z: z.softmax(1),
    "softmax over samples": lambda z: z.softmax(0),
    "sigmoid": torch.sigmoid,
    "sigmoid, moved": lambda z: torch.sigmoid(z.t()).t().reshape(-1, 4).to(torch.float32),
    "sigmoid without a graph": lambda z: torch.sigmoid((z - 6) * 6).detach(),
    "hardsigmoid": nn.Hardsigmoid(),
    "by hand": lambda z: 1 / (1 + (-6 * (z - 6)).exp()),
}


@pytest.mark.parametrize("end", SQUASHED.values(), ids=SQUASHED)
def test_probabilities_are_refused_by_all_alike(end, tmp_path):
    says = "gives probabilities .*; expected logits: leave out its last"
    with pytest.raises(UserError, match=f"the model {says}"):
        evaluate(model(Rule(end)), DATA)
    with pytest.raises(UserError, match=f"the teacher .*{says}"):
        distill(model(Rule(end)), "zoo:mlp?hidden=4", DATA, out=tmp_path / "kd")
    with pytest.raises(UserError, match=f"the student .*{says}"):
        train(model(Rule(end)), DATA, out=tmp_path / "train")
    with pytest.raises(UserError, match=f"the teacher {says}"):
        diagnose(model(Rule(end)), DATA)
    assert not (tmp_path / "kd").exists()
    assert not (tmp_path / "train").exists()


LOGITS = {
    "plain": lambda z: z,
    "log-probabilities": lambda z: z.log_softmax(1),
    "between 0 and 1": lambda z: z / 100,
    "of a ReLU": lambda z: torch.relu(z / 20 - 0.1),
    "scaled": lambda z: 12 * torch.sigmoid(z - 5),
    "logit of a sigmoid": lambda z: torch.logit(torch.sigmoid(z)),
    "log of a softmax": lambda z: torch.log(torch.softmax(z, 1)),
    "constant": lambda z: 0 * z,
}


@pytest.mark.parametrize("end", LOGITS.values(), ids=LOGITS)
def test_logits_are_taken(end):
    metrics = evaluate(model(Rule(end)), DATA)
    z = end(20 * IMAGES[:, 0].float().div(255).mean(1))
    assert metrics["nll"] == pytest.approx(nn.functional.cross_entropy(z, LABELS).item(), abs=1e-4)


def test_an_untrained_network_is_taken():
    torch.manual_seed(0)
    for end in (nn.Identity(), nn.ReLU()):
        network = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4), end)
        evaluate(model(network), DATA)


def test_values_are_judged_only_where_they_are_certain():
    generator = torch.Generator().manual_seed(0)
    wide = torch.rand(500, 10, generator=generator)
    check_rows(wide * 0.98, "model")  # between 0 and 1, but nothing at the bound
    check_rows(wide * 1.02, "model")  # beyond it
    check_rows(wide[:1], "model")
    with pytest.raises(UserError, match="go from 0 to 1 and never beyond"):
        check_rows(wide, "model")


def test_the_last_operation_of_a_network():
    images = IMAGES[:2]
    assert last_operation(model(Rule(torch.sigmoid)), images) == "Sigmoid"
    assert last_operation(model(Rule(lambda z: z.log_softmax(1))), images) == "LogSoftmax"
    frozen = model(Rule(torch.sigmoid)).requires_grad_(False).train()
    assert last_operation(frozen, images) == "Sigmoid"
    assert frozen.training
    assert last_operation(model(Rule(lambda z: z.detach())), images) is None
