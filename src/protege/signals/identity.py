"""Which network it is: by its weights, and by what it does."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..torch_utils import plain_parts


def behaviour(fields: Mapping[str, Tensor]) -> str:
    """What a network does with some samples, coarse enough to be the same whatever the number of threads.

    Weights alone do not tell two networks apart whose code differs: for each field, where each sample's largest
    value lies, and to about 5 % how large values are.
    """
    parts = []
    for name, value in sorted(fields.items()):
        rows = value.detach().double().flatten(1)
        scale = rows.std(dim=1, correction=0).mean().clamp(min=1e-9).log() * 20
        parts.append(f"{name}{rows.argmax(1).tolist()}{round(float(scale)) if bool(scale.isfinite()) else scale}")
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()


def fingerprint(network: nn.Module) -> str:
    """Digest of a network: its structure, how it wants its input, and every weight and buffer."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(repr(getattr(network, "input", None)).encode())
    digest.update(repr(getattr(network, "network", network)).encode())
    digest.update(weights_digest(network).encode())
    return digest.hexdigest()


def weights_digest(network: nn.Module) -> str:
    """Digest of every weight and buffer by name."""
    digest = hashlib.blake2b(digest_size=16)
    for name, value in sorted(network.state_dict().items()):
        for part, form in plain_parts(value):
            digest.update(f"{name}{form}".encode())
            digest.update(part.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
