"""What users give, checked: settings, which do not change, and the arguments of public functions."""

from __future__ import annotations

import inspect
import json
import numbers
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import wraps
from pathlib import Path
from types import UnionType
from typing import Any, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator
from torch import nn

from .errors import UserError, out_of_memory, shown

LARGEST, SMALLEST = 1e9, 1e-12  # beyond these, single precision overflows within a step or has nothing left


class Settings(BaseModel):
    """Settings, each of which is checked on its own."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _listed(cls, value: Any, info: ValidationInfo) -> Any:
        """A list as the command line gives it: with commas between, or as JSON."""
        if not isinstance(value, str) or get_origin(cls.model_fields[str(info.field_name)].annotation) is not list:
            return value
        if value.lstrip().startswith("["):
            with suppress(ValueError):
                return json.loads(value)
        return [word.strip() for word in value.split(",") if word.strip()]

    @field_validator("*")
    @classmethod
    def _within_reason(cls, value: Any, info: ValidationInfo) -> Any:
        """Numbers from `SMALLEST` to `LARGEST`, and 0; to its own bound where a setting has one."""
        bounds = cls.model_fields[str(info.field_name)].metadata
        bounded = any(hasattr(bound, "le") or hasattr(bound, "lt") for bound in bounds)
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int | float) and number:
                if abs(number) > LARGEST and not bounded:
                    raise ValueError(f"expected at most {LARGEST:g}")
                if abs(number) < SMALLEST:
                    raise ValueError(f"expected at least {SMALLEST:g}")
        return value


P = ParamSpec("P")
R = TypeVar("R")
_KINDS: dict[type, tuple[Any, str]] = {
    str: (str, "text"),
    Path: (os.PathLike, "a path"),
    bool: (bool, "True or False"),
    int: (numbers.Integral, "a whole number"),
    float: (numbers.Real, "a number"),
    Mapping: (Mapping, "a dict"),
    Sequence: (Sequence, "a list"),
    nn.Module: (nn.Module, "a network (nn.Module)"),
    type(None): (type(None), "None"),
}


def number_or(word: str, number: str) -> Callable[[Any], Any]:
    """Reads what the command line gives where ``word`` stands for a ``number``."""

    def read(value: Any) -> Any:
        if isinstance(value, str) and value != word:
            try:
                return int(value)
            except ValueError:
                raise ValueError(f"expected {number}, or {word!r}") from None
        return value

    return read


ENDLESS = 10**300


def public(function: Callable[P, R]) -> Callable[P, R]:
    """The function, raising `UserError` for arguments of other kinds than it names, and where memory does not suffice.

    Kinds that are not among the plain ones (`Any`, say) are the function's own business.
    """
    signature = inspect.signature(function)
    hints: dict[str, Any] = {}

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if not hints:
            hints.update(get_type_hints(function))
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            _refuse_endless(name, value)
            if signature.parameters[name].kind is not inspect.Parameter.VAR_KEYWORD:
                _check(name, value, hints.get(name, Any))
        try:
            return function(*args, **kwargs)
        except (MemoryError, RuntimeError) as error:
            if (told := out_of_memory(error, "settings" in signature.parameters)) is None:
                raise
            raise told from error

    return call


def _refuse_endless(name: str, value: Any) -> None:
    """Raise `UserError` for whole numbers, some of the arguments of a name too, that Python itself would not print."""
    for key, number in value.items() if isinstance(value, dict) else [(name, value)]:
        if isinstance(number, int) and abs(number) >= ENDLESS:
            raise UserError(f"{key} is a whole number of too many digits; expected one of at most 300: change {key}=….")


def _check(name: str, value: Any, hint: Any) -> None:
    union = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    kinds = [get_origin(kind) or kind for kind in union]
    if {str, nn.Module} <= {*kinds}:  # a model, which is looked at where it is loaded
        return
    if Any in kinds or not all(isinstance(kind, type) and not getattr(kind, "_is_protocol", False) for kind in kinds):
        return
    flag = isinstance(value, bool) and bool not in kinds  # else True would be the number 1
    if flag or not isinstance(value, tuple(_KINDS.get(kind, (kind,))[0] for kind in kinds)):
        expected = " or ".join(_KINDS[kind][1] if kind in _KINDS else f"a {kind.__name__}" for kind in kinds)
        raise UserError(f"{name} = {shown(value)} is a {type(value).__name__}; expected {expected}: change {name}=….")
