"""Data: sets by name, in memory or decoded as they are read, and views of their samples that can be replayed.

Data yields raw pixels; a model carries how it wants them normalised.
"""

from understudy.data.batch import Batch
from understudy.data.loader import bare_batches, batches, default_workers, forward_size
from understudy.data.mapped import Mapped
from understudy.data.samples import InMemory, Samples
from understudy.data.spec import Data, cache_root, default_augment, load_data
from understudy.data.split import choose, hold_out
from understudy.data.streams import Encoded
from understudy.data.text import Text
from understudy.data.views import CLEAN, Augment

__all__ = [
    "CLEAN",
    "Augment",
    "Batch",
    "Data",
    "Encoded",
    "InMemory",
    "Mapped",
    "Samples",
    "Text",
    "bare_batches",
    "batches",
    "cache_root",
    "choose",
    "default_augment",
    "default_workers",
    "forward_size",
    "hold_out",
    "load_data",
]
