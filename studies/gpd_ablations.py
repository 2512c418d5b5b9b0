"""What the parts of gap preserving distillation are worth: sharing, inverse reparameterisation, branches, λ.

    python studies/gpd_ablations.py --out runs/gpd_ablations

A student learns alone, and with a dynamic teacher of which one part is missing. *No sharing*: student and wide network
have parameters of their own, and only the gap's loss ties them. *No IR*: both share parameters, but the wide network
starts with random weights rather than as the student. Readouts move r² times as far as a plain student does at the same
rate (docs/gpd.md), so each is run at several rates; compare each at its best.
"""

from __future__ import annotations

import argparse
import copy
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

import protege
from protege.methods import METHODS, Cast, gpd
from protege.run.study import interval95
from protege.surgery import Shared


class Apart(nn.Module):
    """A student and a wide network that share nothing."""

    def __init__(self, shared: Shared, student: nn.Module) -> None:
        super().__init__()
        self.shared, self.student = shared, copy.deepcopy(student)

    def forward(self, x: Tensor) -> tuple[Any, Any]:
        return self.shared.wide_outputs(x), self.shared.run(self.student, x)


def parted(cast: Cast) -> Apart:
    return Apart(gpd.dynamic_teacher(cast), cast.student.network)


def random(cast: Cast) -> Shared:
    trainee = gpd.dynamic_teacher(cast)
    for module in trainee.wide.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return trainee


METHODS["gpd, no IR"] = replace(METHODS["gpd"], plan=partial(gpd.plan, build=random))
METHODS["gpd, no sharing"] = replace(
    METHODS["gpd"], plan=partial(gpd.plan, build=parted, read=lambda trainee: copy.deepcopy(trainee.student))
)
VARIANTS: dict[str, dict[str, Any]] = {
    "none": {"method": "none"},
    "gpd": {"method": "gpd"},
    "gpd, λ = 0": {"method": "gpd", "gap_weight": 0.0},
    "gpd, λ = 1": {"method": "gpd", "gap_weight": 1.0},
    "gpd, no branches": {"method": "gpd", "branches": ""},
    "gpd, no IR": {"method": "gpd, no IR"},
    "gpd, no sharing": {"method": "gpd, no sharing"},
}


def perform(variant: str, lr: float, seed: int, options: argparse.Namespace) -> float:
    """Test accuracy of one run, which is kept."""
    out = options.out / f"{variant.replace(' ', '-')}_{lr:g}_{seed}"
    if not (out / "result.json").exists():
        settings = {"epochs": options.epochs, "fraction": options.fraction, "ema": 0.995, "clip": 5.0}
        settings |= {"student": options.student, "data": options.data, "lr": lr, "seed": seed, **VARIANTS[variant]}
        protege.distill(out=out, resume=out.exists(), **settings)
    return json.loads((out / "result.json").read_text())["student"]["metrics"]["accuracy"]


def told(values: list[float]) -> str:
    spread = interval95(values)
    return f"{sum(values) / len(values):.1f}" + (f" ± {spread:.1f}" if spread else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--student", default="zoo:cnn_tiny")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--fraction", type=float, default=0.1)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--rates", type=float, nargs="*", default=[0.05, 0.1, 0.2, 0.4])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", metavar="VARIANT=RATE", help="these alone, paired with the first of them")
    options = parser.parse_args()
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    if options.only:
        first: list[float] = []
        for variant, _, rate in (one.rpartition("=") for one in options.only):
            values = [100 * perform(variant, float(rate), seed, options) for seed in seeds]
            first = first or values
            gains = [mine - theirs for mine, theirs in zip(values, first, strict=True)]
            print(f"{variant} at {rate}: {told(values)}, paired {told(gains)}")
        return
    lines = ["| | " + " | ".join(f"{lr:g}" for lr in options.rates) + " |", "|---" * (1 + len(options.rates)) + "|"]
    for variant in VARIANTS:
        cells = []
        for lr in options.rates:
            cells.append(told([100 * perform(variant, lr, seed, options) for seed in seeds]))
        lines.append(f"| {variant} | " + " | ".join(cells) + " |")
        (options.out / "table.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
