"""How long networks take, timed in turns, so that what else the machine does meets all of them alike.

A network's own time on a busy machine changes from minute to minute; its share of another's, timed a moment before or
after, does not. So a ratio is the median over neighbouring turns, rather than the ratio of two medians.
"""

from __future__ import annotations

import statistics
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..torch_utils import untouched

LEAST, MOST = 3, 51  # rounds in which each network has a turn
GLANCE = 11  # that are enough for a report
TURN = 0.005  # seconds that a turn takes at least, of several calls where one is shorter
BATCHES = 1, 64  # as reports have them
SECONDS = 2.0  # for all turns of one batch size


@dataclass(frozen=True)
class Latency:
    """What one call takes: ``seconds`` is the median over the turns, ``spread`` what lies between their quartiles.

    ``ratio`` is the time as a share of that of the first of the networks that had turns together, the median over
    neighbouring turns, and ``ratio_spread`` what lies between the quartiles of these. ``batch`` is the number of images
    in a call, ``threads`` that of the processor's threads, ``rounds`` that of turns.
    """

    batch: int
    threads: int
    seconds: float
    spread: float
    ratio: float
    ratio_spread: float
    rounds: int

    def record(self) -> dict[str, Any]:
        """As results have it, in milliseconds a call."""
        return {
            "batch": self.batch,
            "milliseconds": 1000 * self.seconds,
            "spread": 1000 * self.spread,
            "ratio": self.ratio,
            "ratio_spread": self.ratio_spread,
            "rounds": self.rounds,
        }


@torch.no_grad()
def latencies(
    networks: Sequence[nn.Module],
    raw: Tensor,
    *,
    batch: int = 1,
    threads: int | None = None,
    seconds: float = SECONDS,
    rounds: int = MOST,
) -> list[Latency]:
    """Time a call of each network (anything called on raw input, `opened` files too) on ``batch`` samples like those
    of ``raw`` [N, …], on its device.

    All have turns, forwards and backwards, for about ``seconds``, or so many ``rounds`` (`MOST`). Where `LEAST` rounds
    would take longer the batch is halved until they do not, so look at `Latency.batch`; one sample at a time takes what
    it takes. ``threads`` sets torch's for the time being; open a file with as many.

    Networks of one runtime are slowed down alike by what else a machine does; torch suffers more than onnxruntime, so a
    ratio that is to hold elsewhere compares two files, or two networks.
    """
    with ExitStack() as held:
        held.enter_context(_threads(threads))
        for network in networks:
            held.enter_context(untouched(network))
            _unwatched(network)
        batch = _affordable(networks, raw, batch, seconds)
        inputs = _repeated(raw, batch)
        turns = [_turn(network, inputs) for network in networks]
        calls = [max(1, round(TURN / max(turn(1), 1e-6))) for turn in turns]
        times: list[list[float]] = [[] for _ in networks]
        until = time.perf_counter() + seconds
        while len(times[0]) < LEAST or (len(times[0]) < min(rounds, MOST) and time.perf_counter() < until):
            order = list(range(len(networks)))
            for n in order if len(times[0]) % 2 == 0 else reversed(order):
                times[n].append(turns[n](calls[n]))
        return [_latency(own, times[0], batch, torch.get_num_threads()) for own in times]


def speeds(
    networks: Sequence[nn.Module], raw: Tensor, batches: Sequence[int] = BATCHES, rounds: int = GLANCE
) -> list[list[Latency]]:
    """Of each network the `latencies` at these batch sizes, timed in turns with the others."""
    measured = [latencies(networks, raw, batch=batch, rounds=rounds) for batch in batches]
    return [list(each) for each in zip(*measured, strict=True)]


def _latency(own: list[float], first: list[float], batch: int, threads: int) -> Latency:
    ratios = [a / b for a, b in zip(own, first, strict=True)]
    middle = [statistics.quantiles(values, n=4) for values in (own, ratios)]
    seconds, ratio = statistics.median(own), statistics.median(ratios)
    return Latency(batch, threads, seconds, middle[0][2] - middle[0][0], ratio, middle[1][2] - middle[1][0], len(own))


def _affordable(networks: Sequence[nn.Module], raw: Tensor, wanted: int, budget: float) -> int:
    """The largest batch up to the one that is wanted, by halves, of which `LEAST` rounds take no longer than that."""
    sizes = sorted({max(1, wanted >> n) for n in range(wanted.bit_length())})
    affordable = sizes[0]
    for size in sizes:
        try:
            turns = [_turn(network, _repeated(raw, size)) for network in networks]
            took = sum(turn(1) for turn in turns)
            if LEAST * took > budget or size == sizes[0]:  # the first call of a shape may make what later ones use
                took = sum(turn(1) for turn in turns)
        except torch.OutOfMemoryError:  # of an accelerator
            break
        affordable = size if size == sizes[0] or LEAST * took <= budget else affordable
        if 2 * LEAST * took > budget:
            break
    return affordable


def _turn(network: nn.Module, inputs: Tensor) -> Callable[[int], float]:
    """What runs the network some times, and gives the seconds of one of them."""

    def turn(calls: int) -> float:
        _wait(inputs)
        start = time.perf_counter()
        for _ in range(calls):
            network(inputs)
        _wait(inputs)
        return (time.perf_counter() - start) / calls

    return turn


def _unwatched(network: nn.Module) -> None:
    """Take the hooks off the whole (those of its layers may be part of what they compute), which `untouched` brings
    back: who counts what a run asks of a network is not to count its timing."""
    for module in (network, getattr(network, "network", None)):
        if isinstance(module, nn.Module):
            module._forward_pre_hooks, module._forward_hooks = OrderedDict(), OrderedDict()


def _wait(inputs: Tensor) -> None:
    if inputs.device.type == "cuda":
        torch.cuda.synchronize(inputs.device)


def _repeated(raw: Tensor, count: int) -> Tensor:
    return raw[torch.arange(count, device=raw.device) % len(raw)].contiguous()


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
