"""Exact changes to networks: pure functions on modules, each with a law that a property test checks."""

from .absorb import absorb
from .alignment import Point, plan_alignment
from .cuts import Cut, Pair, find_cuts, pair
from .decouple import Decoupled, decouple
from .readout import BRANCHES, Shared, readout, share
from .shrink import shrink
from .shrunk import Shrunk, compose
from .solve import Moments, Solution, solve
from .stages import HEAD, Chain, Stage, describe, split
from .structure import rebuild, record
from .tap import Tapped, first_outputs
from .walk import Frontier, Walk
from .widen import widen

__all__ = [
    "BRANCHES",
    "HEAD",
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
