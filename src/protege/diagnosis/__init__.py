"""Reading a teacher before using it: measures, a verdict, and what to do (Tang et al. 2020, arXiv 2002.03532).

`rows` reads a network once over samples, `relations` and `measure` sum up, `verdict` judges and `recommend` advises,
both as pure functions of the measurements; `run/diagnose.py` puts them together as `protege.diagnose`.
"""

from .recommend import Candidate, Facts, Recommendation, facts_about, kinship, recommend
from .verdict import Finding, at_chance, judge, primary

__all__ = [
    "Candidate",
    "Facts",
    "Finding",
    "Recommendation",
    "at_chance",
    "facts_about",
    "judge",
    "kinship",
    "primary",
    "recommend",
]
