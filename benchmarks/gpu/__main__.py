"""What only a GPU can show, checked and measured in at most ten minutes: `make gpu`. docs/gpu.md says what is promised.

    python benchmarks/gpu                     # on a machine with a GPU
    python benchmarks/gpu --only rates        # one of the checks, or some
    python benchmarks/gpu --rehearse          # all that can run without, on the processor, with sizes of no meaning

Each check is a process of its own with a time limit, and each of its cases a line of `$OUT/gpu.jsonl`, or of
`runs/gpu/gpu.jsonl`, as soon as it is known. What measures nothing runs side by side, then what does, one by one in
the order of importance.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from contextlib import suppress
from datetime import UTC, datetime
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import wheels

LIMIT = 580.0  # seconds in all
OUT = Path(os.environ.get("OUT") or wheels.ROOT / "runs" / "gpu")


def write(row: dict[str, Any]) -> None:
    """Add a row: whole, whoever else writes."""
    with (OUT / "gpu.jsonl").open("ab", buffering=0) as file:
        file.write(json.dumps(row, default=str).encode() + b"\n")


def perform(check: Any, at: Any) -> None:
    """All cases of a check, in a process of their own and of their own group."""
    import torch
    from work import Skip, told

    os.setsid()
    with (at.folder / "log.txt").open("wb") as log:
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
    os.environ["PROTEGE_CACHE"] = str(at.folder / "cache")
    torch.set_num_threads(1)  # a process with a pool of threads cannot be forked
    for name, case in check.cases(at):
        began, row = time.monotonic(), {"check": check.name, "case": name}
        os.write(1, f"\n---- {name}\n".encode())
        try:
            if began > at.until - min(10, check.seconds / 10):
                raise Skip("no time was left")
            row |= {"verdict": "passed", **case()}
        except Skip as why:
            row |= {"verdict": "skipped", "note": str(why)}
        except Exception as error:
            row |= {"verdict": "failed", "note": told(error)}
        write({**row, "seconds": round(time.monotonic() - began, 2)})
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


def perform_all(checks: list[Any], small: bool, until: float, folder: Path) -> None:
    """Run the checks, those that are not ``alone`` side by side, and tell of those that end badly."""
    from work import FORK, Place

    jobs = 1 if small else max(1, min(4, (os.cpu_count() or 1) // 4))
    waiting, running = deque(sorted(checks, key=lambda check: check.alone)), {}
    try:
        while waiting or running:
            while waiting and len(running) < (1 if waiting[0].alone else jobs):
                check = waiting.popleft()
                at = Place(small, min(until, time.monotonic() + check.seconds), folder / check.name)
                at.folder.mkdir()
                process = FORK.Process(target=perform, args=(check, at))
                process.start()
                running[process.sentinel] = process, check, at
                print(f"{datetime.now():%H:%M:%S}  {check.name}", flush=True)
            wait(list(running), max(0.0, min(at.until for *_, at in running.values()) - time.monotonic()))
            for sentinel, (process, check, at) in list(running.items()):
                late = process.is_alive() and time.monotonic() >= at.until
                if late or not process.is_alive():
                    end(process)
                    del running[sentinel]
                    if late or process.exitcode:
                        log = (at.folder / "log.txt").read_text(encoding="utf-8", errors="replace")
                        row = {"check": check.name, "case": log.rpartition("\n---- ")[2].partition("\n")[0]}
                        why = "took too long" if late else f"ended with status {process.exitcode}"
                        write({**row, "verdict": "failed", "note": f"the check {why}"})
    finally:
        for process, *_ in running.values():
            end(process)


def end(process: Any) -> None:
    """End a process, with all that it has started."""
    process.kill()
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.join()


def machine(small: bool) -> dict[str, Any]:
    """Where this takes place, looked at by other processes: this one takes up no device, so that it can be forked."""
    import torch
    from work import in_child

    def said(*command: str) -> str | None:
        with suppress(OSError):
            return subprocess.run(command, capture_output=True, text=True).stdout.partition("\n")[0] or None
        return None

    def gpu() -> dict[str, Any]:
        if not torch.cuda.is_available():
            return {"device": None}
        seen = torch.cuda.get_device_properties(0)
        return {"device": seen.name, "memory": seen.total_memory, "cudnn": torch.backends.cudnn.version()}

    return {
        **in_child(gpu)(),
        "driver": said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "commit": said("git", "-C", str(wheels.ROOT), "rev-parse", "--short", "HEAD"),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "rehearsal": small,
    }


def table() -> int:
    """Print all rows; how many have failed."""
    rows = [json.loads(line) for line in (OUT / "gpu.jsonl").read_text(encoding="utf-8").splitlines()]
    for check in dict.fromkeys(row["check"] for row in rows):
        print(f"\n{check}")
        for row in (row for row in rows if row["check"] == check):
            figures = {k: v for k, v in row.items() if k not in ("check", "case", "verdict", "seconds", "note")}
            texts = [f"{k} {v:,.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in figures.items()]
            note = "; ".join(filter(None, [", ".join(texts), row.get("note")]))
            print(f"  {row.get('verdict', ''):8} {row.get('case', ''):44} {note}")
    failed = sum(row.get("verdict") == "failed" for row in rows)
    print(f"\n{len(rows)} rows, {failed} failed; they lie in {OUT / 'gpu.jsonl'}")
    return failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rehearse", action="store_true", help="on the processor, with sizes of no meaning")
    parser.add_argument("--only", nargs="+", metavar="CHECK", help="some of the checks")
    given = parser.parse_args()
    until = time.monotonic() + LIMIT
    wheels.provide()
    import fast
    import right
    from work import Check

    checks = [
        Check(fast.compiling, 175),
        Check(right.views, 60),
        Check(right.no_waits, 170),
        Check(right.cached, 60),
        Check(right.resumed, 150),
        Check(right.solved, 90),
        Check(right.shared, 120),
        Check(fast.rates, 250, alone=True),
        Check(fast.kernels, 60, alone=True),
        Check(fast.photos, 45, alone=True),
        Check(right.memory, 40, alone=True),  # of the whole device
    ]
    names = [check.name for check in checks]
    if unknown := set(given.only or ()) - set(names):
        parser.error(f"the check {min(unknown)!r} is unknown; expected some of {', '.join(names)}")
    here = machine(given.rehearse)
    if here["device"] is None and not given.rehearse:
        sys.exit("PyTorch finds no GPU here; expected one: --rehearse runs what can be run without.")
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "gpu.jsonl").unlink(missing_ok=True)
    write({"check": "machine", **here})
    with tempfile.TemporaryDirectory() as folder:
        chosen = [check for check in checks if check.name in (given.only or names)]
        perform_all(chosen, given.rehearse, until, Path(folder))
    return int(table() > 0)


if __name__ == "__main__":
    sys.exit(main())
