"""Processes that learn together, as Accelerate starts them, and who of them goes first."""

from __future__ import annotations

import atexit
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, parse_flag_from_env
from torch import distributed

from ..errors import UserError
from ..models.precision import on_cpu

PATIENCE = timedelta(hours=24)  # a process may wait for one that extracts data; NCCL's own limit is ten minutes


def make_accelerator(**options: Any) -> Accelerator:
    """This process among those that were started together, on its device; precision stays the loop's own affair.

    Raises `UserError` where there are more of them on a machine than it has GPUs.
    """
    local, on_gpu = int(os.environ.get("LOCAL_RANK", "0")), not parse_flag_from_env("ACCELERATE_USE_CPU")
    if on_gpu and torch.cuda.is_available() and local >= torch.cuda.device_count() > 0:
        gpus = torch.cuda.device_count()
        raise UserError(
            f"process {local} of this machine has no GPU, of which there are {gpus}; expected one for each: start "
            f"{gpus} a machine, or set CUDA_VISIBLE_DEVICES= (empty) to learn on the processor."
        )
    patience, joined = InitProcessGroupKwargs(timeout=PATIENCE), _joined()
    # cpu is told, as Accelerate otherwise takes torchrun's processes for one each
    accelerator = Accelerator(cpu=on_cpu(), mixed_precision="no", kwargs_handlers=[patience], **options)
    if _joined() and not joined:
        atexit.register(_part)
    return accelerator


def _part() -> None:
    """Leave the other processes before Python ends, whose end a thread of Gloo's that still lets go of tensors would
    abort. DistributedDataParallel keeps these threads for good: they get a moment. NCCL's end would wait for processes
    that have failed."""
    if _joined() and distributed.get_backend() == distributed.Backend.GLOO:
        distributed.destroy_process_group()
        time.sleep(0.1)


def _joined() -> bool:
    return distributed.is_available() and distributed.is_initialized()


@contextmanager
def in_turn(accelerator: Accelerator) -> Iterator[None]:
    """Inside is the first process of all, then the first of each other node, then all others: what the first makes on a
    disk the others find there, on one that all nodes share or on each node's own.

    Accelerate's own contexts leave the others waiting where the first raises.
    """
    turn = 0 if accelerator.is_main_process else 1 if accelerator.is_local_main_process else 2
    for _ in range(turn):
        accelerator.wait_for_everyone()
    try:
        yield
    finally:
        for _ in range(2 - turn):
            accelerator.wait_for_everyone()
