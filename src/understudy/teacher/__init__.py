"""The teacher as a source of signals, and the memory of them."""

from .cache import SignalCache, cache_root
from .signals import Feature, Logits, Outputs, Signal, Source, TopK

__all__ = ["Feature", "Logits", "Outputs", "Signal", "SignalCache", "Source", "TopK", "cache_root"]
