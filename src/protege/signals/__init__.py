"""The teacher as a source of signals, and the memory of them."""

from .cache import SignalCache
from .signals import Signals
from .source import Feature, Logits, Outputs, Signal, Source, TopK
from .views import Views

__all__ = ["Feature", "Logits", "Outputs", "Signal", "SignalCache", "Signals", "Source", "TopK", "Views"]
