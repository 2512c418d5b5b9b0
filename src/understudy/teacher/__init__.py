"""The teacher as a source of signals, and the memory of them."""

from .cache import SignalCache, cache_root
from .signals import Feature, Logits, Signal, Source, TopK

__all__ = ["Feature", "Logits", "Signal", "SignalCache", "Source", "TopK", "cache_root"]
