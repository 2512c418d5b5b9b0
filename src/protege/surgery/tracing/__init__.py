"""A network's graph, recorded by torch.fx beside a real pass (`graph`, `tracer`); running it node by node (`walk`); the
calls that code makes with weights (`calls`); and features on the way (`taps`)."""

from .graph import Trace, Untraceable, trace
from .taps import Tapped, feature, first_outputs
from .walk import Call, Frontier, Live, Walk, input_name, output_name

__all__ = [
    "Call",
    "Frontier",
    "Live",
    "Tapped",
    "Trace",
    "Untraceable",
    "Walk",
    "feature",
    "first_outputs",
    "input_name",
    "output_name",
    "trace",
]
