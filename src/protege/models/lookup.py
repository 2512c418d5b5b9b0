"""What a module has to offer, told from its compiled code: nothing is imported or run."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dis import get_instructions
from importlib.machinery import ModuleSpec
from types import CodeType

DYNAMIC = {"__getattr__", "globals", "locals", "vars", "setattr", "exec", "eval", "modules", "*"}  # may make any name


def has_name(module: str, name: str) -> bool:
    """Whether the module has the name, or may have it once it is imported, as one whose code is not at hand may.

    Raises what finding and compiling raise, `ModuleNotFoundError` first.
    """
    if module in sys.modules:
        return hasattr(sys.modules[module], name)
    spec = _found(module)
    code = _code(spec)
    if code is None:
        return True
    names = set(_bound(code))
    inside = spec.submodule_search_locations is not None and _spec(f"{module}.{name}", spec) is not None
    return name in names or inside or not names.isdisjoint(DYNAMIC)


def names_in(module: str) -> list[str]:
    """The functions and classes that the module defines."""
    if module in sys.modules:
        return [name for name, value in vars(sys.modules[module]).items() if callable(value) and name[0] != "_"]
    code = _code(_found(module))
    consts = () if code is None else code.co_consts
    names = (const.co_name for const in consts if isinstance(const, CodeType))
    return [name for name in names if name.isidentifier() and not name.startswith("_")]


def _found(module: str) -> ModuleSpec:
    parent = None
    for end in range(1, module.count(".") + 2):
        name = ".".join(module.split(".")[:end])
        spec = _spec(name, parent)
        if spec is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        parent = spec
    assert parent is not None
    return parent


def _spec(name: str, parent: ModuleSpec | None) -> ModuleSpec | None:
    """As `importlib.util.find_spec`, which would import the parent."""
    if parent is None:
        path = None
    elif (path := getattr(sys.modules.get(parent.name), "__path__", parent.submodule_search_locations)) is None:
        return None
    finders = (getattr(finder, "find_spec", None) for finder in sys.meta_path)
    return next((spec for find in finders if find is not None and (spec := find(name, path))), None)


def _code(spec: ModuleSpec) -> CodeType | None:
    read = getattr(spec.loader, "get_code", None)
    return None if read is None else read(spec.name)


def _bound(code: CodeType, top: bool = True) -> Iterator[str]:
    """The names that running the module's code binds in the module, and those that tell that it may bind others."""
    stores = ("STORE_NAME", "STORE_GLOBAL") if top else ("STORE_GLOBAL",)
    yield from (one.argval for one in get_instructions(code) if one.opname in stores)
    yield from DYNAMIC.intersection(code.co_names) if top else {"globals"}.intersection(code.co_names)
    for const in code.co_consts:
        if isinstance(const, CodeType):
            yield from _bound(const, top=False)
        elif const == ("*",):  # all that another module has
            yield "*"
