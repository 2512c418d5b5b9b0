"""Networks: a small zoo, adapters, and models that carry how they want their input."""

from ..surgery.counting import count_macs, count_parameters
from .fit import check_classes, check_fit, output_classes
from .inputs import InputSpec
from .load import load_model
from .model import Model
from .specs import framed_for, held_out_by, known_ranges, seen_by
from .zoo import ZOO

__all__ = [
    "ZOO",
    "InputSpec",
    "Model",
    "check_classes",
    "check_fit",
    "count_macs",
    "count_parameters",
    "framed_for",
    "held_out_by",
    "known_ranges",
    "load_model",
    "output_classes",
    "seen_by",
]
