"""Knowledge distillation with the teacher online against the teacher remembered.

    python benchmarks/cache.py                     # resnet32x4 -> resnet8x4, batch 64
    python benchmarks/cache.py --teacher resnet56 --student resnet20 --rounds 5

Both train on the same view of the same samples in the same order from the same weights, so their losses must
agree to the half precision in which signals are stored. The view is filled before the clock starts. Figures are
medians over the rounds with their range.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
from pathlib import Path

import torch
from common import device, images, network, run_epoch, setup_of

from protege.methods import METHODS
from protege.models.precision import resolve_precision
from protege.training import FitSettings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="resnet32x4")
    parser.add_argument("--student", default="resnet8x4")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--updates", type=int, default=6, help="updates in a round")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    samples = images(options.batch * options.updates)
    teacher, fresh, method = network(options.teacher), network(options.student), METHODS["kd"]
    settings = FitSettings(epochs=1, batch_size=options.batch)
    rates: dict[str, list[float]] = {"online": [], "cached": []}
    losses: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as cache:
        for number in range(options.rounds + 1):
            for way in ("online", "cached"):
                student = copy.deepcopy(fresh)
                phases = method.plan(setup_of("kd", student, teacher, samples))
                where = {"views": 1, "cache": Path(cache)} if way == "cached" else {}
                event = run_epoch(phases, student, samples, settings, **where)
                losses[way] = event["train"]["loss"]
                if number:  # the first round warms up and fills the view
                    rates[way].append(event["images_per_second"])
    print(
        f"kd {options.teacher} -> {options.student}, batch {options.batch}, {device().type}, "
        f"{torch.get_num_threads()} threads, precision {resolve_precision('auto', device())}, "
        f"{options.rounds} rounds of {options.updates} updates"
    )
    for way, values in rates.items():
        print(f"{way:7} {statistics.median(values):9,.1f} images/s   ({min(values):,.1f} to {max(values):,.1f})")
    ratios = [a / b for a, b in zip(rates["cached"], rates["online"], strict=True)]
    print(f"cached / online: {statistics.median(ratios):.2f}   ({min(ratios):.2f} to {max(ratios):.2f})")
    apart = abs(losses["cached"] - losses["online"]) / losses["online"]
    print(f"loss online {losses['online']:.6f}, cached {losses['cached']:.6f}, relative difference {apart:.1e}")


if __name__ == "__main__":
    main()
