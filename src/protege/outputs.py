"""What a network's outputs are read from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def logits_in(outputs: Any) -> Any:
    """The ``logits`` of outputs that are a mapping or an object with them (``out`` of a mapping, as torchvision's have
    it), and the only tensor of those that hold one; all other outputs as they are."""
    if isinstance(outputs, Tensor):
        return outputs
    named = outputs if isinstance(outputs, Mapping) else {}
    for name in ("logits", "out"):
        if name in named:
            return named[name]
    if (logits := getattr(outputs, "logits", None)) is not None:
        return logits
    held = list(named.values()) if named else list(outputs) if isinstance(outputs, tuple | list) else []
    return held[0] if len(held) == 1 and isinstance(held[0], Tensor) else outputs
