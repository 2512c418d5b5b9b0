"""Networks: a small zoo, adapters, and models that carry how they want their input."""

from .count import count_macs, count_parameters
from .inputs import InputSpec
from .load import check_classes, load_model, output_classes
from .model import Model
from .zoo import ZOO

__all__ = [
    "ZOO",
    "InputSpec",
    "Model",
    "check_classes",
    "count_macs",
    "count_parameters",
    "load_model",
    "output_classes",
]
