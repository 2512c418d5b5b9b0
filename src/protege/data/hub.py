"""Sets of the Hugging Face hub, and folders that its `datasets` library has saved: `hub:NAME[@revision]`.

The library (from version 4, which runs no code of a set's) fetches and caches them as Arrow files; the encoded images
are read out of these where they lie.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from torch import Tensor

from ..errors import UserError, told
from .classes import common_classes, read_naming
from .contents import READ, Stamps
from .dataset import Data, Request
from .datasets import dataset_data
from .decode import Named
from .encoded import open_images
from .extras import imported
from .given import SPLITS, Arrays
from .parquet import label_column, raw_labels
from .pixels import readable
from .repeatable import spread
from .sources import CHUNK, Source

_LOG = logging.getLogger("protege")


class HubRows(Source):
    """Encoded images in a column of a split."""

    def __init__(self, rows: Any, column: str, name: str) -> None:
        self.rows, self.column, self.name, self._stamps = rows, column, name, Stamps(len(rows))

    def __len__(self) -> int:
        return len(self.rows)

    def _named(self, image: dict[str, Any] | None, row: int) -> Named:
        name = f"image in row {row} of {self.name}"
        if image is None or (image["bytes"] is None and not image["path"]):
            raise UserError(f"{name} is null; every row needs an image.")
        if image["bytes"]:
            return image["bytes"], name
        with readable(name):
            data = Path(image["path"]).read_bytes()
        self._stamps.check(row, image["path"], "image")
        return data, name

    def read(self, position: int) -> Named:
        return self._named(self.rows[position][self.column], position)

    def chunks(self, positions: Sequence[int] | None = None) -> Iterator[list[Named]]:
        positions = range(len(self)) if positions is None else positions
        for start in range(0, len(positions), CHUNK):
            rows = positions[start : start + CHUNK]
            yield [self._named(image, row) for image, row in zip(self.rows[rows][self.column], rows, strict=True)]

    def part(self, index: Tensor) -> HubRows:
        return HubRows(self.rows.select(index.tolist()), self.column, self.name)

    def fingerprint(self, everything: bool = False) -> str:
        size = sum(len(self.read(at)[0]) for at in spread(len(self), 64)) // min(len(self), 64)
        digest = hashlib.sha256(str(len(self)).encode())
        for at in spread(len(self), len(self) if everything else max(64, READ // max(1, size))):
            digest.update(hashlib.sha256(self.read(at)[0]).digest())
        return digest.hexdigest()


def hub_data(request: Request) -> Data:
    """Encoded images with labels, or images with masks, for each split of a set.

    The set's name may end in ``@revision`` (a branch, tag or commit), or is a local folder. The options `label`,
    `image` and `mask` are columns, `config` is one of the set's configurations. Labels may be those of `parquet_files`.
    """
    name, options = request.rest, request.options
    label, image, mask = (options.get(column) for column in ("label", "image", "mask"))
    splits = _splits(name, options.get("config"))
    where = f"hub set '{name}'"
    train = splits["train"]
    kinds = {column: type(feature).__name__ for column, feature in train.features.items()}
    images = [column for column, kind in kinds.items() if kind == "Image"]
    for option, column, known in (("image", image, images), ("mask", mask, images), ("label", label, list(kinds))):
        if column is not None and column not in known:
            raise UserError(
                f"{where} has no {option} column '{column}'; expected one of {', '.join(known) or 'its own'}: change "
                f"?{option}=…."
            )
    image = image or next((column for column in ("image", "img", *images) if column in images and column != mask), None)
    if image is None:
        raise UserError(f"{where} has no column of images among {', '.join(kinds)}; give a set that has one.")
    others = [column for column in images if column != image]
    numbered = [column for column, kind in kinds.items() if kind == "ClassLabel"]
    if label is None and mask is None and not numbered and len(others) == 1:
        mask = others[0]
    if mask is not None:
        pairs = {split: [rows.select_columns([c])[c] for c in (image, mask)] for split, rows in splits.items()}
        return dataset_data({split: Arrays(*pair) for split, pair in pairs.items()}, request)
    if label is None and len(numbered) == 1:
        label = numbered[0]
    column = label_column(train.features.arrow_schema, where, label)
    columns = {}
    for split, rows in splits.items():
        values = rows.select_columns([column]).with_format("arrow")[:].column(0)
        if split != "train" and pa.types.is_integer(values.type) and values.unique().to_pylist() == [-1]:
            _LOG.info("the %s split of %s has no labels and is left out.", split, where)
            continue
        names = getattr(rows.features[column], "names", None)
        table = f"the {split} split of {where}"
        columns[split] = [raw_labels(values, column, table, read_naming(names, table) if names else None)]
    common = common_classes(columns, options.get("order"))
    encoded = imported("datasets", "datasets").Image(decode=False)
    sources: dict[str, tuple[Source, Tensor]] = {}
    for split in columns:
        rows = splits[split].select_columns([image]).cast_column(image, encoded)
        sources[split] = HubRows(rows, image, f"the {split} split of {where}"), common.labels[split]
    return open_images(request, sources, common.classes, common.numbering)


def _splits(name: str, config: str | None) -> dict[str, Any]:
    library = imported("datasets", "datasets")
    folder = Path(name).expanduser()
    path, at, revision = (str(folder), "", "") if folder.is_dir() else name.rpartition("@")
    path = path if at or folder.is_dir() else name
    saved = folder.is_dir() and any((folder / file).is_file() for file in ("dataset_dict.json", "dataset_info.json"))
    try:
        if saved:
            loaded = library.load_from_disk(path)
        else:
            loaded = library.load_dataset(path, config, revision=revision if at else None)
    except Exception as error:
        raise UserError(
            f"hub set '{name}' cannot be loaded ({told(error)}); check its name and the connection."
        ) from error
    loaded = loaded if isinstance(loaded, dict) else {"train": loaded}
    splits = {
        split: next((loaded[known] for known in names if known in loaded), None) for split, names in SPLITS.items()
    }
    if splits["train"] is None:
        raise UserError(f"hub set '{name}' has no split 'train' among {', '.join(loaded)}; give a set that has one.")
    return {split: rows for split, rows in splits.items() if rows is not None}
