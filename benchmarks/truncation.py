"""Truncated backpropagation: state carried from batch to batch, against blocks that bring their context.

    python benchmarks/truncation.py TEXT_FOLDER

Trains one small LSTM each way, with the same updates, and measures perplexity on the start of the test text: on one
stream, whose state is carried over all of it, and on blocks behind contexts of several lengths.
"""

from __future__ import annotations

import math
import sys
import time

import torch
import torch.nn.functional as F
from torch import Tensor

from protege.data import CLEAN, Augment, Text, load_data
from protege.models.language import LSTM

WORDS, WIDTH, LENGTH, BATCH, EPOCHS, JUDGED = 2000, 96, 35, 32, 4, 60_000
CONTEXTS = (0, 35, 70, 140)


def blocks(tokens: Tensor, context: int) -> Text:
    return Text(tokens, WORDS, 1, LENGTH, context)


@torch.no_grad()
def on_stream(network: LSTM, tokens: Tensor) -> float:
    """Perplexity with the state carried over the whole text."""
    tokens, state, total = tokens.long(), None, 0.0
    before = torch.cat([torch.tensor([1]), tokens[:-1]])
    for x, y in zip(before.split(500), tokens.split(500), strict=True):
        hidden, state = network.lstm(network.embed(x[None]), state)
        total += F.cross_entropy(network.head(hidden)[0], y, reduction="sum").item()
    return math.exp(total / len(tokens))


@torch.no_grad()
def on_blocks(network: LSTM, tokens: Tensor, context: int) -> float:
    samples, total = blocks(tokens, context), 0.0
    network.context = context
    for index in torch.arange(len(samples)).split(64):
        batch = samples.fetch(index, CLEAN, Augment())
        total += F.cross_entropy(network(batch.inputs).flatten(0, 1), batch.labels.flatten(), reduction="sum").item()
    return math.exp(total / len(tokens))


def trained(tokens: Tensor, context: int | None) -> LSTM:
    """An LSTM after `EPOCHS`; `context` None carries its state over `BATCH` contiguous streams."""
    torch.manual_seed(0)
    network = LSTM(WORDS, WIDTH, WIDTH, 1, 0.0, False, 0.1)
    optimizer = torch.optim.Adam(network.parameters(), 2e-3)

    def update(logits: Tensor, labels: Tensor) -> None:
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    for _ in range(EPOCHS):
        if context is None:
            streams, state = tokens.long()[: len(tokens) // BATCH * BATCH].view(BATCH, -1), None
            for x, y in zip(streams[:, :-1].split(LENGTH, 1), streams[:, 1:].split(LENGTH, 1), strict=True):
                hidden, state = network.lstm(network.embed(x), state)
                state = tuple(part.detach() for part in state)
                update(network.head(hidden), y)
            continue
        network.context = context
        samples = blocks(tokens, context)
        for index in torch.randperm(len(samples)).split(BATCH):
            batch = samples.fetch(index, CLEAN, Augment())
            update(network(batch.inputs), batch.labels)
    return network


def main(folder: str) -> None:
    data = load_data(f"text:{folder}?vocabulary={WORDS}")
    assert isinstance(data.train, Text)
    assert isinstance(data.test, Text)
    train, test = data.train.tokens, data.test.tokens[:JUDGED]
    print(f"{'trained':>16} {'seconds':>8} {'stream':>8}", *(f"{f'context {c}':>12}" for c in CONTEXTS))
    for context in (None, *CONTEXTS[:3]):
        began = time.perf_counter()
        network = trained(train, context)
        seconds = time.perf_counter() - began
        name = "carried state" if context is None else f"context {context}"
        measured = (on_blocks(network, test, c) for c in CONTEXTS)
        print(f"{name:>16} {seconds:8.0f} {on_stream(network, test):8.2f}", *(f"{m:12.2f}" for m in measured))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1])
