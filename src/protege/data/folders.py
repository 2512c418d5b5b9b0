"""A folder of images for each class; and which files are images."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from ..errors import UserError, printable
from .classes import SETTLED, SORTED, among, ordered, union
from .dataset import Data, Request
from .encoded import open_images
from .given import SPLITS
from .labels import UNLABELLED
from .pixels import NoHeifError, open_image, readable
from .sources import Files, Source

HEIC = (".heic", ".heif", ".hif")
SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".avif", ".avifs"),
    *HEIC,
)
"""Suffixes that are believed; a file of another is looked into."""
_LOG = logging.getLogger("protege")


def image_folders(request: Request) -> Data:
    """A folder for each class, directly in the path or in its train/, val/ and test/.

    Classes are numbered in the `order` of their names' numbers ("number", the default) or text; images are listed in
    that of the text, whatever their numbers are. A split may lack some classes. Training images that lie in no class
    folder have no labels: the classes are then those of val/ or test/, or none.
    """
    path, order = request.path, request.options.get("order")
    if not path.exists():
        raise UserError(f"data path {path} does not exist; give a folder with one folder of images for each class.")
    if not path.is_dir():
        raise UserError(f"data path {path} is not a folder; give one with a folder of images for each class.")
    roots = {split: root for split, names in SPLITS.items() for name in names if (root := path / name).is_dir()}
    if "train" not in roots:
        roots = {"train": path}
    images: dict[str, dict[str, list[Path]]] = {}  # by split and class
    others: list[Path] = []
    astray: list[Path] = []
    for split in sorted(roots, key=list(SPLITS).index):
        root = roots[split]
        folders = [p for p in visible(root) if p.is_dir()]
        stray, left = split_files(visible(root))
        others += left
        if split == "train" and not folders and stray:
            images[split] = {"": stray}
            continue
        astray += stray
        if not folders:
            also = ", or images without classes directly in it" if split == "train" else ""
            raise UserError(
                f"data path {root} holds no class folders{but_links(left)}; put each class's images in a folder of "
                f"it{also}."
            )
        if len(folders) == 1 and stray:
            raise UserError(
                f"data path {root} has only one class, '{folders[0].name}'; at least two are expected, or images "
                "without classes in a folder without others."
            )
        images[split] = {}
        for folder in folders:
            images[split][folder.name], left = images_below(folder)
            others += left
            if not images[split][folder.name]:
                raise UserError(
                    f"class folder {folder} holds no images that Pillow reads{but_links(left)}; add some or remove "
                    "the folder."
                )
    tell_unread(others)
    tell_left_out(astray, "images that lie in no class folder")
    names = {split: [name for name in by_class if name] for split, by_class in images.items()}
    classes = ordered(union(names.values()), order or "number")
    splits: dict[str, tuple[Source, Tensor]] = {}
    for split, files in images.items():
        at = among(names[split], classes, f"class folders of {path}") if names[split] else torch.tensor([UNLABELLED])
        labels = torch.repeat_interleave(at, torch.tensor(list(map(len, files.values()))))
        splits[split] = Files([image for paths in files.values() for image in paths]), labels
    return open_images(request, splits, classes, SORTED if order is None else SETTLED)


# ---- which files are images: by their suffix, or else by what is in them --------------------------------------------


def visible(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if not p.name.startswith("."))


def split_files(paths: Iterable[Path]) -> tuple[list[Path], list[Path]]:
    """The files among `paths` that are images, and the others. Raises UserError where some are HEIC, and what reads
    that is missing."""
    images: list[Path] = []
    others: list[Path] = []
    for path in paths:
        if path.is_file():
            (images if path.suffix.lower() in SUFFIXES or _opens(path) else others).append(path)
        elif not path.is_dir():  # a link to nothing, say
            others.append(path)
    heic = next((path for path in images if path.suffix.lower() in HEIC), None)
    if heic is not None:
        with readable(f"image {heic}"), suppress(OSError, ValueError, SyntaxError):  # damage is told when it is read
            open_image(heic).close()
    return images, others


def _opens(path: Path) -> bool:
    try:
        with open_image(path):
            return True
    except NoHeifError:  # said when it is read
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
    paths: list[str] = []
    entered = {_identity(outer) for outer in (*folder.absolute().parents, *folder.resolve().parents)}
    for root, folders, names in os.walk(folder, followlinks=True):
        if (here := _identity(root)) in entered:
            folders.clear()
            continue
        entered.add(here)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        paths += (os.path.join(root, name) for name in names if not name.startswith("."))
    paths.sort(key=lambda path: path.split(os.sep))  # as paths are sorted, in a tenth of the time
    return split_files(map(Path, paths))


def but_links(left: Sequence[Path]) -> str:
    """The links to nothing among what lies in a folder, for the sentence that it holds nothing else."""
    links = _dangling(left)
    return (
        f", but {len(links)} link{'s' * (len(links) != 1)} to nothing, such as {printable(links[0])}" if links else ""
    )


def _dangling(files: Sequence[Path]) -> list[Path]:
    return [path for path in files if path.is_symlink() and not path.exists()]


def tell_unread(files: Sequence[Path]) -> None:
    """Say how many files of a set are no images, and how many of them links to nothing."""
    links = _dangling(files)
    some = f", {len(links)} of them links to nothing" if links else ""
    tell_left_out(files, "links to nothing" if len(links) == len(files) else f"no images that Pillow reads{some}")


def tell_left_out(files: Sequence[Path], why: str) -> None:
    """Say how many files of a set are not read, with one of them."""
    if files:
        _LOG.info("%d left out, such as %s: %s.", len(files), printable(files[0]), why)
