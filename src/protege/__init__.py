"""protege: make a small neural network take over a big one's role, with the data you really have."""

from .data import load_data
from .errors import UserError, plain_in_sessions
from .models import InputSpec, Model, load_model
from .run.api import Result, distill, evaluate, preview, train
from .run.diagnose import Diagnosis, diagnose
from .run.exporting import export
from .run.shrinking import shrink
from .version import __version__

__all__ = [
    "Diagnosis",
    "InputSpec",
    "Model",
    "Result",
    "UserError",
    "__version__",
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

plain_in_sessions()
