"""What the outputs of a language model stand for, found by values: a word is changed, and what moves is looked at.

Shapes cannot tell it. Outputs of the right shape may be those of other words, of another sample of the batch, or of a
network that has read the word it is to foretell; and each of these trains, and is measured, without an error.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from ..errors import UserError, told
from ..torch_utils import as_it_was, device_of, eval_mode, is_quantised

logger = logging.getLogger("protege")

ROUNDING = 1e-5  # of the outputs' size: what single precision leaves of a word that does not count
COARSE = 0.05  # the same where a network computes in half precision, or in integers scaled over all of a batch
SHUT = 1e-3  # size of weights that may be a gate still to open
WIDEST = 2**30  # weights; more are not brought to single precision for a look


def samples_for(tokens: int, scored: int, words: int) -> int:
    """A number of samples that is none of the other sizes, so that a shape tells which dimension is which."""
    return next(n for n in range(2, 9) if n not in (tokens - 1, tokens, tokens + 1, scored, words))


def check_layout(shape: Sequence[int], samples: int, tokens: int, scored: int, words: int) -> None:
    """Raise `UserError` unless outputs are [samples, positions, words], with a position for each scored token."""
    given, wanted = list(shape), [samples, tokens, words]
    if len(given) == 3 and given[0] == samples and given[1] >= scored and (given[2] == words or given[1] != words):
        return
    lengths = (tokens, scored)
    if len(given) == 3 and given[0] in lengths and given[1:] == [samples, words]:
        remedy = "return outputs.transpose(0, 1)"
    elif len(given) == 3 and given[:2] == [samples, words] and given[2] in lengths:
        remedy = "return outputs.transpose(1, 2)"
    elif given == [samples, words]:
        remedy = "return the logits behind every token rather than behind the last alone"
    else:
        remedy = "return that shape from its forward"
    raise UserError(
        f"the model gives outputs of shape {given} for tokens of shape {[samples, tokens]}, where the logits of the "
        f"word after each token, {wanted}, are expected; {remedy}."
    )


def check_causal(model: Any, data: Any, scored: int) -> None:
    """Raise `UserError` where an output moves with another sample or with a later word, or not with its own word.

    `model` gives [samples, positions, words] for int64 tokens; its last ``scored`` outputs are those of the last
    ``scored`` tokens. Weights, buffers, modes and plain attributes stay as they are, and so do torch's random numbers.
    Warns of a network that answers otherwise when it is asked again: it keeps something of what it saw.
    """
    tokens, words = data.train.shape[0], len(data.classes)
    count = samples_for(tokens, scored, words)
    generator = torch.Generator().manual_seed(0)
    pool = _common_words(data, words)
    places = torch.randint(len(pool), (count, tokens), generator=generator)
    text = pool[places]
    text[0, 0] = words - 1  # every word of the vocabulary must be known
    with eval_mode(model), as_it_was(model.network) as restore, torch.no_grad():
        ask, rounding = _asking(model, text.to(device_of(model)), scored, restore)
        base = ask(text)
        if base is None:
            return
        sizes = [x.masked_fill(~x.isfinite(), 0).square().mean(-1).sqrt() for x in base]  # of each output's logits
        tolerance = rounding * float(torch.stack(sizes).max())
        if not _repeatable(ask, text, base, tolerance):
            return
        other = text.clone()
        other[0] = pool[(places[0] + 1) % len(pool)]
        if float(_moved(base, ask(other))[1:].max()) > tolerance:
            raise UserError(
                "the model mixes samples: its outputs for one text move when another text of the batch is changed; "
                "expected each text by itself, with the batch as first dimension: set batch_first=True, or transpose "
                "what its layers take and give."
            )
        first, last = tokens - scored, tokens - 1
        asked = [last, first + scored // 2, last, last, max(first, last - 1), first]
        moves: list[tuple[int, Tensor]] = []
        for begin in range(0, len(asked), count):
            changed, positions = text.clone(), asked[begin : begin + count]
            for row, position in enumerate(positions):
                place = places[row, position] + begin + row + 1  # another word each time
                near = pool[torch.stack([place, place + 1]) % len(pool)]
                changed[row, position] = near[int(near[0] == text[row, position])]
            moved = _moved(base, ask(changed)) > tolerance
            moves += [(position - first, moved[row]) for row, position in enumerate(positions)]
    _judge(moves, base.shape[1])


def _judge(moves: list[tuple[int, Tensor]], scored: int) -> None:
    """Each pair is a word that was changed, by its place, and which outputs [scored] moved then."""
    if any(bool(moved[:place].any()) for place, moved in moves):
        raise UserError(
            "the model sees the words that it is to foretell, as outputs before a word move when that word is changed; "
            "expected a causal network: mask its attention, pad its convolutions on the left only, and read forwards "
            "only."
        )
    alive = any(bool(moved.any()) for _, moved in moves)
    blind = [place for place in {place for place, _ in moves} if not any(bool(m[p]) for p, m in moves if p == place)]
    if alive and scored - 1 in blind:
        raise UserError(
            "the model gives outputs that do not stand at their words, as the last stays when the last word changes; "
            "expected output t to be the logits of the word after token t: return one for every token, and shift "
            "nothing."
        )


def _common_words(data: Any, words: int) -> Tensor:
    """Word numbers that a text has, as a trained network may hold all that it never met for alike."""
    tokens = getattr(data.train, "tokens", None)
    common = torch.arange(words) if tokens is None else tokens[:4096].unique().long().cpu()
    return common if len(common) > 1 else torch.arange(max(words, 2)) % words


def _asking(
    model: Any, text: Tensor, scored: int, restore: Callable[[], None]
) -> tuple[Callable[..., Tensor | None], float]:
    """What gives the scored outputs of a text as float32, None where one is not finite; and what rounding leaves.

    Half precision is brought to single, and weights that shut a path for now (a gate of zero) are opened.
    """
    network = model.network
    seeds = torch.Generator().manual_seed(1)
    named = [(name, p) for name, p in network.named_parameters() if p.is_floating_point()]
    half = any(p.dtype in (torch.float16, torch.bfloat16) for _, p in named)
    opened = {
        name: (torch.randn(p.shape, generator=seeds) * 0.1).to(p)
        for name, p in named
        if p.requires_grad and p.numel() and float(p.detach().float().square().mean().sqrt()) < SHUT
    }
    single = dict(opened)
    if half and sum(p.numel() for _, p in named) <= WIDEST:
        floats = [*named, *((name, b) for name, b in network.named_buffers() if b.is_floating_point())]
        single = {name: opened.get(name, value).float() for name, value in floats}

    def outputs(weights: dict[str, Tensor], tokens: Tensor) -> Tensor:
        def run(raw: Tensor) -> Any:
            return functional_call(network, weights, (raw,)) if weights else network(raw)

        torch.manual_seed(0)  # the same dropout each time, where a network always has some
        return model.run(run, tokens)

    tries = [single, opened, {}]
    for chosen in tries:
        restore()
        try:
            outputs(chosen, text)
        except Exception as error:
            if chosen is tries[-1]:
                raise UserError(
                    f"the model fails on a text of all words of the vocabulary, numbers 0 to {int(text.max())} "
                    f"({told(error)}); expected an embedding of each: use a model made for this vocabulary."
                ) from error
            continue
        break

    def ask(tokens: Tensor, afresh: bool = True) -> Tensor | None:
        if afresh:
            restore()
        logits = outputs(chosen, tokens.to(text.device))[:, -scored:].float()
        return logits if bool(logits.isfinite().any(2).all()) and not bool(logits.isnan().any()) else None

    coarse = any(map(is_quantised, network.state_dict().values())) or (half and chosen is not single)
    return ask, COARSE if coarse else ROUNDING


def _repeatable(ask: Callable[..., Tensor | None], text: Tensor, base: Tensor, tolerance: float) -> bool:
    """Whether a text has the same outputs each time, once the network is as it was; warns where it keeps something."""
    ask(text)
    again = ask(text, afresh=False)
    if again is not None and float(_moved(base, again).max()) <= tolerance:
        return True
    logger.warning(
        "the model answers otherwise when it is asked the same again, as it keeps something of what it saw before: "
        "what it is measured by depends on the order of the text, unless its forward begins anew each time."
    )
    fresh = ask(text)
    return fresh is not None and float(_moved(base, fresh).max()) <= tolerance


def _moved(before: Tensor, after: Tensor | None) -> Tensor:
    """Root mean square of how far logits moved, [samples, positions]; those that are infinite twice did not."""
    if after is None:
        return torch.full(before.shape[:2], torch.inf)
    moved = [torch.where(a == b, 0.0, a - b).square().mean(-1).sqrt() for a, b in zip(before, after, strict=True)]
    return torch.stack(moved)
