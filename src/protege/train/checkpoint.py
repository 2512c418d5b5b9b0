"""Checkpoints: atomic, checked, the last two kept.

A checkpoint is ``NNNNNNNN.pt`` (tensors and plain containers, read with ``weights_only``) beside
``NNNNNNNN.json`` with its SHA-256. The JSON is written last: a checkpoint without it never happened.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch

from ..errors import UserError

log = logging.getLogger("protege")
KEEP = 2


class _Out:
    """A file that hashes what is written; it keeps an error, which torch's writer would tell as one of its own."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.digest = file, hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            self.file.write(data)
        except OSError as error:
            self.error = error
            raise
        self.digest.update(data)
        return len(data)

    def flush(self) -> None:
        self.file.flush()


@contextmanager
def _whole(path: Path) -> Iterator[_Out]:
    """A file that is there whole, on the disk, or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    out: _Out | None = None
    try:
        with open(temporary, "wb") as file:
            out = _Out(file)
            yield out
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except RuntimeError as error:
        raise (out and out.error) or error from None
    finally:
        temporary.unlink(missing_ok=True)


def save_checkpoint(folder: Path, number: int, state: dict[str, Any]) -> None:
    """Write ``state`` as checkpoint ``number``, then drop all but the last two."""
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob("*.tmp"):  # by a kill in the middle
        left.unlink(missing_ok=True)
    path = folder / f"{number:08d}.pt"
    with _whole(path) as out:
        torch.save(state, out)  # type: ignore[arg-type]
    with _whole(path.with_suffix(".json")) as record:
        record.write(json.dumps({"sha256": out.digest.hexdigest()}).encode())
    for old in sorted(folder.glob("*.json"))[:-KEEP]:
        old.unlink()
        old.with_suffix(".pt").unlink(missing_ok=True)


def load_checkpoint(folder: Path) -> tuple[int, dict[str, Any]] | None:
    """The newest sound checkpoint as (number, state on the CPU); None where there is none at all.

    A damaged one is named in the log and the one before it is used. Raises `UserError` when all are damaged.
    """
    damaged: list[str] = []
    for record in sorted(folder.glob("*.json"), reverse=True):
        path = record.with_suffix(".pt")
        try:
            if hashlib.sha256(path.read_bytes()).hexdigest() != json.loads(record.read_text())["sha256"]:
                raise ValueError("its checksum is wrong")
            state = torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, pickle.UnpicklingError) as error:
            damaged.append(str(path))
            log.warning("checkpoint %s is damaged (%s); trying the one before it", path, error)
            continue
        return int(path.stem), state
    if damaged:
        raise UserError(
            f"every checkpoint is damaged ({', '.join(damaged)}); expected at least one sound one: start again "
            "with overwrite=True."
        )
    return None
