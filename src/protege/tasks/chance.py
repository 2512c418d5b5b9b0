"""What is to be had without looking at the samples, by who has only counted the labels."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..data.labels import UNLABELLED, blind


@dataclass(frozen=True)
class Chance:
    """The best guess of who has only counted the labels.

    ``accuracy`` is the share of the commonest label and ``least`` that of the rarest, ``nll`` the entropy of their
    shares in nats, ``rows`` how many were counted, ``classes`` how many labels occur.
    """

    accuracy: float
    least: float
    nll: float
    rows: int
    classes: int = 0

    @staticmethod
    def of(labels: Tensor) -> Chance | None:
        """Of labels of any shape, those of `UNLABELLED` rows left out; None where there is none."""
        return Chance.counted(labels[labels != UNLABELLED].bincount())

    @staticmethod
    def counted(counts: Tensor) -> Chance | None:
        """Of how many rows each class has, ``[K]``; None where there are none."""
        counts = counts.double()
        if not counts.any():
            return None
        shares = counts[counts > 0] / counts.sum()
        entropy = -float((shares * shares.log()).sum())
        return Chance(float(shares.max()), float(shares.min()), entropy, int(counts.sum()), len(shares))

    def explains(self, accuracy: float, nll: float, balanced: float | None = None) -> bool:
        """Whether neither first guesses (within three deviations) nor probabilities (within 1 %) show any more, nor
        ``balanced``, the accuracy averaged over classes, where that is known.

        All must fail: an over-confident network has a high NLL and yet guesses well; where one label is frequent,
        probabilities may say much while the first guess is always that label; and a network that was trained to heed
        rare labels names them too often to beat a count in either.
        """
        if balanced is not None and self.classes and balanced > blind(self.classes):
            return False
        bound = min(self.accuracy + self._three(self.accuracy), (1 + self.accuracy) / 2)  # three deviations of few rows
        return self.accuracy < 1 and accuracy <= bound and nll >= 0.99 * self.nll

    def is_above(self, accuracy: float) -> bool:
        """Whether first guesses are worse than any that do not look: the labels mean something else."""
        return accuracy < self.least - self._three(self.least)

    def _three(self, share: float) -> float:
        return 3 * (share * (1 - share) / self.rows) ** 0.5
