"""A copy of a network answers as it does, whatever it keeps of its last forward pass, and shares no weight with it."""

import threading
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from protege import distill, train
from protege.data import load_data
from protege.models import check_classes, load_model
from protege.run.exporting import export
from protege.run.shrinking import shrink
from protege.surgery import decouple, share, widen
from protege.surgery import shrink as prune
from protege.torch_utils import copy_network
from protege.training.schedule import MovingAverage

NORMS = {
    "weight_norm": nn.utils.weight_norm,
    "spectral_norm": nn.utils.spectral_norm,
    "parametrized weight_norm": nn.utils.parametrizations.weight_norm,
    "parametrized spectral_norm": nn.utils.parametrizations.spectral_norm,
}


class Keeps(nn.Module):
    """Keeps tensors that it computed: alone, and in lists, tables and objects of its own."""

    def __init__(self, norm=None):
        super().__init__()
        self.a, self.b, self.o = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 10)
        if norm is not None:
            self.a = NORMS[norm](self.a)

    def forward(self, x):
        x = self.a(x).relu()
        if self.training:
            self.activity, self.maps = x.abs().mean(), [x]
            self.losses = {"sparse": (x.mean(),)}
            self.log = SimpleNamespace(last=x.sum())
        return self.o(self.b(x).relu().mean((2, 3)))


def just_run(norm=None):
    torch.manual_seed(0)
    network = Keeps(norm)
    network.train()(torch.randn(2, 1, 8, 8)).sum().backward()
    network.train()(torch.randn(2, 1, 8, 8))
    return network


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("norm", [None, *NORMS])
def test_a_network_that_was_just_run_with_gradients_is_copied(norm):
    network, x = just_run(norm), torch.randn(3, 1, 8, 8)
    copied = copy_network(network)
    assert all(torch.equal(value, copied.state_dict()[name]) for name, value in network.state_dict().items())
    assert not {id(p) for p in copied.parameters()} & {id(p) for p in network.parameters()}
    assert torch.equal(copied.eval()(x), network.eval()(x))
    with torch.no_grad():
        copied.b.weight.zero_()
    assert not torch.equal(copied(x), network(x))
    assert torch.equal(copied.activity, network.activity)
    assert not copied.activity.requires_grad
    assert copied.log.last is not network.log.last


def test_shared_weights_stay_shared_and_what_has_no_copy_is_shared():
    network = just_run()
    network.twin = nn.Conv2d(8, 8, 3)
    network.twin.weight = network.b.weight
    network.lock, network.workers = threading.Lock(), {"first": [threading.Lock()]}
    copied = copy_network(network)
    assert copied.twin.weight is copied.b.weight is not network.b.weight
    assert copied.lock is network.lock
    assert copied.workers["first"][0] is network.workers["first"][0]
    assert copied.workers is not network.workers


def test_a_copy_has_what_is_to_be_shared_and_hooks_of_its_own():
    network = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    copied = copy_network(network, [network[0].weight])
    assert copied[0].weight is network[0].weight
    assert copied[0].bias is not network[0].bias
    copied[1].register_forward_hook(lambda *_: None)
    assert copied[1]._forward_hooks
    assert not network[1]._forward_hooks
    assert not copied[0]._forward_hooks


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("norm", [None, "weight_norm", "spectral_norm"])
def test_every_room_takes_such_a_network(norm, tmp_path):
    x = torch.randn(2, 1, 8, 8)
    assert len(prune(just_run(norm), x, ratio=0.5, layers=["b"]).kept["b"]) == 4
    shrink(just_run(norm), ratio=0.5, data="digits", dry_run=True)
    decouple(just_run(norm), 2, layers=["b"])
    MovingAverage(just_run(norm), 0.9)
    digits = load_data("digits")
    check_classes(load_model(just_run(norm), data=digits), digits)
    if norm is None:
        share(just_run(), 2, x)
        widen(just_run(), 2, x)
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    assert export(just_run(norm), to="onnx", data="digits", out=tmp_path / "export")["difference"] < 1e-4


def test_such_networks_teach_and_learn(tmp_path):
    teacher = Keeps()
    train(teacher, "digits", out=tmp_path / "teacher", epochs=4, lr=0.2)
    for method, settings in {"kd": {"ema": 0.9}, "skd": {}, "gpd": {}}.items():
        teacher.train()(torch.randn(2, 1, 8, 8))
        distill(teacher, just_run(), "digits", method=method, out=tmp_path / method, epochs=1, samples=64, **settings)
