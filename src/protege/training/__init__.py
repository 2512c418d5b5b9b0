"""Phases, and the one loop that executes them."""

from .loop import Loop
from .phase import Fit, FitSettings, Phase, Solve

__all__ = ["Fit", "FitSettings", "Loop", "Phase", "Solve"]
