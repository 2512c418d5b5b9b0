"""Tasks: how outputs become rows, what their loss and metrics are, and what there is to check and to draw.

Targets, losses and methods work on rows and so on every task (notation of Tang et al. 2020, "Understanding and
Improving Knowledge Distillation"). One file is one task; nobody else asks which task it is.
"""

from .chance import Chance
from .classification import BINS, Classification, bin_of
from .embeddings import Embeddings
from .language import Language
from .metrics import Metrics
from .named import TASKS, find_task, is_own, name_in_folders, shipped_task, task_digest, task_name
from .segmentation import Segmentation
from .task import Shortfall, Task

__all__ = [
    "BINS",
    "TASKS",
    "Chance",
    "Classification",
    "Embeddings",
    "Language",
    "Metrics",
    "Segmentation",
    "Shortfall",
    "Task",
    "bin_of",
    "find_task",
    "is_own",
    "name_in_folders",
    "shipped_task",
    "task_digest",
    "task_name",
]
