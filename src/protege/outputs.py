"""What a network's outputs are read from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def logits_in(outputs: Any) -> Any:
    """The ``logits`` of outputs that are a mapping or an object with them; all other outputs as they are."""
    if isinstance(outputs, Tensor):
        return outputs
    if isinstance(outputs, Mapping):
        return outputs.get("logits", outputs)
    return getattr(outputs, "logits", outputs)
