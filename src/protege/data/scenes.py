"""Images with a mask each, in a folder.

The layout is CamVid's as SegNet's authors published it (Badrinarayanan et al. 2017): images in `train/`, masks of the
same stems in `trainannot/`, and so for `val` and `test`; `train/images/` with `train/masks/` will do as well. Which
classes there are, the first of these that says so:

1. the options `classes` ("sky,building") and `ignore` ("11", values that do not count beside 255);
2. `classes.txt` in the folder, one name a line;
3. CamVid itself, known by its own file names, or by the layout `trainannot/` with exactly the values 0 to 11: its
   eleven names, and 11 does not count;
4. the values of the training masks, each of which is then a class named by its number (see `masks`).
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from unicodedata import normalize

import numpy as np
import torch

from ..errors import UserError
from .damaged import sound
from .dataset import Data, Request
from .decode import Form, in_threads
from .encoded import FromSource, Survey, in_memory, tell_remarks
from .folders import but_links, images_below, tell_unread
from .given import SPLITS
from .masks import MaskSet, fitted_mask, present, read_mask
from .pixels import extent
from .progress import progress
from .ranges import settle
from .samples import InMemory, Samples, Streamed
from .sources import Files
from .views import VOID

CAMVID = ("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist")
_CAMVID_FILE = re.compile(r"(0001TP|0006R0|0016E5|Seq05VD)_f?\d+")
_CAMVID_VOID = 11
_LOG = logging.getLogger("protege")

Pairs = list[tuple[Path, Path]]


def segmentation_folder(request: Request) -> Data:
    """Images and masks.

    `image_size` is what the shorter side of the images is brought to; without it the commonest size of training.
    Images of another shape are resized and centre-cropped to it. Images and masks that fit into memory are kept there.
    All masks are read once when the set is opened, so that a label nobody knows is found before anything is trained.
    Raises UserError for anything in the folder that cannot be used.
    """
    path, options = request.path, request.options
    splits = _pairs_by_split(path)
    if request.skip_bad:
        splits = _sound(splits, request.skip_bad)
    form, sizes, survey = _common_form(request, splits)
    total = sum(map(len, splits.values()))
    kept = total * form.height * form.width * (form.channels + 1) <= request.memory_limit
    masks: dict[str, list[np.ndarray | None]] = {}
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
            seen[split], masks[split] = np.stack([values for values, _ in read]), [mask for _, mask in read]
    names, ignored = _given_classes(path, splits["train"], seen["train"], options.get("classes"), options.get("ignore"))
    mask_set = MaskSet(f"data '{path}'", seen, lambda split, at: f"mask {splits[split][at][1]}", options=True)
    classes, mask_form = mask_set.classes(names, ignored)
    samples: dict[str, Samples] = {}
    sources = {split: Files([image for image, _ in pairs]) for split, pairs in splits.items()}
    for split, source in sources.items():
        if kept:
            labels = np.stack([mask_form.classes_of(mask) for mask in masks[split] if mask is not None])
            samples[split] = InMemory(in_memory(source, form, survey), torch.from_numpy(labels))
        else:
            reader = FromSource(source, form, Files([mask for _, mask in splits[split]], "mask"), mask_form)
            samples[split] = Streamed(reader, None)
    return request.data(samples, classes, sources["train"].places, ranges=form.ranges)


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


def _sound(splits: Mapping[str, Pairs], allowed: int) -> dict[str, Pairs]:
    """The pairs of which both files can be decoded."""
    files = {
        (split, kind): Files([pair[at] for pair in pairs], kind)
        for split, pairs in splits.items()
        for at, kind in enumerate(("image", "mask"))
    }
    kept = sound({key: source.attempts() for key, source in files.items()}, sum(map(len, files.values())), allowed)
    both = {split: set(kept[split, "image"].tolist()) & set(kept[split, "mask"].tolist()) for split in splits}
    return {split: [pair for at, pair in enumerate(pairs) if at in both[split]] for split, pairs in splits.items()}


def _pairs(images: Path, masks: Path) -> Pairs:
    by_stem = {folder: _by_stem(folder) for folder in (images, masks)}
    if not by_stem[images]:
        also = but_links(images_below(images)[1])
        raise UserError(f"folder {images} holds no images that Pillow reads{also}; add some or remove the folder.")
    for here, there, kind in ((images, masks, "mask"), (masks, images, "image")):
        alone = next((stem for stem in by_stem[here] if stem not in by_stem[there]), None)
        if alone is not None:
            raise UserError(
                f"{by_stem[here][alone]} has no {kind}; one named {alone} is expected in {there}: add it, or remove "
                "the other."
            )
    return [(image, by_stem[masks][stem]) for stem, image in by_stem[images].items()]


def _by_stem(folder: Path) -> dict[str, Path]:
    """The images in a folder and those below it, by their path in it without its suffix; accents in one piece (NFC),
    as some systems store them apart, unless two names differ by that alone."""
    by_stem: dict[str, Path] = {}
    images, others = images_below(folder)
    tell_unread(others)
    for file in images:
        stem = file.relative_to(folder).with_suffix("").as_posix()
        if stem in by_stem:
            raise UserError(f"{by_stem[stem]} and {file.name} share a name; one image is expected: remove one.")
        by_stem[stem] = file
    whole = {normalize("NFC", stem): file for stem, file in by_stem.items()}
    return whole if len(whole) == len(by_stem) else by_stem


def _common_form(
    request: Request, splits: Mapping[str, Pairs]
) -> tuple[Form, dict[str, list[tuple[int, int]]], Survey]:
    """What all images are brought to, the upright (width, height) of each, and what else their headers tell."""
    sources = {split: Files([image for image, _ in pairs]) for split, pairs in splits.items()}
    sizes: dict[str, list[tuple[int, int]]] = {split: [] for split in splits}
    survey, ranges, image_size = Survey(), request.ranges, request.image_size
    for split, source in sources.items():
        for at in range(len(source)):
            size = survey.add(*source.read(at), pixels=True)
            assert size is not None
            sizes[split].append(size)
    tell_remarks(survey.remarks)
    if survey.deep:
        extents = {
            split: [e for e in in_threads(lambda image: extent(*image), map(source.read, range(len(source)))) if e]
            for split, source in sources.items()
        }
        ranges = settle(str(request.path), extents, ranges)
    ((width, height), _), *_ = Counter(sizes["train"]).most_common(1)
    odd = sum(w * height != h * width for shapes in sizes.values() for w, h in shapes)
    if image_size is not None:
        width, height = (round(side * image_size / min(width, height)) for side in (width, height))
    if odd:
        _LOG.info(
            "%d of %d images have another shape; all are resized and centre-cropped to %d×%d pixels.",
            *(odd, sum(map(len, splits.values())), width, height),
        )
    return Form(height, width, 3 if survey.colour else 1, True, ranges), sizes, survey


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
