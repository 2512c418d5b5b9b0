"""Workers: processes that perform protege commands one after the other, so that Python and torch start only once."""

from __future__ import annotations

import gc
import json
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any


class Worker:
    """A process that performs commands, each with a log of its own. It ends with the process that started it: a command
    that still runs then is stopped as by TERM, so that what it did is kept."""

    def __init__(self, threads: int) -> None:
        self._environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads))}
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
            pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            # in a session of its own: Ctrl-C reaches it through the one that started it
            command = [sys.executable, "-P", "-m", __name__]  # -P: not from the working directory
            self._process = subprocess.Popen(command, env=self._environment, start_new_session=True, **pipes)
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


def _serve() -> None:
    """Perform the commands that come through the standard input, a line each, and answer with their statuses."""
    commands, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)  # the commands' own output goes to their logs
    waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()
    busy = threading.Event()

    def listen() -> None:
        for line in commands:
            waiting.put(json.loads(line))
        waiting.put(None)
        if busy.is_set():
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=listen, daemon=True).start()
    while (command := waiting.get()) is not None:
        arguments, log = command
        busy.set()
        with open(log, "ab") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        status = _perform(arguments)
        busy.clear()
        print(status, file=answers, flush=True)


def _perform(arguments: list[str]) -> int:
    from ..commands.cli import main

    logging.root.handlers.clear()  # main sets its own, which knows the options of its command
    sys.argv = ["protege", *arguments]
    try:
        main()
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except Exception:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        gc.collect()
    return 0


if __name__ == "__main__":
    _serve()
    os._exit(0)  # every command has finished: taking torch down again would only take time
