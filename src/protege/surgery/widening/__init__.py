"""Gap Preserving Distillation's dynamic teacher (Guo et al. 2025, arXiv 2410.04140): which channels are copied where
(`layout`), the network with the copies (`widen`), and both networks in one set of parameters (`shared`)."""

from .shared import BRANCHES, Shared, readout, share
from .widen import Projection, widen

__all__ = ["BRANCHES", "Projection", "Shared", "readout", "share", "widen"]
