"""Data: sets by name, in memory or decoded as they are read, and views of their samples that can be replayed.

Data yields raw pixels; a model carries how it wants them normalised.
"""

from protege.data.batch import Batch
from protege.data.dataset import Data, check_complete
from protege.data.loader import bare_batches, batches, default_workers, forward_size
from protege.data.mapped import Mapped
from protege.data.samples import InMemory, Samples
from protege.data.spec import cache_root, default_augment, load_data
from protege.data.split import choose, hold_out
from protege.data.streams import Encoded
from protege.data.text import Text
from protege.data.views import CLEAN, MOST_PIXELS, Augment

__all__ = [
    "CLEAN",
    "MOST_PIXELS",
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
    "check_complete",
    "choose",
    "default_augment",
    "default_workers",
    "forward_size",
    "hold_out",
    "load_data",
]
