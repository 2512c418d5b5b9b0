"""Words that errors share."""

import difflib
from collections.abc import Iterable


def nearest(word: str, known: Iterable[str]) -> str:
    """'did you mean …' with the nearest module names, or some of them."""
    names = [name for name in known if name]
    close = difflib.get_close_matches(word, names, n=3, cutoff=0.5) or names[:6]
    return f"did you mean {' or '.join(map(repr, close))}" if names else "it has no modules"
