"""Which files of a folder are images: by their suffix, or else by what is in them."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from .pixels import open_image

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
"""Suffixes that are believed; a file of another is looked into."""

SPLITS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
"""The names under which a folder, a dict or a hub set has the splits."""

_LOG = logging.getLogger("protege")


def visible(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if not p.name.startswith("."))


def split_files(paths: Iterable[Path]) -> tuple[list[Path], list[Path]]:
    """The files among `paths` that are images, and the others."""
    images: list[Path] = []
    others: list[Path] = []
    for path in paths:
        if path.is_file():
            (images if path.suffix.lower() in SUFFIXES or _opens(path) else others).append(path)
        elif not path.is_dir():  # a link to nothing, say
            others.append(path)
    return images, others


def _opens(path: Path) -> bool:
    try:
        with open_image(path):
            return True
    except Exception:  # of any kind, as it may be any file
        return False


def _identity(folder: str | Path) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def images_below(folder: Path) -> tuple[list[Path], list[Path]]:
    """The images in a folder and in the folders below it, and what else lies there, each sorted; nothing hidden.

    Links are followed, but no folder is entered twice, and none that the folder itself lies in.
    """
    paths: list[Path] = []
    entered = {_identity(outer) for outer in (*folder.absolute().parents, *folder.resolve().parents)}
    for root, folders, names in os.walk(folder, followlinks=True):
        if (here := _identity(root)) in entered:
            folders.clear()
            continue
        entered.add(here)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        paths += (Path(root, name) for name in names if not name.startswith("."))
    return split_files(sorted(paths))


def tell_left_out(files: Sequence[Path], why: str) -> None:
    """Say how many files of a set are not read, with one of them."""
    if files:
        _LOG.info("%d left out, such as %s: %s.", len(files), files[0], why)
