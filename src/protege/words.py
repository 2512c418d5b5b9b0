"""Numbers as a reader says them: percentages, points, counts, durations; and what a metric is called."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

NBSP = "\u00a0"
MINUS = "\u2212"
_FRACTIONS = {"top5", "ece", "agreement"}
_PARTS_OF_FRACTIONS = ("accuracy", "iou", "f1", "recall", "precision")
_LOWER = {"nll", "ece", "perplexity", "loss", "error", "mse", "brier"}
_NAMES = {
    "accuracy": "accuracy",
    "nll": "NLL",
    "ece": "ECE",
    "miou": "mean IoU",
    "pixel_accuracy": "pixel accuracy",
    "perplexity": "perplexity",
    "macro_f1": "macro F1",
}
_TELLING = ("miou", "perplexity")  # which tell their task, also of runs that name another metric first


def primary_metric(names: Iterable[str]) -> str:
    """The metric a run is judged by: the first named that is no loss."""
    named = list(names)
    present = [name for name in named if not ("loss" in name or name == "mse")] or named or ["accuracy"]
    if "accuracy" in present and present[0] in _LOWER:
        present.insert(0, "accuracy")
    return next((name for name in _TELLING if name in present), present[0])


def is_fraction(metric: str) -> bool:
    """Whether a metric lies in 0..1 and is said in percent."""
    return metric in _FRACTIONS or any(part in metric for part in _PARTS_OF_FRACTIONS)


def factor(metric: str) -> int:
    """What a metric's value is multiplied with to be shown."""
    return 100 if is_fraction(metric) else 1


def unit(metric: str) -> str:
    return " %" if is_fraction(metric) else ""


def lower_is_better(metric: str) -> bool:
    return metric in _LOWER or metric.endswith("loss")


def metric_name(metric: str) -> str:
    return _NAMES.get(metric, metric.replace("_", " "))


def share(value: float, digits: int = 1) -> str:
    """A fraction in percent: ``0.573`` → ``57.3 %``."""
    return f"{100 * value:.{digits}f}{NBSP}%"


def rough_share(value: float) -> str:
    """A ratio in percent with about two digits; a little short of one is not rounded up to it."""
    percent = 100 * value
    if 0 < percent < 0.005:
        return f"below 0.01{NBSP}%"
    digits = 0 if 10 <= percent < 98.95 or percent >= 99.995 else 1 if percent >= 1 else 2
    return f"{percent:.{digits}f}{NBSP}%"


def plain(value: float) -> str:
    """A number without a unit, with three to four digits that mean something."""
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}".replace("-", MINUS)
    if size and size < 0.001:
        return f"{value:.1e}".replace("-", MINUS)
    digits = 0 if size >= 10 and value == int(value) else 1 if size >= 100 else 2 if size >= 10 else 3
    return f"{value:.{digits}f}".replace("-", MINUS)


def figure(metric: str, value: float) -> str:
    """A value of a metric that is no fraction; perplexities with one digit behind the point."""
    return f"{value:,.1f}" if metric == "perplexity" else plain(value)


def metric_value(metric: str, value: float | None, digits: int = 1) -> str:
    """A metric's value as said to a reader; an em dash where there is none."""
    if value is None:
        return "—"
    return share(value, digits) if is_fraction(metric) else figure(metric, value)


def difference(metric: str, delta: float, digits: int = 1) -> str:
    """A signed change: in percentage points for fractions (``+3.2 points``), as a number otherwise."""
    sign = "+" if delta > 0 else MINUS if delta < 0 else "±"
    if not is_fraction(metric):
        return sign + figure(metric, abs(delta))
    return f"{sign}{100 * abs(delta):.{digits}f}{NBSP}points"


def amount(metric: str, delta: float) -> str:
    """A change without its sign."""
    return difference(metric, abs(delta)).lstrip("+±")


def verdict(metric: str, delta: float, interval: float | None = None) -> str:
    """``"better"``, ``"worse"`` or ``"unclear"`` (the interval, a half width, contains zero; or no change)."""
    if delta == 0 or (interval is not None and abs(delta) <= interval):
        return "unclear"
    return "better" if (delta < 0) == lower_is_better(metric) else "worse"


def count(value: float | None) -> str:
    """An exact count with separators: ``50,000``."""
    return "—" if value is None else f"{value:,.0f}"


def size(value: float | None) -> str:
    """A large number with three digits and k, M, G or T."""
    if value is None:
        return "—"
    for unit, scale in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= scale:
            scaled = value / scale
            return f"{scaled:.{2 if scaled < 10 else 1 if scaled < 100 else 0}f}{NBSP}{unit}"
    return f"{value:.0f}"


def bytes_size(value: float) -> str:
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if value >= scale:
            return f"{value / scale:.1f}{NBSP}{unit}"
    return f"{value:.0f}{NBSP}bytes"


def duration(seconds: float | None) -> str:
    """A span of time in the two largest units that matter."""
    if seconds is None or not math.isfinite(seconds):
        return "—"
    if seconds < 60:
        return f"{seconds:.{2 if seconds < 1 else 1}f}{NBSP}s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}{NBSP}min {whole % 60:02d}{NBSP}s"
    if whole < 86400:
        return f"{whole // 3600}{NBSP}h {whole % 3600 // 60:02d}{NBSP}min"
    return f"{whole // 86400}{NBSP}d {whole % 86400 // 3600}{NBSP}h"


def plural(number: float, noun: str) -> str:
    return f"{count(number)} {noun}" if number == 1 else f"{count(number)} {noun}s"


def short(value: object) -> str:
    """A value as a recipe or a command has it; numbers without digits that say nothing."""
    return (
        f"{value:g}"
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e6
        else str(value)
    )


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def guess_to_beat(metric: str, guess: Mapping[str, float], say: Callable[[str, float], str] = metric_value) -> str:
    """``guess to beat: 10.3 %``, from the metrics of who only counts the labels; "" where it is not known."""
    return f"guess to beat: {with_pixels(metric, guess, say)}" if metric in guess else ""


def with_pixels(metric: str, guess: Mapping[str, float], say: Callable[[str, float], str] = metric_value) -> str:
    """A metric of who only counts the labels; to an IoU the share of the pixels that gives it."""
    pixels = guess.get("pixel_accuracy") if metric == "miou" else None
    return say(metric, guess[metric]) + (f" ({say('pixel_accuracy', pixels)} of the pixels)" if pixels else "")
