"""Sets in folders: a folder of images for each class, or images with a mask each."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from .classes import SETTLED, SORTED, among, ordered, union
from .decode import Form, Survey, extent, in_threads, refuse_cut
from .encoded import Files, FromSource, Listing, Source, in_memory, tell_transparent
from .given import SPLITS
from .labels import UNLABELLED
from .masks import fitted_mask, mask_classes, present, read_mask
from .pixels import open_image
from .progress import progress
from .ranges import Ranges, settle
from .samples import InMemory, Samples, Streamed
from .views import VOID

CAMVID = ("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist")
_CAMVID_FILE = re.compile(r"(0001TP|0006R0|0016E5|Seq05VD)_f?\d+")
_CAMVID_VOID = 11
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
"""Suffixes that are believed; a file of another is looked into."""
_LOG = logging.getLogger("protege")


def image_folders(path: Path, order: str | None = None) -> Listing:
    """A folder for each class, directly in `path` or in its train/, val/ and test/.

    Classes are numbered in the `order` of their names' numbers ("number", the default) or text; images are listed in
    that of the text, whatever their numbers are. A split may lack some classes. Training images that lie in no class
    folder have no labels: the classes are then those of val/ or test/, or none.
    """
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
                f"data path {root} holds no class folders; put each class's images in a folder of it{also}."
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
                    f"class folder {folder} holds no images that Pillow reads; add some or remove the folder."
                )
    tell_left_out(others, "no images that Pillow reads")
    tell_left_out(astray, "images that lie in no class folder")
    names = {split: [name for name in by_class if name] for split, by_class in images.items()}
    classes = ordered(union(names.values()), order or "number")
    splits: dict[str, tuple[Source, Tensor]] = {}
    for split, files in images.items():
        at = among(names[split], classes, f"class folders of {path}") if names[split] else torch.tensor([UNLABELLED])
        labels = torch.repeat_interleave(at, torch.tensor(list(map(len, files.values()))))
        splits[split] = Files([image for paths in files.values() for image in paths]), labels
    return Listing(splits, classes, SORTED if order is None else SETTLED)


# ---- which files are images: by their suffix, or else by what is in them --------------------------------------------


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


# ---- images with masks ----------------------------------------------------------------------------------------------

Pairs = list[tuple[Path, Path]]


def segmentation_folder(
    path: Path,
    image_size: int | None,
    memory_limit: int,
    ranges: Ranges = (),
    classes: str | None = None,
    ignore: str | None = None,
) -> tuple[dict[str, Samples], tuple[str, ...], Ranges]:
    """The samples of each split, the class names, and the ranges of images of more than 8 bits: `ranges`, and what
    these leave open.

    The layout is CamVid's as SegNet's authors published it (Badrinarayanan et al. 2017): images in `train/`, masks of
    the same stems in `trainannot/`, and so for `val` and `test`; `train/images/` with `train/masks/` will do as well.
    Which classes there are, the first of these that says so:

    1. `classes` ("sky,building") and `ignore` ("11", values that do not count beside 255);
    2. `classes.txt` in the folder, one name a line;
    3. CamVid itself, known by its own file names, or by the layout `trainannot/` with exactly the values 0 to 11: its
       eleven names, and 11 does not count;
    4. the values of the training masks, each of which is then a class named by its number (see `masks`).

    `image_size` is what the shorter side of the images is brought to; without it the commonest size of training.
    Images of another shape are resized and centre-cropped to it. Decoded images and masks up to `memory_limit` bytes
    are kept in memory. All masks are read once when the set is opened, so that a label nobody knows is found before
    anything is trained. Raises UserError for anything in the folder that cannot be used.
    """
    splits = _pairs_by_split(path)
    form, sizes, told = _common_form(path, splits, image_size, ranges)
    total = sum(map(len, splits.values()))
    kept = total * (form.size + form.height * form.width) <= memory_limit
    masks: dict[str, list[np.ndarray]] = {}
    seen: dict[str, np.ndarray] = {}

    def mask_of(pair: tuple[Path, Path], size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray | None]:
        values = _mask_of_size(*pair, size)
        return present(values), fitted_mask(values, form.height, form.width) if kept else None

    with progress("reading masks", total) as advance:
        for split, pairs in splits.items():
            read = []
            for values in in_threads(lambda item: mask_of(*item), zip(pairs, sizes[split], strict=True)):
                read.append(values)
                advance(1)
            seen[split] = np.stack([values for values, _ in read])
            masks[split] = [mask for _, mask in read if mask is not None]
    names, ignored = _given_classes(path, splits["train"], seen["train"], classes, ignore)
    named, mask_form = mask_classes(
        f"data '{path}'", seen, lambda split, at: f"mask {splits[split][at][1]}", names, ignored, options=True
    )
    samples: dict[str, Samples] = {}
    for split, pairs in splits.items():
        source = Files([image for image, _ in pairs])
        if not kept:
            samples[split] = Streamed(FromSource(source, form, [mask for _, mask in pairs], mask_form), None)
            continue
        labels = np.stack([mask_form.classes_of(mask) for mask in masks[split]])
        samples[split] = InMemory(in_memory(source, form, quiet=told), torch.from_numpy(labels))
    return samples, named, form.ranges


def training_images(path: Path) -> Files:
    """The training images of a folder with masks."""
    return Files([image for image, _ in _pairs_by_split(path)["train"]])


def _pairs_by_split(path: Path) -> dict[str, Pairs]:
    layout = "give a folder with images in train/ and masks of the same names in trainannot/"
    if not path.exists():
        raise UserError(f"data path {path} does not exist; {layout}.")
    if not path.is_dir():
        raise UserError(f"data path {path} is not a folder; {layout}.")
    splits: dict[str, Pairs] = {}
    for split, names in SPLITS.items():
        for name in names:
            root = path / name
            inner = (root / "images").is_dir()
            images, masks = (root / "images", root / "masks") if inner else (root, path / f"{name}annot")
            if split in splits or not images.is_dir():
                continue
            if not masks.is_dir():
                raise UserError(f"images {images} have no masks, as there is no folder {masks}; {layout}.")
            splits[split] = _pairs(images, masks)
    if "train" not in splits:
        raise UserError(f"data path {path} has no folder 'train'; {layout}.")
    return splits


def _pairs(images: Path, masks: Path) -> Pairs:
    by_stem = {folder: _by_stem(folder) for folder in (images, masks)}
    if not by_stem[images]:
        raise UserError(f"folder {images} holds no images that Pillow reads; add some or remove the folder.")
    for here, there, kind in ((images, masks, "mask"), (masks, images, "image")):
        alone = next((stem for stem in by_stem[here] if stem not in by_stem[there]), None)
        if alone is not None:
            raise UserError(
                f"{by_stem[here][alone]} has no {kind}; one named {alone} is expected in {there}: add it, or remove "
                "the other."
            )
    return [(image, by_stem[masks][stem]) for stem, image in by_stem[images].items()]


def _by_stem(folder: Path) -> dict[str, Path]:
    """The images in a folder and those below it, by their path in it without its suffix."""
    by_stem: dict[str, Path] = {}
    images, others = images_below(folder)
    tell_left_out(others, "no images that Pillow reads")
    for file in images:
        stem = file.relative_to(folder).with_suffix("").as_posix()
        if stem in by_stem:
            raise UserError(f"{by_stem[stem]} and {file.name} share a name; one image is expected: remove one.")
        by_stem[stem] = file
    return by_stem


def _common_form(
    path: Path, splits: Mapping[str, Pairs], image_size: int | None, ranges: Ranges
) -> tuple[Form, dict[str, list[tuple[int, int]]], bool]:
    """What all images are brought to, the upright (width, height) of each, and whether the user was told of transparent
    pixels."""
    sources = {split: Files([image for image, _ in pairs]) for split, pairs in splits.items()}
    sizes: dict[str, list[tuple[int, int]]] = {split: [] for split in splits}
    known = Survey()
    for split, source in sources.items():
        for at in range(len(source)):
            image = source.read(at)
            refuse_cut(*image)
            known, size = known.add(*image)
            sizes[split].append(size)
    tell_transparent(known.transparent)
    if known.deep:
        extents = {
            split: [e for e in in_threads(lambda image: extent(*image), map(source.read, range(len(source)))) if e]
            for split, source in sources.items()
        }
        ranges = settle(str(path), extents, ranges)
    ((width, height), _), *_ = Counter(sizes["train"]).most_common(1)
    odd = sum(w * height != h * width for shapes in sizes.values() for w, h in shapes)
    if image_size is not None:
        width, height = (round(side * image_size / min(width, height)) for side in (width, height))
    if odd:
        _LOG.info(
            "%d of %d images have another shape; all are resized and centre-cropped to %d×%d pixels.",
            *(odd, sum(map(len, splits.values())), width, height),
        )
    return Form(height, width, 3 if known.colour else 1, True, ranges), sizes, known.transparent is not None


def _mask_of_size(image: Path, mask: Path, size: tuple[int, int]) -> np.ndarray:
    """The values of a mask, which must have the (width, height) of its image."""
    values = read_mask(mask)
    height, width = values.shape
    if (width, height) != size:
        turned = (height, width) == size
        hint = "turn the mask, or remove the image's orientation tag" if turned else "make the mask anew"
        raise UserError(
            f"mask {mask} is {width}×{height} but its image {image.name} is {size[0]}×{size[1]}; the same size is "
            f"expected: {hint}."
        )
    return values


def _given_classes(
    path: Path, train: Pairs, seen: np.ndarray, classes: str | None, ignore: str | None
) -> tuple[Sequence[str] | None, frozenset[int]]:
    """The names of the classes that somebody gives, or CamVid's, and the values that do not count."""
    names = [name.strip() for name in classes.split(",")] if classes is not None else None
    listed = path / "classes.txt"
    if names is None and listed.is_file():
        lines = listed.read_text(encoding="utf-8", errors="replace").splitlines()
        names = [name for line in lines if (name := line.strip())]
    if names is not None and (len(set(names)) < len(names) or not all(names)):
        raise UserError(
            f"the class names {', '.join(map(repr, names))} are not all different; give each class its own."
        )
    if names is None and ignore is None and train[0][1].parent.name.endswith("annot"):
        values = set(np.flatnonzero(seen[:, 1 : VOID + 1].any(0)).tolist())
        known_files = all(_CAMVID_FILE.fullmatch(image.stem) for image, _ in train)
        if known_files or values == set(range(_CAMVID_VOID + 1)):
            _LOG.info(
                "%s is taken for CamVid: its 11 classes, label 11 does not count; for other classes write "
                "segmentation:PATH?classes=NAME,NAME.",
                path,
            )
            return CAMVID, frozenset({_CAMVID_VOID})
    ignored = [part.strip() for part in ignore.split(",")] if ignore else []
    for value in ignored:
        if not value.isdecimal() or int(value) > VOID:
            raise UserError(f"ignore={ignore} holds {value!r}; values of masks are expected: write it like ignore=11.")
    return names, frozenset(map(int, ignored))
