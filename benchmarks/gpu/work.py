"""What the checks share: what they work on, runs and their logs, and a look into the steps of a run."""

from __future__ import annotations

import json
import multiprocessing
import os
import statistics
import tempfile
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import protege
from protege.data import Augment, Data, InMemory
from protege.models import InputSpec, Model
from protege.models.zoo import build
from protege.training.step import Step

FORK = multiprocessing.get_context("fork")
Figures = dict[str, Any]
Case = tuple[str, Callable[[], Figures]]


class Skip(Exception):
    """What cannot be shown here, in a sentence."""


@dataclass(frozen=True)
class Place:
    """Where checks take place: ``small`` is a rehearsal, on the processor and with sizes of no meaning. Nothing begins
    after ``until`` (of `time.monotonic`); ``folder`` is for what they write."""

    small: bool
    until: float
    folder: Path

    @property
    def device(self) -> torch.device:
        return torch.device("cpu" if self.small else "cuda")

    def wait(self) -> None:
        if not self.small:
            torch.cuda.synchronize()


@dataclass(frozen=True)
class Check:
    """Cases, each with a name and what does it and returns its figures, or raises. They take at most ``seconds``
    together; ``alone`` is what measures speed."""

    cases: Callable[[Place], Iterable[Case]]
    seconds: float
    alone: bool = False

    @property
    def name(self) -> str:
        return self.cases.__name__


def holds(true: bool, sentence: str) -> None:
    if not true:
        raise AssertionError(sentence)


def told(error: BaseException) -> str:
    """An error as one line, with the place of this project's code where it was raised."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "protege" in f.filename]
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    name = "" if isinstance(error, AssertionError | protege.UserError) else f"{type(error).__name__}: "
    return " ".join(f"{name}{error}".split())[:600] + place


# ---- networks and data -----------------------------------------------------------------------------------------------


def network(name: str, classes: int = 10, **arguments: Any) -> Model:
    torch.manual_seed(0)
    spec = InputSpec(channels=3, size=None, mean=(0.5,) * 3, std=(0.25,) * 3)
    return Model(build(name, {"num_classes": classes, **arguments}), spec)


def pixels(count: int, side: int = 32) -> Tensor:
    """Made-up images of coarse patterns, uint8 [N, side, side, 3]."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, 256, (count, side // 4, side // 4, 3), dtype=torch.uint8, generator=generator)
    return coarse.repeat_interleave(4, 1).repeat_interleave(4, 2)


@torch.no_grad()
def lesson(at: Place, name: str, count: int, side: int = 32, classes: int = 10, **arguments: Any) -> tuple[Model, Data]:
    """A teacher, and ``count`` images that are labelled as it sees them: it is as good as one that has learned, in no
    time. Its norms know the images, and its classes come about equally often. A U-Net's images have masks."""
    teacher, images = network(name, classes, **arguments).to(at.device), pixels(count, side)
    parts = [part.permute(0, 3, 1, 2).to(at.device) for part in images.split(256)]
    for module in teacher.train().modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    teacher(parts[0])
    head = [module for module in teacher.eval().modules() if isinstance(module, nn.Linear | nn.Conv2d)][-1]
    outputs = teacher(parts[0]).transpose(0, 1).flatten(1)
    spread = outputs.std(1).clamp(min=1e-6)
    head.weight /= spread.view(-1, *[1] * (head.weight.dim() - 1))
    head.bias.copy_((head.bias - outputs.mean(1)) / spread)
    labels = torch.cat([teacher(part).argmax(1).cpu() for part in parts])
    labels.view(-1)[:classes] = torch.arange(classes)  # so that there is some of each
    masked = labels.dim() == 3
    targets = labels.to(torch.uint8) if masked else labels
    train, test = InMemory(images, targets), InMemory(images[:512].clone(), targets[:512].clone())
    task, names = "segmentation" if masked else "classification", tuple(f"c{k}" for k in range(classes))
    return teacher.cpu(), Data("made", task, train, None, test, names, Augment())


# ---- runs ------------------------------------------------------------------------------------------------------------


def run(teacher: Any, student: Any, data: Any, method: str, out: Path | None = None, **settings: Any) -> protege.Result:
    """`protege.distill` with caches and folder of its own, and no checkpoint in between."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {"cache": f"{folder}/cache", "checkpoint_seconds": 1e6, **settings}
        if isinstance(data, Data):
            settings = {"augment": "shift=4,flip", **settings}
        return protege.distill(teacher, student, data, method, out or f"{folder}/run", **settings)


def epochs(out: Path) -> list[dict[str, Any]]:
    """What the log of a run says of its epochs."""
    lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == "epoch"]


def rate(out: Path) -> float:
    """Images a second in the first phase, the median over its epochs from the third on."""
    logged = epochs(out)
    rates = [event["images_per_second"] for event in logged if event["phase"] == logged[0]["phase"]]
    return statistics.median(rates[2:] or rates)


def in_child(work: Callable[[], Any], **environment: str) -> Callable[[], Any]:
    """Start a process that does this; call what is returned to wait for it and have what it returned, or raised."""
    ours, theirs = FORK.Pipe()

    def child() -> None:
        os.environ |= environment
        try:
            theirs.send((True, work()))
        except BaseException as error:
            theirs.send((False, told(error)))

    process = FORK.Process(target=child)
    process.start()
    theirs.close()

    def wait() -> Any:
        try:
            done, value = ours.recv()
        except EOFError:
            done, value = False, "a process ended without a word"
        process.join()
        holds(done, value)
        return value

    wait.process = process  # type: ignore[attr-defined]
    return wait


@contextmanager
def after_steps(
    look: Callable[[int], None] = lambda step: None, within: Callable[[], AbstractContextManager[Any]] = nullcontext
) -> Iterator[None]:
    """Call ``look`` with the number of steps that a phase has made, after each of them, which are made ``within``."""
    original = Step.__init__

    def made(step: Step, *given: Any, **named: Any) -> None:
        original(step, *given, **named)
        update, numbers = step.update, count(1)

        def counted(*given: Any) -> None:
            with within():
                update(*given)
            look(next(numbers))

        step.update = counted  # type: ignore[method-assign]

    Step.__init__ = made  # type: ignore[method-assign]
    try:
        yield
    finally:
        Step.__init__ = original  # type: ignore[method-assign]
