"""What a label may be: the number of a class, or none; and what is to be had without looking."""

UNLABELLED = -100
"""The label of a sample, pixel or token that has none; cross entropy passes over it."""

MOST_CLASSES = 1 << 20
"""Labels from here on are taken for ids: no network has so many outputs."""

BLIND = 0.05
"""The part of the way from a guess to perfect that an accuracy averaged over classes may go by luck."""


def blind(classes: int) -> float:
    """The accuracy averaged over classes that a network may have which does not look: that of any guess, and luck."""
    return (1 + BLIND * (classes - 1)) / classes


BY_CONTENT, BY_POSITION = "content", "position"
"""How a set without a test split has some samples held out: since version 0.2, and before."""
