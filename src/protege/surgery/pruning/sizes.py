"""Whole numbers that know what they count, so that a size in a network's code is known by where it comes from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from .removal import kind_of
from .ties import Tags


class Number(int):
    """An attribute of a module (``place``: its name, and which of several numbers it is), or how many ``channels`` a
    tensor has; or, `made`, what is computed from the latter."""

    place: tuple[str, int] | None = None
    channels: Tags | None = None
    made = False

    @staticmethod
    def of(
        value: int, place: tuple[str, int] | None = None, channels: Tags | None = None, made: bool = False
    ) -> Number:
        """The number of this value, with what it counts."""
        number = Number(value)
        number.place, number.channels, number.made = place, channels, made
        return number

    def _computed(self, other: Any, value: Any) -> Any:
        channels = self.channels if self.channels is not None else getattr(other, "channels", None)
        return Number.of(value, channels=channels, made=True) if type(value) is int and channels is not None else value

    def __floordiv__(self, other: Any) -> Any:
        return self._computed(other, int(self).__floordiv__(other))

    def __mul__(self, other: Any) -> Any:
        return self._computed(other, int(self).__mul__(other))

    def __rmul__(self, other: Any) -> Any:
        return self._computed(other, int(self).__rmul__(other))


@contextmanager
def knowing(network: nn.Module) -> Iterator[None]:
    """Inside, the whole numbers among the modules' attributes know whose they are."""
    changed = []
    for path, module in network.named_modules():
        for key, value in vars(module).items() if kind_of(module) is None else ():
            name = f"{path}.{key}".lstrip(".")
            if type(value) is int and value > 1:
                changed.append((module, key, value, Number.of(value, (name, 0))))
            elif type(value) in (tuple, list) and value and all(type(item) is int for item in value):
                parts = [Number.of(item, (name, n)) for n, item in enumerate(value)]
                changed.append((module, key, value, type(value)(parts)))
    for module, key, _, number in changed:
        module.__dict__[key] = number
    try:
        yield
    finally:
        for module, key, value, number in changed:
            if module.__dict__.get(key) is number:
                module.__dict__[key] = value
