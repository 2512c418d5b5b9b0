"""Few-Sample KD's algebra (Li et al. 2020, arXiv 1812.01839): which layers of a student answer to which of its teacher
(`alignment`), the least squares between them from sums alone (`moments`), and what they give as part of the weights
(`absorb`)."""

from .absorb import absorb, blocks_of, folded, has_intercept, settle
from .alignment import Point, plan_alignment, refuse_unrelated
from .moments import Moments, Solution, solve

__all__ = [
    "Moments",
    "Point",
    "Solution",
    "absorb",
    "blocks_of",
    "folded",
    "has_intercept",
    "plan_alignment",
    "refuse_unrelated",
    "settle",
    "solve",
]
