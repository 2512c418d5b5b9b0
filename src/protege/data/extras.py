"""What other libraries bring, where they are installed: torchvision's sets and the tokenizers of Hugging Face."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import UserError, told
from ..torch_utils import admit_torchvision

MOST_WORDS = 2**24  # a number beyond it is a mistake in the file
_LOG = logging.getLogger("protege")


def imported(module: str, package: str) -> ModuleType:
    """A module of a package that is optional."""
    if package in ("torchvision", "transformers"):
        admit_torchvision()
    try:
        return import_module(module)
    except Exception as error:
        raise UserError(
            f"package {package} cannot be imported ({told(error)}); install one that fits your torch with: "
            f"pip install {package}."
        ) from error


def torchvision_datasets(rest: str) -> dict[str, Any]:
    """Training and test split of the class NAME of torchvision.datasets, kept in the folder PATH:
    "NAME:PATH"."""
    name, _, path = rest.partition(":")
    if not path:
        raise UserError(f"data 'torchvision:{rest}' names no folder; write torchvision:NAME:PATH.")
    known = imported("torchvision.datasets", "torchvision")
    kind = getattr(known, name, None)
    if not isinstance(kind, type):
        raise UserError(f"torchvision has no dataset '{name}'; give a class of torchvision.datasets, such as CIFAR10.")
    if not Path(path).expanduser().is_dir():
        raise UserError(f"data path {path} does not exist; give the folder that holds torchvision's {name}.")
    takes = inspect.signature(kind).parameters
    named = {
        split: {"train": split == "train"} if "train" in takes else {"split": split} for split in ("train", "test")
    }
    try:
        return {split: kind(root=Path(path).expanduser(), **which) for split, which in named.items()}
    except (TypeError, ValueError, RuntimeError, OSError) as error:
        raise UserError(
            f"torchvision's {name} cannot be opened in {path} ({told(error)}); download it "
            "there first, or pass your own Dataset to load_data."
        ) from error


def words_of(tokenizer: Any) -> tuple[str, ...]:
    """The tokens in the order of their numbers, added ones too. A number that no token has gets a name of its own, so
    that each word stands at its number."""
    numbers: dict[str, int] = tokenizer.get_vocab()
    size = max(numbers.values(), default=-1) + 1
    if size > MOST_WORDS:
        raise UserError(
            f"the tokenizer has a token of number {size - 1}; expected numbers below {MOST_WORDS}: number its "
            "tokens anew."
        )
    words = [f"<no word {number}>" for number in range(size)]
    for word, number in numbers.items():
        words[number] = str(word)
    return tuple(words)


@dataclass(frozen=True)
class Tokenizer:
    """What turns text into numbers of `words`; ``end`` ends a text, ``unknown`` (or None) is what has no word."""

    encode: Callable[[str], list[int]]
    words: tuple[str, ...]
    end: int
    unknown: int | None


def read_tokenizer(folder: str) -> Tokenizer:
    """A Hugging Face tokenizer from its folder."""
    library = imported("transformers", "transformers")
    try:
        tokenizer = library.AutoTokenizer.from_pretrained(
            folder, local_files_only=Path(folder).is_dir(), trust_remote_code=False
        )
    except Exception as error:
        raise UserError(
            f"tokenizer '{folder}' cannot be opened ({told(error)}); give a folder with tokenizer.json, as "
            "save_pretrained writes it."
        ) from error
    ends = (tokenizer.eos_token_id, tokenizer.sep_token_id, tokenizer.bos_token_id)
    end = next((number for number in ends if number is not None), 0)
    unknown = tokenizer.unk_token_id
    unknown = None if unknown == tokenizer.eos_token_id else unknown  # GPT-2's knows every byte

    def encode(text: str) -> list[int]:
        try:
            numbers = tokenizer.encode(text, add_special_tokens=False)
            problem = "it has no token for some words" if None in numbers else ""
        except Exception as error:
            problem = told(error)
        if problem:
            raise UserError(
                f"tokenizer '{folder}' cannot read the text ({problem}); expected one that knows all of its words, or "
                "has a token for unknown ones."
            )
        lost = [c for c in sorted(set(text)) if c.isalnum() and not tokenizer.encode(c, add_special_tokens=False)]
        if lost:
            _LOG.warning(
                "tokenizer '%s' has no token for %d of the text's characters, such as '%s', and leaves out %.1f %% of "
                "it: take one that was made for such text.",
                folder,
                len(lost),
                lost[0],
                100 * sum(map(text.count, lost)) / len(text),
            )
        return numbers

    return Tokenizer(encode, words_of(tokenizer), end, unknown)
