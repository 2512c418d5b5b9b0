"""What the user names as `package.module:attribute`: it is looked up in the module's compiled code before anything is
imported or run. Where an object lies and what its source is, is told here as well."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from difflib import get_close_matches
from dis import get_instructions
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import UserError, nearest, out_of_memory, shown, told
from .torch_utils import admit_torchvision

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")  # in memory, another one in each process
DYNAMIC = {"__getattr__", "globals", "locals", "vars", "setattr", "exec", "eval", "modules", "*"}  # may make any name


def find_callable(
    name: str, role: str, does: str, otherwise: str = "", schemes: Sequence[str] = ()
) -> Callable[..., Any]:
    """The callable at `package.module:attribute`, looked for in the working directory where no installed module has
    it. Nothing is imported that cannot have it: what only looks like one, a program among them, is not run.

    For sentences: the `role` it is given for ("model"), what it `does` ("makes a network"), what to take `otherwise`,
    and the `schemes` that may have been meant.
    """
    module_name, _, attribute = name.partition(":")
    first, *_ = attribute.split(".")
    if "__main__" in module_name.split(".") and module_name not in sys.modules:
        raise UserError(
            f"{role} {name!r} names a program, which is run rather than imported; name the module that defines what "
            f"{does}."
        )
    try:
        installed = has_name(module_name, first)
    except ModuleNotFoundError:
        installed = False
    except Exception:  # importing it will tell
        installed = True
    with nullcontext() if installed else _working_directory_first():
        try:
            if not installed and not has_name(module_name, first):
                hint = nearest(first, names_in(module_name), "name a function or class defined there")
                raise UserError(f"module {module_name!r} has no {first!r}, named by {role} {name!r}; {hint}.")
            value: Any = _imported(module_name)
        except UserError:
            raise
        except (Exception, SystemExit) as error:
            raise UserError(_not_importable(name, role, otherwise, schemes, error)) from error
    for part in attribute.split("."):
        if not hasattr(value, part):
            known = [key for key, member in vars(value).items() if callable(member) and not key.startswith("_")]
            hint = nearest(part, known, "name a function or class defined there")
            raise UserError(f"module {module_name!r} has no {part!r}, named by {role} {name!r}; {hint}.")
        value = getattr(value, part)
    if not callable(value):
        kind = type(value).__name__
        raise UserError(f"{role} {name!r} names {shown(value)} of type {kind}; name a function or class that {does}.")
    return value


def split_query(spec: str, role: str = "model") -> tuple[str, dict[str, Any]]:
    """`name?key=value&…` → name and arguments; values read as numbers, true, false, none or else text."""
    name, _, query = spec.partition("?")
    arguments: dict[str, Any] = {}
    for item in filter(None, query.split("&")):
        key, equals, value = item.partition("=")
        if not key or not equals:
            raise UserError(f"argument {item!r} of {role} {spec!r} is not of the form key=value; correct it.")
        arguments[key] = _value(value)
    return name, arguments


def _value(text: str) -> Any:
    words: dict[str, Any] = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text


def refuse_unknown(function: Callable[..., Any], arguments: Mapping[str, Any], what: str) -> None:
    """Raise `UserError` for an argument that a function does not take."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # of no readable signature
        return
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    if unknown := min(set(arguments) - set(parameters), default=""):
        raise UserError(f"{what} has no argument {unknown!r}; {nearest(unknown, parameters)}.")


def place_of(value: Any, module: str | None = None) -> str | None:
    """Where `find_callable` finds this very object again, as `package.module:attribute`; None where it is nowhere.

    ``module``: where an object may lie that does not know it.
    """
    module = module or getattr(value, "__module__", None)
    held: Any = sys.modules.get(str(module))
    if held is None or module == "__main__":
        return None
    name = getattr(value, "__qualname__", None)
    if name is None:
        return next((f"{module}:{key}" for key, member in vars(held).items() if member is value), None)
    for part in name.split("."):
        held = getattr(held, part, None)
    return f"{module}:{name}" if held is value else None


class GivenInPython:
    """What programs give in Python where a recipe has the name of a ``role``: by its place where it has one, else under
    a name that serves this program alone."""

    begins = "python:"

    def __init__(self, role: str) -> None:
        self.role = role
        self._values: dict[str, Any] = {}

    def name(self, value: Any, place: str | None) -> str:
        """The recipe's name for a value that `find_callable` finds at this place, or nowhere."""
        if place:
            return place
        name = f"{self.begins}{getattr(value, '__qualname__', type(value).__qualname__)}"
        self._values[name] = value
        return name

    def find(self, name: str) -> Any:
        """The value of such a name, None for names of other kinds. Raises `UserError` in another program."""
        if name in self._values or not name.startswith(self.begins):
            return self._values.get(name)
        raise UserError(
            f"the {self.role} of this run was given in Python ({name}), which a recipe cannot hold; expected it again: "
            f"pass {self.role}= to the function."
        )


def _imported(module_name: str) -> Any:
    try:
        return importlib.import_module(module_name)
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        admit_torchvision()
        return importlib.import_module(module_name)


@contextmanager
def blaming(what: str, outside: bool) -> Iterator[None]:
    """Let what fails in code that is from ``outside`` the package say so."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not outside or isinstance(error, OSError) or out_of_memory(error, trains=True):
            raise
        raise UserError(f"{what} fails with {typed(error)}; correct it.") from error


def _not_importable(name: str, role: str, otherwise: str, schemes: Sequence[str], error: BaseException) -> str:
    module_name = name.partition(":")[0]
    missing = isinstance(error, ModuleNotFoundError) and (
        error.name is not None and (module_name + ".").startswith(error.name + ".")
    )
    if not missing:
        return f"module {module_name!r} of {role} {name!r} fails on import with {typed(error)}; correct it."
    top, dot, _ = module_name.partition(".")
    where = f"the folder {top!r}" if dot else f"{module_name}.py"
    remedy = f"run it where {where} is, or put its folder on PYTHONPATH{otherwise}"
    scheme = get_close_matches(f"{module_name}:", [f"{scheme}:" for scheme in schemes], n=1, cutoff=0.75)
    hint = f"did you mean {scheme[0]!r}? else {remedy}" if scheme else remedy
    known = "neither a known scheme nor a module" if schemes else "no module"
    return f"{role} {name!r} names {known} that can be imported from here; {hint}."


def typed(error: BaseException) -> str:
    """What an error says, with its type."""
    name, text = type(error).__name__, told(error)
    return name if text == name else f"{name}: {text}"


@contextmanager
def _working_directory_first() -> Iterator[None]:
    """The user's modules first while importing, afterwards last: they hide no installed package for long; and not at
    all where that fails."""
    here = os.getcwd()
    known = here in sys.path or "" in sys.path
    if not known:
        sys.path.insert(0, here)
        importlib.invalidate_caches()
    imported = False
    try:
        yield
        imported = True
    finally:
        if not known:
            sys.path.remove(here)
            sys.path += [here] if imported else []


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


def source_digest(function: Any, module: str = "") -> str:
    """What tells a callable from others: the source of the module (of this name, or else its own) or of itself, and
    what it holds: arguments of a partial, variables of a closure, attributes of an object."""
    source = [_source_of_all(sys.modules[module])] if module in sys.modules else []
    return hashlib.sha256("\n".join([*source, *_told(function, set())]).encode()).hexdigest()


def _told(value: Any, seen: set[int]) -> Iterator[str]:
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Mapping | list | tuple):
        for entry in [*value.items()] if isinstance(value, Mapping) else value:
            yield from _told(entry, seen)
    elif isinstance(value, functools.partial):
        yield from _told([value.func, value.args, value.keywords], seen)
    elif isinstance(value, Tensor | np.ndarray):
        yield hashlib.sha256(np.ascontiguousarray(torch.as_tensor(value).cpu()).tobytes()).hexdigest()
    elif inspect.isroutine(value) or isinstance(value, type):
        yield f"{value.__module__}:{value.__qualname__}"
        module = sys.modules.get(value.__module__)
        yield (_source_of_all(module) if module and value.__module__ != "__main__" else "") or _source(value)
        if inspect.isfunction(value):
            yield str(list(value.__code__.co_positions())[-1])  # of several on one line, which
            yield from _told([value.__defaults__, dict(inspect.getclosurevars(value).nonlocals)], seen)
        elif hasattr(value, "__self__"):
            yield from _told(value.__self__, seen)
    elif callable(value):
        yield from _told([type(value), getattr(value, "__dict__", {})], seen)
    else:
        yield _ADDRESS.sub("", repr(value))


def _source_of_all(module: ModuleType) -> str:
    """The source of a module, and of those of its own package, or else of its folder, that it imports, and they in
    turn: by their files, whether they have been imported yet or not. Of what all runs stand on, the version."""
    file, top = getattr(module, "__file__", None), module.__name__.partition(".")[0]
    if top in sys.stdlib_module_names:  # thousands of files
        return sys.version
    if top in ("torch", "numpy"):
        return str(sys.modules[top].__version__)
    if not file:
        return _source(module)
    depth = module.__name__.count(".") + Path(file).name.startswith("__init__.")
    root = Path(file).resolve().parents[depth]
    installed = root.name in ("site-packages", "dist-packages")
    sources: dict[str, str] = {}
    waiting = [module.__name__]
    while waiting:
        name = waiting.pop()
        place = root.joinpath(*name.split("."))
        path = next((p for p in (place.with_suffix(".py"), place / "__init__.py") if p.is_file()), None)
        if name in sources or path is None or (installed and name.partition(".")[0] != top):
            continue
        sources[name] = path.read_text(encoding="utf-8", errors="replace")
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        waiting += _imports(sources[name], package)
    return "\n".join(sources[name] for name in sorted(sources)) or _source(module)


def _imports(source: str, package: str) -> Iterator[str]:
    """The names of modules that a module in ``package`` may import."""
    try:
        nodes = list(ast.walk(ast.parse(source)))
    except (SyntaxError, ValueError):
        return
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*filter(None, parts), *([node.module] if node.module else [])])
            yield from filter(None, [base, *(f"{base}.{alias.name}".lstrip(".") for alias in node.names)])


def _source(written: Any) -> str:
    try:
        return inspect.getsource(written)
    except (OSError, TypeError):
        return ""
