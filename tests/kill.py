"""Kills runs of every method, and studies, and compares what they end with when they are resumed.

    python tests/kill.py --work /tmp/kills --random 300 --files 300 --seed 0

A run is killed (SIGKILL) at a random moment, or just before one of its file operations: opening for writing, renaming,
deleting, making a folder. It is then resumed, perhaps killed again, until it is done. Then its student must be that of
a run that was never killed, bit for bit, its metrics, log and recipe the same, nothing may be left behind, and files of
a user's own in its folder must be as they were. One line is printed for each kill; what is in the work folder's
`kills.jsonl` is not done again. Each run is a fork of this process, which has imported everything already.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

import protege
from protege.run.study import run_study

COMMON: dict[str, Any] = {
    "student": "zoo:cnn_tiny?width=3",
    "data": "digits",
    "samples": 40,
    "batch_size": 20,
    "epochs": 2,
    "views": 2,
    "checkpoint_seconds": 0,
    "precision": "fp32",
    "workers": 0,
}
RUNS: dict[str, dict[str, Any]] = {
    name: {"method": name} for name in ("none", "kd", "fskd", "gpd", "skd", "simultaneous", "fitnets", "at", "fsp")
}
RUNS["none"] |= {"ema": 0.5, "select": "best", "validation": 0.2}
RUNS["kd, its own cache"] = {"method": "kd", "cache": "cache", "select": "best", "validation": 0.2}
STUDY = "a study"
SCENARIOS = [*RUNS, STUDY]
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
OPERATIONS = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")
MINE = ("notes.txt", "draft.tmp", "plots/a.svg", "student/mine.txt", "checkpoint/mine.pt", "signals/mine.bin")
TIMES = {"seconds", "images_per_second", "timing", "cache", "out", "environment", "speed"}
FORWARDED = {"teacher_samples_forwarded", "teacher_samples_remembered"}  # a killed run may pay twice


def perform(name: str, here: Path, teacher: Path, resume: bool, overwrite: bool) -> None:
    """One run or study of this name into ``here / "out"``."""
    os.chdir(here)
    if name == STUDY:
        run_study("study.toml", "out", resume=resume, overwrite=overwrite)
        return
    settings = COMMON | RUNS[name]
    if name == "fskd":
        settings |= {"student": str(teacher.parents[1] / "shrunk")}
    if name not in ("none", "gpd"):
        settings["teacher"] = str(teacher)
    elif name == "gpd":
        settings.pop("views")
    protege.distill(out="out", resume=resume, overwrite=overwrite, **settings)


def forked(work: Callable[[], None], log: Path) -> int:
    """The number of a new process that does this; it ends with 0, or with 3 and a traceback in ``log``."""
    if child := os.fork():
        return child
    status = 3
    try:
        quiet = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def watched(here: Path, seen: Callable[[str], None]) -> None:
    """Call ``seen`` before each file operation of this process within ``here``."""
    inside = str(here)

    def hook(event: str, given: tuple[Any, ...]) -> None:
        if (event == "open" and isinstance(given[2], int) and given[2] & WRITES) or event in OPERATIONS:
            path = os.fspath(given[0]) if isinstance(given[0], str | os.PathLike) else str(given[0])
            path = os.path.join(inside, path) if not os.path.isabs(path) else path
            if path.startswith(inside) and not path.endswith((".log", "operations")):
                seen(f"{event} {re.sub(r'[0-9a-f]{16}|[0-9]+', 'N', path.removeprefix(inside))}")

    sys.addaudithook(hook)


def ended(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def prepared(here: Path, name: str) -> Path:
    """A folder of its own for a run, its caches and its temporary files."""
    shutil.rmtree(here, ignore_errors=True)
    (here / "temporary").mkdir(parents=True)
    if name == STUDY:
        common = "".join(f"{key} = {json.dumps(value)}\n" for key, value in COMMON.items())
        told = f'name = "s"\nseeds = [0, 1]\n[recipe]\n{common}[grid]\nmethod = ["none"]\nlr = [0.1, 0.05]\n'
        (here / "study.toml").write_text(told)
    return here


def within(here: Path, work: Callable[[], None]) -> Callable[[], None]:
    def run() -> None:
        os.environ |= {"OMP_NUM_THREADS": "1", "PROTEGE_CACHE": str(here / "caches"), "TMPDIR": str(here / "temporary")}
        tempfile.tempdir = None
        work()

    return run


def cleaned(value: Any) -> Any:
    """A result without times and places."""
    if isinstance(value, dict):
        return {k: cleaned(v) for k, v in value.items() if k not in TIMES | FORWARDED}
    return [cleaned(one) for one in value] if isinstance(value, list) else value


def outcome(name: str, here: Path) -> dict[str, Any]:
    """What must be the same whether it was killed or not."""
    out = here / "out"
    if name == STUDY:
        rows = json.loads((out / "study.json").read_text())["rows"]
        found = {f"rows {n}": {key: row[key] for key in ("setting", "runs", "metrics")} for n, row in enumerate(rows)}
        for run in sorted((out / "runs").iterdir()):
            found |= {f"{run.name} {key}": value for key, value in of_run(run).items()}
    else:
        found = of_run(out)
    files = [path for path in out.rglob("*") if path.is_file()]
    found["files"] = sorted(
        re.sub(r"\d{8}", "N", str(path.relative_to(out))) for path in files if str(path.relative_to(out)) not in MINE
    )
    return found


def of_run(out: Path) -> dict[str, Any]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return {
        "student": (out / "student" / "model.safetensors").read_bytes(),
        "config": (out / "student" / "config.json").read_bytes(),
        "recipe": (out / "recipe.toml").read_bytes(),
        "result": cleaned(json.loads((out / "result.json").read_text())),
        "log": [cleaned(line) for line in lines if line["event"] != "fill"],
    }


def left_behind(here: Path) -> list[str]:
    """Half-written files, locks and temporary files."""
    found = [path for path in here.rglob("*") if re.search(r"\.tmp\b|\.gone|\.partial|protege\.lock", path.name)]
    found += list((here / "temporary").iterdir())
    return [str(path.relative_to(here)) for path in found if path.name != "draft.tmp"]


class Killer:
    """Kills runs in a work folder, each compared with an undisturbed one, which is made when it is first needed."""

    def __init__(self, work: Path, seed: int, only: list[str]) -> None:
        self.work, self.seed = work, seed
        self.runs, self.studies = [name for name in only if name != STUDY], STUDY in only
        self.teacher = work / "teacher" / "student"
        self.expected: dict[str, dict[str, Any]] = {}
        self.operations: dict[str, list[str]] = {}
        self.seconds: dict[str, float] = {}
        work.mkdir(parents=True, exist_ok=True)
        # here rather than in a fork, so that all that is imported when it is first used is there in every fork
        protege.train("zoo:cnn_tiny?width=6", "digits", work / "teacher", epochs=2, samples=300, overwrite=True)
        protege.shrink(str(self.teacher), ratio=0.3, data="digits", out=work / "shrunk", overwrite=True)
        gc.collect()
        gc.freeze()

    def reference(self, name: str) -> None:
        """An undisturbed run: what it ends with, its file operations, and how long it takes."""
        if name in self.expected:
            return
        here = prepared(self.work / f"undisturbed-{SCENARIOS.index(name)}", name)

        def whole() -> None:
            with open(here / "operations", "w") as file:
                watched(here, lambda what: print(what, file=file, flush=True))
                perform(name, here, self.teacher, False, False)

        begin = time.monotonic()
        status = ended(forked(within(here, whole), here / "run.log"))
        assert not status, f"{name} fails undisturbed: {(here / 'run.log').read_text()}"
        self.seconds[name] = time.monotonic() - begin
        self.operations[name] = (here / "operations").read_text().splitlines()
        self.expected[name] = outcome(name, here)

    def kill(self, kind: str, number: int) -> dict[str, Any]:
        """One run that is killed, and what was wrong with what became of it."""
        dice = random.Random(f"{self.seed} {kind} {number}")
        name = STUDY if self.studies and number % 20 == 10 else self.runs[number % len(self.runs)]
        self.reference(name)
        here = prepared(self.work / f"{kind}-{number}", name)
        mine = {path: f"mine: {path}" for path in MINE if "/" not in path or path.startswith("plots")}
        for path, text in mine.items() if dice.random() < 0.7 else ():
            (here / "out" / path).parent.mkdir(parents=True, exist_ok=True)
            (here / "out" / path).write_text(text)
        resume, overwrite, moments, told = False, (here / "out").exists(), [], ""
        kills = 1 + (dice.random() < 0.3)
        for attempt in range(kills + 3):
            moment: Any = None
            if attempt < kills:
                moment = self._moment(kind, name, dice)
            moments += [] if moment is None else [moment]
            status = self._attempt(name, here, resume, overwrite, moment)
            if status == 0:
                break
            log = here / "run.log"
            told = log.read_text() if log.exists() else ""  # killed before it could open one
            if status == 3 and "holds no run to resume" in told.splitlines()[-1]:  # it was killed before it began
                resume, overwrite = False, True
                continue
            if status == 3:
                return self._line(name, kind, number, moments, f"fails: {told.strip().splitlines()[-1]}")
            for path in MINE:
                if (here / "out" / path).parent.is_dir() and not (here / "out" / path).exists() and dice.random() < 0.8:
                    (here / "out" / path).write_text(f"mine: {path}")
            resume, overwrite = (here / "out").exists(), False
        else:
            return self._line(name, kind, number, moments, "never ended")
        try:
            found = outcome(name, here)
        except (OSError, ValueError) as error:
            return self._line(name, kind, number, moments, f"unreadable: {error}")
        wrong = [key for key, value in self.expected[name].items() if found.get(key) != value]
        wrong += [f"left behind: {one}" for one in left_behind(here)]
        for path in MINE:
            with suppress(FileNotFoundError):
                if (here / "out" / path).read_text() != f"mine: {path}":
                    wrong.append(f"changed: {path}")
        if not wrong:
            shutil.rmtree(here)
        return self._line(name, kind, number, moments, "; ".join(wrong))

    def _moment(self, kind: str, name: str, dice: random.Random) -> Any:
        """When to kill: after seconds, or before the operation of a number."""
        if kind == "random":
            return round(dice.uniform(0, self.seconds[name]), 3)
        operations = self.operations[name]
        chosen = dice.choice(sorted(set(operations)))
        return dice.choice([n for n, what in enumerate(operations, 1) if what == chosen])

    def _attempt(self, name: str, here: Path, resume: bool, overwrite: bool, moment: Any) -> int:
        def run() -> None:
            count = 0

            def seen(_: str) -> None:
                nonlocal count
                count += 1
                if count == moment:
                    os.kill(os.getpid(), signal.SIGKILL)

            if isinstance(moment, int):
                watched(here, seen)
            perform(name, here, self.teacher, resume, overwrite)

        child = forked(within(here, run), here / "run.log")
        if isinstance(moment, float):
            time.sleep(moment)
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGTERM if name == STUDY and int(moment * 1000) % 2 else signal.SIGKILL)
        status = ended(child)
        return -signal.SIGTERM if status == 3 and "SystemExit: 143" in (here / "run.log").read_text()[-200:] else status

    @staticmethod
    def _line(name: str, kind: str, number: int, moments: list[Any], wrong: str) -> dict[str, Any]:
        return {"kind": kind, "number": number, "run": name, "killed": moments, "wrong": wrong}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("/tmp/protege-kills"))
    parser.add_argument("--random", type=int, default=300, help="kills at random moments")
    parser.add_argument("--files", type=int, default=300, help="kills at file operations")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=SCENARIOS, default=SCENARIOS, metavar="RUN", help="of these")
    given = parser.parse_args()
    torch.set_num_threads(1)
    work = given.work.resolve() / f"seed-{given.seed}"
    killer = Killer(work, given.seed, given.only)
    record = work / "kills.jsonl"
    done = [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []
    known = {(line["kind"], line["number"]) for line in done}
    todo = [(kind, n) for n in range(max(given.random, given.files)) for kind in ("random", "files")]
    for kind, number in todo:
        if number >= getattr(given, kind) or (kind, number) in known:
            continue
        begin = time.monotonic()
        line = killer.kill(kind, number)
        done.append(line)
        with open(record, "a") as file:
            file.write(json.dumps(line) + "\n")
        told = line["wrong"] or "the same"
        print(
            f"{kind} {number}: {line['run']}, killed at {line['killed']}, {time.monotonic() - begin:.1f} s: {told}",
            flush=True,
        )
    wrong = [line for line in done if line["wrong"]]
    print(f"{len(done)} killed, {len(wrong)} went wrong (their folders are kept in {work})")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
