"""Pictures for tests, and files of them."""

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from protege.data import CLEAN, Augment, load_data


def clean(samples, count: int | None = None) -> np.ndarray:
    """The pixels [N, H, W, C] of the first samples."""
    batch = samples.fetch(torch.arange(count or len(samples)), CLEAN, Augment())
    return batch.inputs.permute(0, 2, 3, 1).numpy()


def picture(seed: int, height: int = 12, width: int = 20) -> np.ndarray:
    """Smooth enough for JPEG to keep it."""
    small = np.random.default_rng(seed).integers(0, 256, (3, 5, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def tagged(orientation: int) -> Image.Exif:
    tag = Image.Exif()
    tag[0x0112] = orientation
    return tag


def encoded(image: Image.Image, form: str, **how) -> bytes:
    out = io.BytesIO()
    exact = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95, "subsampling": 0}}
    image.save(out, form, **(exact.get(form, {}) | how))
    return out.getvalue()


def stored(shown: np.ndarray, orientation: int) -> Image.Image:
    """The pixels that a viewer shows so where the file has this tag."""
    for turn in (None, *Image.Transpose):
        image = Image.fromarray(shown)
        image = image if turn is None else image.transpose(turn)
        image.getexif()[0x0112] = orientation
        if np.array_equal(np.asarray(ImageOps.exif_transpose(image)), shown):
            return image
    raise AssertionError


def write_images(folder: Path, images: dict[str, Image.Image | bytes | np.ndarray]) -> Path:
    """Files by their names below the folder."""
    for name, image in images.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(image, bytes):
            file.write_bytes(image)
        else:
            (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(file)
    return folder


def whole(folder: Path, **how):
    return load_data(f"images:{folder}", whole=True, **how)
