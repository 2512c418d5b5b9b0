"""The teacher as a source of signals, and the memory of them."""

from .cache import SignalCache
from .signals import Feature, Logits, Outputs, Signal, Source, TopK

__all__ = ["Feature", "Logits", "Outputs", "Signal", "SignalCache", "Source", "TopK"]
