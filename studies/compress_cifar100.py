"""What a budget of multiply-adds costs: `protege compress` beside uniform l1 and the same teaching, in the same time.

    python studies/compress_cifar100.py --data ../shared/data/cifar100 --out studies/results/compress/cifar100.jsonl

A row is a teacher, the images (500 without labels, or 5,000 with), the share of multiply-adds, a seed (which also draws
the images) and a way. "compress" has SECONDS for all it does; "usual" is ``shrink(how="l1", macs=…)``, solved for on
500 of the images as `compress` does, then taught by method auto for the rest of the time. Both are judged on the first
4,000 test images, which neither sees. Rows that are there are left out; three seeds at 0.35, one elsewhere.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import protege
from protege.data import Data, InMemory, choose, load_data
from protege.models import count_macs
from protege.run.run import perform

TEACHERS = Path(__file__).parent.parent / "teachers"
SECONDS = 300
SOLVED = 500  # images
EPOCHS = 200  # more than there is time for
TESTED = 4000
IMAGES = {"500 without labels": (500, False), "5,000 with labels": (5000, True)}
SHARES = (0.35, 0.25, 0.5, 0.7)


def rows(teacher: str) -> Iterator[dict[str, Any]]:
    for seed in range(3):
        for share in SHARES if seed == 0 else SHARES[:1]:
            for images in IMAGES:
                for way in ("compress", "usual"):
                    yield {"teacher": teacher, "images": images, "macs": share, "seed": seed, "way": way}


def data_of(where: Path, images: str, seed: int) -> tuple[Data, Data]:
    """The images to learn from alone, and with the test images."""
    count, labelled = IMAGES[images]
    data = load_data(f"parquet:{where}")
    positions = choose(data.train.labels, samples=count, seed=seed, count=len(data.train))
    train = data.train.part(positions)
    if not labelled:
        train = InMemory(data.train.images, torch.full((len(data.train),), -100)).part(positions)
    return replace(data, train=train, val=None, test=None), replace(data, test=data.test.part(torch.arange(TESTED)))


def measured(row: dict[str, Any], where: Path) -> dict[str, Any]:
    learned, judged = data_of(where, row["images"], row["seed"])
    teacher = str(TEACHERS / row["teacher"])
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PROTEGE_CACHE"] = str(Path(folder, "cache"))
        began = time.perf_counter()
        shared = {"seed": row["seed"], "epochs": EPOCHS, "time": f"{SECONDS}s"}
        if row["way"] == "compress":
            made = protege.compress(teacher, learned, macs=row["macs"], to="folder", out=Path(folder, "out"), **shared)
            student, lesson, name = made.student, made.result["taught"], made.result["chosen"]["name"]
            found = {"chosen": name, "taught": lesson.get("method"), "candidates": made.result["frontier"]}
            found["candidates"] = [
                {key: each[key] for key in ("name", "how", "figures", "metrics", "seconds")}
                for each in found["candidates"]
            ]
        else:
            small = protege.shrink(teacher, macs=row["macs"], data=learned, out=Path(folder, "small"))
            few = {"solve": "kernel", "samples": min(SOLVED, len(learned.train))}
            solved = protege.distill(teacher, small, learned, "fskd", out=Path(folder, "solved"), **few)
            given = {"teacher": teacher, "student": solved.student, "data": learned, "method": "auto", "batch_size": 64}
            shared["time"] = f"{SECONDS - (time.perf_counter() - began):.0f}s"
            run = perform({**given, **shared}, Path(folder, "out"), solved=True)
            student, found = run.student, {"taught": run.result["method"], "tried": run.result.get("choice")}
        seconds = time.perf_counter() - began
        accuracy = protege.evaluate(student, judged)["accuracy"]
        raw = torch.zeros(1, *judged.test.shape, dtype=torch.uint8)
        left = count_macs(student, raw) / count_macs(protege.load_model(teacher), raw)
    return {**row, "accuracy": accuracy, "left": left, "seconds": seconds, **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--teacher", default="cifar100-resnet56")
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    known = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    for row in rows(options.teacher):
        if any(row.items() <= other.items() for other in known):
            continue
        done = measured(row, options.data)
        now = datetime.now(UTC)
        done |= {"date": f"{now:%Y-%m-%d}", "load": os.getloadavg()[0], "machine": f"{platform.machine()}, one thread"}
        with options.out.open("a") as file:
            file.write(json.dumps(done) + "\n")
        print(row, round(done["accuracy"], 4), round(done["seconds"]), flush=True)


if __name__ == "__main__":
    main()
