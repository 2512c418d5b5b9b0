"""Stages of networks (Stagewise KD, Kulkarni et al. 2020, arXiv 1911.06786, section 3): where to cut a student and its
teacher alike (`cuts`), and the pieces between the cuts as modules that share the network's own (`pieces`, `split`)."""

from .cuts import Pair, find_cuts, pair
from .places import Cut
from .runs import HEAVY
from .split import HEAD, Chain, Stage, describe, split

__all__ = ["HEAD", "HEAVY", "Chain", "Cut", "Pair", "Stage", "describe", "find_cuts", "pair", "split"]
