"""What the laws of surgery are checked with: other samples than a network was traced on, and nothing left behind.

A trace or a record is of one example. What it holds of that example (a tensor that a hook kept, a number that was
asked for, a branch that was taken) is exact there and wrong everywhere else, so that each law is tried on other content
and, where the network takes one, another batch size.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..torch_utils import logits_in, untouched
from .nests import tensors_in

TOLERANCE = 1e-4  # of a tensor's largest value: what rounding may part in single precision


def other_samples(example: Tensor, count: int) -> Tensor:
    """``count`` samples of other content, shaped like those of ``example`` [N, …] and of its values (token ids stay
    ids of the vocabulary): mixed up, and with noise where they are all the same."""
    generator = torch.Generator().manual_seed(count)
    order = torch.randperm(example.numel(), generator=generator).to(example.device)
    mixed = example.reshape(-1)[order].view(example.shape)
    if example.is_floating_point() and torch.equal(mixed, example):
        mixed = example + torch.randn(example.shape, generator=generator).to(example)
    return mixed[torch.arange(count) % len(mixed)].contiguous()


def others_for(network: nn.Module, example: Tensor, count: int = 0) -> Tensor:
    """Other samples, of another number (``count``, if given) if the network takes it in eval mode and else of the
    example's."""
    count = count or (1 if len(example) > 1 else 2)
    samples = other_samples(example, count)
    try:
        with untouched(network):
            network(samples.clone())
    except Exception:
        return other_samples(example, len(example))
    return samples


def close(actual: Any, expected: Any, tolerance: float = TOLERANCE) -> bool:
    """Whether two values (tensors, or tuples, lists and dictionaries of them) hold the same, but for rounding."""
    left, right = tensors_in(actual), tensors_in(expected)
    return len(left) == len(right) and all(_alike(a, b, tolerance) for a, b in zip(left, right, strict=True))


def _alike(actual: Tensor, expected: Tensor, tolerance: float) -> bool:
    if actual.shape != expected.shape or actual.is_floating_point() != expected.is_floating_point():
        return False
    if not actual.is_floating_point():
        return torch.equal(actual, expected)
    kind = torch.promote_types(actual.dtype, expected.dtype)
    actual, expected = actual.to(kind), expected.to(kind)
    sizes = expected[expected.isfinite()].abs()
    gap = tolerance * float(sizes.max()) if len(sizes) else 0.0
    return torch.allclose(actual, expected, rtol=0, atol=gap, equal_nan=True)


def random_state(example: Tensor) -> tuple[Any, ...]:
    """Where the random numbers of torch, Python and NumPy stand."""
    states = [torch.get_rng_state(), *([torch.cuda.get_rng_state(example.device)] if example.is_cuda else [])]
    _, keys, place, *_ = np.random.get_state(legacy=True)
    return *(state.numpy().tobytes() for state in states), random.getstate(), np.asarray(keys).tobytes(), place


def outputs_in(value: Any) -> list[Tensor]:
    """The tensors of what a network gives, or of the logits in it."""
    return tensors_in(value) or tensors_in(logits_in(value))
