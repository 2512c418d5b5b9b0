"""How much a solve computes at once and keeps. What decides the numbers depends on the kind of device alone, so that
they are the same whatever else runs there; what is only kept goes by the memory that is free."""

from __future__ import annotations

import psutil
import torch

KEPT = 256 * 2**20  # bytes of frontier in a processor's memory; more lies in temporary files


def parts_on(device: torch.device) -> int:
    """How many times as much as on a processor is computed at once: a GPU waits for each of its calls."""
    return 16 if device.type == "cuda" else 1


def room_on(device: torch.device) -> tuple[int, int]:
    """Bytes of frontier to keep where they are, and bytes to keep beside a GPU before a disk is written to."""
    if device.type != "cuda":
        return KEPT, 0
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return (torch.cuda.mem_get_info(device)[0] + unused) // 2, psutil.virtual_memory().available // 4
