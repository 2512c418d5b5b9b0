"""Checkpoints: atomic, checked, the last two kept.

A checkpoint is ``NNNNNNNN.pt`` (tensors and plain containers, read with ``weights_only``) beside
``NNNNNNNN.json`` with its SHA-256. The JSON is written last: a checkpoint without it never happened.
"""

from __future__ import annotations

import hashlib
import json
import logging
import pickle
import re
from pathlib import Path
from typing import Any, BinaryIO

import torch

from ..errors import UserError
from ..files import CHECKPOINT, clear_drafts, digest_of, whole, write_json

log = logging.getLogger("protege")
KEEP = 2


class _Hashed:
    """A file that hashes what is written; it keeps an error, which torch's writer would tell as one of its own."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.digest = file, hashlib.sha256()
        self.error: BaseException | None = None

    def write(self, data: bytes) -> int:
        try:
            self.file.write(data)
        except BaseException as error:  # Ctrl-C may come here, too
            self.error = self.error or error
            raise
        self.digest.update(data)
        return len(data)

    def flush(self) -> None:
        self.file.flush()


def save_checkpoint(folder: Path, number: int, state: dict[str, Any]) -> None:
    """Write ``state`` as checkpoint ``number``, then drop all but the last two."""
    folder.mkdir(parents=True, exist_ok=True)
    clear_drafts(folder)
    path = folder / f"{number:08d}.pt"
    with whole(path) as file:
        out = _Hashed(file)
        try:
            torch.save(state, out)  # type: ignore[arg-type]
        except RuntimeError as error:
            raise out.error or _first(error) from None
    write_json(path.with_suffix(".json"), {"sha256": out.digest.hexdigest()})
    drop_old(folder)


def drop_old(folder: Path) -> None:
    """Delete all checkpoints but the last two, and states that a kill left without their record."""
    oldest = _records(folder)[-KEEP:][0].stem
    for path in sorted(folder.iterdir()):  # a record before its state
        if re.fullmatch(CHECKPOINT, path.name) and path.stem < oldest:
            path.unlink()


def _first(error: BaseException) -> BaseException:
    """What an error came from: torch's writer fails once more as it is closed."""
    while error.__context__ is not None:
        error = error.__context__
    return error


def _records(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.json") if re.fullmatch(CHECKPOINT, path.name))


def load_checkpoint(folder: Path) -> tuple[int, dict[str, Any]] | None:
    """The newest sound checkpoint as (number, state on the CPU); None where there is none at all.

    A damaged one is named in the log and the one before it is used. Raises `UserError` when all are damaged.
    """
    damaged: list[str] = []
    for record in reversed(_records(folder)):
        path = record.with_suffix(".pt")
        try:
            if digest_of(path) != json.loads(record.read_text(encoding="utf-8"))["sha256"]:
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
