"""The methods: each a plan of phases, each file the paper's algorithm and nothing else."""

from . import kd, plain
from .method import Cast, Method, MethodSettings, Transfer

METHODS: dict[str, Method] = {
    "none": Method(plain.plan, plain.Settings, needs_teacher=False),
    "kd": Method(kd.plan, kd.Settings),
}

__all__ = ["METHODS", "Cast", "Method", "MethodSettings", "Transfer"]
