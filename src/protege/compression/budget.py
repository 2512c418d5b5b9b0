"""What a network may cost at most: multiply-adds, parameters, bytes of its file, time, a loss of accuracy."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from .. import words
from ..errors import UserError
from ..run.recipe import BYTES, SECONDS

UNITS: dict[str, Mapping[str, float]] = {
    "size": BYTES,
    "latency": {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0},
    "time": SECONDS,
}
MARGIN = 1.02  # of a latency
EXAMPLES = {"size": "5MB", "latency": "8ms", "time": "10m"}


@dataclass(frozen=True)
class Limit:
    """The most of one thing: a ``value`` in its own unit, or a ``share`` of the teacher's."""

    value: float | None = None
    share: float | None = None

    def over(self, figure: float, teacher: float) -> float:
        """The figure as a multiple of what is allowed."""
        return figure / (self.value if self.value is not None else self.share * teacher)  # type: ignore[operator]


@dataclass(frozen=True)
class Budget:
    """The limits that are set. ``size`` is in bytes, ``latency`` in seconds for one batch; ``drop`` is how much of the
    quality on held-out images may be lost, a fraction."""

    macs: Limit | None = None
    params: Limit | None = None
    size: Limit | None = None
    latency: Limit | None = None
    drop: float | None = None

    @property
    def limits(self) -> dict[str, Limit]:
        """Those on what a network costs."""
        named = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "drop"}
        return {name: limit for name, limit in named.items() if limit is not None}

    @property
    def measured(self) -> bool:
        """Whether a file must be made to know what a network costs."""
        return self.size is not None or self.latency is not None

    def over(self, figures: Mapping[str, float], teacher: Mapping[str, float]) -> float:
        """The figure that is farthest over its limit, as a multiple of it; 1 or less where the budget is met."""
        ratios = [limit.over(figures[name], teacher[name]) for name, limit in self.limits.items()]
        return max(ratios, default=0.0)

    def met(self, figures: Mapping[str, float], teacher: Mapping[str, float]) -> dict[str, bool]:
        """Whether each limit is kept; times shake."""
        return {
            name: limit.over(figures[name], teacher[name]) <= (MARGIN if name == "latency" else 1.0)
            for name, limit in self.limits.items()
        }

    def shares(self, teacher: Mapping[str, float]) -> dict[str, float]:
        """The limits as shares of the teacher's figures."""
        return {name: 1 / limit.over(teacher[name], teacher[name]) for name, limit in self.limits.items()}

    def told(self) -> dict[str, Any]:
        """The limits as a record keeps them."""
        limits = {name: {"most": each.value, "share": each.share} for name, each in self.limits.items()}
        return limits | ({} if self.drop is None else {"accuracy_drop": self.drop})


def budget_of(macs: Any, params: Any, size: Any, latency: Any, accuracy_drop: Any) -> Budget:
    """The budget that is asked for. Raises `UserError` for values out of range, and where none is given."""
    given = {"macs": macs, "params": params, "size": size, "latency": latency}
    limits = {name: limit_of(name, value) for name, value in given.items() if value is not None}
    if accuracy_drop is not None and not (is_number(accuracy_drop) and 0 < accuracy_drop < 1):
        raise UserError(
            f"accuracy_drop is {accuracy_drop!r}; expected a fraction above 0 and below 1, such as 0.01 for a point."
        )
    if not limits and accuracy_drop is None:
        raise UserError(
            "no budget is given; expected how small or quick the network must be: give macs=…, params=…, size=…, "
            "latency=… or accuracy_drop=…."
        )
    return Budget(**limits, drop=accuracy_drop)


def limit_of(name: str, value: Any) -> Limit:
    """A limit such as 0.4 (of the multiply-adds or parameters), "40%" (of anything), "5MB" or "8ms"."""
    text = str(value).strip()
    number = text.removesuffix("%")
    if name in ("macs", "params") or number != text:
        try:
            share = float(number) / (1 if number == text else 100)
        except ValueError:
            share = math.nan
        if isinstance(value, bool) or not 0 < share < 1:
            such = "0.4" if name in ("macs", "params") else "40%"
            raise UserError(f"{name} is {value!r}; expected less than the whole of the model's, such as {such}.")
        return Limit(share=share)
    return Limit(value=quantity(name, value))


def quantity(name: str, value: Any) -> float:
    """A size in bytes or a time in seconds: a number of these, or with a unit, such as "5MB", "8ms", "10m"."""
    units = UNITS[name]
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        amount = math.nan
    elif isinstance(value, str):
        match = re.fullmatch(r"\s*([\d.]+(?:e-?\d+)?)\s*([a-zµ]*)\s*", value, re.IGNORECASE)
        try:
            amount = float(match[1]) * units[match[2].lower()] if match else math.nan
        except (ValueError, KeyError):
            amount = math.nan
    else:
        amount = float(value)
    if not 0 < amount < math.inf:
        written = ", ".join(unit for unit in units if unit)
        raise UserError(
            f"{name} is {value!r}; expected a positive number with a unit ({written}), such as {EXAMPLES[name]}."
        )
    return amount


def written(name: str, figure: float) -> str:
    """A figure with its unit."""
    if name == "latency":
        return f"{1000 * figure:.3g}{words.NBSP}ms"
    return words.bytes_size(figure) if name == "size" else words.size(figure)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
