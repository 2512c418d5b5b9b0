"""The first sentence of a run's report: what happened, in words, with the figures that matter."""

from __future__ import annotations

from . import words
from .classes import class_names
from .curves import where_measured
from .guess import NOTABLE, guessed, learned, verdict
from .read import Run, is_number, numbers, phases


def named_value(metric: str, value: float) -> str:
    """``57.3 % accuracy``; ``a perplexity of 92.1``."""
    name = words.metric_name(metric)
    if words.is_fraction(metric):
        return f"{words.metric_value(metric, value)} {name}"
    return f"a{'n' if name[0] in 'aeiouN' else ''} {name} of {words.metric_value(metric, value)}"


def sample_noun(run: Run) -> str:
    return "sample" if run.setting("task").startswith("lang") else "image"


def with_data(run: Run) -> str:
    """`` on cifar100 with 5,000 of 50,000 images``, as far as the run says."""
    data = run.part("data")
    name = str(data.get("name") or run.setting("data") or "")
    name = name.partition("?")[0].rstrip("/").rpartition("/")[2] or name  # a path's last part is what it is called
    text = f" on {name}" if name else ""
    used, fraction, available = data.get("train_samples"), data.get("fraction"), data.get("available_samples")
    if not is_number(used):
        return text
    noun = sample_noun(run)
    if is_number(available) and available > used:
        return f"{text} with {words.count(used)} of {words.plural(available, noun)}"
    text += f" with {words.plural(used, noun)}"
    if is_number(fraction) and fraction < 1:
        text += f" ({words.rough_share(fraction)} of the training set)"
    return text


def compared(run: Run, metric: str, value: float) -> str:
    """The second half: size and quality beside the teacher's."""
    teacher, student = run.part("teacher"), run.part("student")
    parts = []
    if is_number(teacher.get("params")) and is_number(student.get("params")) and teacher["params"]:
        ratio = student["params"] / teacher["params"]
        size = words.rough_share(ratio) + " of" if ratio <= 1 else f"{ratio:.1f}{words.NBSP}times"
        parts.append(
            f"has {size} the teacher\u2019s parameters" if ratio != 1 else "has as many parameters as the teacher"
        )
    reference = numbers(teacher.get("metrics")).get(metric)
    name = words.metric_name(metric)
    if reference is not None:
        delta = value - reference
        ahead = words.verdict(metric, delta) == "better"
        amount = words.difference(metric, delta).lstrip("+±" + words.MINUS)
        if delta == 0:
            parts.append(f"matches its {name}")
        elif ahead:
            parts.append(f"is {amount} better in {name}")
        elif learned(student) is False:
            pass
        elif (guess := guessed(metric, student)) is not None and words.is_fraction(metric) and guess >= NOTABLE:
            lead = max(0.0, value - guess) / (reference - guess) if reference > guess else 0.0
            alone = words.metric_value(metric, guess)
            parts.append(f"keeps {words.rough_share(lead)} of its lead over the commonest class alone ({alone})")
        elif words.is_fraction(metric) and reference > 0:
            parts.append(f"keeps {words.rough_share(value / reference)} of its {name}")
        else:
            side = "above" if delta > 0 else "below"
            parts.append(f"stays {amount} {side} its {name} of {words.metric_value(metric, reference)}")
    return "; it " + " and ".join(parts) if parts else ""


def since_before(run: Run, metric: str, value: float) -> str:
    """What it was before, where the student did not start from chance."""
    before = numbers(run.part("student").get("before")).get(metric)
    classes = run.part("data").get("classes")
    solved = any(phase.get("kind") == "solve" for phase in phases(run))
    if before is None or before == value:
        return ""
    chance = guessed(metric, run.part("student")) or (1 / classes if is_number(classes) and classes else 0.5)
    knew = metric in ("accuracy", "agreement") and before > chance + max(0.05, min(chance, (1 - chance) / 2))
    if not solved and not knew:
        return ""
    return f", {'up' if value > before else 'down'} from {words.metric_value(metric, before)},"


def headline(run: Run, metric: str) -> str:
    """One sentence on what the run achieved, or how far it has come."""
    student = numbers(run.part("student").get("metrics"))
    if not run.finished:
        return unfinished(run, metric)
    if metric not in student:
        return "The run is finished; there were no labels to measure the student by."
    value = student[metric]
    if run.part("teacher"):
        start = "The student reaches "
    elif run.setting("method") == "none":
        start = "Trained on the labels alone, the student reaches "
    else:
        start = "Without a teacher, the student reaches "
    since = since_before(run, metric, value)
    middle = f"{named_value(metric, value)}{since}{with_data(run)}"
    names = class_names(run, 0)
    warning = verdict(run.part("student"), metric, names)
    classes = run.part("data").get("classes")
    if "chance" not in run.part("student") and metric == "accuracy" and is_number(classes) and value * classes <= 1:
        warning = "That is no better than guessing."
    return start + middle + compared(run, metric, value) + "." + (f" {warning}" if warning else "") + judged_on(run)


def judged_on(run: Run) -> str:
    """Which images told how often the student agrees with its teacher, where there are no labels."""
    found = run.part("student").get("measured_on")
    if not isinstance(found, dict):
        return ""
    which = "that did not teach" if found.get("unseen") else "that it learned from, as there are no others"
    images = words.plural(found["samples"], "image")
    return f" There are no labels: agreement is how often it chooses the teacher\u2019s class, on {images} {which}."


def unfinished(run: Run, metric: str) -> str:
    if not run.epochs:
        if run.fills:
            stored = words.plural(len(run.fills), "view")
            return f"Unfinished: {stored} of the teacher\u2019s answers are stored, no epoch is done yet."
        if run.solves:
            return f"Unfinished: {words.plural(len(run.solves), 'phase')} solved so far."
        return "Unfinished: no epoch is done yet."
    last = run.epochs[-1]
    done = sum(record["phase"] == last["phase"] for record in run.epochs)
    planned = next((p.get("epochs") for p in phases(run) if p.get("name") == last["phase"]), None)
    of = f" of {words.count(planned)}" if is_number(planned) else ""
    text = f"Unfinished: after {words.count(done)}{of} epoch{'' if done == 1 and not of else 's'}"
    text += f" of phase {last['phase']}"
    measured = [numbers(record.get("eval")) for record in run.epochs]
    value = next((found[metric] for found in reversed(measured) if metric in found), None)
    if value is None:
        return text + " the student has not been measured yet."
    where = where_measured(run)
    return text + f" the student stands at {named_value(metric, value)}" + (f" on the {where}." if where else ".")
