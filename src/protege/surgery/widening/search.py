"""Which way each call splits its channels: a search that steps back to the latest call to blame.

Conflict-directed backjumping (Prosser 1993): a call that fails blames the choices that its operands come of; the latest
of them goes another way, and what was decided after it is open again. A call that has no way left passes on whom the
failures of its own ways blamed.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable


class Search:
    """``choice``: a call that may put copies into one dimension or another. ``label``: where it puts them."""

    def __init__(self) -> None:
        self.taken: dict[Hashable, Hashable] = {}  # in the order in which they were first made
        self.refused: dict[Hashable, set[Hashable]] = {}
        self.conflicts: dict[Hashable, set[Hashable]] = {}
        self.blames: dict[Hashable, str] = {}

    def is_refused(self, choice: Hashable, label: Hashable) -> bool:
        return label in self.refused.get(choice, ())

    def take(self, choice: Hashable, label: Hashable) -> None:
        self.taken[choice] = label

    def blame(self, choice: Hashable) -> str | None:
        """Why a choice was first refused."""
        return self.blames.get(choice)

    def advance(self, choice: Hashable, choices: Iterable[Hashable], why: str) -> bool:
        """Refuse the way of the latest choice that a failure at ``choice`` is due to; False where none is left."""
        involved = (set(choices) | self.conflicts.get(choice, set())) - {choice}
        open_ones = [one for one in self.taken if one in involved and not self.is_refused(one, self.taken[one])]
        if not open_ones:
            return False
        latest = open_ones[-1]
        self.refused.setdefault(latest, set()).add(self.taken[latest])
        self.conflicts.setdefault(latest, set()).update(involved - {latest})
        self.blames.setdefault(latest, self.blames.get(choice, why))
        made = list(self.taken)
        for later in made[made.index(latest) + 1 :]:
            for kept in (self.taken, self.refused, self.conflicts):
                kept.pop(later, None)
        return True
