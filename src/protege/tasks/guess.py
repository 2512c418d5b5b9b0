"""The guess to beat: what is to be had by who has only counted the labels, and who has learned no more than that.

Read from the ``metrics`` of a network, the ``chance`` (`Chance`) of the set that they were measured on, and its
``commonest_guess``: the class that it chooses most often, and in which share of the rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .. import words
from ..data.labels import blind

NEARLY = 0.99  # of the rows: a network that chooses one class so often chooses no other


def judged(part: Mapping[str, Any], metric: str, names: Sequence[str], who: str = "the student") -> dict[str, Any]:
    """What a result says of a network beside its metrics: the ``guess`` to beat in each of them, whether the network
    has ``learned`` more than that, and a ``remark`` where it has not. Empty where there is no `Chance`."""
    if not part.get("chance"):
        return {}
    return {"guess": guesses(part), "learned": learned(part), "remark": remark(part, metric, names, who)}


def guesses(part: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of who always says the commonest class (of text: each word as often as it stands there)."""
    chance = part.get("chance") or {}
    if not chance.get("classes"):
        return {}
    share, classes = chance["accuracy"], chance["classes"]
    known = {
        "accuracy": share,
        "pixel_accuracy": share,
        "balanced_accuracy": 1 / classes,
        "macro_f1": 2 * share / (1 + share) / classes,
        "miou": share / classes,
        "nll": chance["nll"],
        "perplexity": math.exp(min(chance["nll"], 700.0)),
    }
    return {name: known[name] for name in part["metrics"] if name in known}


def learned(part: Mapping[str, Any]) -> bool | None:
    """Whether a network does better than the guess; None where that cannot be told."""
    metrics, guess = part["metrics"], guesses(part)
    if not guess or guess.get("balanced_accuracy") == 1:
        return None
    if "balanced_accuracy" not in guess:  # words
        return metrics["nll"] < 0.99 * guess["nll"] if "nll" in guess else None
    right = "pixel_accuracy" if "pixel_accuracy" in guess else "accuracy"
    if right not in guess:
        return None
    return metrics[right] > guess[right] or metrics["balanced_accuracy"] > blind(part["chance"]["classes"])


def remark(part: Mapping[str, Any], metric: str, names: Sequence[str], who: str = "the student") -> str:
    """What must be said beside a metric that is no better than the guess; "" where there is nothing to add."""
    metrics, guess, sentences = part["metrics"], guesses(part), [_collapse(part, names, who)]
    if learned(part) is False:
        guesser = "a count of the words" if metric == "perplexity" else "the commonest class alone"
        alone = f": {guesser} has {words.with_pixels(metric, guess)}" if metric in guess else ""
        sentences.append(f"That is no better than guessing{alone}.")
    elif metric == "accuracy" and learned(part) and metrics[metric] <= guess[metric]:
        alone, balanced = words.share(guess[metric]), words.share(metrics["balanced_accuracy"])
        sentences.append(f"The commonest class alone has {alone}; the mean over classes is {balanced}.")
    return " ".join(filter(None, sentences))


def _collapse(part: Mapping[str, Any], names: Sequence[str], who: str) -> str:
    """A sentence on a network that says one class for (nearly) everything, where not all are of it; else ""."""
    metrics, favourite = part["metrics"], part.get("commonest_guess")
    classes, reached = part["chance"]["classes"], metrics.get("balanced_accuracy")
    if not favourite or reached is None or classes < 2 or favourite["share"] < NEARLY or reached > blind(classes):
        return ""
    number = favourite["class"]
    name = names[number] if number < len(names) else str(number)
    rows = "pixels" if "pixel_accuracy" in metrics else "images"
    often = f"all {rows}" if favourite["share"] == 1 else f"{words.share(favourite['share'])} of the {rows}"
    return f"{words.capital(who)} says class {name!r} for {often}."
