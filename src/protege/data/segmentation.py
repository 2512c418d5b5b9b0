"""Sets for segmentation in folders: `segmentation:PATH`.

The layout is CamVid's as SegNet's authors published it (Badrinarayanan et al. 2017): images in `train/`, masks of
the same stems in `trainannot/`, and so for `val` and `test`; `train/images/` with `train/masks/` will do as well.
The values of a mask are the classes' numbers from 0, and 255 does not count; but masks drawn in grey levels from black
to white (0 and 255, or 0, 128 and 255) have a class for each level.

Which classes there are, the first of these that says so:

1. the options "?classes=sky,building" and "?ignore=11" (values that do not count, beside 255);
2. `classes.txt` in the folder, one name a line;
3. CamVid itself, told by its own file names, or by the layout `trainannot/` with exactly the values 0 to 11: its
   eleven names, and 11 does not count;
4. the values of the training masks, each of which is then a class named by its number.

All masks are read once when the set is opened, so that a label nobody knows is found before anything is trained.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from os import cpu_count
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from protege.data.contents import places_of_files
from protege.data.decode import Survey, extent, header
from protege.data.files import images_below, tell_left_out
from protege.data.folders import SPLITS
from protege.data.listed import tell_transparent
from protege.data.masks import VOID, grey_levels, refuse_white_object, tell_levels
from protege.data.progress import progress
from protege.data.ranges import Ranges, settle
from protege.data.scenes import (
    SceneForm,
    Scenes,
    ScenesInFiles,
    ScenesInMemory,
    fitted_mask,
    read_mask,
    read_pixels,
)
from protege.errors import UserError

CAMVID = ("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist")
_CAMVID_FILE = re.compile(r"(0001TP|0006R0|0016E5|Seq05VD)_f?\d+")
_LOG = logging.getLogger("protege")
_T = TypeVar("_T")
_R = TypeVar("_R")

Pairs = list[tuple[Path, Path]]


@dataclass(frozen=True)
class Labels:
    """Class names, and values of masks that do not count beside 255; the other values, in order, are the classes, or
    the grey `levels` if there are any."""

    classes: tuple[str, ...]
    ignored: frozenset[int] = frozenset()
    levels: tuple[int, ...] = ()

    @property
    def values(self) -> list[int]:
        """The value of each class."""
        if self.levels:
            return list(self.levels)
        return [v for v in range(VOID) if v not in self.ignored][: len(self.classes)]

    def table(self) -> bytes:
        """The class of each of the 256 values, or `VOID`."""
        number = {value: n for n, value in enumerate(self.values)}
        return bytes(number.get(v, VOID) for v in range(256))


def segmentation_folder(
    path: Path,
    image_size: int | None,
    memory_limit: int,
    ranges: Ranges = (),
    classes: str | None = None,
    ignore: str | None = None,
) -> tuple[dict[str, Scenes], tuple[str, ...], Ranges]:
    """The scenes of each split found, the class names, and the ranges of images of more than 8 bits: `ranges`, and
    what these leave open.

    `image_size` is what the shorter side of the images is brought to; without it the commonest size of training.
    Images of another shape are resized and centre-cropped to it. Decoded scenes up to `memory_limit` bytes are kept in
    memory. Raises UserError for anything in the folder that cannot be used.
    """
    splits = _splits(path)
    form, sizes, odd = _form(path, splits, image_size, ranges)
    count = sum(map(len, splits.values()))
    if odd:
        _LOG.info(
            "%d of %d images have another shape; all are resized and centre-cropped to %d×%d pixels.",
            odd,
            count,
            form.width,
            form.height,
        )
    keep = count * form.height * form.width * (form.channels + 1) <= memory_limit
    masks: dict[str, np.ndarray] = {}
    seen: dict[str, np.ndarray] = {}  # which of the 256 values each mask has
    bilevel: dict[str, np.ndarray] = {}  # which masks are black and white
    with progress("reading masks", count) as advance:
        for split, pairs in splits.items():
            seen[split], bilevel[split] = np.zeros((len(pairs), 256), bool), np.zeros(len(pairs), bool)
            masks[split] = np.empty((len(pairs) if keep else 0, form.height, form.width), np.uint8)
            work = zip(pairs, sizes[split], strict=True)
            for at, (values, fitted, two) in enumerate(_in_threads(lambda item: _surveyed(*item, form, keep), work)):
                seen[split][at], bilevel[split][at] = values, two
                if keep:
                    masks[split][at] = fitted
                advance(1)
    labels = _labels(path, splits["train"], seen["train"], bilevel["train"], classes, ignore)
    if labels.levels:
        form = replace(form, white=VOID)
        for split, here in bilevel.items():
            seen[split][here, VOID], seen[split][here, 1] = seen[split][here, 1], False
            if keep:
                masks[split][here] *= np.uint8(VOID)
    _check(path, splits, seen, labels)
    form = replace(form, table=labels.table())
    if not keep:
        return {s: ScenesInFiles(pairs, form) for s, pairs in splits.items()}, labels.classes, form.ranges
    table = np.frombuffer(form.table, np.uint8)
    found: dict[str, Scenes] = {}
    for split, pairs in splits.items():
        pixels = np.empty((len(pairs), form.height, form.width, form.channels), np.uint8)
        with progress(f"decoding {split} images", len(pairs)) as advance:
            for at, image in enumerate(_in_threads(lambda pair: read_pixels(pair[0], form), pairs)):
                pixels[at] = image
                advance(1)
        found[split] = ScenesInMemory(torch.from_numpy(pixels), torch.from_numpy(table[masks[split]]))
    return found, labels.classes, form.ranges


def training_places(path: Path) -> Tensor:
    """The place of each training image, float64 [N], see `protege.data.contents`."""
    return places_of_files([image for image, _ in _splits(path)["train"]])


def _in_threads(work: Callable[[_T], _R], items: Iterable[_T]) -> Iterator[_R]:
    """`map` on all processors: Pillow decodes without the interpreter's lock."""
    with ThreadPoolExecutor(cpu_count()) as pool:
        try:
            yield from pool.map(work, items)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _splits(path: Path) -> dict[str, Pairs]:
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
    found = [_by_stem(folder) for folder in (images, masks)]
    if not found[0]:
        raise UserError(f"folder {images} holds no images that Pillow reads; add some or remove the folder.")
    for own, others, kind, folder in ((found[0], found[1], "mask", masks), (found[1], found[0], "image", images)):
        alone = next((stem for stem in own if stem not in others), None)
        if alone is not None:
            raise UserError(
                f"{own[alone]} has no {kind}; one named {alone} is expected in {folder}: add it, or remove the other."
            )
    return [(found[0][stem], found[1][stem]) for stem in found[0]]


def _by_stem(folder: Path) -> dict[str, Path]:
    """The images in a folder and those below it, by their path in it without its suffix."""
    found: dict[str, Path] = {}
    images, others = images_below(folder)
    tell_left_out(others, "no images that Pillow reads")
    for file in images:
        stem = file.relative_to(folder).with_suffix("").as_posix()
        if stem in found:
            raise UserError(f"{found[stem]} and {file.name} share a name; one image is expected: remove one.")
        found[stem] = file
    return found


def _form(
    path: Path, splits: dict[str, Pairs], image_size: int | None, ranges: Ranges
) -> tuple[SceneForm, dict[str, list[tuple[int, int]]], int]:
    """What all images are brought to; the upright (width, height) of each; and how many have another shape than the
    commonest in training."""
    sizes: dict[str, list[tuple[int, int]]] = {split: [] for split in splits}
    known = Survey()
    for split, pairs in splits.items():
        for image, _ in pairs:
            found = header(_bytes(image), f"image {image}", known.transparent is None)
            known = known.add(found, f"image {image}")
            sizes[split].append(found.size)
    tell_transparent(known.transparent)
    if known.deep:
        extents = {
            split: [e for e in _in_threads(lambda pair: extent(_bytes(pair[0]), f"image {pair[0]}"), pairs) if e]
            for split, pairs in splits.items()
        }
        ranges = settle(str(path), extents, ranges)
    ((width, height), _), *_ = Counter(sizes["train"]).most_common(1)
    odd = sum(w * height != h * width for found in sizes.values() for w, h in found)
    if image_size is not None:
        width, height = (round(side * image_size / min(width, height)) for side in (width, height))
    return SceneForm(height, width, 3 if known.colour else 1, ranges), sizes, odd


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"image {path} cannot be read ({error.strerror}); restore or remove it.") from error


def _surveyed(
    pair: tuple[Path, Path], size: tuple[int, int], form: SceneForm, keep: bool
) -> tuple[np.ndarray, np.ndarray | None, bool]:
    """Which of the 256 values a mask has, the mask brought to the form if it is kept, and whether it is black and
    white."""
    image, mask = pair
    values = read_mask(mask)
    height, width = values.shape
    if (width, height) != size:
        turned = (height, width) == size
        hint = "turn the mask, or remove the image's orientation tag" if turned else "make the mask anew"
        raise UserError(
            f"mask {mask} is {width}×{height} but its image {image.name} is {size[0]}×{size[1]}; the same size is "
            f"expected: {hint}."
        )
    present = np.bincount(values.ravel(), minlength=256) > 0
    return present, fitted_mask(values, form) if keep else None, values.dtype == np.bool_


def _labels(
    path: Path, train: Pairs, seen: np.ndarray, bilevel: np.ndarray, classes: str | None, ignore: str | None
) -> Labels:
    present: Any = seen.any(0)
    names = [name.strip() for name in classes.split(",")] if classes is not None else None
    listed = path / "classes.txt"
    if names is None and listed.is_file():
        names = [line.strip() for line in listed.read_text(encoding="utf-8", errors="replace").splitlines()]
        names = [name for name in names if name]
    if names is not None and (len(set(names)) < len(names) or not all(names)):
        raise UserError(
            f"the class names {', '.join(map(repr, names))} are not all different; give each class its own."
        )
    ignored = _ignored(ignore)
    if names is None:
        annotated = train[0][1].parent.name.endswith("annot")
        own_files = all(_CAMVID_FILE.fullmatch(image.stem) for image, _ in train)
        exact = set(np.flatnonzero(present[:VOID]).tolist()) == set(range(12))
        if annotated and ignore is None and (own_files or exact):
            _LOG.info(
                "%s is taken for CamVid: its 11 classes, label 11 does not count; for other classes write "
                "segmentation:PATH?classes=NAME,NAME.",
                path,
            )
            return Labels(CAMVID, frozenset({11}))
    if levels := _levels(seen, bilevel, ignored, names):
        tell_levels(str(path), levels)
        return Labels(tuple(names or map(str, range(len(levels)))), ignored, levels)
    last = max((v for v in np.flatnonzero(present[:VOID]).tolist() if v not in ignored), default=-1)
    return Labels(tuple(names or (str(v) for v in range(last + 1) if v not in ignored)), ignored)


def _levels(seen: np.ndarray, bilevel: np.ndarray, ignored: frozenset[int], names: list[str] | None) -> tuple[int, ...]:
    """The grey levels of training masks, if 255 is among them; white is 255 then in masks that are black and white."""
    drawn = set(np.flatnonzero(seen[~bilevel].any(0)).tolist()) - ignored
    if VOID not in drawn:
        return ()
    if bilevel.any():
        drawn |= {0, VOID}
    return grey_levels(drawn, None if names is None else len(names))


def _ignored(text: str | None) -> frozenset[int]:
    values = [part.strip() for part in text.split(",")] if text else []
    for value in values:
        if not value.isdecimal() or int(value) > VOID:
            raise UserError(f"ignore={text} holds {value!r}; values of masks are expected: write it like ignore=11.")
    return frozenset(map(int, values))


def _check(path: Path, splits: dict[str, Pairs], seen: dict[str, np.ndarray], labels: Labels) -> None:
    """Every value must be a class or ignored, and training must show what is to be learned."""
    values, count = labels.values, len(labels.classes)
    if count < 2 or len(values) < count:
        raise UserError(
            f"data '{path}' has {count} class{'es' * (count != 1)} ({', '.join(labels.classes[:3])}); 2 to 255 are "
            "expected, beside what is ignored: check the masks and the class names."
        )
    known = np.isin(np.arange(256), [*values, *labels.ignored, VOID])
    for split, pairs in splits.items():
        wrong = seen[split] & ~known
        if wrong.any():
            at, value = np.argwhere(wrong)[0].tolist()
            raise UserError(
                f"mask {pairs[at][1]} holds the label {value}; {_listed(labels)} is expected, as there are "
                f"{count} classes: correct it, name all classes with ?classes=…, or add ?ignore={value}."
            )
    shown: Any = seen["train"].any(0)
    if not labels.levels and VOID not in labels.ignored:
        files = [mask for pairs in splits.values() for _, mask in pairs]
        names = [name for name, value in zip(labels.classes, values, strict=True) if shown[value]]
        every = np.concatenate(list(seen.values()))
        remedy = "add ?ignore=255 if this is meant"
        refuse_white_object(str(path), names, len(seen["train"]), every, lambda at: str(files[at]), remedy)
    absent = [n for n, value in enumerate(values) if not shown[value]]
    if absent and labels.classes == tuple(map(str, values)):  # nobody named them
        at = int(seen["train"][:, values[-1]].argmax())
        raise UserError(
            f"mask {splits['train'][at][1]} holds the label {values[-1]}, but no training mask has "
            f"{values[absent[0]]}; labels without gaps are expected (255 never counts): number the masks so, name "
            f"all classes with ?classes=…, or add ?ignore={values[-1]}."
        )
    for n in absent:
        _LOG.warning("no training mask of %s shows class %d ('%s').", path, n, labels.classes[n])


def _listed(labels: Labels) -> str:
    values = labels.values
    return ", ".join(map(str, values)) if labels.levels else f"{values[0]} to {values[-1]}"
