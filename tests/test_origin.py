"""A run goes on, or is taken for finished, only with what it was begun with; what decides the result is compared."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tools import Curtain, same, weights
from torch import nn
from torch.utils.data import TensorDataset

import protege
from protege import UserError
from protege.training.journal import Journal

KINDS = ["unfinished", "finished"]


class Net(nn.Module):
    """Images [B, 1, 6, 6] → logits [B, 3]."""

    def __init__(self, width: int = 4, act=torch.relu, drop: float = 0.0) -> None:
        super().__init__()
        self.conv, self.drop, self.fc = nn.Conv2d(1, width, 3), nn.Dropout(drop), nn.Linear(16 * width, 3)
        self.act = act

    def forward(self, x):
        return self.fc(self.drop(self.act(self.conv(x)).flatten(1)))


def pixels(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(60) % 3
    noise = torch.randint(0, 60, (60, 1, 6, 6), generator=generator)
    return (noise + 80 * labels.view(-1, 1, 1, 1)).to(torch.uint8), labels


def teacher(seed: int = 1, mean: float = 0.5) -> protege.Model:
    """A network that tells the three brightnesses apart, without training."""
    torch.manual_seed(seed)
    network = Net()
    with torch.no_grad():
        network.conv.weight.fill_(1 / 9)
        network.conv.bias.fill_(2)
        network.fc.weight.zero_().add_(torch.tensor([-1.0, 0.0, 1.0])[:, None] / 16)
        network.fc.bias.copy_(torch.tensor([6.2, 0.0, -8.4]))
        network.fc.weight += torch.randn(network.fc.weight.shape) * 1e-3
    return protege.Model(network, protege.InputSpec(channels=1, mean=(mean,), std=(0.25,)))


def begin(kind: str, out: Path, *setup, **settings) -> None:
    """A run of two epochs, killed after its first update or not at all."""
    settings = {"epochs": 2, "batch_size": 20, "checkpoint_seconds": 0, "precision": "fp32", **settings}
    with pytest.MonkeyPatch.context() as patch:
        if kind == "finished":
            protege.distill(*setup, out=out, **settings)
            return
        original = Journal.save_when_due

        def killed(*args, **kwargs):
            original(*args, **kwargs)
            raise Curtain

        patch.setattr(Journal, "save_when_due", killed)
        with pytest.raises(Curtain):
            protege.distill(*setup, out=out, **settings)


def files(out: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in out.rglob("*") if path.is_file()}


x, y = pixels()
x2 = x.clone()
x2[7, 0, 0, 0] += 1
swapped = x[[3, 1, 2, 0, *range(4, 60)]]  # of the same class
OTHERS = {
    "pixels": ((teacher(), lambda: Net(), TensorDataset(x2, y)), "another data set"),
    "two images in each other's place": ((teacher(), lambda: Net(), TensorDataset(swapped, y)), "another data set"),
    "a part of the samples": ((teacher(), lambda: Net(), TensorDataset(x[:30], y[:30])), "another data set"),
    "labels": ((teacher(), lambda: Net(), TensorDataset(x, y.flip(0))), "another data set"),
    "the teacher's weights": ((teacher(seed=2), lambda: Net(), TensorDataset(x, y)), "another teacher"),
    "the teacher's normalisation": ((teacher(mean=0.51), lambda: Net(), TensorDataset(x, y)), "another teacher"),
    "the student's width": ((teacher(), lambda: Net(5), TensorDataset(x, y)), "another student"),
    "the student's activation": ((teacher(), lambda: Net(act=torch.tanh), TensorDataset(x, y)), "another student"),
    "the student's dropout": ((teacher(), lambda: Net(drop=0.5), TensorDataset(x, y)), "another student"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_others_are_refused(kind, tmp_path):
    begin(kind, tmp_path / "run", teacher(), Net(), TensorDataset(x, y))
    before = files(tmp_path / "run")
    for name, ((its, student, data), what) in OTHERS.items():
        with pytest.raises(UserError, match=f"found {what} than .*run' was begun with") as refused:
            protege.distill(its, student(), data, out=tmp_path / "run", resume=True)
        assert "--" not in str(refused.value), name
        assert files(tmp_path / "run") == before, name
    again = protege.distill(teacher(), Net(), TensorDataset(x, y), out=tmp_path / "run", resume=True)
    begin("finished", tmp_path / "whole", teacher(), (whole := Net()), TensorDataset(x, y))
    assert again.result["student"]["params"] == sum(p.numel() for p in whole.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_a_teacher_of_one_part_only_is_no_way_around(kind, tmp_path):
    begin(kind, tmp_path / "run", teacher(), Net(), TensorDataset(x, y))
    with pytest.raises(UserError, match="the data of this run was given in Python"):
        protege.distill(teacher(seed=2), Net(), out=tmp_path / "run", resume=True)


def test_a_finished_run_is_had_by_its_student_alone(tmp_path):
    begin("finished", tmp_path / "run", teacher(), (trained := Net()), TensorDataset(x, y))
    before = files(tmp_path / "run")
    protege.distill(student=(network := Net()), out=tmp_path / "run", resume=True)
    assert same(weights(network), weights(trained))
    assert files(tmp_path / "run") == before


def folder(root: Path, *, change: tuple[str, str] | None = None) -> Path:
    """Images in a folder a class, without compression, so that all files are of one size."""
    for at in range(30):
        name, image = f"class{at % 3}", Image.fromarray(np.asarray(x[at, 0]))
        (root / name).mkdir(parents=True, exist_ok=True)
        image.save(root / name / f"{at:02}.bmp")
    return root


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("limit", ["4GiB", "1KiB"], ids=["in memory", "streamed"])
def test_files_are_known_by_what_they_hold(kind, limit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images = folder(tmp_path / "images")
    setup = (None, "zoo:mlp?hidden=4", f"images:{images}")
    settings = {"method": "none", "memory_limit": limit, "workers": 0}
    begin(kind, tmp_path / "run", *setup, **settings)
    one, other = images / "class0" / "00.bmp", images / "class0" / "03.bmp"
    first, second = one.read_bytes(), other.read_bytes()
    assert len(first) == len(second)

    one.write_bytes(second), other.write_bytes(first)  # swapped
    with pytest.raises(UserError, match="another data set"):
        protege.distill(out="run", resume=True)
    one.write_bytes(first), other.write_bytes(second)
    (images / "class0").rename(images / "class0a")  # sorts as before
    with pytest.raises(UserError, match="another list of class names"):
        protege.distill(out="run", resume=True)
    (images / "class0a").rename(images / "class0")

    for path in images.rglob("*.bmp"):
        os.utime(path, (1, 1))
    shutil.move(images, tmp_path / "elsewhere")  # copied with other times, to another place
    result = protege.distill(data=f"images:{tmp_path / 'elsewhere'}", out="run", resume=True).result
    assert result["phases"][0]["epochs"] == 2


EDITS = {"seed = 0": "seed = 3", "batch_size = 20": "batch_size = 30", "epochs = 2": "epochs = 3"}


@pytest.mark.parametrize("kind", KINDS)
def test_an_edited_recipe_is_refused(kind, tmp_path):
    begin(kind, tmp_path / "run", None, "zoo:mlp?hidden=4", "digits", method="none", samples=40)
    recipe = tmp_path / "run" / "recipe.toml"
    text = recipe.read_text()
    for old, new in EDITS.items():
        assert old in text
        recipe.write_text(text.replace(old, new))
        with pytest.raises(UserError, match=rf"recipe.toml' has {new}, but the run was begun with .*overwrite=True"):
            protege.distill(out=tmp_path / "run", resume=True)
    recipe.write_text(text.replace("checkpoint_seconds = 0.0", "checkpoint_seconds = 5.0"))  # decides nothing
    protege.distill(out=tmp_path / "run", resume=True)


# ---- the student before -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["none", "kd", "skd", "gpd"])
def test_the_student_before_is_the_one_the_run_began_with(method, tmp_path):
    """In one process, so that the network has learned when the run goes on: its figures and its weights are those of
    a run that was never stopped."""
    given = () if method == "none" else (teacher(),)
    data = (TensorDataset(x, y), TensorDataset(*pixels(1)))
    settings = {"method": method, "epochs": 3, "batch_size": 20, "precision": "fp32", "lr": 0.05}
    networks = []
    for stopped in (False, True):
        torch.manual_seed(5)
        network = Net()
        networks.append(network)
        call = {"student": network, "data": data, "out": tmp_path / str(stopped), **settings}
        call |= {"teacher": given[0]} if given else {}
        if stopped:
            updates = 0
            original = Journal.save_when_due

            def killed(self, fit, now=False, original=original):
                nonlocal updates
                updates += 1
                if updates == 5:
                    raise Curtain
                original(self, fit, now)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Journal, "save_when_due", killed)
                with pytest.raises(Curtain):
                    protege.distill(**call)
            protege.distill(**call, resume=True)
        else:
            protege.distill(**call)
    first, second = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("False", "True"))
    assert first["student"] == second["student"]
    assert first["teacher"] == second["teacher"]
    assert same(weights(networks[0]), weights(networks[1]))
