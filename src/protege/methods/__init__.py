"""The methods: each a plan of phases, each file the paper's algorithm and nothing else."""

from . import fskd, gpd, hints, kd, plain, skd
from .method import Cast, Method, MethodSettings, Transfer
from .stages import StageSettings, preview, preview_staged

METHODS: dict[str, Method] = {
    "none": Method(plain.plan, plain.Settings, needs_teacher=False),
    "kd": Method(kd.plan, kd.Settings, labels="used"),
    "fskd": Method(fskd.plan, fskd.Settings, preview=fskd.preview, labels="unread"),
    "gpd": Method(gpd.plan, gpd.Settings, needs_teacher=False, defaults=gpd.DEFAULTS),
    "skd": Method(skd.plan, skd.Settings, defaults=skd.DEFAULTS, preview=preview_staged),
    "simultaneous": Method(hints.simultaneous, StageSettings, preview=preview),
    "fitnets": Method(hints.fitnets, hints.HintSettings, preview=preview_staged),
    "at": Method(hints.at, hints.AttentionSettings, preview=preview),
    "fsp": Method(hints.fsp, StageSettings, preview=preview_staged),
}

__all__ = ["METHODS", "Cast", "Method", "MethodSettings", "Transfer"]
