"""Phases, and the one runner that executes them."""

from .phase import Fit, FitSettings, Phase, Solve
from .runner import Runner

__all__ = ["Fit", "FitSettings", "Phase", "Runner", "Solve"]
