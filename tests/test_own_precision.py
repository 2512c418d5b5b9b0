"""Teachers that compute in a precision of their own: quantised, half, double, mixed."""

import copy
import warnings

import pytest
import torch
from torch import nn

from protege import InputSpec, Model, distill, evaluate, train
from protege.errors import UserError
from protege.signals.identity import weights_digest
from protege.torch_utils import has_own_precision, plain_parts


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.Flatten(), nn.Linear(256, 32), nn.LayerNorm(32), nn.ReLU(), nn.Linear(32, 10)
    )


def model(net):
    return Model(net, InputSpec(channels=1))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    net = network()
    train(model(net), "digits", out=tmp_path_factory.mktemp("own") / "run", epochs=3)
    return net.eval()


class Inside(nn.Module):
    """Half precision that the network itself goes to."""

    def __init__(self, net, dtype=torch.float16):
        super().__init__()
        self.net, self.dtype = copy.deepcopy(net).to(dtype), dtype

    def forward(self, x):
        return self.net(x.to(self.dtype))


def dynamic(net):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(net, {nn.Linear})


def weight_only(net):
    quantization = pytest.importorskip("torchao.quantization")
    quantised = copy.deepcopy(net)
    quantization.quantize_(quantised, quantization.Int8WeightOnlyConfig())
    return quantised


KINDS = {
    "dynamic int8": dynamic,
    "int8 weights": weight_only,
    "half inside": Inside,
    "half": lambda net: copy.deepcopy(net).half(),
    "bfloat16": lambda net: copy.deepcopy(net).bfloat16(),
    "double": lambda net: copy.deepcopy(net).double(),
}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", KINDS)
def test_they_teach(kind, precision, trained, tmp_path):
    teacher = KINDS[kind](trained)
    assert has_own_precision(teacher)
    reached = evaluate(model(trained), "digits")
    found = evaluate(model(teacher), "digits", precision=precision)
    assert found["nll"] == pytest.approx(reached["nll"], abs=0.02)
    result = distill(
        model(teacher), model(network()), "digits", out=tmp_path / "kd", epochs=1, samples=200, precision=precision
    ).result
    assert result["teacher"]["metrics"]["nll"] == pytest.approx(reached["nll"], abs=0.02)


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("dynamic int8", "the student is quantised"),
        ("int8 weights", "the student is quantised"),
        ("half", r"the student has float16 weights, .* convert it with \.float\(\)"),
        ("bfloat16", r"the student has bfloat16 weights"),
    ],
)
def test_they_do_not_learn(kind, says, trained, tmp_path):
    with pytest.raises(UserError, match=says):
        train(model(KINDS[kind](trained)), "digits", out=tmp_path / "run", epochs=1)
    assert not (tmp_path / "run").exists()


def test_a_double_student_learns(trained, tmp_path):
    result = train(model(copy.deepcopy(trained).double()), "digits", out=tmp_path / "run", epochs=1, samples=100)
    assert result.metrics["accuracy"] > 0.7
    assert {p.dtype for p in result.student.parameters()} == {torch.float64}


@pytest.mark.parametrize("kind", KINDS)
def test_digests_tell_weights_apart(kind, trained):
    teacher, other = KINDS[kind](trained), copy.deepcopy(trained)
    with torch.no_grad():
        other[-1].weight[0] += 0.5
    assert weights_digest(teacher) == weights_digest(KINDS[kind](trained)) != weights_digest(KINDS[kind](other))
    assert all(
        type(part) in (torch.Tensor, nn.Parameter) for v in teacher.state_dict().values() for part, _ in plain_parts(v)
    )
