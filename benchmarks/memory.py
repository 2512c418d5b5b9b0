"""Peak memory of distilling from a Parquet set that is larger than the memory limit.

    python benchmarks/memory.py                                  # 1.5 GB decoded, limit 64 MiB
    python benchmarks/memory.py --images 2000 --size 256 --limit 32 --workers 2

Writes a synthetic set of JPEG images (ten tints, one a class) to a temporary folder, trains a tiny teacher on it for
one epoch and a tinier student from that teacher for another, and prints the decoded size, the limit, and the peak
resident memory of this process above what a run on the digits takes, and of its largest worker. Exits with status 1
where the growth exceeds half the decoded size.
"""

from __future__ import annotations

import argparse
import io
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

MIB = 1 << 20


def write(folder: Path, images: int, size: int, shards: int = 4) -> None:
    """Random low-frequency pictures, so that they compress as photographs do; one row group a hundred."""
    random = np.random.default_rng(0)
    schema = pa.schema([("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.int64())])
    for shard in range(shards):
        with pq.ParquetWriter(folder / f"train-{shard:05d}.parquet", schema) as file:
            for start in range(shard * images // shards, (shard + 1) * images // shards, 100):
                count = min(100, (shard + 1) * images // shards - start)
                rows = []
                labels = [i % 10 for i in range(start, start + count)]
                for label in labels:
                    tint = np.array([label % 3, label // 3 % 3, label // 9]) * 60
                    noise = random.integers(0, 120, (size // 8, size // 8, 3))
                    coarse = Image.fromarray((noise + tint).astype(np.uint8))
                    out = io.BytesIO()
                    coarse.resize((size, size), Image.Resampling.BICUBIC).save(out, "jpeg", quality=85)
                    rows.append({"bytes": out.getvalue(), "path": None})
                file.write_table(pa.table({"image": rows, "label": labels}, schema=schema))


def peak(who: int) -> float:
    return resource.getrusage(who).ru_maxrss * 1024 / MIB


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    arguments.add_argument("--images", type=int, default=8000)
    arguments.add_argument("--size", type=int, default=256, help="pixels high and wide")
    arguments.add_argument("--limit", type=int, default=64, help="memory limit, MiB")
    arguments.add_argument("--workers", type=int, default=2)
    arguments.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.folder is None:
        # The set is written by this process and streamed by another, so that only streaming is measured.
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder), given.images, given.size)
            return subprocess.call([sys.executable, __file__, *sys.argv[1:], "--folder", folder])

    os.environ["PROTEGE_CACHE"] = str(given.folder / "cache")
    import protege

    limits = {"batch_size": 16, "image_size": given.size, "memory_limit": f"{given.limit}MiB", "workers": given.workers}
    data = f"parquet:{given.folder}"
    protege.train("zoo:cnn_tiny", "digits", given.folder / "warm", epochs=1)
    before = peak(resource.RUSAGE_SELF)
    teacher = protege.train("zoo:cnn_tiny", data, given.folder / "teacher", epochs=1, **limits)
    grown_by_teacher = peak(resource.RUSAGE_SELF) - before
    student = "zoo:cnn_tiny?width=4"
    run = protege.distill(
        str(teacher.out / "student"), student, data, "kd", given.folder / "run", epochs=1, views=1, **limits
    )
    grown = peak(resource.RUSAGE_SELF) - before
    loaded = protege.load_data(data, image_size=given.size, memory_limit=given.limit * MIB)
    total = len(loaded.train) + len(loaded.test or ())
    decoded = total * given.size**2 * 3 / MIB
    encoded = sum(p.stat().st_size for p in given.folder.glob("*.parquet")) / MIB
    print(f"samples              {type(loaded.train).__name__}, {total} of {given.size}×{given.size}")
    print(f"encoded size         {encoded:8.0f} MiB")
    print(f"decoded size         {decoded:8.0f} MiB")
    print(f"memory limit         {given.limit:8d} MiB")
    print(f"resident before data {before:8.0f} MiB")
    print(f"peak above that      {grown_by_teacher:8.0f} MiB training the teacher, {grown:.0f} MiB by the end of kd")
    print(f"peak of a worker     {peak(resource.RUSAGE_CHILDREN):8.0f} MiB (with the interpreter and torch)")
    print(f"accuracy             teacher {teacher.metrics['accuracy']:.3f}, student {run.metrics['accuracy']:.3f}")
    return int(grown > decoded / 2)


if __name__ == "__main__":
    sys.exit(main())
