"""Whether outputs are logits: what a softmax or a sigmoid has made of them is refused wherever logits are expected.

Log-probabilities are logits like any others. Whether a network ends in a sigmoid is seen in what it computes: the last
operation in the graph of its outputs. Where there is no graph, values show it only where they are certain: many of them
lie within a hundredth below 1 and none above, which logits, whatever their size, do not keep to.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..torch_utils import eval_mode

_MANY = 20  # values just below 1 with none above: by chance once in a million
_MOVES = (
    *("View", "UnsafeView", "ReshapeAlias", "Squeeze", "Unsqueeze", "Permute", "Transpose", "T", "Alias", "Expand"),
    *("Clone", "ToCopy", "Select", "Slice", "Index"),
)
_SQUASHES = ("Sigmoid", "Hardsigmoid", "Softmax", "SafeSoftmax")


def refuse_squashed(network: nn.Module, inputs: Tensor, who: str) -> None:
    """Raise `UserError` where the last thing that a network does to raw inputs is to make probabilities."""
    if (last := last_operation(network, inputs)) in _SQUASHES:
        name = last.lower().removeprefix("safe")
        raise UserError(f"the {who} gives probabilities (its outputs end in a {name}); {_remedy(name)}.")


def check_rows(rows: Tensor, who: str) -> None:
    """Raise `UserError` where rows ``[M, K]`` of outputs are what a softmax or a sigmoid gives rather than takes."""
    z = rows.detach().float()
    if len(z) < 2 or z.shape[1] < 2 or not bool((z >= 0).all()):
        return
    if bool(((z.sum(1) - 1).abs() < 1e-2).all()):
        sign, name = "its outputs are not negative and sum to 1", "softmax"
    elif bool((z <= 1).all()) and int((z > 0.99).sum()) >= _MANY and bool((z < 0.99).any()):
        sign, name = "its outputs go from 0 to 1 and never beyond", "sigmoid"
    else:
        return
    raise UserError(f"the {who} gives probabilities ({sign}); {_remedy(name)}.")


def _remedy(name: str) -> str:
    inverse = "torch.logit" if "sigmoid" in name else "torch.log"
    return f"expected logits: leave out its last {name}, or return {inverse} of what it returns"


def last_operation(network: nn.Module, raw: Tensor) -> str | None:
    """The operation that makes a network's outputs, "Sigmoid" say, apart from those that only move them; None where it
    cannot be told, as in a network that computes without gradients."""
    inputs = raw.float().div(255).requires_grad_() if raw.dtype == torch.uint8 else raw
    try:
        with eval_mode(network), torch.enable_grad():
            made = getattr(network(inputs), "grad_fn", None)
    except Exception:  # a quantised network has no gradients; whoever trains one hears of it then
        return None
    while made is not None and _name(made) in _MOVES and made.next_functions:
        made = made.next_functions[0][0]
    return None if made is None else _name(made)


def _name(made: Any) -> str:
    return type(made).__name__.partition("Backward")[0].lstrip("_")
