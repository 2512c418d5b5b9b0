"""Small folders for segmentation in CamVid's layout."""

from pathlib import Path

import numpy as np
from PIL import Image

SPLITS = {"train": 6, "val": 2, "test": 3}
SHADES = np.array([[40, 60, 200], [90, 200, 40], [220, 60, 60], [200, 200, 200]], np.uint8)


def scene(seed: int, height: int = 24, width: int = 32, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """An image, uint8 [H, W, 3], and its mask, uint8 [H, W]: stripes whose class shows in their colour."""
    generator = np.random.default_rng(seed)
    edges = np.sort(generator.integers(1, width, classes))
    mask = np.searchsorted(edges, np.arange(width), side="right") % classes
    mask = np.repeat(mask[None], height, 0).astype(np.uint8)
    mask[: height // 3] = generator.integers(classes)
    mask[-1, :classes] = np.arange(classes)
    image = SHADES[mask % len(SHADES)] + generator.integers(0, 30, (height, width, 3), dtype=np.uint8)
    return image, mask


def write_pair(folder: Path, split: str, name: str, image: np.ndarray, mask: np.ndarray) -> None:
    """Add an image and its mask."""
    for part in (split, f"{split}annot"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(folder / split / f"{name}.png")
    Image.fromarray(mask).save(folder / f"{split}annot" / f"{name}.png")


def write_scenes(folder: Path, classes: int = 3, void: int | None = 255, **counts: int) -> Path:
    """A folder with a few scenes in each split; the first pixel of each mask is ``void``, if that is given."""
    for at, (split, count) in enumerate((counts or SPLITS).items()):
        for n in range(count):
            image, mask = scene(100 * at + n, classes=classes)
            if void is not None:
                mask[0, 0] = void
            write_pair(folder, split, f"s{n:02}", image, mask)
    return folder
