"""The numbers that a network computes with, and which of them grow with its channels.

Whoever scales by the number of channels (``x * x.shape[1] ** -0.5``) computes with a number that grows with them. Sizes
and dimensions are numbers too, but whole ones only: a call that takes no fraction in their place.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ..nests import tensors_in
from ..tracing.calls import FAILURES
from ..tracing.watch import Frame, watching
from .copies import map_numbers, numbers_in

CallKey = tuple[str, Callable, int]  # module, function, how-many-eth call of it while that module runs


def key_of(stack: list[Frame], func: Callable) -> CallKey:
    """The call that was just made of this function."""
    return stack[-1].name, func, stack[-1].counts[func]


def differing(student: nn.Module, wide: nn.Module, example: Tensor) -> dict[CallKey, dict[int, float]]:
    """Where the wide network computes with other numbers: of each such call their positions among its numbers, and the
    student's as shares of its own. None where it fails."""
    stack: list[Frame] = []
    numbers: dict[CallKey, list[float]] = {}
    shares: dict[CallKey, dict[int, float]] = {}

    def note(func: Any, args: tuple, kwargs: dict[str, Any], _out: Any) -> None:
        numbers[key_of(stack, func)] = numbers_in((args, kwargs))

    def compare(func: Any, args: tuple, kwargs: dict[str, Any], _out: Any) -> None:
        mine, theirs = numbers_in((args, kwargs)), numbers.get(key_of(stack, func), ())
        if len(mine) != len(theirs) or not tensors_in((args, kwargs)):
            return
        for place, (a, b) in enumerate(zip(mine, theirs, strict=True)):
            differ = a * b > 0 and math.isfinite(a * b) and not math.isclose(a, b, rel_tol=1e-3)
            if differ and (isinstance(a, float) or _takes_fractions(func, args, kwargs, place)):
                shares.setdefault(key_of(stack, func), {})[place] = b / a

    with watching(student, note, stack):
        student(example)
    try:
        with watching(wide, compare, stack):
            wide(example)
    except Exception:  # told by who checks it
        return {}
    return shares


def _takes_fractions(func: Any, args: tuple, kwargs: dict[str, Any], place: int) -> bool:
    args, kwargs = map_numbers((args, kwargs), lambda number, leaf: leaf + 0.5 if number == place else leaf)
    try:
        func(*args, **kwargs)
    except FAILURES:
        return False
    return True
