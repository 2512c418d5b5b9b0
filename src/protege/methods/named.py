"""Methods by name: those of this package, those that installed packages offer, and `package.module:name`.

A package offers methods by the entry points ``protege.methods``, each of which names what `find_method` takes.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from ..errors import UserError
from ..lookup import GivenInPython, find_callable, place_of, typed
from . import fskd, gpd, hints, kd, plain, skd
from .method import Method, MethodSettings
from .stages import StageSettings, preview, preview_staged

METHODS: dict[str, Method] = {
    "none": Method(plain.plan, plain.Settings, needs_teacher=False),
    "kd": Method(kd.plan, kd.Settings, labels="used"),
    "fskd": Method(fskd.plan, fskd.Settings, preview=fskd.preview, labels="unread"),
    "gpd": Method(gpd.plan, gpd.Settings, needs_teacher=False, defaults=gpd.DEFAULTS),
    "skd": Method(skd.plan, skd.Settings, defaults=skd.DEFAULTS, preview=preview_staged),
    "simultaneous": Method(hints.simultaneous, StageSettings, preview=preview),
    "fitnets": Method(hints.fitnets, hints.HintSettings, preview=preview_staged),
    "at": Method(hints.at, hints.AttentionSettings, preview=preview),
    "fsp": Method(hints.fsp, StageSettings, preview=preview_staged),
}
_given = GivenInPython("method")


@cache
def offered() -> Mapping[str, EntryPoint]:
    """The methods that installed packages offer, by name; none of them is imported yet."""
    return {entry.name: entry for entry in entry_points(group="protege.methods") if entry.name not in METHODS}


def find_method(name: str) -> Method:
    """The method of a name, or at ``package.module:name``: a `Method`, a function without arguments that returns one,
    or a plan, which is a function of a `Setup`. Raises `UserError` where there is none; see also `is_method`."""
    if name in METHODS:
        return METHODS[name]
    if name in offered():
        return find_method(offered()[name].value)
    value = _given.find(name) or find_callable(
        name, "method", "makes a plan of phases", f", or use one of {', '.join(METHODS)}"
    )
    return _method(value, name)


def is_method(name: str) -> bool:
    """Whether a name may stand for a method; one with a colon is looked for by `find_method`."""
    return name in METHODS or name in offered() or ":" in name


def name_of(method: Any) -> str:
    """The name under which `find_method` finds a method that is given in Python: by its place where it has one."""
    plan = method.plan if isinstance(method, Method) else method
    return _given.name(method, place_of(method, getattr(plan, "__module__", None)))


def is_outside(name: str) -> bool:
    """Whether the method is not one of this package."""
    return name not in METHODS


def _method(value: Any, name: str) -> Method:
    if isinstance(value, Method):
        return value
    try:
        needed = [
            parameter
            for parameter in inspect.signature(value).parameters.values()
            if parameter.default is parameter.empty
            and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        ]
    except (TypeError, ValueError):
        needed = []
    if len(needed) == 1 and not isinstance(value, type):
        return _planned(value)
    try:
        made = value() if not needed else None
    except Exception as error:
        raise UserError(f"the method {name!r} cannot be made with {typed(error)}; correct it.") from error
    if not isinstance(made, Method):
        raise UserError(
            f"the method {name!r} is a {type(value).__name__}; expected a protege.methods.Method, a function without "
            "arguments that returns one, or a plan(setup): name another."
        )
    return made


@cache
def _planned(plan: Any) -> Method:
    """A plan without settings of its own; the same one each time, as recipes are."""
    return Method(plan, MethodSettings)
