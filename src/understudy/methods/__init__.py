"""The methods: each a plan of phases, each file the paper's algorithm and nothing else."""

from . import fskd, gpd, hints, kd, plain, skd
from .method import Cast, Method, MethodSettings, Transfer
from .stages import StageSettings

METHODS: dict[str, Method] = {
    "none": Method(plain.plan, plain.Settings, needs_teacher=False),
    "kd": Method(kd.plan, kd.Settings, labels="used"),
    "fskd": Method(fskd.plan, fskd.Settings, preview=fskd.preview, labels="unread"),
    "gpd": Method(gpd.plan, gpd.Settings, needs_teacher=False, defaults=gpd.DEFAULTS),
    "skd": Method(skd.plan, skd.Settings, defaults=skd.DEFAULTS, preview=skd.preview),
    "simultaneous": Method(hints.simultaneous, StageSettings, preview=skd.preview),
    "fitnets": Method(hints.fitnets, hints.HintSettings, preview=skd.preview),
    "at": Method(hints.at, hints.AttentionSettings, preview=skd.preview),
    "fsp": Method(hints.fsp, StageSettings, preview=skd.preview),
}

__all__ = ["METHODS", "Cast", "Method", "MethodSettings", "Transfer"]
