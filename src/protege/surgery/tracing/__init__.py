"""A network's graph, recorded by torch.fx beside a real pass (`graph`); running it node by node (`walk`); and features
on the way (`taps`)."""

from .graph import Trace, Untraceable, trace
from .taps import Tapped, first_outputs
from .walk import Frontier, Live, Walk, input_name

__all__ = ["Frontier", "Live", "Tapped", "Trace", "Untraceable", "Walk", "first_outputs", "input_name", "trace"]
