"""Workers: processes that perform protege commands one after the other, so that Python and torch start only once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from ..numerics import WORKSPACE, repeatable_workspace

PROGRAM = "protege.commands.worker"
VISIBLE = "CUDA_VISIBLE_DEVICES"


def start(environment: Mapping[str, str]) -> subprocess.Popen[str]:
    """A process that performs the commands which it reads; Ctrl-C reaches it through this one alone."""
    command = [sys.executable, "-P", "-m", PROGRAM]  # -P: not from the working directory
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, start_new_session=True, **pipes)


def gpus() -> list[str]:
    """The GPUs that workers may use, as `CUDA_VISIBLE_DEVICES` names them: those that it names now, if it does.

    They are counted without taking up any.
    """
    count, named = torch.cuda.device_count(), os.environ.get(VISIBLE)
    if named is None or not count:
        return [str(number) for number in range(count)]
    names = [name.strip() for name in named.split(",")]
    return names if names[0].startswith("MIG-") else names[:count]  # a process counts one part of a GPU at most


class Worker:
    """A process that performs commands, each with a log of its own. It ends with the process that started it: a command
    that still runs then is stopped as by TERM, so that what it did is kept. ``gpu``: the only one that it sees;
    ``repeatable``: whether it begins as deterministic runs need it."""

    def __init__(self, threads: int, gpu: str | None = None, repeatable: bool = False) -> None:
        self._environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads))}
        if gpu is not None:
            self._environment[VISIBLE] = gpu
        if repeatable:
            self._environment[WORKSPACE] = repeatable_workspace()
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self.stop()
            self._process.wait()

    def stop(self) -> None:
        """Let it end, with what it does now."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()

    def call(self, arguments: list[str], log: Path) -> str:
        """Perform ``protege *arguments``, adding to ``log``; the last words where it fails, else nothing."""
        log.parent.mkdir(parents=True, exist_ok=True)
        log.touch()
        begin = log.stat().st_size
        if self._process is None or self._process.poll() is not None:
            self._process = start(self._environment)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(OSError):  # it ended
            self._process.stdin.write(json.dumps([arguments, str(log)]) + "\n")
            self._process.stdin.flush()
        status = self._process.stdout.readline().strip() or f"{self._process.wait()} and no answer"
        if status == "0":
            return ""
        lines = log.read_bytes()[begin:].decode(errors="replace").strip().splitlines()
        errors = [line for line in lines if line.startswith(("error", "internal error"))]  # libraries write there, too
        return [*lines, *errors][-1] if lines else f"failed with status {status}"
