"""What a label may be beside the number of a class."""

UNLABELLED = -100
"""The label of a sample, pixel or token that has none; cross entropy passes over it."""
