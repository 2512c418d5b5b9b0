"""Sets that need no files: scikit-learn's digits, and synthetic data with two dials, how much classes resemble each
other and how hard they are to tell apart.

The latter after the synthetic study of Tang et al. 2020, "Understanding and Improving Knowledge Distillation": K
classes in G superclasses have the unit centres ``c_k = √ρ·g_{s(k)} + √(1−ρ)·u_k``, all g and u orthonormal, so that
two centres' cosine is ρ within a superclass and 0 between superclasses. A sample is ``tanh(B·tanh(A·(c + σ·n)))``, n
standard normal, A and B random and fixed.

The D outputs ride as an image of D channels and one pixel, so that every network and every cache works on them: a
value x in (−1, 1) becomes the byte ``round(127.5·(x + 1))``, which moves it by at most 1/255. There is nothing to
augment.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from .augment import Augment
from .classes import GIVEN
from .dataset import Data, Request
from .samples import InMemory
from .split import hold_out

_CENTRES, _MAP, _TRAIN, _TEST = range(4)  # streams of random numbers
TEST_PER_CLASS = 100


@dataclass(frozen=True)
class Dials:
    """What ``synthetic:key=value,…`` sets.

    ``correlation`` is ρ in [0, 1], ``noise`` is σ, ``samples`` are those of the training set (None: 100 a class),
    ``dim`` is D. The test set has 100 samples a class. Other seeds are other problems of the same kind.
    """

    classes: int = 20
    superclasses: int = 4
    correlation: float = 0.5
    noise: float = 0.3
    samples: int | None = None
    dim: int = 64
    seed: int = 0

    @property
    def superclass(self) -> tuple[int, ...]:
        """The superclass of each class: consecutive classes, shared out as evenly as they go."""
        return tuple(k * self.superclasses // self.classes for k in range(self.classes))


def read_dials(text: str, spec: str = "") -> Dials:
    """Dials from "classes=20,correlation=0.9"; raises UserError for an unknown key or an impossible value."""
    spec = spec or f"synthetic:{text}"
    kinds = {"correlation": float, "noise": float}
    known = Dials.__dataclass_fields__
    values: dict[str, int | float] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        key, _, value = part.partition("=")
        if key not in known:
            raise UserError(f"data '{spec}' has an unknown dial '{key}'; known are {', '.join(known)}.")
        try:
            values[key] = kinds.get(key, int)(value)
        except ValueError:
            raise UserError(f"data '{spec}' has no number at '{part}'; write it like '{key}=4'.") from None
    if large := [key for key, value in values.items() if key != "seed" and abs(value) > 1e9]:
        raise UserError(f"data '{spec}' has a {large[0]} above a thousand million; less is expected.")
    dials = Dials(**values)  # type: ignore[arg-type]
    for wrong, what, remedy in (
        (dials.classes < 2, f"classes={dials.classes}", "at least 2"),
        (not 1 <= dials.superclasses <= dials.classes, f"superclasses={dials.superclasses}", "1 to the classes"),
        (not 0 <= dials.correlation <= 1, f"correlation={dials.correlation:g}", "0 to 1"),
        (not 0 <= dials.noise < float("inf"), f"noise={dials.noise:g}", "0 or more"),
        (dials.dim < 1, f"dim={dials.dim}", "at least 1"),
        (dials.samples is not None and dials.samples < dials.classes, f"samples={dials.samples}", "one a class"),
        (dials.seed < 0, f"seed={dials.seed}", "0 or more"),
    ):
        if wrong:
            raise UserError(f"data '{spec}' has {what}; {remedy} is expected.")
    return dials


def _random(dials: Dials, stream: int) -> np.random.Generator:
    return np.random.default_rng([dials.seed, stream])


def centres(dials: Dials) -> np.ndarray:
    """Unit class centres, float64 [K, K + G]."""
    k, g = dials.classes, dials.superclasses
    basis, _ = np.linalg.qr(_random(dials, _CENTRES).standard_normal((k + g, k + g)))
    groups, singles = basis.T[:g], basis.T[g:]
    return np.sqrt(dials.correlation) * groups[list(dials.superclass)] + np.sqrt(1 - dials.correlation) * singles


def observe(dials: Dials, points: np.ndarray) -> np.ndarray:
    """The fixed map from latent points [N, K + G] to observations in (−1, 1), [N, D]."""
    random, latent = _random(dials, _MAP), dials.classes + dials.superclasses
    hidden = max(dials.dim, latent)
    first = random.standard_normal((latent, hidden))
    second = random.standard_normal((hidden, dials.dim)) * np.sqrt(2 / hidden)
    return np.tanh(np.tanh(points @ first) @ second)


def _draw(dials: Dials, count: int, stream: int) -> tuple[Tensor, Tensor]:
    """Bytes [N, 1, 1, D] and labels [N], as many of each class as of any other to within one."""
    labels = np.arange(count) % dials.classes
    noise = _random(dials, stream).standard_normal((count, dials.classes + dials.superclasses))
    seen = observe(dials, centres(dials)[labels] + dials.noise * noise)
    pixels = np.round((seen + 1) * 127.5).astype(np.uint8)
    return torch.from_numpy(pixels)[:, None, None], torch.from_numpy(labels)


def class_names(dials: Dials) -> tuple[str, ...]:
    """Names that carry the superclass: "s0/c00", "s0/c01", …"""
    digits = len(str(dials.classes - 1))
    return tuple(f"s{s}/c{k:0{digits}d}" for k, s in enumerate(dials.superclass))


def synthetic(dials: Dials) -> dict[str, InMemory]:
    """Training and test samples."""
    counts = (dials.samples or 100 * dials.classes, TEST_PER_CLASS * dials.classes)
    drawn = (_draw(dials, count, stream) for count, stream in zip(counts, (_TRAIN, _TEST), strict=True))
    return {split: InMemory(*pair) for split, pair in zip(("train", "test"), drawn, strict=True)}


def synthetic_data(request: Request) -> Data:
    dials = read_dials(request.rest, request.spec)
    return request.data(synthetic(dials), class_names(dials), augment=Augment(), superclasses=dials.superclass)


def digits(request: Request) -> Data:
    """scikit-learn's handwritten digits (Alpaydin & Kaynak 1998): 1,797 grey images of 8×8, 360 held out as
    test."""
    package = find_spec("sklearn")  # whose file is read as it is: importing it all takes a second
    assert package is not None
    assert package.origin is not None
    table = np.loadtxt(Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz", delimiter=",")
    pixels = torch.from_numpy((table[:, :-1] * (255 / 16)).round().astype(np.uint8)).view(-1, 8, 8, 1)
    labels = torch.from_numpy(table[:, -1].astype(np.int64))
    parts = zip(("train", "test"), hold_out(torch.arange(len(labels)), labels, 360 / len(labels), seed=0), strict=True)
    splits = {split: InMemory(pixels[index], labels[index]) for split, index in parts}
    return request.data(splits, tuple("0123456789"), augment=Augment(shift=1), numbering=GIVEN)
