"""The frontier of size against quality, and the candidate that goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from .. import words
from ..training.progress import in_words
from .judge import Judge
from .search import OTHERS, Candidate, Search
from .work import Work, said

POINTS = 4  # from the whole network to the budget
BEHIND = 0.75  # of the budget's multiply-adds: one point further
SEARCH = 0.4  # of the time, that the search may take
STEP = 0.85  # of the multiply-adds, from one point to the next where only a loss of quality ends the way
BACK = 3.0  # of the loss that is allowed, so much may be lost before teaching, which wins some of it back


def frontier(work: Work, search: Search, whole: Mapping[str, float]) -> list[Candidate]:
    """The candidates: the one at the budget first, the other ways of shrinking there, then points before and behind it,
    as there is time."""
    found: list[Candidate] = []

    def add(candidate: Candidate | None) -> None:
        if candidate is not None:
            found.append(candidate)
            line = said(candidate.figures, whole, candidate.metrics, search.judge.metric)
            work.say(f"{candidate.how}: {line}, in {in_words(candidate.seconds)}")
            work.keep(frontier=[each.told(work.out) for each in found])

    if not work.budget.limits:
        _down(work, search, add)
        return found

    place = search.place(work.budget, whole)
    add(search.at(place))
    share = search.way.places[place - 1].macs
    points = [search.way.first(macs=share ** (k / POINTS)) for k in range(POINTS - 1, 0, -1)]
    points.append(search.way.first(macs=share * BEHIND))
    macs = found[0].figures["macs"] / search.whole["macs"]
    steps: list[Callable[[], Candidate | None]] = [partial(search.by, how, macs) for how in OTHERS]
    steps += [partial(search.at, at) for at in dict.fromkeys(points) if at != place]
    for step in steps:
        if work.clock.left(SEARCH) < found[0].seconds:
            work.say("no time is left for more candidates")
            break
        add(step())
    return found


def _down(work: Work, search: Search, add: Callable[[Candidate], None]) -> None:
    """Smaller and smaller, until more is lost than teaching is likely to win back."""
    assert work.budget.drop is not None
    share, last = STEP, 0
    while (place := search.way.first(macs=share)) < len(search.way.places):
        if place != last:
            candidate = search.at(place)
            add(candidate)
            lost = search.judge.drop(candidate.metrics)
            if lost > BACK * work.budget.drop or work.clock.left(SEARCH) < candidate.seconds:
                return
        share, last = share * STEP, place


def chosen(work: Work, judge: Judge, found: list[Candidate], whole: Mapping[str, float]) -> tuple[Candidate, str]:
    """The candidate that goes on, and why."""
    fit = [each for each in found if work.budget.over(each.figures, whole) <= 1] or found[:1]  # times shake
    if work.budget.drop is not None:
        near = [each for each in fit if judge.drop(each.metrics) <= BACK * work.budget.drop]
        smallest = min(near or fit[:1], key=lambda each: each.figures["macs"])
        return smallest, "the smallest of which teaching is likely to win back what was lost"
    best = fit[0]
    for other in fit[1:]:
        if judge.better(other.metrics, best.metrics):
            best = other
    return best, f"the best of {words.plural(len(fit), 'candidate')} within the budget on images held out"
