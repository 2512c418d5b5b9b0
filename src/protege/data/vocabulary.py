"""The words of a Hugging Face tokenizer by number, for the text that it cuts up and for the model that reads it."""

from __future__ import annotations

from typing import Any

from ..errors import UserError

MOST = 2**24  # words; a number beyond it is a mistake in the file


def words_of(tokenizer: Any) -> tuple[str, ...]:
    """The tokens in the order of their numbers, added ones too. A number that no token has gets a name of its own, so
    that each word stands at its number."""
    numbers: dict[str, int] = tokenizer.get_vocab()
    size = max(numbers.values(), default=-1) + 1
    if size > MOST:
        raise UserError(
            f"the tokenizer has a token of number {size - 1}; expected numbers below {MOST}: number its tokens anew."
        )
    words = [f"<no word {number}>" for number in range(size)]
    for word, number in numbers.items():
        words[number] = str(word)
    return tuple(words)
