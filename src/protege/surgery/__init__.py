"""Exact changes to networks, each with a law that is checked by values: on other samples than it was made for.

- `tracing`: a network's graph beside a real pass, and running it node by node.
- `stages`: where two networks correspond, and a network as runnable pieces between such cuts.
- `pruning`: fewer channels, or cheaper convolutions; and a changed structure as plain JSON.
- `solving`: a student's layers aligned with its teacher's by least squares, absorbed into its weights.
- `widening`: a wider network of exactly the same function, tied to the student it was made from.

Functions take any module and a prepared example batch. They know no method, no task and no command. The examples in
their docstrings are about this network:

    >>> import torch
    >>> from torch import nn
    >>> convolutions = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()
    >>> network = nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(8 * 4 * 4, 10))
    >>> x = torch.randn(2, 3, 8, 8)
"""

from .pruning import Decoupled, Shrunk, compose, decouple, rebuild, record, shrink
from .solving.absorb import absorb
from .solving.alignment import Alignment, Point, plan_alignment
from .solving.moments import Moments
from .solving.ridge import Solution, solve
from .stages import HEAD, HEAVY, Chain, Cut, Pair, Stage, describe, find_cuts, pair, split
from .tracing import Frontier, Tapped, Walk, feature, first_outputs
from .widening import BRANCHES, Shared, readout, share, widen

__all__ = [
    "BRANCHES",
    "HEAD",
    "HEAVY",
    "Alignment",
    "Chain",
    "Cut",
    "Decoupled",
    "Frontier",
    "Moments",
    "Pair",
    "Point",
    "Shared",
    "Shrunk",
    "Solution",
    "Stage",
    "Tapped",
    "Walk",
    "absorb",
    "compose",
    "decouple",
    "describe",
    "feature",
    "find_cuts",
    "first_outputs",
    "pair",
    "plan_alignment",
    "readout",
    "rebuild",
    "record",
    "share",
    "shrink",
    "solve",
    "split",
    "widen",
]
