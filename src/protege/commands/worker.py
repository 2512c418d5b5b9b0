"""The program of a worker (`run/workers.py`): performs commands that come through its standard input."""

from __future__ import annotations

import gc
import json
import logging
import os
import queue
import signal
import sys
import threading
import traceback
from typing import Any

from .app import main


def serve() -> None:
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
    serve()
    os._exit(0)  # every command has finished: taking torch down again would only take time
