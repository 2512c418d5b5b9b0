"""Does the verdict name what is wrong with a teacher, and does its advice pay?

    python studies/diagnose.py --data parquet:../shared/data/cifar100 --out runs/diagnose

Five ways to fail are provoked on CIFAR-100 at 16x16 pixels, beside two healthy teachers. Each teacher is diagnosed with
its student on the transfer set, a fifth of the training images; then students are taught twice, with the settings that
were asked for (kd at T = 4; at T = 20, and at T = 1, where that is the mistake) and by ``method="auto"``, which
follows the advice.
``--cases`` does some of them, in a process of their own if you like; what is done is kept, and the table is of all.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import protege
from protege.data import Augment, Data, InMemory, choose
from protege.run.folder import write_json

TEACHERS = Path(__file__).parent.parent / "teachers"
VIEWED = Augment(shift=2, flip=True)
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Case:
    """A teacher with its student. ``fails``: the finding that should come first; None: the teacher is healthy."""

    fails: str | None
    teacher: Callable[[Data, Data, Path], str]
    student: str = "zoo:resnet8"
    temperature: float = 4.0
    augment: Augment = VIEWED


def committed(whole: Data, fifth: Data, out: Path) -> str:
    """resnet56, taught all images."""
    return str(TEACHERS / "cifar100-resnet56-16px")


def taught(data: Data, out: Path, **settings: Any) -> str:
    """resnet20, made unless it is there."""
    if not (out / "result.json").exists():
        protege.train("zoo:resnet20", data, out=out, batch_size=64, resume=out.exists(), **settings)
    return str(out / "student")


def plain(whole: Data, fifth: Data, out: Path) -> str:
    return taught(whole, out, epochs=8)


def smoothed(whole: Data, fifth: Data, out: Path) -> str:
    return taught(whole, out, epochs=8, label_smoothing=0.2)


def by_heart(whole: Data, fifth: Data, out: Path) -> str:
    """Taught the transfer set itself, unaugmented, until it is sure of every image."""
    return taught(replace(fifth, augment=Augment()), out, epochs=45)


def misled(whole: Data, fifth: Data, out: Path) -> str:
    """As `by_heart`, with 30 % of the labels replaced by others."""
    generator = torch.Generator().manual_seed(0)
    labels = fifth.train.labels.clone()
    bad = torch.randperm(len(labels), generator=generator)[: round(0.3 * len(labels))]
    labels[bad] = (labels[bad] + torch.randint(1, 100, bad.shape, generator=generator)) % 100
    return taught(replace(fifth, train=InMemory(fifth.train.pixels, labels), augment=Augment()), out, epochs=45)


CASES = {
    "healthy": Case(None, committed, student="zoo:resnet20"),
    "healthy, resnet20": Case(None, plain),
    "label smoothing 0.2": Case("smoothed", smoothed),
    "over-trained": Case("overconfident", by_heart, temperature=1.0, augment=Augment()),
    "T = 20": Case("temperature", committed, student="zoo:resnet20", temperature=20.0),
    "30 % wrong labels": Case("wrong", misled, augment=Augment()),
    "far too large": Case("gap", committed, student="zoo:cnn_small?width=8"),
}


def perform(name: str, whole: Data, fifth: Data, out: Path, epochs: int) -> None:
    """Diagnose a case and teach its students; what it found goes into ``case.json``."""
    case, folder = CASES[name], out / name
    teacher = case.teacher(whole, fifth, folder / "teacher")
    transfer = replace(fifth, augment=case.augment)
    asked = {"method": "kd", "temperature": case.temperature, "weight": 0.9}
    found = protege.diagnose(
        teacher, transfer, student=case.student, temperature=case.temperature, out=folder / "diagnosis", overwrite=True
    )
    accuracy: dict[str, list[float]] = {}
    advice = {"method": found.recommendation.method, **found.recommendation.settings}
    same = advice == {"target": "kd", **asked}  # then it is the same run
    for way, settings in (("asked", asked), ("advised", asked if same else {"method": "auto"})):
        for seed in SEEDS:
            run = folder / f"{'asked' if same else way}-{seed}"
            if not (run / "result.json").exists():
                common = {"epochs": epochs, "batch_size": 64, "seed": seed, "resume": run.exists()}
                protege.distill(teacher, case.student, transfer, out=run, **common, **settings)
            accuracy.setdefault(way, []).append(
                json.loads((run / "result.json").read_text())["student"]["metrics"]["accuracy"]
            )
    status = {finding.name: finding.status for finding in found.findings}
    write_json(
        folder / "case.json",
        {"expected": case.fails, "primary": result_name(found), "status": status, "advice": advice, **accuracy},
    )


def result_name(found: protege.Diagnosis) -> str | None:
    return found.primary.name if found.primary else None


def table(out: Path) -> str:
    """The cases that are done, as Markdown."""
    lines = ["| teacher | verdict | advice | as asked | as advised | gain |", "|---|---|---|---|---|---|"]
    for name in CASES:
        if not (out / name / "case.json").exists():
            continue
        case = json.loads((out / name / "case.json").read_text())
        first = case["primary"]
        verdict = f"{first}: {case['status'][first]}" if first else "healthy"
        advice = ", ".join(f"{key} {value}" for key, value in case["advice"].items())
        gains = [100 * (a - b) for a, b in zip(case["advised"], case["asked"], strict=True)]
        means = [100 * statistics.mean(case[way]) for way in ("asked", "advised")]
        lines.append(
            f"| {name} | {verdict}{'' if first == case['expected'] else ' (expected ' + str(case['expected']) + ')'} "
            f"| {advice} | {means[0]:.1f} | {means[1]:.1f} "
            f"| {statistics.mean(gains):+.1f} ({min(gains):+.1f} to {max(gains):+.1f}) |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="parquet:../shared/data/cifar100")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cases", nargs="*", choices=list(CASES), default=list(CASES))
    parser.add_argument("--epochs", type=int, default=12, help="of each student")
    options = parser.parse_args()
    whole = replace(protege.load_data(options.data, image_size=16), augment=VIEWED)
    some = choose(whole.train.labels, fraction=0.2, seed=0, count=len(whole.train))
    fifth = replace(whole, train=InMemory(whole.train.pixels[some], whole.train.labels[some]))
    for name in options.cases:
        perform(name, whole, fifth, options.out, options.epochs)
    (options.out / "table.md").write_text(table(options.out) + "\n")
    print(table(options.out))


if __name__ == "__main__":
    main()
