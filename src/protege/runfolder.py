"""A run folder: what it holds, and that nothing in it is overwritten unasked."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from .errors import Stopped, UserError, full_disk, told
from .paths import usable
from .recipe import make_recipe, merge, read_toml, recipe_type, write_whole

PROOF = "metrics.jsonl"  # what only a run writes: recipes are the user's to write, too
TRIAL = ".protege-"
SPECS = ("teacher", "student", "data")
MODEL_FILES = ("config.json", "model.safetensors")
OURS = (
    "metrics.jsonl",
    "result.json",
    "report.html",
    "checkpoint",
    "student",
    "signals",
    "pictures",
    "logs",
    "recipe.toml",
)


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically."""
    write_whole(path, json.dumps(value, indent=1) + "\n")


def check_out(
    out: Path,
    *,
    resume: bool | None,
    overwrite: bool,
    mark: str = "recipe.toml",
    proof: str = PROOF,
    replaced: Sequence[str] = OURS,
) -> None:
    """Refuse a folder that holds something, cannot be written, or is no run to resume. Leaves nothing behind.

    ``mark`` is the file of a folder that can be resumed, ``proof`` that of one in which the files ``replaced`` may be.
    ``resume`` is None where there is nothing to resume, as the work takes seconds.
    """
    usable(out, "out", "written")
    if resume and overwrite:
        raise UserError("resume=True and overwrite=True are both given; expected one of them: remove the other.")
    if os.path.islink(out) and not os.path.exists(out):
        raise UserError(f"out={str(out)!r} is a link to nothing; expected a folder: name another.")
    if os.path.isfile(out):
        raise UserError(f"out={str(out)!r} is a file; expected a folder: name another.")
    if reason := _unwritable(out):
        raise UserError(
            f"out={str(out)!r} cannot be written ({reason}); expected a writable place: name another folder."
        )
    if not out.is_dir() or all(_passing(item) for item in out.iterdir()):
        return
    if resume and (out / mark).exists():
        return
    if overwrite:
        foreign = [name for name in replaced if (out / name).exists()]
        if foreign and not (out / proof).exists():
            raise UserError(
                f"overwrite=True would replace {foreign[0]!r} in {str(out)!r}, which was made otherwise, as there is "
                f"no {proof} beside it; expected a run's folder: name another, or move that away."
            )
        return
    if resume:
        raise UserError(f"out={str(out)!r} holds no run to resume; expected {mark} in it: name another folder.")
    raise UserError(
        f"out={str(out)!r} is not empty; expected a new folder: name another, or add "
        f"{'' if resume is None else 'resume=True to go on or '}overwrite=True to start anew."
    )


def _passing(item: Path) -> bool:
    """Whether it is half a file of a killed write, or another process of this run trying to write."""
    return item.suffix == ".tmp" or item.name.startswith(TRIAL)


def _unwritable(out: Path) -> str:
    """Why no folder can be made at (or in) ``out``; empty where one can: only trying tells, on any file system."""
    try:
        parent = next(p for p in [out, *out.absolute().parents] if p.exists() or os.path.islink(p))
        os.rmdir(tempfile.mkdtemp(prefix=TRIAL, dir=parent))
    except OSError as error:
        return error.strerror or str(error)
    return ""


@contextmanager
def held(out: Path) -> Iterator[None]:
    """Keep other runs on this machine out of ``out`` meanwhile; of a run's processes the first one does so."""
    usable(out, "out", "written")
    if os.environ.get("RANK", "0") != "0":
        yield
        return
    folder = Path(tempfile.gettempdir()) / f"protege-{os.getuid() if hasattr(os, 'getuid') else 'locks'}"
    folder.mkdir(exist_ok=True)
    name = hashlib.blake2b(str(out.resolve()).encode(), digest_size=8).hexdigest()
    lock = FileLock(folder / f"{name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(
            f"out={str(out)!r} is in use by another run; expected a folder of its own: wait for it or name another."
        ) from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def told_how_to_go_on(out: Path) -> Iterator[None]:
    """Let what ends a run that can go on say how: Ctrl-C, SIGTERM, a full disk."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, OSError, SafetensorError) as error:
        begun = (out / "recipe.toml").exists()
        how = f"what was done is kept in {str(out)!r}, go on with the same call and resume=True" if begun else ""
        if full_disk(error):
            remedy = f"free some; {how}" if begun else "free some"
            raise UserError(f"the disk is full ({told(error)}); expected room for the run: {remedy}.") from error
        if begun and isinstance(error, KeyboardInterrupt):
            raise Stopped(f"{how}.") from None
        if begun and isinstance(error, SystemExit):
            logging.getLogger("protege").warning("stopped; %s.", how)
        raise


def clear(out: Path, proof: str = PROOF) -> None:
    """Remove what an earlier run left in ``out``, and nothing else: a folder without ``proof`` is no run's."""
    if not (out / proof).exists():
        return
    for name in MODEL_FILES:
        (out / "student" / name).unlink(missing_ok=True)
    for name in sorted(OURS, key=lambda name: name == proof):  # the proof last: a kill leaves what can be cleared again
        path = out / name
        if name == "student" and path.is_dir() and any(path.iterdir()):
            continue  # holds something else
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def resumed_settings(out: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the run in ``out``; what is given again must agree with them.

    Data and networks may be given by another name where the run has kept what they are (`origin`), which decides.
    """
    path = out / "recipe.toml"
    if not path.exists():
        return dict(given)
    old = read_toml(path)
    settings, known = dict(old), bool(recorded(out).get("origin"))
    for key, value in given.items():
        if value is None:
            continue
        before = old.get(key)
        if key not in recipe_type(str(old.get("method", "kd"))).model_fields:
            make_recipe(merge(old, {key: value}))  # says what is wrong with it
        if known and key in SPECS and before is not None:
            settings[key] = value
        elif before != value and not means_the_same(old, key, value):
            begun = "its default" if before is None else repr(before)
            raise UserError(
                f"resume=True with {key} = {value!r}, but {str(out)!r} was begun with {begun}; expected the same "
                f"settings: leave {key} out, or start another folder."
            )
    return settings


def recorded(out: Path) -> dict[str, Any]:
    """What the run in ``out`` says of its beginning: the ``start`` event of its log; empty where there is none."""
    try:
        with open(out / PROOF, "rb") as file:
            event = json.loads(file.readline())
    except (OSError, ValueError):
        return {}
    return event if isinstance(event, dict) and event.get("event") == "start" else {}


def means_the_same(old: Mapping[str, Any], key: str, value: Any) -> bool:
    """Whether a recipe reads the same with this value, which may be text from the command line."""
    try:
        return getattr(make_recipe(merge(old, {key: value})), key) == getattr(make_recipe(old), key)
    except UserError:
        return False
