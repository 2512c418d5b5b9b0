"""All stage phases of stagewise KD, from caches, against the authors' procedure.

    python benchmarks/skd.py                        # resnet56 -> resnet20, 30 epochs a stage, 8 views
    python benchmarks/skd.py --epochs 100 --views 16

The authors run the whole teacher and the whole student forward in each step and let only the stage's parameters learn
(github.com/IvLabs/stagewise-knowledge-distillation). Same images, batch size, optimiser and number of updates for both;
what fills the caches is part of our time. The head phase is left out.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from common import AUGMENT, device, images, network, run, setup_of

from protege.data import InMemory, batches
from protege.methods import METHODS
from protege.models import Model
from protege.training import FitSettings


def authors(teacher: Model, student: Model, samples: InMemory, names: list[str], options: argparse.Namespace) -> float:
    """Seconds of the stage phases, each step with both networks whole."""
    for parameter in student.parameters():
        parameter.requires_grad_(False)
    seen: dict[str, torch.Tensor] = {}
    for role, model in (("teacher", teacher), ("student", student)):
        for name in names:
            model.network.get_submodule(name).register_forward_hook(
                lambda _m, _i, output, key=f"{role} {name}": seen.__setitem__(key, output)
            )
    teacher.eval()
    began = time.perf_counter()
    earlier: set[str] = set()
    for name in names:
        own = [p for n, p in student.network.named_parameters() if _stage(n, names) == name]
        for parameter in own:
            parameter.requires_grad_(True)
        student.train()
        for module_name, module in student.network.named_modules():
            if _stage(module_name, names) in earlier:
                module.eval()
        optimizer = torch.optim.AdamW(own, lr=1e-3)
        for epoch in range(options.epochs):
            order = torch.randperm(len(samples)).split(options.batch)
            for batch in batches(samples, order, epoch % options.views, AUGMENT, device=device()):
                with torch.no_grad():
                    teacher(batch.inputs)
                student(batch.inputs)
                loss = F.mse_loss(seen[f"student {name}"], seen[f"teacher {name}"])
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
        for parameter in own:
            parameter.requires_grad_(False)
        earlier.add(name)
    return time.perf_counter() - began


def _stage(name: str, names: list[str]) -> str:
    """The stage that a module of a ResNet belongs to: the stem goes with the first."""
    top = name.split(".")[0]
    return top if top in names else "fc" if top in ("fc", "") else names[0]


@torch.no_grad()
def settled(model: Model, samples: InMemory) -> Model:
    """The network with BatchNorm statistics of the images: without them a deep one's values leave half precision."""
    model.to(device()).train()
    for batch in batches(samples, torch.arange(len(samples)).split(64)[:2], 0, AUGMENT, device=device()):
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 1.0
        model(batch.inputs)
    return model.eval()


def ours(teacher: Model, student: Model, samples: InMemory, options: argparse.Namespace) -> tuple[float, list[str]]:
    """Seconds of the stage phases, caches filled from nothing, and the stages' names."""
    phases = METHODS["skd"].plan(setup_of("skd", student, teacher, samples, options.views))[:-1]
    settings = FitSettings(epochs=options.epochs, batch_size=options.batch, optimizer="adamw", lr=1e-3)
    with tempfile.TemporaryDirectory() as cache:
        log = run(phases, student, samples, settings, views=options.views, cache=Path(cache))
    return sum(phase["seconds"] for phase in log[-1]["phases"]), [phase.name for phase in phases]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="resnet56")
    parser.add_argument("--student", default="resnet20")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--views", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    samples = images(options.images, options.side)
    times: dict[str, list[float]] = {"authors'": [], "cached": []}
    for _ in range(options.rounds):
        seconds, names = ours(settled(network(options.teacher), samples), network(options.student), samples, options)
        times["cached"].append(seconds)
        teacher, student = settled(network(options.teacher), samples), network(options.student)
        setup_of("skd", student, teacher, samples)  # places both
        times["authors'"].append(authors(teacher, student, samples, names, options))
    print(
        f"skd {options.teacher} -> {options.student}, stages {', '.join(names)}, {options.images} images of "
        f"{options.side}x{options.side}, batch {options.batch}, {options.epochs} epochs a stage, "
        f"{options.views} views, "
        f"{device().type}, {torch.get_num_threads()} threads"
    )
    for way, values in times.items():
        print(f"{way:8} {statistics.median(values):8.1f} s   ({min(values):.1f} to {max(values):.1f})")
    ratios = [a / b for a, b in zip(times["authors'"], times["cached"], strict=True)]
    print(f"authors' / cached: {statistics.median(ratios):.2f}   ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
