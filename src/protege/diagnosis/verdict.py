"""The verdict: from measurements to findings, a pure function.

One finding for each way in which distillation fails (Tang et al. 2020, "Understanding and Improving Knowledge
Distillation"; Müller, Kornblith & Hinton 2019 on smoothed teachers; Cho & Hariharan 2019 and Mirzadeh et al.
2020 on the capacity gap). The thresholds are provisional: ``studies/diagnose.py`` is what measures them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from ..tasks import TASKS, Chance
from .measure import at_temperature, crossing

HEALTHY, RISK, FAILING, UNKNOWN = "healthy", "at risk", "failing", "cannot tell"

MIN_ROWS = 100  # fewer rows tell nothing
MIN_CLASSES = 4  # fewer classes have too few others to relate

# (at risk, failing). A smoothed teacher crosses all three: it is right more often than it is sure, it spreads the
# rest evenly, and its logits hold the truth far above others that are all alike.
UNDERSTATED = (0.10, 0.12)  # accuracy minus confidence on the transfer set
EVEN = (0.58, 0.65)  # entropy of the classes other than the true one, 1 where all are equally likely
ISOLATED = (3.4, 3.7)  # truth's logit above the others, in their standard deviations
SHY = (0.20, 0.65)  # understated, and even: a risk by themselves, as a small network cannot isolate the truth

DOUBT = (0.03, 0.01)  # mean 1 − max p on the transfer set: at or below
BOAST = 0.02  # confidence minus accuracy on unseen samples: above it, doubt is missing and not just not needed
LEFT = (0.05, 0.025)  # share of what the teacher says at T = 1 that is left at T: below
WRONG = (0.05, 0.15)  # share of the transfer set where argmax p ≠ y …
UNOWNED = (0.05, 0.10)  # … and the error, in probability, to which the teacher's own doubt does not own up
KEPT = 0.3  # correlation of what the weights and the predictions hold to be alike, from which the weights are believed
UNLIKE_TEST = 0.10  # wrong so much more often on the transfer set than on the test set: labels or samples differ
SIZE = (10.0, 40.0)  # teacher over student, geometric mean of parameters and MACs; for a student not trained yet
GAP = (0.08, 0.16)  # accuracy of the teacher minus that of a trained student


@dataclass(frozen=True)
class Finding:
    """One way to fail: how it stands, the numbers that say so, and what to do (empty where nothing)."""

    name: str
    title: str
    status: str
    evidence: str
    advice: str = ""


def judge(measured: dict[str, Any]) -> list[Finding]:
    """Findings in the order of their weight: a teacher that errs comes before one that is merely too sure.

    ``measured`` is what `protege.diagnose` measures and writes: "teacher" and "student" (each with the readings
    "transfer" and "test"), "relations", "settings", "classes" and "task".
    """
    return [wrong(measured), smoothed(measured), overconfident(measured), too_hot(measured), gap(measured)]


def primary(findings: list[Finding]) -> Finding | None:
    """The finding to act on first: the first that fails, else the first at risk, else none."""
    return next((f for status in (FAILING, RISK) for f in findings if f.status == status), None)


def share(value: float) -> str:
    """A fraction as text: 0.1234 → "12.3 %"; small ones keep two digits."""
    return f"{100 * value:.{1 if abs(value) >= 0.01 or value == 0 else 2}f}\u00a0%"


Make = Callable[..., Finding]  # of a status, the evidence and what to do


def _unjudged(finding: Make, seen: dict[str, Any]) -> Finding | None:
    """The finding where a reading is not worth judging."""
    if seen["rows"] < MIN_ROWS:
        text = f"Only {seen['rows']} rows were seen, and at least {MIN_ROWS} are needed."
        return finding(UNKNOWN, text, "Diagnose on more samples.")
    if at_chance(seen):
        return finding(UNKNOWN, "It is no better than chance, and what it says means nothing yet.")
    return None


def _graded(finding: Make, failing: bool, risk: bool, evidence: str, advice: str) -> Finding:
    if not failing and not risk:
        return finding(HEALTHY, evidence)
    return finding(FAILING if failing else RISK, evidence, advice)


def at_chance(seen: dict[str, Any]) -> bool:
    """Whether a reading shows no more than a count of the labels does."""
    if seen["accuracy"] is None or seen["rows"] < MIN_ROWS:
        return False
    return Chance(**seen["chance"]).explains(seen["accuracy"], seen["nll"], seen.get("balanced_accuracy"))


def wrong(measured: dict[str, Any]) -> Finding:
    """How often the teacher errs on what it is to teach, and whether its doubt owns up to that."""
    finding = partial(Finding, "wrong", "Teacher wrong on the transfer set")
    seen, test = measured["teacher"]["transfer"], measured["teacher"]["test"]
    if seen["wrong"] is None:
        text = "The transfer set has no labels, so nobody knows how often the teacher errs on it."
        return finding(UNKNOWN, text, "Label a few hundred samples to find out.")
    if at_chance(seen):
        chance = Chance(**seen["chance"])
        how = "less than chance" if chance.is_above(seen["accuracy"]) else "chance"
        text = (
            f"It is right in {share(seen['accuracy'])} with an NLL of {seen['nll']:.2f} nats; a guess from a count of "
            f"the labels, in {share(chance.accuracy)} with {chance.nll:.2f}: that is {how}."
        )
        return finding(FAILING, text, f"Check that {TASKS[measured['task']].suspects}.")
    if unjudged := _unjudged(finding, seen):
        return unjudged
    rate, unowned = seen["wrong"]["share"], seen["wrong"]["unowned"]
    text = (
        f"Its first choice is not the label in {share(rate)} of the transfer set; these rows make "
        f"{share(seen['wrong']['loss_share'])} of its loss ({seen['wrong']['loss']:.2f} of {seen['nll']:.2f} nats)."
    )
    unlike = test is not None and test["wrong"] is not None and rate - test["wrong"]["share"] > UNLIKE_TEST
    if unlike:
        text += f" On the test set it errs in only {share(test['wrong']['share'])}."
    if unowned > UNOWNED[0] and rate > WRONG[0]:
        text += f" It is surer than it may be: its own probabilities leave {share(unowned)} of error unexplained."
    elif rate > WRONG[0]:
        text += " Its probabilities own up to that: where it errs, it doubts."
    failing = rate > WRONG[1] and (unowned > UNOWNED[1] or unlike)
    advice = (
        "Look at the labels of these rows, and at the teacher's normalisation and class order. Give the labels more "
        "weight (lower λ), leave out the rows where teacher and label disagree, or take another teacher."
    )
    return _graded(finding, failing, rate > WRONG[0] and unowned > UNOWNED[0], text, advice)


def smoothed(measured: dict[str, Any]) -> Finding:
    """Whether class relations are erased, as label smoothing (or noise in the labels) erases them."""
    finding = partial(Finding, "smoothed", "Teacher trained with label smoothing")
    seen = measured["teacher"]["transfer"]
    if measured["classes"] < MIN_CLASSES:
        text = f"{measured['classes']} classes have no relations to speak of; at least {MIN_CLASSES} are needed."
        return finding(UNKNOWN, text)
    if unjudged := _unjudged(finding, seen):
        return unjudged
    if seen["isolation"] is None or seen["accuracy"] is None:
        text = "Without labels the teacher's confidence cannot be held against its accuracy."
        return finding(UNKNOWN, text, "Label a few hundred samples to find out.")
    understated = seen["accuracy"] - seen["confidence"]
    even, isolated = seen["others"]["mean"], seen["isolation"]
    text = (
        f"The classes other than the true one have a normalised entropy of {even:.2f} (1: all alike); the true class's "
        f"logit lies {isolated:.1f} standard deviations of the others above their mean; the teacher is right in "
        f"{share(seen['accuracy'])} and sure to {share(seen['confidence'])}."
    )
    signs = ((understated, UNDERSTATED), (even, EVEN), (isolated, ISOLATED))
    sure = not TASKS[measured["task"]].ambiguous  # frequent words stand out by themselves
    erased, shy = sure and all(v > t[1] for v, t in signs), understated > SHY[0] and even > SHY[1]
    advice = (
        "Class relations are mostly erased, by smoothing or by noise in the labels it learned from. "
        if erased
        else "It says less than it knows: smoothing, noise in its labels, or a training cut short make class relations "
        "faint. "
    )
    advice += "Take a teacher or checkpoint trained without; else keep T near 1, "
    if weights_keep_relations(measured):
        advice += "teach class similarity from its weights (target sim), which still agree with what it says, "
    else:
        advice += "leave target sim alone, as its weights do not agree with what is left of its relations, "
    advice += "or use gpd, where a dynamic teacher grows relations of its own."
    return _graded(finding, erased, shy or all(v > t[0] for v, t in signs), text, advice)


def weights_keep_relations(measured: dict[str, Any]) -> bool:
    """Whether the logit layer's weights hold the same classes to be alike as the predictions do."""
    agreed = measured["relations"]["agreement"].get("weights and predictions")
    return agreed is not None and agreed > KEPT


def overconfident(measured: dict[str, Any]) -> Finding:
    """Whether the teacher says nothing but the label: then ω ≈ 1, and KD is plain cross-entropy."""
    finding = partial(Finding, "overconfident", "Over-confident teacher")
    seen, test = measured["teacher"]["transfer"], measured["teacher"]["test"]
    if unjudged := _unjudged(finding, seen):
        return unjudged
    text = (
        f"On the transfer set it leaves {share(seen['doubt'])} of its probability to other classes than its first "
        f"choice; {share(seen['sure'])} of the rows are above 99\u00a0%."
    )
    boast = None
    if test is not None and test["accuracy"] is not None:
        boast = test["confidence"] - test["accuracy"]
        how = "more" if boast > 0 else "less"
        text += f" On unseen samples it is {share(abs(boast))} {how} confident than right."
    failing = seen["doubt"] <= DOUBT[1] and (boast is None or boast > BOAST)
    factor = 1 - measured["settings"]["weight"] * seen["rest"] * measured["classes"] / max(measured["classes"] - 1, 1)
    advice = (
        f"At T = 1 its targets are nearly the labels (ω starts at {factor:.2f}), and KD is nearly plain training. "
        "Raise T, keep the k largest probabilities at that T (target topk), augment the transfer set, or take an "
        "earlier checkpoint."
    )
    return _graded(finding, failing, seen["doubt"] <= DOUBT[0], text, advice)


def temperature_range(transfer: dict[str, Any]) -> dict[str, float | None]:
    """Where T is sound. ``matched``: the mass on the truth equals the accuracy (None: is below it at any T); ``low``: T
    from which the targets leave at least `DOUBT` to other classes; ``high``: up to which `LEFT` is left."""
    readings = transfer["temperatures"]
    right = transfer["accuracy"] if transfer["accuracy"] is not None else transfer["confidence"]
    key = "truth" if transfer["accuracy"] is not None else "confidence"
    return {
        "low": crossing(readings, "confidence", 1 - DOUBT[0]),
        "high": crossing(readings, "left", LEFT[0]),
        "matched": crossing(readings, key, right) if readings[0][key] >= right else None,
    }


def too_hot(measured: dict[str, Any]) -> Finding:
    """Whether the temperature asked for leaves anything of what the teacher knows."""
    finding = partial(Finding, "temperature", "Temperature too high")
    seen, asked = measured["teacher"]["transfer"], measured["settings"]["temperature"]
    if unjudged := _unjudged(finding, seen):
        return unjudged
    at = at_temperature(seen["temperatures"], asked)
    bounds = temperature_range(seen)
    support = seen["accuracy"]
    against = "" if support is None else f", against an accuracy of {share(support)}"
    text = (
        f"At T = {asked:g} its targets hold {share(at['truth'])} on the truth{against}, and {share(at['left'])} is "
        "left of what they say at T = 1."
    )
    high = bounds["high"]
    if high is not None:
        text += f" Up to T = {high:.1f} at least {share(LEFT[0])} is left."
    if bounds["matched"] is not None:
        text += f" Mass and accuracy are equal at T = {bounds['matched']:.1f}."
    advice = f"The targets are nearly even over the classes. Lower T to {min(high or 1.0, asked):.1f} or below."
    return _graded(finding, at["left"] < LEFT[1], at["left"] < LEFT[0], text, advice)


def _times(ratio: float) -> str:
    return f"{ratio:,.0f}" if ratio >= 100 else f"{ratio:.1f}" if ratio >= 0.1 else f"{ratio:.2g}"


def gap(measured: dict[str, Any]) -> Finding:
    """Whether the teacher is too far ahead of the student."""
    finding = partial(Finding, "gap", "Capacity gap")
    teacher, student = measured["teacher"], measured["student"]
    if student is None:
        return finding(UNKNOWN, "No student was given to compare with.", "Name one with student=….")
    ratios = [teacher[key] / student[key] for key in ("params", "macs") if student.get(key) and teacher.get(key)]
    size = (ratios[0] * ratios[-1]) ** 0.5 if ratios else 1.0
    text = f"The teacher has {_times(ratios[0])} times the student's parameters" if ratios else "Sizes are not known"
    text += f" and {_times(ratios[-1])} times its MACs." if len(ratios) > 1 else "."
    split = "test" if teacher["test"] is not None else "transfer"
    ours, theirs = student[split], teacher[split]
    if student["trained"] and ours["accuracy"] is not None and theirs["accuracy"] is not None:
        ahead = theirs["accuracy"] - ours["accuracy"]
        text += (
            f" It is right in {share(theirs['accuracy'])}, the student as it is in {share(ours['accuracy'])} (NLL "
            f"{theirs['nll']:.2f} and {ours['nll']:.2f})."
        )
        failing, risk = ahead > GAP[1], ahead > GAP[0]
    else:
        text += " The student does not know half as much yet, so only sizes can be compared."
        failing, risk = size > SIZE[1], size > SIZE[0]
    advice = (
        "Use gpd, whose dynamic teacher stays near the student, where the student can be widened; or put a teacher of "
        "middle size between them. A larger student helps too."
    )
    return _graded(finding, failing, risk, text, advice)
