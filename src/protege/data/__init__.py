"""Data: sets by name, in memory or decoded as they are read, and views of their samples that can be replayed.

Data yields raw pixels; a model carries how it wants them normalised.
"""

from .augment import Augment, check_augment
from .batch import Batch
from .dataset import Data, check_complete
from .decoders import default_workers, lasting_decoders
from .loader import bare_batches, batches, forward_size
from .samples import InMemory, Samples, Streamed
from .spec import cache_root, load_data
from .split import choose, hold_out
from .text import Text
from .views import CLEAN, MOST_PIXELS

__all__ = [
    "CLEAN",
    "MOST_PIXELS",
    "Augment",
    "Batch",
    "Data",
    "InMemory",
    "Samples",
    "Streamed",
    "Text",
    "bare_batches",
    "batches",
    "cache_root",
    "check_augment",
    "check_complete",
    "choose",
    "default_workers",
    "forward_size",
    "hold_out",
    "lasting_decoders",
    "load_data",
]
