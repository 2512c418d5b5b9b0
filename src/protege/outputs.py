"""What a network's outputs are read from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .errors import UserError


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


def refuse_odd(outputs: Tensor, who: str) -> None:
    """Raise `UserError` for outputs that are no dense tensor of real numbers: meta, sparse, quantised, integers."""
    kind = next((kind for kind in ("meta", "quantized", "nested", "mkldnn") if getattr(outputs, f"is_{kind}")), "")
    if not kind and outputs.layout != torch.strided:
        kind = str(outputs.layout).removeprefix("torch.")
    if not kind and not (outputs.is_floating_point() and outputs.dtype.itemsize > 1):
        kind = str(outputs.dtype).removeprefix("torch.")
    if kind:
        raise UserError(
            f"{who} gives a tensor of kind {kind}; expected a dense one of real numbers, in training as well: wrap the "
            "network in a module that returns such logits."
        )
