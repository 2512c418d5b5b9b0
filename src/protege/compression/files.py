"""The file of a model: how large it is, how long it takes beside the teacher's, and the one that is left."""

from __future__ import annotations

import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..data import CLEAN, Augment, Data, batches
from ..errors import UserError
from ..models import Model, framed_for, seen_by
from ..models.storage import bytes_of
from ..run.exporting import export, interface_of, require, texts_of
from ..run.formats import FORMATS, Images, opened
from ..run.formats.program import quietly
from ..run.latency import SECONDS, Latency, latencies
from ..run.shrinking import example_of

FOLDER = "folder"
IN_INT8 = {"onnx": "onnx-int8"}  # the format that takes its place where the file must be smaller
LONGEST = 120  # seconds for the turns of networks of one batch
PROBED = 32  # images that a file of int8 is calibrated on while it is only measured


def format_of(to: str | None, int8: bool) -> str:
    """The format of the file: the one that is asked for, else ONNX where its extra is installed."""
    if to is None:
        installed = all(find_spec(package) for package in FORMATS["onnx"].packages)
        to = "onnx" if installed else "int8" if int8 else FOLDER
    if to not in (*FORMATS, FOLDER):
        raise UserError(f"export to {to!r} is unknown; expected {', '.join(FORMATS)} or {FOLDER}: change to=….")
    if int8 and to == FOLDER:
        raise UserError("int8=True does not go with to='folder'; expected a file that holds int8: change to=….")
    if to == FOLDER:
        return to
    to = IN_INT8.get(to, to) if int8 else to
    kind = FORMATS[to]
    if int8 and not kind.int8:
        known = ", ".join(name for name, each in FORMATS.items() if each.int8)
        raise UserError(f"int8=True does not go with to={to!r}; expected a format that holds int8 ({known}).")
    require(kind.packages, kind.extra)
    return to


class Files:
    """Makes files of models, to measure them, and the one that is left. The teacher's, which times are compared with,
    is in floating point."""

    def __init__(self, teacher: Model, data: Data, to: str, batch: int, threads: int | None) -> None:
        self.data, self.to, self.batch, self.threads = data, to, batch, threads
        self.raw = example_of(teacher, data)
        self._teacher = teacher
        self._reference: nn.Module | None = None
        self._seconds = 0.0

    def in_int8(self) -> bool:
        """Make files of int8 from now on, if this format has such and they were of floating point."""
        self.to, before = IN_INT8.get(self.to, self.to), self.to
        return self.to != before

    def __enter__(self) -> Files:
        self._folder = tempfile.TemporaryDirectory(prefix="protege-compress-")
        return self

    def __exit__(self, *_: object) -> None:
        self._reference = None
        self._folder.cleanup()

    def figures(self, model: Model, seconds: float = SECONDS) -> dict[str, float]:
        """``size`` in bytes, and where ``seconds`` are given for it ``latency`` in seconds for one batch: the
        teacher's, times the share of it that the model takes in turns with it."""
        if self._reference is None:
            plain = next((name for name, other in IN_INT8.items() if other == self.to), self.to)
            self._reference, self._size = self._made(self._teacher, plain, "teacher")
        if seconds and not self._seconds:
            self._seconds = self._timed([self._reference], SECONDS)[0].seconds
        if model is self._teacher:
            return {"size": float(self._size)} | ({"latency": self._seconds} if seconds else {})
        return self._measured(*self._made(model, self.to, "candidate"), seconds)

    def _measured(self, network: nn.Module, size: int, seconds: float) -> dict[str, float]:
        figures = {"size": float(size)}
        assert self._reference is not None
        if seconds:
            own = self._timed([self._reference, network], seconds)[1]
            figures |= {"latency": self._seconds * own.ratio, "latency_spread": self._seconds * own.ratio_spread}
        return figures

    def _timed(self, networks: list[nn.Module], seconds: float) -> list[Latency]:
        while True:  # of a batch that takes longer fewer would be timed at once
            times = latencies(networks, self.raw, batch=self.batch, threads=self.threads, seconds=seconds)
            if times[0].batch == self.batch:
                return times
            seconds *= 2
            if seconds > LONGEST:
                raise UserError(
                    f"batch = {self.batch} takes too long to time; expected at most {times[0].batch}: change batch=…."
                )

    def _made(self, model: Model, to: str, name: str) -> tuple[nn.Module, int]:
        if to == FOLDER:
            return model, bytes_of(model.network)
        kind, folder = FORMATS[to], Path(self._folder.name) / name
        folder.mkdir(exist_ok=True)
        for old in folder.iterdir():
            old.unlink()
        with quietly():
            images = self._images(model) if kind.int8 else Images()
            data = framed_for(model, self.data)
            raw = example_of(model, data)
            texts = texts_of(model, interface_of(model, kind, raw, data))
            kind.make(model.cpu().eval(), raw, folder / kind.file, texts, images)
        made = _OnItsOwn(opened(folder / kind.file, self.threads), raw)
        return made, sum(file.stat().st_size for file in folder.iterdir())

    def _images(self, model: Model) -> Images:
        some, train = torch.arange(min(PROBED, len(self.data.train))), seen_by(model, self.data.train)
        return Images([batch.inputs.cpu() for batch in batches(train, [some], CLEAN, Augment())])

    def export(
        self, folder: Path, out: Path, student: Model
    ) -> tuple[Path, dict[str, Any], dict[str, float], nn.Module]:
        """Leave the file of the student, whose ``folder`` is there, in ``out``: the path, what `export` says, its
        `figures`, and what runs it."""
        self.figures(self._teacher)
        if self.to == FOLDER:
            stays = {"to": FOLDER, "file": folder.name}
            return folder, stays, self._measured(student, bytes_of(student.network), SECONDS), student
        record = export(student, to=self.to, out=out, overwrite=True, data=self.data)
        file = out / record["file"]
        raw = example_of(student, framed_for(student, self.data))
        network = opened(file, self.threads)
        costs = self._measured(_OnItsOwn(network, raw), record["bytes"]["exported"], SECONDS)
        return file, record, costs, network


class _OnItsOwn(nn.Module):
    """A file that gets images of its own size, as many as it is called on."""

    def __init__(self, file: nn.Module, raw: Tensor) -> None:
        super().__init__()
        self.file, self.raw = file, raw

    def forward(self, others: Tensor) -> Any:
        return self.file(self.raw[torch.arange(len(others)) % len(self.raw)])
