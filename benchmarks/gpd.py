"""What it costs to train the student inside its dynamic teacher: one GPD step against its two halves alone.

    python benchmarks/gpd.py                                   # resnet20, batch 128
    OMP_NUM_THREADS=1 python benchmarks/gpd.py --model resnet8x4 --ratio 3 --branches ""

The halves are a plain training step of the student and one of the wide network without branches: forward, loss,
backward, update. The reading out of the student, the merging of branches and the gap loss are what GPD adds. The steps
take turns in one process; figures are medians over the rounds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from protege.data import Augment, Batch, InMemory
from protege.losses import cross_entropy
from protege.methods import METHODS, Setup, Views
from protege.models import InputSpec, Model
from protege.models.placing import place
from protege.models.precision import autocast_for, resolve_precision
from protege.models.zoo import build
from protege.surgery import widen
from protege.tasks import TASKS
from protege.training import FitSettings
from protege.training.schedule import make_optimizer


def stepper(trainee: nn.Module, loss: Callable[[], torch.Tensor], device: torch.device) -> Callable[[], float]:
    """A training step that returns its seconds."""
    place(trainee.train(), device)
    optimizer = make_optimizer(trainee, FitSettings(lr=1e-4), 128)
    autocast = autocast_for(resolve_precision("auto", device), device)

    def step() -> float:
        wait(device)
        began = clock(device)
        with autocast():
            value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        wait(device)
        return clock(device) - began

    return step


def clock(device: torch.device) -> float:
    """Seconds; of this process alone where it computes in one thread, so that others on the machine do not count."""
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    return time.process_time() if alone else time.perf_counter()


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--ratio", type=int, default=2)
    parser.add_argument("--branches", default=None, help="as the method's setting; default: all")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()

    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pixels = torch.randint(0, 256, (options.batch, options.size, options.size, 3), dtype=torch.uint8)
    samples = InMemory(pixels, torch.randint(0, 100, (options.batch,)))
    inputs, labels = pixels.permute(0, 3, 1, 2).to(device), samples.labels.to(device)
    arguments = {"num_classes": 100} | ({"image_size": options.size} if options.model.startswith("vit") else {})
    spec = InputSpec(channels=3, mean=(0.5,) * 3, std=(0.25,) * 3)
    student = Model(build(options.model, arguments), spec).to(device)
    wide, _ = widen(student.network, options.ratio, spec(inputs[:2]))
    wide = Model(wide, spec)
    chosen = {} if options.branches is None else {"branches": options.branches}
    transfer = Views(samples, torch.arange(options.batch), Augment(), 0, device)
    settings = METHODS["gpd"].settings(ratio=options.ratio, **chosen)
    (phase,) = METHODS["gpd"].plan(Setup(student, None, TASKS["classification"], settings, transfer))
    batch = Batch(inputs, labels, torch.arange(options.batch), 0)

    def plain(network: nn.Module) -> Callable[[], torch.Tensor]:
        return lambda: cross_entropy(network(inputs), labels)

    steps = {
        "student": stepper(student, plain(student), device),
        "wide": stepper(wide, plain(wide), device),
        "gpd": stepper(phase.trainee, lambda: phase.step(phase.trainee, batch)["loss"], device),
    }
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(options.rounds + 2):
        for name, step in steps.items():
            spent = step()
            if number >= 2:
                seconds[name].append(spent)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, value in medians.items():
        print(f"{name:8} {1000 * value:8.1f} ms  ({1000 * min(seconds[name]):.1f} to {1000 * max(seconds[name]):.1f})")
    print(f"gpd / (student + wide) = {medians['gpd'] / (medians['student'] + medians['wide']):.3f}")


if __name__ == "__main__":
    main()
