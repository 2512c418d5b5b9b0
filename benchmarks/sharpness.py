"""How far random crops of images that were decoded once are from crops of the images themselves.

    python benchmarks/sharpness.py PHOTOS                        # a folder of JPEG images
    python benchmarks/sharpness.py PHOTOS --image-size 112 --decoded-size 112 144 168 192 224 --count 200

For each size that images are kept at, crops (35 % of the area and more) as `--decoded-size` cuts them are compared with
the same box cut out of the image itself by Pillow, as streams do: the mean PSNR in dB, the energy of gradients as a
share of what it is there (its geometric mean; below 1 blurred, above 1 aliased), and the memory that training images
take (those at the image size, of which all but crops is made, are kept too).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from protege.data import Augment
from protege.data.framing import centred
from protege.data.views import boxes, resized_crops

AUGMENT = Augment(crop=0.35)


def pixels(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image))


def energy(image: Tensor) -> Tensor:
    """Of the gradients of an image [H, W, C]."""
    return sum((image.diff(dim=axis) ** 2).mean() for axis in (0, 1))


def compare(path: Path, number: int, size: int, side: int) -> tuple[float, float]:
    """PSNR in dB, and the logarithm of the share of gradient energy, of one crop."""
    with Image.open(path) as file:
        image = file.convert("RGB")
    at, edge = torch.tensor([number]), torch.tensor([side])
    box = boxes(AUGMENT, at, 0, edge, edge)[0][0]
    short = min(image.size)
    left, upper = (image.width - short) / 2, (image.height - short) / 2
    top, start, height, width = (box * (short / side)).tolist()
    right, lower = left + start + width, upper + top + height
    within = (left + start, upper + top, min(right, image.width), min(lower, image.height))
    original = pixels(image.resize((size, size), Image.Resampling.BILINEAR, box=within)).double()
    kept = pixels(centred(image, side, side))[None]
    ours = resized_crops(kept, torch.tensor([0]), at, 0, AUGMENT, size=(size, size))[0].double()
    error = (ours - original).square().mean().clamp(min=1e-6)
    return float(10 * (255**2 / error).log10()), float((energy(ours) / energy(original)).log())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--decoded-size", type=int, nargs="+", default=[224, 256, 288])
    parser.add_argument("--count", type=int, default=500)
    given = parser.parse_args()
    paths = sorted(given.photos.glob("*.jpg"))[: given.count]
    print(f"{len(paths)} images, crops of {given.image_size} pixels")
    for side in given.decoded_size:
        psnr, share = np.mean([compare(path, n, given.image_size, side) for n, path in enumerate(paths)], 0)
        memory = 1 + (side > given.image_size) * (side / given.image_size) ** 2
        print(f"kept at {side}: {psnr:.1f} dB, gradients {np.exp(share):.2f}, memory × {memory:.2f}")


if __name__ == "__main__":
    main()
