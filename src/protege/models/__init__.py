"""Networks: a small zoo, adapters, and models that carry how they want their input."""

from protege.models.count import count_macs, count_parameters
from protege.models.fit import check_classes, check_fit, output_classes
from protege.models.inputs import InputSpec
from protege.models.load import load_model
from protege.models.model import Model
from protege.models.specs import held_out_by, known_ranges
from protege.models.zoo import ZOO

__all__ = [
    "ZOO",
    "InputSpec",
    "Model",
    "check_classes",
    "check_fit",
    "count_macs",
    "count_parameters",
    "held_out_by",
    "known_ranges",
    "load_model",
    "output_classes",
]
