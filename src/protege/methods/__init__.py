"""The methods: each a plan of phases, each file the paper's algorithm and nothing else.

A method of one's own is a function that gets a `Setup` (student, teacher, task, settings, transfer set) and returns the
phases to run, in a `Method` that says which settings it reads:

    from pydantic import Field
    from protege.methods import Fit, Method, MethodSettings

    class Settings(MethodSettings):
        share: float = Field(0.5, ge=0, le=1, description="share of the loss that comes from the teacher")

    def plan(setup):
        signals = setup.asked(Logits())

        def step(student, batch):
            rows, truth, weights = setup.rows(student(batch.inputs), batch)
            ...
            return {"loss": loss}

        return [Fit("mine", setup.student, step, signals)]

    mine = Method(plan, Settings)

It is named ``mymodule:mine`` wherever a method is named: on the command line, in recipes and studies, and in Python.
"""

from ..signals import Feature, Logits, Outputs, TopK, Views
from ..training.phase import Fit, Solve
from .method import Method, MethodSettings, Setup
from .named import METHODS, find_method, is_method, is_outside, name_of, offered

__all__ = [
    "METHODS",
    "Feature",
    "Fit",
    "Logits",
    "Method",
    "MethodSettings",
    "Outputs",
    "Setup",
    "Solve",
    "TopK",
    "Views",
    "find_method",
    "is_method",
    "is_outside",
    "name_of",
    "offered",
]
