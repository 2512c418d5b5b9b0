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
from pathlib import Path
from typing import Any

import torch

from ..errors import UserError

log = logging.getLogger("protege")
KEEP = 2


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def save_checkpoint(folder: Path, number: int, state: dict[str, Any]) -> None:
    """Write ``state`` as checkpoint ``number``, then drop all but the last two."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{number:08d}.pt"
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    digest = hashlib.sha256(temporary.read_bytes()).hexdigest()
    os.replace(temporary, path)
    _write(path.with_suffix(".json"), json.dumps({"sha256": digest}).encode())
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
            "with --overwrite."
        )
    return None
