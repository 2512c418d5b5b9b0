"""Whatever device a network lies on, surgery and runs compute there: nothing is left on the processor."""

import copy
from contextlib import nullcontext

import pytest
import torch
from accelerate import Accelerator
from elsewhere import THERE, Elsewhere
from torch import nn

import protege
from protege import surgery
from protege.methods import fskd
from protege.models import zoo
from protege.run import measure
from protege.surgery.solving import ridge


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv, self.fc = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 5)

    def forward(self, x):
        x = self.norm(self.stem(x)).relu()
        return self.fc((x + self.conv(x)).mean((2, 3)))


def residual():
    torch.manual_seed(0)
    return Residual().eval()


def images(count=2):
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def widened(network, x):
    wide, projection = surgery.widen(network, 2, x)
    return [wide(x), *projection(dict(wide.named_parameters())).values()]


def shared(network, x):
    made = surgery.share(network, 2, x)
    return [made(x)[0] if isinstance(made(x), tuple) else made(x), *surgery.readout(made).parameters()]


CHANGES = {
    "l1": lambda network, x: surgery.shrink(network, x, ratio=0.5).network.parameters(),
    "decouple": lambda network, x: surgery.decouple(network, 1, example=x).network.parameters(),
    "widen": widened,
    "share": shared,
    "split": lambda network, x: surgery.split(network, ["norm"], x)[0].parameters(),
    "pair": lambda network, x: surgery.pair(network, copy.deepcopy(network), x, x) and [x],
}


def test_the_device_that_is_none_behaves_as_one():
    with Elsewhere() as there:
        x = there.moved(torch.ones(3))
        assert (x + 1).device == nn.Parameter(x * 2).detach().device == x[torch.tensor([0])].device == THERE
        assert x.cpu().device == torch.ones(3).device == torch.device("cpu")
        assert torch.ones(3).to(x).device == torch.zeros(1, device=x.device).device == THERE
        for wrong in (lambda: x + torch.ones(3), lambda: torch.ones(3)[x.long()], lambda: x.numpy()):
            with pytest.raises((RuntimeError, TypeError)):
                wrong()


@pytest.mark.parametrize("change", CHANGES)
def test_changes(change):
    network, x = residual(), images()
    expected = [value.detach() for value in CHANGES[change](copy.deepcopy(network), x)]
    with Elsewhere() as there:
        made = list(CHANGES[change](there.moved(copy.deepcopy(network)), there.moved(x.clone())))
        assert {value.device for value in made} == {THERE}
    for value, like in zip(made, expected, strict=True):
        assert value.shape == like.shape


@pytest.mark.parametrize(("kernels", "large"), [(False, 0), (True, 0), (True, ridge.LARGE)])
def test_recovering(kernels, large, monkeypatch):
    """To the bits of a recovery on the processor."""
    monkeypatch.setattr(ridge, "LARGE", large)
    teacher, x = residual(), images(16)
    shrunk = surgery.shrink(teacher, x[:2], ratio=0.5)
    student = copy.deepcopy(shrunk.network)

    def recover(student, teacher, x):
        chunks = x.split(4)
        fskd.recover(student, teacher, shrunk.kept, lambda n: (chunks[n], chunks[n]), range(4), kernels=kernels)

    recover(shrunk.network, copy.deepcopy(teacher), x)
    with Elsewhere() as there:
        recover(there.moved(student), there.moved(teacher), there.moved(x.clone()))
        assert {value.device for value in student.parameters()} == {THERE}
    for value, like in zip(student.state_dict().values(), shrunk.network.state_dict().values(), strict=True):
        assert torch.equal(value, like)


def test_a_whole_run(tmp_path, monkeypatch):
    """From the images to the report; its student has the bits of one that was taught on the processor."""
    monkeypatch.setattr(measure, "refuse_chance_level", lambda *_: None)
    settings = {"samples": 30, "epochs": 1, "batch_size": 10, "views": 1, "precision": "fp32", "compile": "off"}
    torch.manual_seed(0)
    networks = [zoo.build("cnn_tiny", {"num_classes": 10, "channels": 1}) for _ in range(2)]
    students = []
    for device in (torch.device("cpu"), THERE):
        monkeypatch.setattr(Accelerator, "device", device)
        monkeypatch.setenv("PROTEGE_CACHE", str(tmp_path / f"cache-{device}"))
        with Elsewhere() if device == THERE else nullcontext():
            teacher, student = map(copy.deepcopy, networks)
            result = protege.distill(teacher, student, "digits", "kd", tmp_path / f"{device}", **settings)
            students.append(result.student.state_dict())
            assert {value.device for value in students[-1].values()} == {device}
    for value, like in zip(*map(dict.values, students), strict=True):
        assert torch.equal(value, like)
