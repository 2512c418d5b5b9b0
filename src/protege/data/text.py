"""Text: words in a row, cut into blocks whose next words are to be predicted.

The layouts are those of PTB (Mikolov et al. 2010) and WikiText (Merity et al. 2016): whitespace-separated words,
`<eos>` at the end of every line, perplexity over every word of the part and its `<eos>`. A text whose lines end in a
mark already (`<eos>`, `</s>`) gets no second one. The vocabulary comes from the training part; words outside it become
`<unk>`.

**Truncated backpropagation without carried state.** A recurrent network is usually trained on B contiguous streams,
its state carried from batch to batch and cut off from the gradient (Zaremba et al. 2014). That state depends on what
was computed before: on order, batch size, process and the weights of a moment ago, and a stored teacher signal would
be that of another state. Here each block of `length` scored words brings the `context` words that stand before it
in the text. A network starts from nothing, reads the context, and is scored on the block alone; the zoo's LSTM reads
the context without gradient. So the gradient is truncated at the block, the state that enters it is that of contiguous
text and never stale, and a block is a sample like any other: drawn in random order, remembered by the cache, split
over processes, resumed. It costs the context's recurrence, not its softmax, which dominates, and gives up text further
back, which such models hardly use: on WikiText-2 an LSTM is as good behind 35 words as on the whole text in one stream,
and training so is no worse than carrying the state (`benchmarks/truncation.py`). A transformer attends to the context
as to the block; `context=0` makes plain blocks.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from .augment import Augment
from .batch import Batch
from .dataset import Data, Request
from .extras import read_tokenizer
from .labels import UNLABELLED
from .rendering import Render
from .samples import Samples
from .views import View

UNKNOWN, END = "<unk>", "<eos>"
LENGTH, CONTEXT = 35, 35
NAMES = {"train": ("train",), "val": ("valid", "val", "validation"), "test": ("test",)}
SUFFIXES = (".txt", ".tokens")
_HELD_OUT = 0.1
_MARKED = 0.99  # of the lines: a text may be cut off in one
_SPECIAL = 2  # <unk> and <eos> stand in every vocabulary
_LOG = logging.getLogger("protege")


class Text(Samples):
    """Blocks of one text: block i holds the words i·length … (i+1)·length − 1.

    `fetch` gives inputs int64 [B, context + length] and labels int64 [B, length]: the word after each of the last
    `length` inputs. Before the text's first word stand `<eos>`; the labels that the last block lacks are -100. Every
    view is the same.

    `words`: how many words the vocabulary has. `tokens`: the text, integers [N] on the device.
    """

    in_memory = True
    labels = None

    def __init__(self, tokens: Tensor, words: int, end: int, length: int = LENGTH, context: int = CONTEXT) -> None:
        self.tokens, self.words, self.end, self.length, self.context = tokens, words, end, length, context
        self.shape = (context + length,)
        self.padded = torch.full((context + 1 + len(self) * length,), end, dtype=tokens.dtype, device=tokens.device)
        self.padded[context + 1 : context + 1 + len(tokens)] = tokens

    def __len__(self) -> int:
        return -(-len(self.tokens) // self.length)

    @property
    def device(self) -> torch.device:
        return self.tokens.device

    @property
    def extent(self) -> int:
        """A sample's size in pixels' worth: sixteen logits weigh about as much as one pixel's activations."""
        return max(1, self.length * self.words // 16)

    def _fetch(self, index: Tensor, view: int, augment: Augment) -> Batch:
        return Batch(*self._render(index.to(self.device, non_blocking=True), view), index, view)

    def _render(self, index: Tensor, view: View) -> tuple[Tensor, Tensor]:
        start = index[:, None] * self.length
        offset = torch.arange(self.context + self.length, device=start.device)
        inputs = self.padded[start + offset].long()
        labels = self.padded[start + offset[self.context :] + 1].long()
        return inputs, labels.masked_fill_(start + offset[: self.length] >= len(self.tokens), UNLABELLED)

    def renderer(self, augment: Augment, index: Tensor | None = None) -> Render:
        return self._render

    def _content(self) -> str:
        digest = hashlib.sha256(f"{self.words} {self.end} {self.length} {self.context}".encode())
        digest.update(self.tokens.cpu().numpy().tobytes())
        return digest.hexdigest()

    def to(self, device: torch.device | str) -> Text:
        tokens = self.tokens.to(device)
        if tokens is self.tokens:
            return self
        return Text(tokens, self.words, self.end, self.length, self.context)


def text_data(request: Request) -> Data:
    """A text's parts, and the words of its vocabulary as classes.

    The path is a folder with `train`, `valid` and `test` (also `ptb.train`, `wiki.train`; `.txt`, `.tokens` or
    nothing behind), or one file, which is cut into 80, 10 and 10 percent. The options `length` and `context` are
    numbers of words, see `Text`. `vocabulary` is how many words to keep, the most frequent, or a model's folder whose
    words to take. `tokenizer` is the folder of a Hugging Face tokenizer, whose tokens then are the words.

    Raises UserError for what is not there, not text, too short, or leaves no vocabulary.
    """
    path, options = request.path, request.options
    length, context, vocabulary, tokenizer = (
        options.get(key, "") for key in ("length", "context", "vocabulary", "tokenizer")
    )
    size = _whole("length", length, LENGTH, 1), _whole("context", context, CONTEXT, 0)
    if tokenizer and vocabulary:
        raise UserError(
            f"vocabulary={vocabulary} and tokenizer={tokenizer} were both given; a tokenizer has its own vocabulary, "
            "so give only one of them."
        )
    contents = {part: _content(file) for part, file in _find(path).items()}
    if tokenizer:
        cut = read_tokenizer(tokenizer)
        words, end, unknown = cut.words, cut.end, cut.unknown
        parts = _split(path, {part: np.asarray(cut.encode(text), np.int32) for part, text in contents.items()})
    else:
        numbers: dict[str, int] = {UNKNOWN: 0, END: 1}
        mark = _mark(path, contents["train" if "train" in contents else "val"])
        parts = _split(path, {part: _numbered(text, numbers, mark) for part, text in contents.items()})
        parts, words = _worded(parts, numbers, vocabulary)
        end, unknown = words.index(END), words.index(UNKNOWN)
    if len(parts["train"]) < size[0]:
        raise UserError(
            f"the training text of '{path}' has {len(parts['train'])} words, fewer than one block of {size[0]}; "
            "give more text or a smaller ?length=."
        )
    _tell_unknown(path, parts, words, end, unknown)
    texts = {part: Text(torch.from_numpy(tokens), len(words), end, *size) for part, tokens in parts.items()}
    return Data(request.spec, "language", texts["train"], texts["val"], texts["test"], words, Augment())


def _tell_unknown(
    path: Path, parts: dict[str, np.ndarray], words: tuple[str, ...], end: int, unknown: int | None
) -> None:
    """Say how many words of each part are unknown, and warn where no other word is as frequent."""
    flooded = []
    for part, tokens in parts.items():
        counts = np.bincount(tokens, minlength=len(words))
        share = 0.0 if unknown is None else counts[unknown] / max(1, len(tokens))
        _LOG.info("%s: %d words, %.1f %% unknown", part, len(tokens), 100 * share)
        counts[end] = 0
        if unknown is not None and counts[unknown] and counts[unknown] == counts.max():
            flooded.append(f"{100 * share:.0f} % of {part}")
    if flooded and unknown is not None:
        _LOG.warning(
            "the commonest word of '%s' is %s (%s), so that perplexity tells how well unknown words are foretold and "
            "not the text: keep more words with a larger vocabulary, or take a tokenizer or a model that knows them.",
            path,
            words[unknown],
            ", ".join(flooded),
        )


def _whole(name: str, text: str, default: int, least: int) -> int:
    if not text:
        return default
    if not text.isdecimal() or int(text) < least:
        raise UserError(f"{name}={text} is no number of words; give a whole number from {least}, such as {default}.")
    return int(text)


def _find(path: Path) -> dict[str, Path]:
    """The files of a folder by part; a single file is training."""
    if not path.exists():
        raise UserError(
            f"there is no text '{path}'; give a text file, or a folder with train.txt, valid.txt, test.txt."
        )
    if not path.is_dir():
        return {"train": path}
    files: dict[str, Path] = {}
    for file in sorted(p for p in path.iterdir() if p.is_file()):
        stem = file.stem if file.suffix in SUFFIXES else file.name
        for part, names in NAMES.items():
            if any(stem == name or stem.endswith(f".{name}") for name in names):
                if part in files:
                    raise UserError(f"'{files[part]}' and '{file}' are both the {part} text; remove one of them.")
                files[part] = file
    if not files.keys() & {"train", "val"}:
        raise UserError(f"folder '{path}' holds no text to train on; train.txt (and valid.txt, test.txt) is expected.")
    return files


def _content(path: Path) -> str:
    """A file's text, which must be UTF-8 without NUL, and more than space."""
    if not path.is_file():
        raise UserError(f"'{path}' is no file; give a text file, or a folder with train.txt.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    except OSError as error:
        raise UserError(f"'{path}' cannot be read ({error.strerror}); check it.") from error
    if "\0" in text:
        raise UserError(f"'{path}' is not text in UTF-8; give plain text, words separated by spaces.")
    text = text.replace("\ufeff", "")  # files that were joined have a mark where each began
    if not text.strip():
        raise UserError(f"'{path}' is empty; a text with words is expected.")
    return text


def _mark(path: Path, text: str) -> str:
    """The mark, such as `</s>`, in which the lines of a text end already; "" where they end in none."""
    lines = [line for line in text.split("\n") if line.strip()]
    mark, count = Counter(line.rsplit(None, 1)[-1] for line in lines).most_common(1)[0]
    if len(lines) == 1 or count < _MARKED * len(lines) or mark == UNKNOWN or not re.fullmatch(r"<\S+>|\[\S+\]", mark):
        return ""
    _LOG.info("the lines of '%s' end in %s already, which is taken for %s.", path, mark, END)
    return mark


def _worded(
    parts: dict[str, np.ndarray], numbers: dict[str, int], vocabulary: str
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Word numbers of each part anew, and the words: those given, or the most frequent of the training part."""
    if vocabulary and not vocabulary.isdecimal():
        words = _words_of(Path(vocabulary).expanduser())
    else:
        counts = np.bincount(parts["train"], minlength=len(numbers))
        seen = [word for word, n in numbers.items() if n >= _SPECIAL and counts[n]]
        seen.sort(key=lambda word: (-counts[numbers[word]], word))
        most = int(vocabulary) if vocabulary else _SPECIAL + len(seen)
        if most <= _SPECIAL:
            raise UserError(
                f"vocabulary={vocabulary} leaves no word beside {UNKNOWN} and {END}; give more, such as 10000."
            )
        words = (UNKNOWN, END, *seen[: most - _SPECIAL])
    place = {word: n for n, word in enumerate(words)}
    table = np.array([place.get(word, place[UNKNOWN]) for word in numbers], np.int32)
    return {part: table[tokens] for part, tokens in parts.items()}, words


def _numbered(text: str, numbers: dict[str, int], mark: str = "") -> np.ndarray:
    """Words as numbers in the order in which they were first met; new ones are added to `numbers`. Lines end in END,
    which stands for the `mark` that they may have of their own; with one, an empty line is none."""
    tokens: list[int] = []
    for line in text.removesuffix("\n").split("\n"):
        words = line.split()
        if mark and not words:
            continue
        if words and words[-1] in (END, mark):
            words.pop()
        tokens += [numbers.setdefault(word, len(numbers)) for word in words]
        tokens.append(numbers[END])
    return np.array(tokens, np.int32)


def _words_of(folder: Path) -> tuple[str, ...]:
    """The words that a model folder's config.json names, or a run's student/ in it."""
    for path in (folder / "config.json", folder / "student" / "config.json"):
        if path.is_file():
            try:
                words = tuple(map(str, json.loads(path.read_text(encoding="utf-8"))["classes"]))
            except (OSError, ValueError, KeyError, TypeError):
                words = ()
            if UNKNOWN in words and END in words:
                return words
            raise UserError(f"'{path}' names no vocabulary with {UNKNOWN} and {END}; give a language model's folder.")
    raise UserError(f"vocabulary={folder} is neither a number nor a model's folder; give one of them, such as 10000.")


def _split(path: Path, parts: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Training, validation and test, contiguous, whatever of them there is."""
    parts = dict(parts)
    if "train" not in parts:
        _LOG.info("'%s' has no training text; its validation text is trained on.", path)
        parts["train"] = parts.pop("val")
    missing = [part for part in ("test", "val") if part not in parts]
    if missing == ["test"]:
        _LOG.info("'%s' has no test text; its validation text is used as test.", path)
        parts["test"] = parts.pop("val")
        missing = ["val"]
    size = round(_HELD_OUT * len(parts["train"]))
    for part in missing:
        if not size:
            raise UserError(f"text '{path}' is too short to hold out a {part} part; give more text.")
        parts["train"], parts[part] = parts["train"][:-size], parts["train"][-size:]
        name = {"val": "validation"}.get(part, part)
        _LOG.info("'%s' has no %s text; the last %d words of training are held out.", path, name, size)
    return parts
