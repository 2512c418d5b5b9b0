"""protege: make a small neural network take over a big one's role, with the data you really have."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .errors import UserError, plain_in_sessions

if TYPE_CHECKING:
    from .compression import Compressed, compress
    from .data import load_data
    from .models import InputSpec, Model, load_model
    from .run.api import Result, distill, evaluate, preview, train
    from .run.diagnose import Diagnosis, diagnose
    from .run.exporting import export
    from .run.shrinking import shrink
    from .version import __version__

__all__ = [
    "Compressed",
    "Diagnosis",
    "InputSpec",
    "Model",
    "Result",
    "UserError",
    "__version__",
    "compress",
    "diagnose",
    "distill",
    "evaluate",
    "export",
    "load_data",
    "load_model",
    "preview",
    "shrink",
    "train",
]

_ROOMS = ("data", "diagnosis", "losses", "methods", "models", "report", "signals", "surgery", "tasks", "training")
_PLACES = {
    "compression": ("Compressed", "compress"),
    "data": ("load_data",),
    "models": ("InputSpec", "Model", "load_model"),
    "run.api": ("Result", "distill", "evaluate", "preview", "train"),
    "run.diagnose": ("Diagnosis", "diagnose"),
    "run.exporting": ("export",),
    "run.shrinking": ("shrink",),
    "version": ("__version__",),
}


def __getattr__(name: str) -> Any:
    """What lies in a module that has not been imported yet: torch alone takes more than a second (PEP 562)."""
    if name in _ROOMS:
        return import_module(f".{name}", __name__)
    for place, names in _PLACES.items():
        if name in names:
            value = globals()[name] = getattr(import_module(f".{place}", __name__), name)
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_ROOMS})


plain_in_sessions()
