"""Processes that start at once: forks of this one, which has imported everything, in the place of new Pythons."""
# ruff: noqa: SIM115

from __future__ import annotations

import importlib
import linecache
import logging
import os
import runpy
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch._dynamo  # noqa: F401  the first step of every fork would import it

from protege.commands import app, worker
from protege.run import workers

NEW_PYTHON = workers.start  # what `conftest.forked_workers` replaces


class Fork:
    """A process that does this and ends as Python does, with what it printed; to be used as a `subprocess.Popen`."""

    def __init__(self, work: Callable[[], object], cwd: Path | str = ".", **environment: object) -> None:
        self._printed = [tempfile.TemporaryFile("w+") for _ in range(2)]
        self.returncode: int | None = None
        self.stdout = self.stderr = ""
        self.pid = forked(work, [open(os.devnull), *self._printed], cwd, environment)

    def poll(self) -> int | None:
        if self.returncode is None and (done := os.waitpid(self.pid, os.WNOHANG))[0]:
            self._end(done[1])
        return self.returncode

    def wait(self) -> int:
        if self.returncode is None:
            self._end(os.waitpid(self.pid, 0)[1])
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def _end(self, status: int) -> None:
        self.returncode = os.waitstatus_to_exitcode(status)
        for file in self._printed:
            file.seek(0)
        self.stdout, self.stderr = (file.read() for file in self._printed)


def forked(work: Callable[[], object], streams: list[Any], cwd: Path | str, environment: dict[str, object]) -> int:
    """The number of a new process that does this with these files as its standard streams."""
    if child := os.fork():
        return child
    status = 1
    try:
        for number, file in enumerate(streams):
            os.dup2(file.fileno(), number)
        sys.stdin = open(0, closefd=False)
        sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        logging.root.handlers.clear()
        os.environ |= {key: str(value) for key, value in environment.items()}
        os.chdir(cwd)
        for name, module in list(sys.modules.items()):  # what lies there may have changed
            if os.path.dirname(getattr(module, "__file__", None) or "") == os.getcwd():
                del sys.modules[name]
        importlib.invalidate_caches()
        linecache.clearcache()
        work()
        status = 0
    except SystemExit as left:
        if isinstance(left.code, str):
            print(left.code, file=sys.stderr)
        status = left.code if isinstance(left.code, int) else int(left.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def protege(*words: object, cwd: Path | str = ".", **environment: object) -> Fork:
    """`protege *words`, as it goes on."""

    def command() -> None:
        sys.argv = ["protege", *map(str, words)]
        app.main()

    return Fork(command, cwd, **environment)


def python(code: str | Path, cwd: Path | str = ".", **environment: object) -> Fork:
    """`python FILE`, or `python -c CODE`, ended."""

    def program() -> None:
        sys.path[0] = os.getcwd()
        if isinstance(code, Path):
            runpy.run_path(str(code), run_name="__main__")
        else:
            exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})

    process = Fork(program, cwd, **environment)
    process.wait()
    return process


def run(*words: object, cwd: Path | str = ".", **environment: object) -> Fork:
    """`protege *words`, ended."""
    process = protege(*words, cwd=cwd, **environment)
    process.wait()
    return process


class ForkedWorker:
    """What `protege.run.workers.start` starts, as a fork."""

    _open: ClassVar[list[Any]] = []  # ends of pipes that a later fork must not keep open

    def __init__(self, environment: dict[str, str]) -> None:
        (commands, stdin), (stdout, answers) = os.pipe(), os.pipe()
        self.stdin, self.stdout = open(stdin, "w"), open(stdout)
        streams = [open(commands), open(answers, "w"), open(os.devnull, "w")]
        ForkedWorker._open += [self.stdin, self.stdout]

        def serve() -> None:
            os.setsid()
            for file in [*ForkedWorker._open, *streams]:
                if not file.closed:
                    os.close(file.fileno())
            worker.serve()

        self.pid = forked(serve, streams, ".", dict(environment))
        self.returncode: int | None = None
        for file in streams:
            file.close()

    poll, wait = Fork.poll, Fork.wait

    def _end(self, status: int) -> None:
        self.returncode = os.waitstatus_to_exitcode(status)
        self.stdout.close()
        ForkedWorker._open = [file for file in ForkedWorker._open if not file.closed]
