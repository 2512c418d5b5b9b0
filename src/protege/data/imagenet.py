"""ImageNet's classes: folders are called by synsets (n01440764), networks by words, and the order is known to all."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

_SYNSET = re.compile(r"(n[0-9]{8})(?![0-9])")
# A list of a thousand names is ImageNet's where these stand at their numbers, in the words of torchvision, timm and
# transformers alike.
_KNOWN = {0: "tench", 1: "goldfish", 207: "golden retriever", 340: "zebra", 404: "airliner", 559: "folding chair"}
_KNOWN |= {670: "motor scooter", 817: "sports car", 963: "pizza", 999: "toilet tissue"}


@cache
def synsets() -> tuple[str, ...]:
    """The names of the thousand classes of ILSVRC 2012, in their order."""
    return tuple(Path(__file__).with_name("imagenet.txt").read_text(encoding="ascii").split())


def outputs(count: int) -> tuple[str, ...]:
    """The synsets of that many outputs of an ImageNet network, the first of 1001 being the background; () of others."""
    return {1000: synsets(), 1001: ("background", *synsets())}.get(count, ())


def as_synsets(names: Sequence[str]) -> tuple[str, ...]:
    """The same classes called by synsets: names that begin with one, or the thousand in ImageNet's order; () of others.

    >>> as_synsets(["n02084071", "n01443537 goldfish"])
    ('n02084071', 'n01443537')
    """
    matches = [_SYNSET.match(name.strip()) for name in names]
    if names and all(matches):
        return tuple(match[1] for match in matches if match)
    first = len(names) - 1000
    if not outputs(len(names)):
        return ()
    words = {number: [word.strip().casefold() for word in names[first + number].split(",")] for number in _KNOWN}
    return outputs(len(names)) if all(name in words[number] for number, name in _KNOWN.items()) else ()
