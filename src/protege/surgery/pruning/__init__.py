"""Smaller networks: filters by size (Li et al. 2017, arXiv 1608.08710) or BatchNorm scale (Liu et al. 2017, arXiv
1708.06519) with all that depends on them (Fang et al. 2023, arXiv 2301.12900); convolutions as depthwise and pointwise
pairs (Guo et al. 2018, arXiv 1808.05517); and what was changed, as JSON that makes the structure again."""

from .decouple import Decoupled, decouple
from .groups import PARTS
from .path import Path, path_of
from .result import LeftOut, Shrunk, compose, together
from .shrink import shrink
from .structure import rebuild, record

__all__ = [
    "PARTS",
    "Decoupled",
    "LeftOut",
    "Path",
    "Shrunk",
    "compose",
    "decouple",
    "path_of",
    "rebuild",
    "record",
    "shrink",
    "together",
]
