"""Small parts that the tests of the loop, the cache and resume build with."""

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from protege.data import Augment, Batch, InMemory
from protege.methods import METHODS, Setup
from protege.models import Model
from protege.models.inputs import InputSpec
from protege.run.recipe import make_recipe
from protege.signals import Views
from protege.tasks import TASKS, Task
from protege.torch_utils import admit_torchvision
from protege.training import Loop, Phase
from protege.training.checkpoint import load_checkpoint
from protege.training.progress import Display
from protege.training.state import State

CLASSES = 3
SHIFT = Augment(shift=1)


class Curtain(BaseException):
    """Stands for a kill: nothing in the library may catch it."""


def pictures(count: int = 48, side: int = 6, seed: int = 0) -> InMemory:
    """Random grey images whose class shows in their brightness."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    noise = torch.randint(0, 100, (count, side, side, 1), generator=generator)
    return InMemory((noise + 60 * labels.view(-1, 1, 1, 1)).to(torch.uint8), labels)


class Marked(InMemory):
    """Images with labels of any shape, int64 [N, …]."""

    def __init__(self, pixels: Tensor, marks: Tensor) -> None:
        super().__init__(pixels, torch.zeros(len(pixels), dtype=torch.int64))
        self.marks, self.labels = marks, None

    def _fetch(self, index: Tensor, view: int, augment: Augment) -> Batch:
        return replace(super()._fetch(index, view, augment), labels=self.marks[index])

    def _content(self) -> str:
        return str(self.marks.tolist())


class Net(nn.Module):
    """Images [B, 1, H, W] → logits [B, K]; ``norm`` adds BatchNorm, ``drop`` dropout."""

    def __init__(self, width: int = 4, norm: bool = False, drop: float = 0.0, classes: int = CLASSES) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(width) if norm else nn.Identity()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(width) if norm else nn.Identity()
        self.drop = nn.Dropout(drop)
        self.fc = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x)).relu()
        x = self.bn2(self.conv2(x)).relu()
        return self.fc(self.drop(x.mean((2, 3))))


def model(network: nn.Module | None = None, *, seed: int = 0, **settings) -> Model:
    """A `Model` on grey images, its weights by ``seed``."""
    torch.manual_seed(seed)
    return Model(network or Net(**settings), InputSpec(channels=1, mean=(0.5,), std=(0.25,)))


def plan(method: str, student: nn.Module, teacher: nn.Module | None, task: Task = TASKS["classification"], **settings):
    """The phases of a method."""
    return list(METHODS[method].plan(setup_of(student, teacher, task, METHODS[method].settings(**settings))))


def setup_of(
    student: nn.Module, teacher: nn.Module | None, task: Task, settings: object, samples: InMemory | None = None
):
    """What a method's plan gets, on small pictures."""
    samples = pictures() if samples is None else samples
    transfer = Views(samples, torch.arange(len(samples)), SHIFT, 0, torch.device("cpu"))
    return Setup(student, teacher, task, settings, transfer)  # type: ignore[arg-type]


def loop(
    student: nn.Module,
    out: Path,
    *,
    samples: InMemory | None = None,
    positions: Tensor | None = None,
    held: tuple | None = None,
    monitor: tuple | None = None,
    views: int = 0,
    augment: Augment = SHIFT,
    task: str = "classification",
    classes: int = CLASSES,
    budget: int = 2**30,
    folder: Path | None = None,
    seed: int = 0,
    checkpoint_seconds: float = 1e9,
    phases: dict | None = None,
    **settings,
) -> Loop:
    """A loop on small pictures, in single precision."""
    samples = pictures() if samples is None else samples
    out.mkdir(parents=True, exist_ok=True)
    positions = torch.arange(len(samples)) if positions is None else positions
    train = Views(samples, positions, augment, views, torch.device("cpu"))
    judges = [part and replace(train, samples=part[0], positions=part[1]) for part in (held, monitor)]
    recipe = make_recipe({"student": "-", "data": "-", "method": "none", **settings})
    return Loop(
        student,
        TASKS[task],
        (),
        recipe,
        train,
        *judges,
        out,
        classes=classes,
        overrides=phases or {},
        cache=folder,
        budget=budget,
        accelerator=Accelerator(mixed_precision="no"),
        precision="fp32",
        seed=seed,
        checkpoint_seconds=checkpoint_seconds,
        display=Display(False),
    )


def planned(made: Loop, phases: Sequence[Phase]) -> Loop:
    """The loop with phases to run."""
    made.plan = replace(made.plan, phases=phases)
    return made


def perform(made: Loop, phases: Sequence[Phase], resume: bool = False) -> State:
    """Run phases; returns the final state."""
    found = load_checkpoint(made.out / "checkpoint") if resume else None
    planned(made, phases)
    if found is None:
        made.begin({})
    return made.run(found)


def weights(network: nn.Module) -> dict[str, Tensor]:
    """A copy of every weight and buffer."""
    return {name: value.clone() for name, value in network.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Whether two states are equal bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def apart(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """The largest difference between two states."""
    assert a.keys() == b.keys()
    return max((a[name].double() - b[name].double()).abs().max().item() for name in a)


def events(out: Path) -> list[dict]:
    """What ``metrics.jsonl`` says, without the times."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "images_per_second")} for line in lines]


def surroundings(**extra: object) -> dict[str, str]:
    """The environment of a subprocess that computes as this process does."""
    return {**os.environ, "OMP_NUM_THREADS": "1", **{key: str(value) for key, value in extra.items()}}


def imported(package: str):
    """A package on top of torchvision, which may be one for another torch, or a skip."""
    admit_torchvision()
    try:
        return import_module(package)
    except Exception as error:
        pytest.skip(f"{package} cannot be imported here: {error}")
