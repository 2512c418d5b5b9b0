"""How long a photo takes to be decoded and brought to a size, and how far reduced decoding is from decoding in full.

    python benchmarks/decoding.py PHOTOS                          # a folder of JPEG images
    python benchmarks/decoding.py PHOTOS --noise 9 --count 10     # more of a camera's noise makes larger files

Each photo is enlarged to 4000×3000, given noise and encoded again at quality 92, as phones do. One processor's time and
the differences of grey levels; "in full" is what protege did until version 0.2.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image

from protege.data.decode import Form, decode
from protege.data.framing import centred

REPEATS = 3


def enlarged(path: Path, noise: float, progressive: bool) -> bytes:
    with Image.open(path) as file:
        photo = np.asarray(file.convert("RGB").resize((4000, 3000), Image.Resampling.BICUBIC), np.float32)
    photo = photo + np.random.default_rng(0).normal(0, noise, photo.shape).astype(np.float32)
    out = io.BytesIO()
    image = Image.fromarray(photo.clip(0, 255).astype(np.uint8))
    image.save(out, "JPEG", quality=92, subsampling=2, progressive=progressive)
    return out.getvalue()


def in_full(data: bytes, size: int) -> np.ndarray:
    return np.asarray(centred(Image.open(io.BytesIO(data)), size, size))


def reduced(data: bytes, size: int) -> np.ndarray:
    return decode(data, "photo", Form(size, size, 3, True))[0]


def timed(way: Callable[[bytes, int], np.ndarray], data: bytes, size: int) -> tuple[float, np.ndarray]:
    """Milliseconds, the least of some, and the pixels."""
    times = []
    for _ in range(REPEATS):
        start = time.process_time()
        pixels = way(data, size)
        times.append(1000 * (time.process_time() - start))
    return min(times), pixels.astype(np.int16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--noise", type=float, default=3)
    parser.add_argument("--count", type=int, default=20)
    given = parser.parse_args()
    paths = sorted(given.photos.glob("*.jpg"))[: given.count]
    for kind in ("baseline", "progressive"):
        photos = [enlarged(path, given.noise, kind == "progressive") for path in paths]
        full, small = ([timed(way, data, given.image_size) for data in photos] for way in (in_full, reduced))
        before, after = (median(ms for ms, _ in results) for results in (full, small))
        off = [np.abs(a - b) for (_, a), (_, b) in zip(full, small, strict=True)]
        print(
            f"{kind}, {median(map(len, photos)) / 1e6:.1f} MB: {before:.1f} ms in full, {after:.1f} ms reduced "
            f"({before / after:.1f} times as fast); off by {np.mean(off):.2f} levels, at most {np.max(off)}"
        )


if __name__ == "__main__":
    main()
