"""Where the seconds go before and after the learning of a short run: 500 images of CIFAR-100 for one epoch.

    python benchmarks/start.py [--data parquet:PATH] [--samples 500] [--teacher SPEC] [--student SPEC] [--least 0.1]

A run is started twice, each time as a process of its own that a thread looks into every few milliseconds: cold, with an
empty cache, and warm. The tree has the functions of this package that took at least so many seconds, everything that
they call included: seconds of the clock, and of the processor, which tell what a busy machine would hide.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from importlib import import_module
from pathlib import Path
from types import FrameType

EVERY = 0.004  # seconds between two looks
DATA = f"parquet:{os.environ.get('PROTEGE_DATA', 'data')}/cifar100"


class Watch:
    """Adds up the time of the main thread by the package's functions on its stack, before and after `mark`."""

    def __init__(self) -> None:
        self.began, self.part = (time.perf_counter(), time.process_time()), "to the first step"
        self.spent: dict[str, dict[tuple[str, ...], list[float]]] = {}
        self.main = threading.main_thread().ident
        threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        clock, processor = self.began
        while True:
            time.sleep(EVERY)
            path = self._path(sys._current_frames().get(self.main))
            now, used = time.perf_counter(), time.process_time()
            spent = self.spent.setdefault(self.part, defaultdict(lambda: [0.0, 0.0]))
            for end in range(len(path) + 1):
                spent[path[:end]][0] += now - clock
                spent[path[:end]][1] += used - processor
            clock, processor = now, used

    def _path(self, frame: FrameType | None) -> tuple[str, ...]:
        names: list[str] = []
        while frame is not None:
            place, marker, file = frame.f_code.co_filename.rpartition("/protege/")
            if marker and place.endswith("src"):
                kind = "importing" if frame.f_code.co_name == "<module>" else frame.f_code.co_qualname
                names.append("importing" if kind == "importing" else f"{file.removesuffix('.py')}: {kind}")
            frame = frame.f_back
        names.reverse()
        return tuple(name for n, name in enumerate(names) if not n or (name != "importing" and name != names[n - 1]))

    def mark(self, *_: object) -> None:
        self.part = "from there on"

    def show(self, least: float) -> None:
        print(f"{'clock':>8} {'processor':>9}")
        for part, spent in self.spent.items():
            for path in sorted(spent):
                clock, processor = spent[path]
                if max(clock, processor) >= least:
                    print(f"{clock:8.2f} {processor:9.2f}  {'  ' * len(path)}{path[-1] if path else part}")


def child(settings: dict[str, object], least: float) -> None:
    """One run, watched."""
    watch = Watch()
    distill = import_module("protege.run.api").distill  # first: what it imports is counted as its own
    from torch.optim.optimizer import register_optimizer_step_post_hook

    register_optimizer_step_post_hook(watch.mark)
    distill(**settings)
    watch.show(least)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", default=DATA)
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--teacher", help="default: a resnet20 that has learned just enough for this")
    parser.add_argument("--student", default="zoo:resnet8")
    parser.add_argument("--least", type=float, default=0.1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        teacher, place = given.teacher, Path(folder)
        if teacher is None:
            os.environ["PROTEGE_CACHE"] = str(place / "other")
            options = f"--student zoo:resnet20 --data {given.data} --samples 5000 --epochs 2 --out {place / 'teacher'}"
            subprocess.run([sys.executable, "-m", "protege", "train", *options.split()], check=True)
            teacher = str(place / "teacher" / "student")
        os.environ["PROTEGE_CACHE"] = str(place / "cache")
        settings = {"teacher": teacher, "student": given.student, "data": given.data, "samples": given.samples}
        for name in ("cold", "warm"):
            settings |= {"epochs": 1, "out": str(place / name)}
            print(f"\n{name}", flush=True)
            arguments = [sys.executable, __file__, "--child", json.dumps(settings), str(given.least)]
            subprocess.run(arguments, check=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(json.loads(sys.argv[2]), float(sys.argv[3]))
    else:
        main()
