"""Every ability on every architecture: `make networks`, which writes docs/networks.md.

    python benchmarks/networks                                # what is not yet in the results, then the page
    python benchmarks/networks --only 'swin|vit' --abilities skd,gpd
    python benchmarks/networks --page                         # only the page

A cell is a network and an ability. Each is a forked process with a limit of processor time, and a line of the results
as soon as it is known, so that what is stopped goes on where it was. A cell that has been tried is tried again with
``--again``; its last line counts. Nothing is downloaded: weights are random, and `build.enliven` makes them lively.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import re
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

import page

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "studies" / "results" / "networks"
LIMIT = 60.0  # seconds of processor time for a cell
PATIENCE = 8  # times as long by the clock: others work on the machine, too


class TimeUp(BaseException):
    """Nothing in the library may catch it."""


def ring(*_: object) -> None:
    raise TimeUp


def attempt(work: Callable[[], tuple[str, str]], limit: float) -> dict[str, Any]:
    """The verdict and note of one cell, tried in this process."""
    from protege import UserError

    signal.signal(signal.SIGPROF, ring)
    signal.setitimer(signal.ITIMER_PROF, limit)
    began = time.process_time()
    try:
        verdict, note = work()
    except TimeUp:
        verdict, note = "no end", f"more than {limit:.0f} s"
    except UserError as error:
        verdict, note = "refused", str(error)
    except Exception as error:
        signal.setitimer(signal.ITIMER_PROF, 0)
        traceback.print_exc()
        wrong = type(error).__name__ == "Wrong"
        verdict, note = "broken", f"{'' if wrong else type(error).__name__ + ': '}{error}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    note = " ".join(note.split())
    return {"verdict": verdict, "note": note[:400], "seconds": round(time.process_time() - began, 1)}


def in_fork(work: Callable[[], None], patience: float) -> str:
    """Do it in a child; how the child ended, "" where it did so by itself."""
    if not (child := os.fork()):
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    until = time.monotonic() + patience
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return "" if status == 0 else f"the process ended with status {os.waitstatus_to_exitcode(status)}"
        if time.monotonic() > until:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return "no end"
        time.sleep(0.05)


def try_row(row: Any, todo: list[str], limit: float, out: Path, commit: str) -> None:
    """All cells of a row: its networks are built once, and each group of abilities starts with them in a fork."""
    from abilities import ABILITIES, TOGETHER, pair_of

    def record(ability: str, cell: dict[str, Any]) -> None:
        line = json.dumps({"network": row.name, "ability": ability, **cell, "commit": commit})
        with out.open("ab", buffering=0) as file:
            file.write(line.encode() + b"\n")
        print(
            f"{row.name:36} {ability:7} {cell['verdict']:8} {cell['seconds']:6.1f} s  {cell['note'][:150]}", flush=True
        )

    made: list[Any] = []

    def build() -> tuple[str, str]:
        made.append(pair_of(row))
        return "works", ""

    cell = attempt(build, 2 * limit)
    if not made:
        for ability in todo:
            record(ability, {**cell, "note": "cannot be built: " + cell["note"]})
        return
    for together in TOGETHER:
        some = [ability for ability in together if ability in todo]

        before = len(page.read(out))

        def perform(some: list[str] = some, together: list[str] = together) -> None:
            for ability in together if some else []:
                with tempfile.TemporaryDirectory() as folder:
                    os.environ["PROTEGE_CACHE"] = f"{folder}/cache"
                    given, work = made[0], ABILITIES[ability]
                    result = attempt(lambda: work(given, Path(folder)), limit)  # noqa: B023
                if ability in some:
                    record(ability, result)

        if some and (ended := in_fork(perform, PATIENCE * limit * len(together))):
            known = {cell["ability"] for cell in page.read(out)[before:] if cell["network"] == row.name}
            for ability in some:
                if ability not in known:
                    record(
                        ability, {"verdict": "no end" if ended == "no end" else "broken", "note": ended, "seconds": 0}
                    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="REGEX", help="networks whose names fit")
    parser.add_argument("--abilities", default="", metavar="A,B", help="some of kd,skd,shrink,fskd,gpd,onnx,int8")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds of processor time for a cell")
    parser.add_argument("--out", type=Path, default=RESULTS / "now.jsonl", help="the results, JSON lines")
    parser.add_argument("--again", action="store_true", help="try cells again that have been tried")
    parser.add_argument("--page", action="store_true", help="only write docs/networks.md from the results")
    given = parser.parse_args()
    if not given.page:
        try_all(given)
    if given.page or given.out.parent == RESULTS:
        from rows import ROWS

        page.write(ROOT / "docs" / "networks.md", RESULTS, [row.name for row in ROWS])


def try_all(given: argparse.Namespace) -> None:
    import torch

    from protege.torch_utils import admit_torchvision

    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    admit_torchvision()
    import segmentation_models_pytorch  # noqa: F401  imported once, here
    import timm  # noqa: F401
    import torch._dynamo
    import transformers  # noqa: F401
    from abilities import ABILITIES, POPULAR_ONLY
    from rows import ROWS

    import protege

    abilities = given.abilities.split(",") if given.abilities else list(ABILITIES)
    if unknown := set(abilities) - set(ABILITIES):
        sys.exit(f"the ability {min(unknown)!r} is unknown; expected some of {', '.join(ABILITIES)}.")
    commit = os.popen(f"git -C '{Path(protege.__file__).parent}' rev-parse --short HEAD").read().strip()
    given.out.parent.mkdir(parents=True, exist_ok=True)
    known = {} if given.again else {(cell["network"], cell["ability"]) for cell in page.read(given.out)}
    with given.out.open("a", encoding="utf-8") as file:
        file.write(json.dumps(machine(given.limit, commit)) + "\n")
    for row in [row for row in ROWS if re.search(given.only, row.name)]:
        chosen = [a for a in abilities if row.popular or given.abilities or a not in POPULAR_ONLY]
        todo = [ability for ability in chosen if (row.name, ability) not in known]
        if todo:
            work = lambda row=row, todo=todo: try_row(row, todo, given.limit, given.out, commit)  # noqa: E731
            ended = in_fork(work, PATIENCE * given.limit * (len(todo) + 3))
            if ended:
                print(f"{row.name}: {ended}", flush=True)


def machine(limit: float, commit: str) -> dict[str, Any]:
    from importlib.metadata import version

    packages = ("torch", "timm", "torchvision", "segmentation-models-pytorch", "transformers")
    return {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, one thread",
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "commit": commit,
        "limit": limit,
        "versions": {name: version(name) for name in packages},
    }


if __name__ == "__main__":
    main()
