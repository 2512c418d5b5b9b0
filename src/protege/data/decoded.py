"""Many small images decoded once: the array of a set is kept, so that the next run on the same files starts at once."""

from __future__ import annotations

import hashlib
import os
import shutil
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from protege.data.decode import SMALL, Form, decode_all
from protege.data.progress import progress
from protege.data.samples import InMemory
from protege.data.sources import Source, drop_unused
from protege.writing import whole

MANY = 5000  # images from which on decoding takes longer than a moment
VERSION = 3  # of what decoding makes of an image, and how it is kept
_SUM = 4  # bytes of the checksum behind an array


def decoded(name: str, source: Source, labels: Tensor, form: Form, scratch: Path) -> tuple[InMemory, str | None]:
    """All images of `source` in memory: many small ones from the array that an earlier run has left in `scratch`,
    mapped, so that processes share it; and the name of one with transparent pixels, if any was decoded. Raises as
    `decode_all`."""
    shape = (len(source), form.height, form.width, form.channels)
    lasting = len(source) >= MANY and max(form.height, form.width) <= SMALL
    digest = hashlib.sha256(repr((VERSION, source.fingerprint(), form)).encode()).hexdigest() if lasting else ""
    path = scratch / f"{digest[:32]}.pixels.npy"
    if lasting and (known := _read(path, shape)) is not None:
        return InMemory(torch.from_numpy(known), labels), None
    transparent: str | None = None
    out = np.empty(shape, np.uint8)
    with progress(f"decoding {name} images", len(source)) as advance:
        for done, first in decode_all(source.chunks(), form, out):
            transparent = transparent or first
            advance(done)
    if lasting:
        _keep(path, out)
    return InMemory(torch.from_numpy(out), labels), transparent


def _read(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """The array of an earlier run; None where none is, or none that is whole and sound."""
    with suppress(OSError, ValueError, EOFError):
        found = np.load(path, mmap_mode="c")
        with path.open("rb") as file:
            file.seek(-_SUM, os.SEEK_END)
            known = file.read()
        if found.shape == shape and found.dtype == np.uint8 and known == _sum_of(found):
            with suppress(OSError):  # another user's
                os.utime(path)
            return found
    return None


def _sum_of(pixels: np.ndarray) -> bytes:
    return zlib.crc32(np.ascontiguousarray(pixels).data).to_bytes(_SUM, "little")


def _keep(path: Path, pixels: np.ndarray) -> None:
    """Leave the array for later runs, unless the disk has little room; arrays long unused go."""
    with suppress(OSError):  # without it the next run decodes again
        path.parent.mkdir(parents=True, exist_ok=True)
        drop_unused(path.parent, "*.pixels.npy")
        if pixels.nbytes < shutil.disk_usage(path.parent).free // 2:
            with whole(path) as file:
                np.save(file, pixels)
                file.write(_sum_of(pixels))
