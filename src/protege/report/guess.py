"""The guess to beat: what is to be had by who has only counted the labels, and who has learned no more than that.

Read from a network's part of ``result.json``: ``metrics``, ``chance`` (`protege.tasks.Chance`, of the set that it was
measured on) and ``commonest_guess``, the class that it chooses most often and in which share of the rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..data.labels import blind
from . import words
from .read import numbers

NOTABLE = 0.2  # a guess so often right that a metric is read as the lead over it
NEARLY = 0.99  # of the rows: a network that chooses one class so often chooses no other


def guessed(metric: str, part: Mapping[str, Any]) -> float | None:
    """A metric's value for who always says the commonest class (of text: each word as often as it stands there)."""
    chance = numbers(part.get("chance"))
    if not chance.get("classes"):
        return None
    share, classes = chance["accuracy"], chance["classes"]
    return {
        "accuracy": share,
        "pixel_accuracy": share,
        "balanced_accuracy": 1 / classes,
        "macro_f1": 2 * share / (1 + share) / classes,
        "miou": share / classes,
        "nll": chance["nll"],
        "perplexity": math.exp(min(chance["nll"], 700.0)),
    }.get(metric)


def learned(part: Mapping[str, Any]) -> bool | None:
    """Whether a network does better than the guess; None where that cannot be told."""
    metrics = numbers(part.get("metrics"))
    guess = {name: value for name in metrics if (value := guessed(name, part)) is not None}
    if not guess or guess.get("balanced_accuracy") == 1:
        return None
    if "balanced_accuracy" not in guess:  # words
        return metrics["nll"] < 0.99 * guess["nll"]
    right = "pixel_accuracy" if "pixel_accuracy" in guess else "accuracy"
    return metrics[right] > guess[right] or metrics["balanced_accuracy"] > blind(part["chance"]["classes"])


def guesser(metric: str) -> str:
    """Who guesses so."""
    return "a count of the words" if metric == "perplexity" else "the commonest class alone"


def told_guess(metric: str, part: Mapping[str, Any], say: Callable[[str, float], str] = lambda _, v: f"{v:.4f}") -> str:
    """``guess to beat: 0.9000``, a number as logs have it or as ``say`` has it; "" where it is not known."""
    value, share = guessed(metric, part), guessed("pixel_accuracy", part)
    if value is None:
        return ""
    pixels = f" ({say('pixel_accuracy', share)} of the pixels)" if metric == "miou" and share is not None else ""
    return f"guess to beat: {say(metric, value)}{pixels}"


def collapse(part: Mapping[str, Any], names: Sequence[str], who: str = "the student") -> str:
    """A sentence on a network that says one class for (nearly) everything, where not all are of it; else ""."""
    favourite = numbers(part.get("commonest_guess"))
    level, reached = guessed("balanced_accuracy", part), numbers(part.get("metrics")).get("balanced_accuracy")
    if not favourite or level is None or reached is None or level == 1:
        return ""
    if favourite["share"] < NEARLY or reached > blind(part["chance"]["classes"]):
        return ""
    number = int(favourite["class"])
    name = names[number] if number < len(names) else str(number)
    rows = "pixels" if "pixel_accuracy" in part["metrics"] else "images"
    often = f"all {rows}" if favourite["share"] == 1 else f"{words.share(favourite['share'])} of the {rows}"
    return f"{words.capital(who)} says class {name!r} for {often}."


def verdict(part: Mapping[str, Any], metric: str, names: Sequence[str], who: str = "the student") -> str:
    """What must be said beside a metric that is no better than the guess; "" where there is nothing to add."""
    metrics, sentences = numbers(part.get("metrics")), []
    if text := collapse(part, names, who):
        sentences.append(text)
    if learned(part) is False:
        alone = told_guess(metric, part, words.metric_value).partition(": ")[2]
        sentences.append(f"That is no better than guessing: {guesser(metric)} has {alone}.")
    elif metric == "accuracy" and learned(part) and metrics[metric] <= (guess := guessed(metric, part) or 0.0):
        balanced = words.share(metrics["balanced_accuracy"])
        sentences.append(f"The commonest class alone has {words.share(guess)}; the mean over classes is {balanced}.")
    return " ".join(sentences)
