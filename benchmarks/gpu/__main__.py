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

LIMIT = 570.0  # seconds in all
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
    sys.stdout = sys.stderr = (at.folder / "log.txt").open("a", buffering=1, encoding="utf-8")
    os.dup2(sys.stderr.fileno(), 1)
    os.dup2(sys.stderr.fileno(), 2)
    os.environ["PROTEGE_CACHE"] = str(at.folder / "cache")
    torch.set_num_threads(1)  # a process with a pool of threads cannot be forked
    for name, case in check.cases(at):
        began, row = time.monotonic(), {"check": check.name, "case": name}
        try:
            if time.monotonic() > at.until - min(10, check.seconds / 10):
                raise Skip("no time was left")
            print(f"\n---- {check.name}: {name}", flush=True)
            figures = case()
            verdict = "passed" if figures.pop("met", True) else "failed"
            row |= {"verdict": verdict, **({} if verdict == "passed" else {"note": "below the target"}), **figures}
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
    while waiting or running:
        while waiting and len(running) < (1 if waiting[0].alone else jobs):
            check = waiting.popleft()
            end = min(until, time.monotonic() + check.seconds)
            (folder / check.name).mkdir()
            process = FORK.Process(target=perform, args=(check, Place(small, end, folder / check.name)))
            process.start()
            running[process.sentinel] = process, check, end
            print(f"{datetime.now():%H:%M:%S}  {check.name}", flush=True)
        wait(list(running), max(0.0, min(end for *_, end in running.values()) - time.monotonic()))
        for sentinel, (process, check, end) in list(running.items()):
            late = process.is_alive() and time.monotonic() >= end
            if late or not process.is_alive():
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # with all that it has started
                process.join()
                if late or process.exitcode:
                    why = "took too long" if late else f"ended with status {process.exitcode}"
                    log = (folder / check.name / "log.txt").read_text(encoding="utf-8", errors="replace").strip()
                    last = log.rpartition("---- ")[2].partition("\n")[0]
                    write({"check": check.name, "case": last, "verdict": "failed", "note": f"the check {why}"})
                del running[sentinel]


def machine(small: bool) -> dict[str, Any]:
    """Where this takes place, by a process of its own: this one stays without a device, so that it can be forked."""
    import torch
    from work import in_child

    def look() -> dict[str, Any]:
        gpu = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None
        size = gpu and round(gpu.total_memory / 2**30, 1)
        return {"device": gpu and gpu.name, "GiB": size, "cudnn": torch.backends.cudnn.version()}

    facts = {"torch": torch.__version__, "cuda": torch.version.cuda, **in_child(look)()}
    try:
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        facts["driver"] = subprocess.run(query, stdout=subprocess.PIPE, text=True).stdout.split("\n")[0]
    except OSError:
        facts["driver"] = None
    if facts["device"] is None and not small:
        sys.exit("PyTorch finds no GPU here; expected one: --rehearse runs what can be run without.")
    git = subprocess.run(["git", "-C", wheels.ROOT, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return {
        **facts,
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "commit": git.stdout.strip() or None,
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "rehearsal": small,
    }


def table() -> int:
    """Print all rows; how many have failed."""
    rows = [json.loads(line) for line in (OUT / "gpu.jsonl").read_text(encoding="utf-8").splitlines()]
    known = ("check", "case", "verdict", "seconds", "note")
    last = ""
    for row in sorted(rows, key=lambda row: [r["check"] for r in rows].index(row["check"])):
        if row["check"] != last:
            print(f"\n{(last := row['check'])}")
        figures = ", ".join(
            f"{key} {value:,.4g}" if isinstance(value, float) else f"{key} {value}"
            for key, value in row.items()
            if key not in known
        )
        text = "; ".join(filter(None, [figures, row.get("note", "")]))
        print(f"  {row.get('verdict', ''):8} {row.get('case', ''):44} {text}")
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
        Check(fast.compiling, 240),
        Check(right.views, 60),
        Check(right.no_waits, 240),
        Check(right.cached, 60),
        Check(right.resumed, 180),
        Check(right.solved, 90),
        Check(right.shared, 120),
        Check(fast.rates, 330, alone=True),
        Check(fast.kernels, 120, alone=True),
        Check(fast.photos, 90, alone=True),
        Check(right.memory, 60, alone=True),  # of the whole device
    ]
    names = [check.name for check in checks]
    if unknown := set(given.only or ()) - set(names):
        parser.error(f"the check {min(unknown)!r} is unknown; expected some of {', '.join(names)}")
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "gpu.jsonl").unlink(missing_ok=True)
    write({"check": "machine", **machine(given.rehearse)})
    with tempfile.TemporaryDirectory() as folder:
        chosen = [check for check in checks if check.name in (given.only or names)]
        perform_all(chosen, given.rehearse, until, Path(folder))
    return int(table() > 0)


if __name__ == "__main__":
    sys.exit(main())
