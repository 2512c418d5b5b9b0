"""Whose code a model's folder may run.

What a user types (in a command, a recipe, a study, a program) may name any code. A folder may come from a stranger: of
what it names, only networks of the known schemes are built, and `module:factory` only where the user trusts it. All of
this is decided before anything is imported.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..errors import UserError, shown
from ..lookup import split_query
from ..program import is_commanded
from .description import CONFIG, Description
from .parts import places_in
from .sources import SCHEMES, is_source

KNOWN = ("torch.nn.modules.", "protege.models.")  # whose classes may be parts of a network from anywhere

FETCHING = {  # arguments that bring weights from elsewhere, which lie in the folder
    "timm": ("pretrained", "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay"),
    "smp": ("encoder_weights",),
}


def names_code(model: Any) -> bool:
    """Whether what `config.json` has as its "model" is Python that a scheme does not stand for."""
    return isinstance(model, str) and model.partition(":")[0] not in SCHEMES


def refuse_untrusted(folder: Path, description: Description, trust: bool) -> None:
    """Raise `UserError` where the folder names what is no source, or code that it may not run, and show that.

    In a Python program it may name a class of networks that the program has imported itself, called on numbers: text
    could tell a class to load something else.
    """
    name, arguments = description.model, description.arguments
    if name is None or trust:
        return
    if not is_source(name):
        raise UserError(f"{str(folder / CONFIG)!r} names the unknown model {shown(name)}; save the model again.")
    scheme = name.partition(":")[0]
    if key := next((key for key in FETCHING.get(scheme, ()) if arguments.get(key)), None):
        raise UserError(
            f"{str(folder / CONFIG)!r} has {key} = {shown(arguments[key])}, which would fetch other weights than "
            "those in the folder; expected none: take it out."
        )
    if description.parts:
        if all(map(_may_be_part, description.parts)):
            return
    elif not names_code(name) or (_is_held(name) and not _has_text([list(arguments.values()), description.extra])):
        return
    given = ", ".join(f"{key}={shown(value)}" for key, value in arguments.items())
    call = f"{name}({given})" if len(given) <= 1000 else f"{name}({given[:1000]}…)"
    raise UserError(
        f"the folder {str(folder)!r} would run {call} to build its network, and whose code that is "
        "nobody has checked; expected a folder that you trust: look at that code, then allow it with trust=True."
    )


def is_typed(description: Description, spec: str) -> bool:
    """Whether a folder names just what the user's spec does, but for the number of classes, which data tells."""
    if description.model != spec.partition("?")[0] or description.parts:
        return False
    _, arguments = split_query(spec)
    named = {key: value for key, value in description.arguments.items() if key in arguments or key != "num_classes"}
    return named == arguments


def _may_be_part(part: Mapping[str, Any]) -> bool:
    """Whether a part of a network is a layer of torch with settings that such have, or of a class that the program has
    imported, with numbers for settings."""
    place, settings = str(part.get("class", KNOWN[0])), part.get("settings", {})
    if not all(map(_is_operation, (other for other in places_in([part]) if other != place))):
        return False
    if any(kind in json.dumps(settings) for kind in ('"partial"', '"object"')):  # a call, or a class of no module
        return False
    known = place.startswith(KNOWN) and "." not in place.partition(":")[2]
    return known or (_is_held(place) and not any(map(_tells, settings.values())))


def _is_operation(place: str) -> bool:
    """Whether it is one of torch's functions of tensors."""
    module, _, name = place.partition(":")
    operations = {"torch": torch._C._VariableFunctions, "torch._C._nn": torch._C._nn, "torch.nn.functional": F}
    return "." not in name and name != "from_file" and hasattr(operations.get(module), name)


def _tells(value: Any) -> bool:
    """Whether a setting holds text, rather than numbers and functions."""
    if isinstance(value, Mapping):
        ((kind, content),) = value.items()
        if kind == "dict":
            return any(_tells(item) for _, item in content)
        return kind in ("tuple", "set", "frozenset") and _tells(content)
    return any(map(_tells, value)) if isinstance(value, list) else isinstance(value, str)


def _is_held(name: str) -> bool:
    """Whether it is a class of networks in a module that the program has imported; looked up without running anything,
    as modules may answer for names that they lack by importing more."""
    if is_commanded():
        return False
    module, _, path = name.partition(":")
    value: Any = sys.modules.get(module)
    for part in path.split("."):
        value = vars(value).get(part) if isinstance(value, ModuleType | type) else None
    return isinstance(value, type) and issubclass(value, nn.Module)


def _has_text(value: Any) -> bool:
    if isinstance(value, Mapping):
        return bool(value)  # its keys
    return any(map(_has_text, value)) if isinstance(value, list) else isinstance(value, str)
