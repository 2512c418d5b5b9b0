"""Which methods, which target, which T, k and λ: rules from what is known, a pure function, with its reasons.

Few samples and a student cut out of the teacher ask for FSKD (Li et al. 2020, 50 to 1000 samples), few samples for
stagewise distillation (Kulkarni et al. 2020, from a tenth of the data), a far-away teacher for GPD (Guo et al. 2025),
and everything else for a target of Tang et al. 2020 on the whole set. The numbers are as provisional as the verdict's,
and so the first of the list is only the likeliest: ``--method auto`` tries them (`run/choice.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from ..methods import METHODS
from ..methods.teaching import TargetSettings
from ..tasks import TASKS
from ..torch_utils import tensors_of
from .measure import at_temperature
from .verdict import FAILING, HEALTHY, RISK, WRONG, Finding, at_chance, judge, share, temperature_range

FEW = 1000  # samples in all, up to which a solve beats a descent
UPDATES, GENTLY, SOLVED = 200, 0.01, 0.001  # after a solve; rates of a thinned copy, and of one that was solved for
HIGHEST = 8.0  # T
MASS = 0.99  # of the teacher's probability that the k classes of topk hold
MANY_CLASSES = 1000  # from which caches of whole rows are large; below, whole rows teach best (docs/understanding.md)
TRUST = {HEALTHY: 0.9, RISK: 0.6, FAILING: 0.3}  # λ, by how wrong the teacher is


@dataclass(frozen=True)
class Facts:
    """What is known before anything is measured.

    ``samples``: of the transfer set. ``labelled``: whether it has labels. ``shrunk``: whether the student was made of
    the teacher, by pruning or decoupling, and has inherited its weights (see `kinship`). ``solved``: whether `fskd` has
    solved for them since. ``refused``: methods that do
    not take these two networks, and why (kd takes any).
    """

    task: str
    classes: int
    samples: int
    labelled: bool
    shrunk: bool
    refused: Mapping[str, str] = field(default_factory=dict)
    solved: bool = False


@dataclass(frozen=True)
class Candidate:
    """A method that may suit: its ``settings`` (keys of ``protege distill``), and what speaks for it.

    ``variant`` tells it apart from another candidate of its method.
    """

    method: str
    reason: str
    settings: dict[str, Any] = field(default_factory=dict)
    variant: str = ""

    @property
    def name(self) -> str:
        return f"{self.method}, {self.variant}" if self.variant else self.method


@dataclass(frozen=True)
class Recommendation:
    """A method, the settings to give it (keys of ``protege distill``), and a sentence for each choice.

    ``teaching`` is what suits a term on the teacher's rows: target, T, k and λ. It is in ``settings`` where the method
    has such a term by itself. ``candidates`` are all that may suit, the likeliest first, which is the method; one alone
    needs no trial.
    """

    method: str
    settings: dict[str, Any] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)
    teaching: dict[str, Any] = field(default_factory=dict)
    candidates: list[Candidate] = field(default_factory=list)


def facts_about(data: Any, positions: Tensor, student: Any = None, teacher: Any = None, trained: bool = False) -> Facts:
    """What is known of a run without measuring: its `Data`, the positions of its transfer set, and the two models.

    ``trained``: whether the student is known to be no beginner; a student that is merely smaller than the teacher in
    every layer counts as cut out of it only then.
    """
    labels = data.train.labels
    known = labels is None or float((labels[positions] >= 0).float().mean()) >= 0.5
    kin = "" if student is None or teacher is None else kinship(student, teacher)
    shrunk = kin == "shrunk" or (kin == "alike" and trained)
    return Facts(data.task, len(data.classes), len(positions), known, shrunk)


def kinship(student: Any, teacher: Any) -> str:
    """How two models are related: "shrunk" where the student's record says so, "alike" where all names are the
    teacher's and no tensor is larger but some are smaller, else ""."""
    if getattr(student, "kept", None) or getattr(student, "structure", None):
        return "shrunk"
    shapes: list[Mapping[str, Sequence[int]]] = [
        {name: tuple(value.shape) for name, value in tensors_of(model.network).items()} for model in (student, teacher)
    ]
    small, large = shapes
    if small.keys() != large.keys() or small == large:
        return ""
    fits = all(
        len(a) == len(large[name]) and all(x <= y for x, y in zip(a, large[name], strict=True))
        for name, a in small.items()
    )
    return "alike" if fits else ""


def recommend(facts: Facts, measured: dict[str, Any] | None = None) -> Recommendation:
    """Method and settings for what is known; ``measured`` (see `verdict.judge`) adds what a diagnosis found."""
    if measured and at_chance(measured["teacher"]["transfer"]):
        reason = "none: the teacher is at chance level and has nothing to teach; mend it, or train on the labels."
        return Recommendation("none", {}, [reason])
    findings = {finding.name: finding for finding in judge(measured)} if measured else {}

    def teaching_of(method: str) -> tuple[dict[str, Any], list[str]]:
        teaching, reasons = ({}, []) if measured is None else _target(facts, measured, findings, method)
        if not facts.labelled:
            teaching, reasons = {**teaching, "weight": 1.0}, ["λ = 1: the transfer set has no labels.", *reasons[1:]]
        return teaching, reasons

    suited = list(_suited(facts, findings))
    candidates = [
        replace(c, settings={**teaching_of(c.method)[0], **c.settings}) if _usual(c.method) else c
        for c in suited
        if c.method not in facts.refused
    ]
    first = candidates[0]  # kd takes any
    passed = [
        f"{method} would suit, but does not take these networks: {facts.refused[method]}."
        for method in dict.fromkeys(c.method for c in suited)
        if method in facts.refused
    ]
    teaching, reasons = teaching_of(first.method)
    if not _usual(first.method):
        reasons = [f"Should it be fine-tuned afterwards, {text}" for text in reasons]
    why = " ".join([f"{first.name}: {first.reason}", *passed])
    return Recommendation(first.method, first.settings, [why, *reasons], teaching, candidates)


def _usual(method: str) -> TargetSettings | None:
    """The usual settings of the method's term on the teacher's rows, if it has one without being asked to."""
    settings = METHODS[method].settings.model_validate({})
    return settings if isinstance(settings, TargetSettings) and "target" not in settings.idle(True) else None


def _suited(facts: Facts, findings: Mapping[str, Finding]) -> Iterator[Candidate]:
    """What suits, the likeliest first. Settings besides the target are those that measured best (docs/fskd.md,
    docs/skd.md)."""
    solve, gap, wrong = facts.samples <= FEW, findings.get("gap"), findings.get("wrong")
    if facts.shrunk:
        why = "the student was cut out of the teacher"
        what = f"only {facts.samples} samples" if solve else "no labels"
        gently = Candidate("kd", f"{why}, and a low rate keeps what it has inherited.", {"lr": GENTLY}, "gently")
        low = Candidate("kd", f"{why}, and a rate so low keeps what was solved for.", {"lr": SOLVED}, "very gently")
        updates = {"solve": "kernel", "finetune_steps": UPDATES}
        if facts.solved:
            yield from (low, gently)
        elif solve or not facts.labelled:
            yield Candidate("fskd", f"{why} and there are {what}; whole kernels are solved.", {"solve": "kernel"})
        else:
            yield gently
        if not facts.solved:
            yield Candidate("fskd", f"{why}; {UPDATES} updates follow the solve.", updates, "updates")
            yield from [gently] if solve or not facts.labelled else []
    few = TASKS[facts.task].few(facts.samples, facts.classes)
    rows = Candidate("kd", "a row of the teacher's says more than a label does.")
    if not facts.labelled:
        yield rows
        return
    stages = "features say more of each sample than logits do"
    skd = Candidate("skd", f"{few or stages}{few and f', and {stages}'}.", {"inherit": True}, "inherit")
    together = Candidate("simultaneous", f"{stages}, and all stages learn at once.")
    far = "the teacher is far ahead of the student, and a dynamic teacher bridges the gap."
    gpd = [Candidate("gpd", far)] if gap and gap.status in (RISK, FAILING) else []
    yield from [skd, *gpd, rows, together] if few else [*gpd, rows, together, skd]
    if wrong and wrong.status in (RISK, FAILING):
        yield Candidate("none", "the teacher is wrong too often to be sure that it helps.")


def _target(
    facts: Facts, measured: dict[str, Any], findings: Mapping[str, Finding], method: str
) -> tuple[dict[str, Any], list[str]]:
    """Target, T, k and λ."""
    seen = measured["teacher"]["transfer"]
    wrong = findings["wrong"].status
    usual = _usual(method)
    most = usual.defaults()["weight"] if usual else TRUST[HEALTHY]
    settings: dict[str, Any] = {"target": "kd", "weight": min(TRUST.get(wrong, TRUST[HEALTHY]), most)}
    doubt = _doubt(seen, wrong, facts.task) if facts.labelled else "nothing is known against the teacher."
    reasons = [f"λ = {settings['weight']:g}: {doubt}"]
    smoothed = findings["smoothed"].status
    heat, why = _temperature(seen, smoothed, TASKS[facts.task].temperature)
    settings["temperature"] = heat
    reasons.append(f"T = {heat:g}: {why}.")
    k = next((int(k) for k, mass in seen["top"].items() if mass >= MASS and int(k) > 1), None)
    if k is not None and facts.classes >= MANY_CLASSES and k <= facts.classes // 2:
        settings |= {"target": "topk", "k": k}
        reasons.append(
            f"target topk with k = {k}: {share(seen['top'][str(k)])} of the teacher's probability lies there, the rest "
            "is noise, and the cache stores no more."
        )
    else:
        few = f"{facts.classes} numbers a row are few" if facts.classes < MANY_CLASSES else "no few classes hold it"
        reasons.append(f"target kd: the whole row, as {few}.")
    return settings, reasons


def _doubt(seen: dict[str, Any], status: str, task: str) -> str:
    if not seen["wrong"] or seen["wrong"]["share"] <= WRONG[0] or TASKS[task].ambiguous:
        return "as usual."
    contradicted = f"the teacher contradicts {share(seen['wrong']['share'])} of the labels"
    return f"{contradicted}, and doubts there, too." if status == HEALTHY else f"{contradicted}."


def _temperature(seen: dict[str, Any], smoothed: str, usual: float) -> tuple[float, str]:
    """T and why: the task's usual one, unless it leaves the other classes too little, or all of them too even."""
    bounds = temperature_range(seen)
    if smoothed == FAILING and usual > 1:
        return 1.0, "a smoothed teacher is flat as it is, and heat erases what is left"
    low, high = min(bounds["low"] or HIGHEST, HIGHEST), bounds["high"] or HIGHEST  # None: not within what was measured
    if usual > high:
        return max(1.0, _down(high)), "beyond it the targets are nearly even over the classes"
    if usual < low:
        return min(-_down(-low), HIGHEST), "below it the targets are nearly the labels"
    return usual, f"the targets then hold {share(at_temperature(seen['temperatures'], usual)['truth'])} on the truth"


def _down(heat: float) -> float:
    """The next half below."""
    return math.floor(2 * heat) / 2
