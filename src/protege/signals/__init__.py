"""The teacher as a source of signals, and the memory of them.

`TeacherCache` serves any training loop; the rest is what it and our own are made of. A `Source` is a frozen network
and what it is asked for, `Views` are what it is shown, and `Signals` puts what it says into batches, from a
`SignalCache` or by a forward pass.
"""

from .cache import SignalCache
from .signals import Signals
from .source import Feature, Logits, Outputs, Signal, Source, TopK
from .teacher import Loader, TaughtBatch, TeacherCache, TeacherOutputs
from .views import Views

__all__ = [
    "Feature",
    "Loader",
    "Logits",
    "Outputs",
    "Signal",
    "SignalCache",
    "Signals",
    "Source",
    "TaughtBatch",
    "TeacherCache",
    "TeacherOutputs",
    "TopK",
    "Views",
]
