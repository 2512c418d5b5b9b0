"""The first sentence of a run's report: what happened, in words, with the figures that matter."""

from __future__ import annotations

from typing import Any

from .. import words
from .curves import where_measured
from .read import Run, is_number, numbers, table

NOTABLE = 0.2  # a guess so often right that a metric is read as the lead over it


def headline(run: Run, metric: str) -> str:
    """One sentence on what the run achieved, or how far it has come."""
    if not run.finished:
        return unfinished(run, metric)
    student, classes = run.part("student"), run.part("data").get("classes")
    value = run.metrics("student").get(metric)
    if value is None:
        return "The run is finished; there were no labels to measure the student by."
    alone = "Trained on the labels alone" if run.setting("method") == "none" else "Without a teacher"
    start = "The student" if run.part("teacher") else f"{alone}, the student"
    text = f"{start} reaches {named_value(metric, value)}{since_before(run, metric, value)}{with_data(run)}"
    remark = student.get("remark", "")
    if "remark" not in student and metric == "accuracy" and is_number(classes) and value * classes <= 1:
        remark = "That is no better than guessing."
    return f"{text}{compared(run, metric, value)}. {remark}".strip() + judged_on(run)


def named_value(metric: str, value: float) -> str:
    """``57.3 % accuracy``; ``a perplexity of 92.1``."""
    name = words.metric_name(metric)
    if words.is_fraction(metric):
        return f"{words.metric_value(metric, value)} {name}"
    return f"a{'n' if name[0] in 'aeiouN' else ''} {name} of {words.metric_value(metric, value)}"


def with_data(run: Run) -> str:
    """`` on cifar100 with 5,000 of 50,000 images``, as far as the run says."""
    data = run.part("data")
    name = str(data.get("name") or run.setting("data") or "")
    name = name.partition("?")[0].rstrip("/").rpartition("/")[2] or name  # a path's last part is what it is called
    text = f" on {name}" if name else ""
    used, fraction, available = data.get("train_samples"), data.get("fraction"), data.get("available_samples")
    if not is_number(used):
        return text
    if is_number(available) and available > used:
        return f"{text} with {words.count(used)} of {words.plural(available, run.noun)}"
    text += f" with {words.plural(used, run.noun)}"
    if is_number(fraction) and fraction < 1:
        text += f" ({words.rough_share(fraction)} of the training set)"
    return text


def compared(run: Run, metric: str, value: float) -> str:
    """The second half: size and quality beside the teacher's."""
    teacher, student = run.part("teacher"), run.part("student")
    size, of = student.get("params"), teacher.get("params")
    parts = []
    if is_number(size) and is_number(of) and of:
        ratio = size / of
        times = f"{words.rough_share(ratio)} of" if ratio < 1 else f"{ratio:.1f}{words.NBSP}times"
        parts.append("has as many parameters as the teacher" if ratio == 1 else f"has {times} the teacher’s parameters")
    reference = run.metrics("teacher").get(metric)
    if reference is not None and (quality := against(student, metric, value, reference)):
        parts.append(quality)
    return "; it " + " and ".join(parts) if parts else ""


def against(student: dict[str, Any], metric: str, value: float, reference: float) -> str:
    """How a metric stands to the teacher's; "" of a student that has learned nothing."""
    name, delta, guess = words.metric_name(metric), value - reference, numbers(student.get("guess")).get(metric)
    if delta == 0:
        return f"matches its {name}"
    if words.verdict(metric, delta) == "better":
        return f"is {words.amount(metric, delta)} better in {name}"
    if student.get("learned") is False:
        return ""
    if not words.is_fraction(metric) or reference <= 0:
        side = "above" if delta > 0 else "below"
        return f"stays {words.amount(metric, delta)} {side} its {name} of {words.metric_value(metric, reference)}"
    if guess is not None and guess >= NOTABLE:
        lead = max(0.0, value - guess) / (reference - guess) if reference > guess else 0.0
        alone = words.metric_value(metric, guess)
        return f"keeps {words.rough_share(lead)} of its lead over the commonest class alone ({alone})"
    return f"keeps {words.rough_share(value / reference)} of its {name}"


def since_before(run: Run, metric: str, value: float) -> str:
    """What it was before, where the student did not start from chance."""
    before = run.metrics("student", "before").get(metric)
    classes = run.part("data").get("classes")
    if before is None or before == value:
        return ""
    even = 1 / classes if is_number(classes) and classes else 0.5
    chance = run.metrics("student", "guess").get(metric) or even
    knew = metric in ("accuracy", "agreement") and before > chance + max(0.05, min(chance, (1 - chance) / 2))
    if not knew and not any(phase.get("kind") == "solve" for phase in run.phases):
        return ""
    return f", {'up' if value > before else 'down'} from {words.metric_value(metric, before)},"


def judged_on(run: Run) -> str:
    """Which images told how often the student agrees with its teacher, where there are no labels."""
    measured = table(run.part("student").get("measured_on"))
    if not measured:
        return ""
    which = "that did not teach" if measured.get("unseen") else "that it learned from, as there are no others"
    images = words.plural(measured["samples"], "image")
    return f" There are no labels: agreement is how often it chooses the teacher’s class, on {images} {which}."


def unfinished(run: Run, metric: str) -> str:
    if not run.epochs:
        if run.fills:
            stored = words.plural(len(run.fills), "view")
            return f"Unfinished: {stored} of the teacher’s answers are stored, no epoch is done yet."
        solved = f"{words.plural(len(run.solves), 'phase')} solved so far" if run.solves else "no epoch is done yet"
        return f"Unfinished: {solved}."
    phase = run.epochs[-1]["phase"]
    done = sum(record["phase"] == phase for record in run.epochs)
    planned = next((entry.get("epochs") for entry in run.phases if entry.get("name") == phase), None)
    of = f" of {words.plural(planned, 'epoch')}" if is_number(planned) else f" epoch{'s' if done > 1 else ''}"
    text, where = f"Unfinished: after {words.count(done)}{of} of phase {phase} the student", where_measured(run)
    measured = [values[metric] for record in run.epochs if metric in (values := numbers(record.get("eval")))]
    if not measured:
        return f"{text} has not been measured yet."
    return f"{text} stands at {named_value(metric, measured[-1])}" + (f" on the {where}." if where else ".")
