"""From a trained model and a folder of photos to a file for a device: a budget, a search, teaching, an export."""

from .front import Compressed, compress

__all__ = ["Compressed", "compress"]
