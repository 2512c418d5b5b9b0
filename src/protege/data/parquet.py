"""Parquet files of encoded images: a column of binary, or of struct(bytes, path) as the Hugging Face hub publishes
them, and a column of labels, which are integers from 0 or class names."""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import accumulate, chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from ..errors import UserError
from .classes import Naming, RawLabels, common_classes, read_naming
from .contents import READ, Stamps, content_of
from .dataset import Data, Request
from .decode import Named
from .encoded import open_images
from .folders import visible
from .kept_encoded import KeptImages, keep_images
from .progress import progress
from .sources import CHUNK, Chosen, Source

_SAMPLE, _CHUNK_BYTES = 256, 16 << 20


def parquet_files(request: Request) -> Data:
    """train*.parquet, val*.parquet and test*.parquet in the path, or one file; the column `label` has the labels.

    Class names as labels are numbered in the `order` of their numbers ("number", the default) or text as class folders
    are.
    """
    path, options = request.path, request.options
    files = _files(path)
    schemas: dict[Path, pa.Schema] = {}
    for file in chain.from_iterable(files.values()):
        with _readable(file):
            schemas[file] = pq.read_schema(file)
    first = schemas[files["train"][0]]
    image, column = _image_column(first, path), label_column(first, path, options.get("label"))
    for file, schema in schemas.items():
        for kind, name in (("image", image), ("label", column)):
            if name not in schema.names:
                raise UserError(f"{kind} column '{name}' is not in {file}; every file must have it.")

    def labels(file: Path, name: str = column) -> RawLabels:
        with _readable(file):
            values = pq.read_table(file, columns=[name]).column(0)
        return raw_labels(values, name, str(file), _class_names(schemas[file], name))

    sources = {split: Rows(shards, image) for split, shards in files.items()}
    common = common_classes({split: list(map(labels, shards)) for split, shards in files.items()}, options.get("order"))
    superclasses = None
    kinds = [dict(zip(schemas[file].names, schemas[file].types, strict=True)) for file in files["train"]]
    if column != "coarse_label" and all(pa.types.is_integer(kind.get("coarse_label", pa.null())) for kind in kinds):
        coarse = np.concatenate([np.asarray(labels(file, "coarse_label").values) for file in files["train"]])
        superclasses = _superclasses(
            torch.from_numpy(coarse.astype(np.int64)), common.labels["train"], len(common.classes)
        )
    images = {split: (source, common.labels[split]) for split, source in sources.items()}
    return open_images(request, images, common.classes, common.numbering, superclasses)


def raw_labels(values: pa.ChunkedArray, column: str, table: str, naming: Naming | None) -> RawLabels:
    """The labels in a column of a table, which must have no nulls."""
    if values.null_count:
        row = int(np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False))[0])
        raise UserError(f"label column '{column}' is null in row {row} of {table}; every row needs a label.")
    labels = values.cast(pa.large_string()).to_pylist() if _holds_text(values.type) else values.to_numpy()
    return RawLabels(labels, lambda row: f"in row {row} of {table}", naming)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"data file {path} is not Parquet, or is damaged; give a readable Parquet file.") from error


def _files(path: Path) -> dict[str, list[Path]]:
    if not path.exists():
        raise UserError(f"data path {path} does not exist; give a Parquet file or a folder with train*.parquet.")
    if path.is_file():
        return {"train": [path]}
    for folder in (path, path / "data"):  # the hub keeps shards in data/
        shards = [p for p in visible(folder) if p.suffix == ".parquet"] if folder.is_dir() else []
        splits = {split: [p for p in shards if p.name.startswith(split)] for split in ("train", "val", "test")}
        if splits["train"]:
            return {split: paths for split, paths in splits.items() if paths}
    raise UserError(f"data path {path} holds no train*.parquet; give a Parquet file or a folder with such files.")


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(f.name == "bytes" and _holds_bytes(f.type) for f in kind)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _image_column(schema: pa.Schema, path: Path) -> str:
    images = [f.name for f in schema if _holds_bytes(f.type)]
    for name in ("image", "img"):
        if name in images:
            return name
    if len(images) != 1:
        raise UserError(
            f"{path} has {'several columns' if images else 'no column'} of encoded images among "
            f"{', '.join(schema.names)}; name it 'image', of type binary or struct(bytes, path)."
        )
    return images[0]


def _holds_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind  # pandas' categories
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def label_column(schema: pa.Schema, path: Path | str, wanted: str | None) -> str:
    """The column of labels: the one that is `wanted`, or whose name or type tells."""
    whole = [field.name for field in schema if pa.types.is_integer(field.type)]
    listed = ", ".join(schema.names)
    if wanted is not None and wanted not in schema.names:
        raise UserError(f"label column '{wanted}' is not in {path}; its columns are {listed}.")
    usual = [name for name in ("label", "fine_label") if name in schema.names]
    names = [wanted] if wanted is not None else usual or (whole if len(whole) == 1 else [])
    if not names:
        raise UserError(
            f"{path} has no column 'label' among {listed}; name the label column with ?label=COLUMN after the path."
        )
    kind = schema.field(names[0]).type
    if not (pa.types.is_integer(kind) or _holds_text(kind)):
        raise UserError(
            f"label column '{names[0]}' of {path} holds {kind} values; integers from 0, or class names as text, are "
            "expected."
        )
    return names[0]


def _class_names(schema: pa.Schema, column: str) -> Naming | None:
    """From the metadata: `<x>_names` for column `<x>_label`, or the ClassLabel of the Hugging Face hub."""
    metadata = schema.metadata or {}
    with suppress(ValueError, KeyError, TypeError):
        for key in (f"{column.removesuffix('label')}names", f"{column}_names"):
            if names := json.loads(metadata.get(key.encode(), b"null")):
                return read_naming(names, f"{key} of the label column '{column}'")
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
        return read_naming(features[column]["names"], f"names of the label column '{column}'")
    return None


def _superclasses(coarse: Tensor, labels: Tensor, classes: int) -> tuple[int, ...] | None:
    """The coarse label of each class, as CIFAR-100 has; None where they do not fit."""
    if int(labels.max()) >= classes:
        return None
    group = torch.full((classes,), -1)
    group[labels] = coarse
    return tuple(group.tolist()) if torch.equal(group[labels], coarse) and bool((group >= 0).all()) else None


class Rows(Source):
    """Images in a column of Parquet files, which are read in order."""

    def __init__(self, paths: Sequence[Path], column: str) -> None:
        self.paths, self.column, self._stamps = list(paths), column, Stamps(len(paths))
        self._check_all()
        self.ends = list(accumulate(pq.read_metadata(path).num_rows for path in paths))

    def __len__(self) -> int:
        return self.ends[-1]

    def _check(self, shard: int) -> None:
        self._stamps.check(shard, self.paths[shard], "data file")

    def _check_all(self) -> None:
        for shard in range(len(self.paths)):
            self._check(shard)

    def name(self, position: int) -> str:
        """What an image is called in a sentence."""
        shard = bisect_right(self.ends, position)
        return f"image in row {position - (self.ends[shard - 1] if shard else 0)} of {self.paths[shard]}"

    def read(self, position: int) -> Named:
        return next(self.chunks([position]))[0]

    def part(self, index: Tensor) -> Source:
        return Chosen(self, index.numpy())

    def chunks(self, positions: Sequence[int] | None = None) -> Iterator[list[Named]]:
        wanted = np.arange(len(self)) if positions is None else np.asarray(positions)
        for shard, (end, start) in enumerate(zip(self.ends, [0, *self.ends], strict=False)):
            for chunk in self._read(self.paths[shard], wanted[(wanted >= start) & (wanted < end)] - start):
                self._check(shard)
                yield chunk

    def _read(self, path: Path, rows: np.ndarray) -> Iterator[list[Named]]:
        """The images in sorted rows of a file; groups of rows that hold none of them are passed over."""
        if not len(rows):
            return
        with _readable(path), pq.ParquetFile(path, buffer_size=1 << 20) as file:
            every = [file.metadata.row_group(group) for group in range(file.num_row_groups)]
            sizes = np.array([group.num_rows for group in every])
            of = np.searchsorted(sizes.cumsum(), rows, side="right")
            groups = np.unique(of)
            skipped = (sizes.cumsum() - sizes)[groups] - (sizes[groups].cumsum() - sizes[groups])
            at = rows - skipped[np.searchsorted(groups, of)]  # among the rows of these groups
            bytes_a_row = sum(group.total_byte_size for group in every) // max(1, int(sizes.sum()))
            most, start = max(1, min(CHUNK, _CHUNK_BYTES // max(1, bytes_a_row))), 0
            for batch in file.iter_batches(most, row_groups=groups.tolist(), columns=[self.column]):
                inside = (at >= start) & (at < start + len(batch))
                column = batch.column(0).field("bytes") if batch.column(0).type.num_fields else batch.column(0)
                images = column.take(pa.array(at[inside] - start)).to_pylist()
                names = [f"image in row {row} of {path}" for row in rows[inside].tolist()]
                if None in images:
                    raise UserError(f"{names[images.index(None)]} is null; every row needs the encoded image's bytes.")
                if images:
                    yield list(zip(images, names, strict=True))
                start += len(batch)
                if start > at[-1]:
                    return

    def sample(self) -> Iterator[Named]:
        step = -(-len(self.paths) // _SAMPLE)
        starts, ends = [0, *self.ends[:-1]][::step], self.ends[::step]
        rows = -(-_SAMPLE // len(starts))
        first = (range(start, min(end, start + rows)) for start, end in zip(starts, ends, strict=True))
        return chain.from_iterable(self.chunks([*chain.from_iterable(first)]))

    def fingerprint(self, everything: bool = False) -> str:
        self._check_all()
        return hashlib.sha256(f"{content_of(self.paths, everything)} {self.column}".encode()).hexdigest()

    def random_access(self, scratch: Path) -> Source:
        digest = self.fingerprint()
        path = scratch / f"{digest[:32]}.images.arrow"
        with progress("extracting images", len(self)) as advance:

            def images() -> Iterator[list[bytes]]:
                for chunk in self.chunks():
                    yield [data for data, _ in chunk]
                    advance(len(chunk))

            keep_images(path, images())
        return KeptRows(KeptImages(path, len(self)), self, digest)


class KeptRows(Source):
    """The images of Parquet files out of the Arrow file that was made of them, all or those of some `rows`."""

    def __init__(self, kept: KeptImages, origin: Rows, digest: str, rows: np.ndarray | None = None) -> None:
        self.kept, self.origin, self.digest = kept, origin, digest
        self.rows = np.arange(len(origin)) if rows is None else rows

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, position: int) -> Named:
        row = int(self.rows[position])
        return self.kept.read(row), self.origin.name(row)

    def part(self, index: Tensor) -> KeptRows:
        return KeptRows(self.kept, self.origin, self.digest, self.rows[index.numpy()])

    def fingerprint(self, everything: bool = False) -> str:
        sizes = self.kept.sizes()[self.rows].tolist()
        if not everything and sum(sizes) > READ:
            return hashlib.sha256(self.digest.encode() + self.rows.tobytes()).hexdigest()
        digest = hashlib.sha256(repr(sizes).encode())  # of the images alone, however the Parquet was written
        for position in range(len(self)):
            digest.update(hashlib.sha256(self.read(position)[0]).digest())
        return digest.hexdigest()
