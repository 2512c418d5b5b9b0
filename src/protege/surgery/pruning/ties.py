"""Which channels can only go together, as classes of numbered channels, and tensors whose positions are channels.

A `Tags` is an array of channel numbers with as many dimensions as a tensor and size 1 along those on which the channel
does not depend: [1, C, 1, 1] of feature maps, [1, 1, heads, size] of what an attention reads. Taking a channel away
takes away all positions with its number.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

Tags = np.ndarray

FIXED = 0  # the class of what cannot go


class Ties:
    """Classes of channels that go together: a union-find. Some stay, each class for a reason."""

    def __init__(self) -> None:
        self._above = np.zeros(1, dtype=np.int64)
        self._reasons = {FIXED: "it is no channel"}  # of the classes that stay, by their numbers

    def fresh(self, count: int) -> Tags:
        """Channels that are tied to nothing yet, [count]."""
        new = np.arange(len(self._above), len(self._above) + count)
        self._above = np.concatenate([self._above, new])
        return new

    def _tops(self, tags: Tags) -> Tags:
        above = self._above[tags]
        while not np.array_equal(above, higher := self._above[above]):
            above = higher
        self._above[tags] = above
        return above

    def classes(self, tags: Tags) -> Tags:
        """The class of each channel, by a number of its own; `FIXED` for those that stay."""
        tops = self._tops(tags)
        return np.where(np.isin(tops, list(self._reasons)), FIXED, tops)

    def tie(self, first: Tags, second: Tags) -> None:
        """Make the channels at the same positions (of arrays that fit each other) one class each."""
        a, b = np.broadcast_arrays(self._tops(np.asarray(first)), self._tops(np.asarray(second)))
        apart = a != b
        if not apart.any():
            return
        for pair in np.unique(np.stack([a[apart], b[apart]], 1), axis=0).tolist():
            low, high = sorted(int(self._tops(np.array([channel]))[0]) for channel in pair)
            if low != high:
                self._above[high] = low
                if high in self._reasons:
                    self._reasons.setdefault(low, self._reasons[high])

    def fix(self, tags: Tags, why: str) -> None:
        """These channels stay, for this reason, if they do not stay already."""
        for top in np.unique(self._tops(np.asarray(tags))).tolist():
            self._reasons.setdefault(top, why)

    def why(self, channel: int) -> str | None:
        """Why a channel stays; None where it can go."""
        return self._reasons.get(int(self._tops(np.array([channel]))[0]))

    def tie_along(self, tags: Tags, dims: Collection[int]) -> Tags:
        """Tie what differs along these dimensions only, and drop them."""
        for dim in dims:
            first = tags.take([0], dim)
            self.tie(tags, first)
            tags = first
        return tags

    def settled(self, tags: Tags) -> Tags | None:
        """The classes, of size 1 along dimensions on which they do not depend; None where all stay."""
        if not self.classes(tags).any():
            return None
        tags = self._tops(tags)
        for dim in varying(tags):
            first = tags.take([0], dim)
            if (tags == first).all():
                tags = first
        return None if tags.size == 1 else tags


def varying(tags: Tags) -> tuple[int, ...]:
    """The dimensions on which the channel depends."""
    return tuple(dim for dim, size in enumerate(tags.shape) if size > 1)


def along(channels: Tags, dim: int, dims: int) -> Tags:
    """Channels [n] laid along one of several dimensions."""
    return channels.reshape([-1 if d == dim % dims else 1 for d in range(dims)])


def lined(tags: Tags, dim: int) -> Tags:
    """The channels along a dimension, first along all others."""
    return tags[tuple(slice(None) if d == dim else 0 for d in range(tags.ndim))]


def aligned(tags: Tags, dims: int) -> Tags:
    """As of a tensor of more dimensions to which this one is broadcast."""
    return tags.reshape((1,) * (dims - tags.ndim) + tags.shape)


def merged(ties: Ties, factors: Sequence[Tags]) -> list[Tags]:
    """Tags of the operands of one result, joined: where two lie on the same dimension, their channels are tied; what
    they do not share of their dimensions cannot be split any more."""
    joined: list[Tags] = []
    for tags in factors:
        rest = []
        for other in joined:
            both = set(varying(tags)) & set(varying(other))
            if not both:
                rest.append(other)
                continue
            tags = ties.tie_along(tags, sorted(set(varying(tags)) - both))
            other = ties.tie_along(other, sorted(set(varying(other)) - both))
            ties.tie(tags, other)
        joined = [*rest, tags]
    return joined
