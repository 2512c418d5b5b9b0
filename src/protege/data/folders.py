"""Where a set's splits and labels lie on disk: folders of images, and Parquet files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from protege.data.classes import (
    BARE,
    GIVEN,
    SETTLED,
    SORTED,
    among,
    ordered,
    read_naming,
    renumbered,
    seems_id,
    union,
)
from protege.data.files import images_below, split_files, tell_left_out, visible
from protege.data.sources import Files, Rows, Source, readable
from protege.errors import UserError
from protege.labels import MOST_CLASSES, UNLABELLED
from protege.naming import numbers

SPLITS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}


@dataclass(frozen=True)
class Listing:
    """Encoded images with labels (int64 [N]) for each split found, the class names and how they are numbered, and each
    class's superclass."""

    splits: dict[str, tuple[Source, Tensor]]
    classes: tuple[str, ...]
    numbering: str
    superclasses: tuple[int, ...] | None = None


def _class_folder(folder: Path, others: list[Path]) -> list[Path]:
    """The images of a class; what else lies there goes into `others`."""
    found, left = images_below(folder)
    others += left
    if not found:
        raise UserError(f"class folder {folder} holds no images that Pillow reads; add some or remove the folder.")
    return found


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
    found: dict[str, tuple[tuple[str, ...], list[list[Path]]]] = {}
    others: list[Path] = []
    astray: list[Path] = []
    for split in sorted(roots, key=list(SPLITS).index):
        root = roots[split]
        folders = [p for p in visible(root) if p.is_dir()]
        stray, left = split_files(visible(root))
        others += left
        if split == "train" and not folders and stray:
            found[split] = (), [stray]
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
        found[split] = tuple(p.name for p in folders), [_class_folder(folder, others) for folder in folders]
    tell_left_out(others, "no images that Pillow reads")
    tell_left_out(astray, "images that lie in no class folder")
    classes = ordered(union(names for names, _ in found.values()), order or "number")
    splits: dict[str, tuple[Source, Tensor]] = {}
    for split, (names, files) in found.items():
        at = among(names, classes, f"class folders of {path}") if names else torch.tensor([UNLABELLED])
        labels = torch.repeat_interleave(at, torch.tensor([len(each) for each in files]))
        splits[split] = Files([path for each in files for path in each]), labels
    return Listing(splits, classes, SORTED if order is None else SETTLED)


def _parquet_files(path: Path) -> dict[str, list[Path]]:
    if not path.exists():
        raise UserError(f"data path {path} does not exist; give a Parquet file or a folder with train*.parquet.")
    if path.is_file():
        return {"train": [path]}
    for folder in (path, path / "data"):  # the hub keeps shards in data/
        files = [p for p in visible(folder) if p.suffix == ".parquet"] if folder.is_dir() else []
        found = {
            split: [p for p in files if p.name.startswith(names)]
            for split, names in (("train", "train"), ("val", "val"), ("test", "test"))
        }
        if found["train"]:
            return {split: paths for split, paths in found.items() if paths}
    raise UserError(f"data path {path} holds no train*.parquet; give a Parquet file or a folder with such files.")


def _schema(path: Path) -> pa.Schema:
    with readable(path):
        return pq.read_schema(path)


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(f.name == "bytes" and _holds_bytes(f.type) for f in kind)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _image_column(schema: pa.Schema, path: Path) -> str:
    found = [f.name for f in schema if _holds_bytes(f.type)]
    for name in ("image", "img"):
        if name in found:
            return name
    if len(found) != 1:
        raise UserError(
            f"{path} has {'several columns' if found else 'no column'} of encoded images among "
            f"{', '.join(schema.names)}; name it 'image', of type binary or struct(bytes, path)."
        )
    return found[0]


def _holds_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind  # pandas' categories
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _label_column(schema: pa.Schema, path: Path, wanted: str | None) -> str:
    whole = [f.name for f in schema if pa.types.is_integer(f.type)]
    usable = [*whole, *(f.name for f in schema if _holds_text(f.type))]
    listed = ", ".join(schema.names)
    if wanted is not None:
        if wanted not in schema.names:
            raise UserError(f"label column '{wanted}' is not in {path}; its columns are {listed}.")
        name = wanted
    elif named := [n for n in ("label", "fine_label") if n in schema.names]:
        name = named[0]
    elif len(whole) == 1:
        name = whole[0]
    else:
        raise UserError(
            f"{path} has no column 'label' among {listed}; name the label column with ?label=COLUMN after the path."
        )
    if name not in usable:
        raise UserError(
            f"label column '{name}' of {path} holds {schema.field(name).type} values; "
            "integers from 0, or class names as text, are expected."
        )
    return name


def _label_values(path: Path, column: str, text: bool) -> pa.ChunkedArray:
    """The label column of a file: without nulls, and of class names if `text`, else of integers."""
    schema = _schema(path)
    if column not in schema.names:
        raise UserError(f"label column '{column}' is not in {path}; every file must have it.")
    kind = schema.field(column).type
    if not (_holds_text(kind) if text else pa.types.is_integer(kind)):
        wanted = "class names" if text else "integers"
        raise UserError(f"label column '{column}' of {path} holds {kind} values; {wanted} are expected, as elsewhere.")
    with readable(path):
        values = pq.read_table(path, columns=[column]).column(0)
    values = values.cast(pa.large_string()) if text else values
    missing = np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False) if values.null_count else [])
    if len(missing):
        raise UserError(f"label column '{column}' is null in row {missing[0]} of {path}; every row needs a label.")
    return values


def _texts(paths: list[Path], column: str) -> tuple[str, ...]:
    """The different texts of a label column, sorted."""
    return tuple(sorted({t for path in paths for t in _label_values(path, column, text=True).unique().to_pylist()}))


def _labels(paths: list[Path], column: str, names: tuple[str, ...] | None) -> Tensor:
    """Labels as int64 [N]: the column's integers, or the positions of its texts in `names`."""
    parts = []
    for path in paths:
        values = _label_values(path, column, text=names is not None)
        if names is not None:
            values = pc.index_in(values, value_set=pa.array(names, pa.large_string()))
        found = values.to_numpy()
        wrong = (found < 0) | (found >= MOST_CLASSES)
        if wrong.any():
            row = int(wrong.argmax())
            where = f"label {found[row]} in row {row} of {path}"
            raise UserError(
                f"{where} is negative; integers from 0 are expected." if found[row] < 0 else seems_id(where)
            )
        parts.append(torch.from_numpy(found.astype(np.int64)))
    return torch.cat(parts)


def _class_names(schema: pa.Schema, column: str) -> tuple[str, ...]:
    """From the metadata: `<x>_names` for column `<x>_label`, or the ClassLabel of the Hugging Face hub."""
    metadata = schema.metadata or {}
    stem = column.removesuffix("label")
    try:
        for key in (f"{stem}names", f"{column}_names"):
            if names := json.loads(metadata.get(key.encode(), b"null")):
                return _read_names(names, f"{key} of the label column '{column}'")
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
        return _read_names(features[column]["names"], f"names of the label column '{column}'")
    except (ValueError, KeyError, TypeError):
        return ()


def _read_names(names: Any, what: str) -> tuple[str, ...]:
    naming = read_naming(names, what)
    return naming.names if naming is not None and naming.named else ()


def _superclasses(paths: list[Path], labels: Tensor, classes: int) -> tuple[int, ...] | None:
    """The coarse label of each class, from a column 'coarse_label' as CIFAR-100 has; None without one that fits."""
    for path in paths:
        schema = _schema(path)
        if "coarse_label" not in schema.names or not pa.types.is_integer(schema.field("coarse_label").type):
            return None
    coarse = _labels(paths, "coarse_label", None)
    found = torch.full((classes,), -1)
    if int(labels.max()) >= classes:
        return None
    found[labels] = coarse
    return tuple(found.tolist()) if torch.equal(found[labels], coarse) and bool((found >= 0).all()) else None


def _numbered(path: Path, column: str, own: tuple[str, ...], classes: tuple[str, ...]) -> Tensor:
    """The integer labels of a file whose metadata names them `own`, brought to the numbers of `classes`."""
    labels = _labels([path], column, None)
    if not own or own == classes[: len(own)]:
        return labels
    over = (labels >= len(own)).nonzero()
    if len(over):
        row = int(over[0])
        raise UserError(
            f"label {int(labels[row])} in row {row} of {path} is out of range; 0 to {len(own) - 1} is expected, as the "
            f"file names {len(own)} classes."
        )
    return renumbered(labels, among(own, classes, f"class names in {path}"))


def parquet_files(path: Path, label: str | None = None, order: str | None = None) -> Listing:
    """train*.parquet, val*.parquet and test*.parquet in `path`, or one file.

    Labels are integers from 0, or class names, which are numbered in the `order` of their numbers ("number", the
    default) or text as class folders are.
    """
    files = _parquet_files(path)
    schema = _schema(files["train"][0])
    image = _image_column(schema, path)
    column = _label_column(schema, path, label)
    for file in (file for paths in files.values() for file in paths):
        if image not in _schema(file).names:
            raise UserError(f"image column '{image}' is not in {file}; every file must have it.")
    if _holds_text(schema.field(column).type):
        texts = {split: _texts(paths, column) for split, paths in files.items()}
        classes, numbering = ordered(union(texts.values()), order or "number"), SORTED
        labels = {
            split: renumbered(_labels(files[split], column, own), among(own, classes, f"labels of {path}"))
            for split, own in texts.items()
        }
    elif order is not None:
        raise UserError(
            f"order={order} is for labels that are text, but label column '{column}' of {path} has numbers."
        )
    else:
        own = {file: _class_names(_schema(file), column) for paths in files.values() for file in paths}
        classes = union(filter(None, own.values()))
        labels = {
            split: torch.cat([_numbered(file, column, own[file], classes) for file in paths])
            for split, paths in files.items()
        }
        numbering = GIVEN if classes else BARE
    for split, found in labels.items():
        if not len(found):
            raise UserError(f"the {split} files of {path} hold no rows; give files with images.")
    classes = classes or numbers(max(int(found.max()) for found in labels.values()) + 1)
    splits: dict[str, tuple[Source, Tensor]] = {
        split: (Rows(paths, image), labels[split]) for split, paths in files.items()
    }
    superclasses = None if column == "coarse_label" else _superclasses(files["train"], labels["train"], len(classes))
    return Listing(splits, classes, SETTLED if order else numbering, superclasses)
