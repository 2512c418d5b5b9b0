"""Networks: a small zoo, adapters, and models that carry how they want their input."""

from understudy.models.count import count_macs, count_parameters
from understudy.models.fit import check_classes, output_classes
from understudy.models.inputs import InputSpec
from understudy.models.load import load_model
from understudy.models.model import Model
from understudy.models.zoo import ZOO

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
