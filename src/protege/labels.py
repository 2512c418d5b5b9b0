"""What a label may be: the number of a class, or none."""

UNLABELLED = -100
"""The label of a sample, pixel or token that has none; cross entropy passes over it."""

MOST_CLASSES = 1 << 20
"""Labels from here on are taken for ids: no network has so many outputs."""
