"""Kinds of files that a model is exported to, one file of code each: how one is made, and how it runs here.

A file takes raw pixels, uint8; normalisation is part of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ...errors import UserError
from ...models import Model
from ..latency import BATCHES


@dataclass(frozen=True)
class Images:
    """Batches of raw images [N, C, H, W] without labels: those that an int8 file's ranges are read off, and those by
    which it is chosen, others if there are any; without these a file is made as it comes, to be measured."""

    calibrating: Sequence[Tensor] = ()
    judging: Sequence[Tensor] = ()


@dataclass(frozen=True)
class Made:
    """A file that was made: what runs it (raw images → outputs), what runs the same in floating point with the same
    runtime, if that was made on the way, and ``facts`` for the record."""

    network: nn.Module
    in_float: nn.Module | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Format:
    """One kind: what it is called, the ``file``'s name, the ``packages`` that make it, which come with the ``extra``,
    and the module here that does. ``int8``: calibrated on images. ``batches``: of which sizes the file is timed.
    ``layout``: of images, the batch being one where it is not first. ``faster``: what to do where int8 is slow."""

    title: str
    file: str
    extra: str
    packages: Sequence[str]
    module: str
    int8: bool = False
    faster: str = ""
    batches: Sequence[int] = BATCHES
    layout: str = "NCHW"

    def shape(self, raw: Tensor) -> list[int | str]:
        """The file's input for raw images [N, C, H, W]."""
        _, channels, height, width = raw.shape
        return ["batch", channels, height, width] if self.layout == "NCHW" else [1, height, width, channels]

    @property
    def make(self) -> Callable[[Model, Tensor, Path, Mapping[str, str], Images], Made]:
        """Writes the file of a model, with texts in it, from raw images like its input [N, C, H, W]."""
        return import_module(f".{self.module}", __package__).make


_ONNX = "onnx", ("onnx", "onnxscript", "onnxruntime")
_LITERT = "litert_torch", "ai_edge_litert"
_COMPILED = "compile it (compiled=True times that), or export to onnx-int8, which needs no compiler"
FORMATS = {
    "onnx": Format("ONNX", "model.onnx", *_ONNX, "onnx"),
    "onnx-int8": Format("int8 ONNX", "model_int8.onnx", *_ONNX, "onnx_int8", int8=True, faster="export to onnx"),
    "int8": Format("int8", "model_int8.pt2", "quantize", ("torchao",), "pt2", int8=True, faster=_COMPILED),
    "litert": Format("LiteRT", "model.tflite", "litert", _LITERT, "litert", batches=(1,), layout="NHWC"),
}
_READERS = {".onnx": "onnx", ".pt2": "pt2", ".tflite": "litert"}


def opened(file: str | Path, threads: int | None = None) -> nn.Module:
    """An exported file in the place of the model: raw images [N, C, H, W] → outputs, with as many threads, or torch's.

    Raises `UserError` for a file of another kind, and one that cannot be read.
    """
    file = Path(file)
    if file.suffix not in _READERS:
        raise UserError(f"{str(file)!r} is no exported file; expected one that ends in {', '.join(_READERS)}.")
    if not file.is_file():
        raise UserError(f"{str(file)!r} does not exist; expected an exported file: check the path.")
    return import_module(f".{_READERS[file.suffix]}", __package__).opened(file, threads)
