"""The frontier of size against quality, and the candidate that goes on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .. import words
from ..errors import UserError
from ..training.progress import in_words
from .judge import Judge
from .search import Candidate, Search, Unmet
from .ways import DECOUPLE, HIDDEN, PATH, PIXELS, WAYS
from .work import Work, said

CUTS = ("l1", "slim")  # are not tried where the path, which chooses channels better,
FAR = 0.1  # lies so far behind another way
POINTS = 4  # from the whole network to the budget
BEHIND = 0.75  # of the budget's share: one point further
SEARCH, MOST = 0.4, 0.7  # of the time, that the search may take; and until two ways that differ most have been tried
STEP = 0.85  # of the multiply-adds, from one point to the next where only a loss of quality ends the way
BACK = 3.0  # of the loss that is allowed, so much may be lost before teaching, which wins some of it back


def frontier(work: Work, search: Search) -> list[Candidate]:
    """The candidates, as there is time: all ways of shrinking where the budget is met; then the best of them before
    that and behind. Raises `UserError` where no way meets the budget."""
    found: list[Candidate] = []
    search.late = lambda: work.clock.left(SEARCH) < 0

    def add(how: str, share: float) -> Candidate | None:
        candidate = search.candidate(how, share)
        if candidate is not None and all(candidate.folder != each.folder for each in found):
            found.append(candidate)
            line = said(candidate.figures, search.whole, candidate.metrics, search.judge.metric)
            work.say(f"{WAYS[how]}: {line}, in {in_words(candidate.seconds)}")
            work.keep(frontier=[each.told(work.out) for each in found])
        return candidate

    def late(how: str, share: float | None = None) -> bool:
        """Whether there is no time to make a candidate that has not been made."""
        if search.has(how, share):
            return False
        solved = [each.seconds for each in found if each.how != PIXELS] if how != PIXELS else []
        untried = how in (PATH, DECOUPLE) and all(each.how != how for each in found)
        return bool(found) and work.clock.left(MOST if untried else SEARCH) < max(solved, default=0.0)

    if not work.budget.limits:
        _down(work, search, add)
        if not found:
            raise UserError(_refusal(search))
        return found
    unmet: dict[str, Unmet] = {}
    places: dict[str, float] = {}
    for how in WAYS:
        if late(how):
            continue
        if how in CUTS and _left_behind(search.judge, found):
            continue
        try:
            places[how] = search.place(how)
        except Unmet as error:
            unmet[how] = error
        else:
            add(how, places[how])
    if not found:
        if search.refused:
            raise UserError(_refusal(search))
        raise unmet.get(PATH) or next(iter(unmet.values()))
    best = best_of(search.judge, found)
    share = places[best.how]
    for point in [*(share ** (k / POINTS) for k in range(POINTS - 1, 0, -1)), share * BEHIND]:
        if not late(best.how, point):
            add(best.how, point)
    if late(PATH):
        work.say("no time is left for more candidates")
    return found


def _refusal(search: Search) -> str:
    how, why = next(iter(search.refused.items()))
    return f"the network cannot be made smaller: {WAYS[how]}: {why}"


def _left_behind(judge: Judge, found: Sequence[Candidate]) -> bool:
    """Whether removing channels loses far more here than another way, however they are chosen."""
    paths = [judge.drop(each.metrics) for each in found if each.how == PATH]
    return bool(paths) and paths[0] - judge.drop(best_of(judge, found).metrics) > FAR


def _down(work: Work, search: Search, add: Callable[[str, float], Candidate | None]) -> None:
    """Smaller and smaller, until more is lost than teaching is likely to win back."""
    assert work.budget.drop is not None
    for how in (PIXELS, PATH, DECOUPLE, HIDDEN):
        share, last = STEP, dict[str, float]()
        while (candidate := add(how, share)) is not None and candidate.figures != last:
            if search.judge.drop(candidate.metrics) > BACK * work.budget.drop or search.ways.at_end(how, share):
                break
            share, last = share * STEP, candidate.figures
            if work.clock.left(SEARCH) < candidate.seconds and not search.has(how, share):
                break


def best_of(judge: Judge, found: Sequence[Candidate]) -> Candidate:
    """The one with the best quality; of equal ones that with the fewest multiply-adds."""
    best = found[0]
    for other in found[1:]:
        if other.metrics[judge.metric] == best.metrics[judge.metric]:
            better = other.figures["macs"] < best.figures["macs"]
        else:
            better = judge.better(other.metrics, best.metrics)
        best = other if better else best
    return best


def chosen(work: Work, search: Search, found: Sequence[Candidate]) -> tuple[Candidate, str]:
    """The candidate that goes on, and why."""
    drop, judge = work.budget.drop, search.judge
    fit = [each for each in found if all(work.budget.met(each.figures, search.whole).values())]
    if not fit:
        nearest = min(found, key=lambda each: work.budget.over(each.figures, search.whole))
        return nearest, "no candidate is within the budget when measured again; it is the nearest"
    if drop is not None:
        near = [each for each in fit if judge.drop(each.metrics) <= BACK * drop]
        if not near:
            return best_of(judge, fit), "none keeps so much of the quality; it keeps the most"
        smallest = min(near, key=lambda each: each.figures["macs"])
        return smallest, "the smallest of which teaching is likely to win back what was lost"
    return best_of(
        judge, fit
    ), f"the best of {words.plural(len(fit), 'candidate')} within the budget on images held out"
