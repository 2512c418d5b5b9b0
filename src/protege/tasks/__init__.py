"""Tasks: how outputs become rows, which metrics decide, and what there is to draw."""

from .task import BINS, TASKS, Chance, Metrics, Task, bin_of, class_weights, cross_entropy

__all__ = ["BINS", "TASKS", "Chance", "Metrics", "Task", "bin_of", "class_weights", "cross_entropy"]
