"""A run folder: what it holds, and that nothing in it is overwritten unasked."""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from ..data import cache_root
from ..errors import Stopped, UserError, full_disk, told
from ..files import CHECKPOINT, LOG, clear_drafts, drafts, is_draft, is_report, is_run, recorded, usable
from .recipe import Recipe, make_recipe, recipe_type
from .toml import merge, read_toml

LOCK = ".protege.lock"
SPEC_KEYS = ("teacher", "student", "data")
MODEL_FILES = ("config.json", "model.safetensors")
# What `overwrite` removes of a run, beside its log: patterns of names by the folder they lie in.
OURS = {
    "signals": r"\d+",
    "pictures": r"\d+-\w+\.(png|jpg)|index\.json",
    "logs": r"protege",
    "checkpoint": CHECKPOINT,
    "choice": r"choice\.json|[a-z]+(-[a-z]+)*-\d+",
    "student": "|".join(map(re.escape, MODEL_FILES)),
    "": r"recipe\.toml|result\.json|report\.html",
}
NAMES = (
    LOG,
    "result.json",
    "report.html",
    "checkpoint",
    "choice",
    "student",
    "signals",
    "pictures",
    "logs",
    "recipe.toml",
)


def present(out: Path, names: Sequence[str]) -> list[Path]:
    """What lies in a folder under these names."""
    return [out / name for name in names if os.path.lexists(out / name)]


def check_out(
    out: Path,
    *,
    resume: bool | None,
    overwrite: bool,
    owned: Callable[[Path], bool] = is_run,
    proof: str = "metrics.jsonl of a run",
    replaced: Sequence[str] = NAMES,
) -> None:
    """Refuse a folder that holds something, cannot be written, or is no run to resume. Leaves nothing behind.

    ``owned`` tells whether the folder is one of the kind that is to be made, known by its ``proof``; of another one
    none of the files ``replaced`` may be touched. ``resume`` is None where there is nothing to resume, as the work
    takes seconds.
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
    if not out.is_dir() or all(is_draft(item) or item.name == LOCK for item in out.iterdir()):
        return
    mine = owned(out)
    foreign = [] if mine else present(out, replaced)
    if resume and not mine:
        raise UserError(f"out={str(out)!r} holds no run to resume; expected {proof} in it: name another.")
    if overwrite and foreign:
        raise UserError(
            f"overwrite=True would replace {foreign[0].name!r} in {str(out)!r}, which was made otherwise, as there is "
            f"no {proof} beside it; expected a folder without it: name another, or move that away."
        )
    if resume or overwrite:
        return
    more = ""
    if mine:
        more = f", or add {'' if resume is None else 'resume=True to go on or '}overwrite=True to start anew"
    elif not foreign:
        more = ", or add overwrite=True to start beside what is there"
    raise UserError(f"out={str(out)!r} is not empty; expected a new folder: name another{more}.")


def _unwritable(out: Path) -> str:
    """Why no folder can be made at (or in) ``out``; empty where one can: only trying tells, on any file system."""
    try:
        with drafts(next(p for p in [out, *out.absolute().parents] if p.exists() or os.path.islink(p)), "protege"):
            pass
    except OSError as error:
        return error.strerror or str(error)
    return ""


@contextmanager
def holding(out: Path) -> Iterator[Callable[[], None]]:
    """Gives a function that keeps other processes out of ``out``, which is there by then, until the end.

    Of a run's processes the first one does so. The lock is a file in the folder, so that machines that share the disk
    see it, too; it is removed while it is held, and whoever waits for it then begins anew.
    """
    taken = os.environ.get("RANK", "0") != "0"
    with ExitStack() as until_end:

        def hold() -> None:
            nonlocal taken
            if not taken:
                until_end.enter_context(_lock(out, 0))
                taken = True

        yield hold


def wait_until_free(out: Path, seconds: float = 60) -> None:
    """Wait for another process that works in ``out``, such as a run that is being stopped."""
    if out.is_dir():
        with suppress(UserError), _lock(out, seconds):
            pass


@contextmanager
def _lock(out: Path, seconds: float) -> Iterator[None]:
    lock = FileLock(out / LOCK)
    try:
        lock.acquire(timeout=seconds)
    except Timeout:
        raise UserError(
            f"out={str(out)!r} is in use by another run; expected a folder of its own: wait for it or name another."
        ) from None
    except (OSError, NotImplementedError) as error:
        if full_disk(error):
            raise UserError(f"the disk of {str(out)!r} is full ({told(error)}); expected room: free some.") from error
        logging.getLogger("protege").warning(
            "%s cannot be kept for this run alone, as its disk has no locks (%s): start no other run there.", out, error
        )
        yield
        return
    try:
        yield
    finally:
        with suppress(OSError):
            (out / LOCK).unlink()
        lock.release()


@contextmanager
def told_how_to_go_on(out: Path) -> Iterator[None]:
    """Let what ends a run that can go on say how: Ctrl-C, SIGTERM, a full disk."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, OSError, SafetensorError, UserError) as error:
        cause = error.__cause__ or error
        if isinstance(error, UserError) and not full_disk(cause):
            raise
        begun = is_run(out)
        how = f"what was done is kept in {str(out)!r}, go on with the same call and resume=True" if begun else ""
        if full_disk(cause):
            remedy = f"free some; {how}" if begun else "free some"
            raise UserError(f"the disk is full ({told(cause)}); expected room for the run: {remedy}.") from error
        if begun and isinstance(error, KeyboardInterrupt):
            raise Stopped(f"{how}.") from None
        if begun and isinstance(error, SystemExit):
            logging.getLogger("protege").warning("stopped; %s.", how)
        raise


def report(write: Callable[[Path], Any], out: Path) -> None:
    """Write a report, unless a page of the user's own has its name: what was made does not suffer by that."""
    page = out / "report.html"
    if page.exists() and not is_report(page):
        logging.getLogger("protege").warning("%s was made otherwise and is kept: there is no report.", page)
    else:
        write(out)


def clear(out: Path, log: bool = True, parts: Collection[str] = tuple(OURS)) -> None:
    """Remove what an earlier run left in these ``parts`` of ``out`` and nothing else; of a folder that is no run's,
    nothing. The ``log``, by which the folder is known, goes last or stays until another takes its place."""
    if not is_run(out):
        return
    for name in parts:
        folder, pattern = out / name, OURS[name]
        if folder.is_dir():
            clear_drafts(folder)
            for item in folder.iterdir():
                if re.fullmatch(pattern, item.name):
                    remove(item)
            if name:
                remove_empty(folder)
    if log:
        (out / LOG).unlink(missing_ok=True)


def remove(path: Path) -> None:
    """Delete a file or a folder with all that is in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_empty(folder: Path) -> None:
    """Delete a folder unless it holds something."""
    with suppress(OSError):
        folder.rmdir()


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
        if (key, value) == ("batch_size", "auto") and before is not None:  # it was counted when the run began
            continue
        if key not in recipe_type(str(old.get("method", "kd"))).model_fields:
            make_recipe(merge(old, {key: value}))  # says what is wrong with it
        if key == "trust" or (known and key in SPEC_KEYS and before is not None):
            settings[key] = value
        elif before != value and not means_the_same(old, key, value):
            begun = "its default" if before is None else repr(before)
            raise UserError(
                f"resume=True with {key} = {value!r}, but {str(out)!r} was begun with {begun}; expected the same "
                f"settings: leave {key} out, or start another folder."
            )
    return settings


def means_the_same(old: Mapping[str, Any], key: str, value: Any) -> bool:
    """Whether a recipe reads the same with this value, which may be text from the command line."""
    try:
        return getattr(make_recipe(merge(old, {key: value})), key) == getattr(make_recipe(old), key)
    except UserError:
        return False


def refuse_in_the_way(settings: Recipe, objects: Mapping[str, Any], out: Path, resume: bool, overwrite: bool) -> None:
    """Raise `UserError` where the folder of a run, those of its models, its data and its caches would hold each other's
    files."""
    for role in ("teacher", "student"):
        spec = getattr(settings, role)
        if role in objects or not spec or not os.path.exists(path := os.path.expanduser(spec)):
            continue
        if overwrite and Path(path).resolve().is_relative_to(out.resolve()):
            raise UserError(
                f"overwrite=True would replace the {role} {path!r}, which lies in out={str(out)!r}; expected "
                "another folder for what learns from it: change out=…."
            )
    if "data" not in objects:
        refuse_among_images(out, settings.data)
    if settings.cache is not None:
        _refuse_cache_in(out, usable(settings.cache, "cache"), resume)
    elif is_run(cache_root()) or cache_root().resolve() == out.resolve():
        raise UserError(
            f"PROTEGE_CACHE={str(cache_root())!r} is the folder of a run; expected one for caches alone: name another."
        )


def refuse_among_images(out: Path, spec: str) -> None:
    """Raise where a run's folder would be read as a class of the images that it learns from."""
    kind, _, rest = spec.partition(":")
    folder = usable(rest.split("?")[0], "data").resolve()
    splits = [folder / split for split in ("train", "val", "test") if (folder / split).is_dir()]
    around = {out.resolve(), *out.resolve().parents}
    if kind == "images" and (out.resolve() == folder or around & {*(splits or [folder])}):
        raise UserError(
            f"out={str(out)!r} lies among the images of {str(folder)!r} and would be read as a class of them; "
            "expected another place: change out=…."
        )


def _refuse_cache_in(out: Path, cache: Path, resume: bool) -> None:
    """Raise where a run's folder and a cache would hold each other's files."""
    run_folder, folder = out.resolve(), cache.resolve()
    inside = [run_folder / name for name in NAMES] if resume else [run_folder]  # older versions let it be beside those
    if run_folder.is_relative_to(folder) or is_run(folder) or any(map(folder.is_relative_to, inside)):
        raise UserError(
            f"cache={str(cache)!r} and out={str(out)!r} lie in each other; expected a folder for each: change cache=…."
        )
