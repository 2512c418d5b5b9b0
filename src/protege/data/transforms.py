"""A transform of the user's own in views: found by name, known by its source, and drawing from the view's generator."""

from __future__ import annotations

import functools
import inspect
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import UserError
from ..lookup import find_callable, place_of, refuse_unknown, source_digest, split_query, typed
from .given import ImageKind, image_pixels
from .pixels import Deviation
from .views import Draw, draws

_TRIED = 8  # seeds that a transform is tried with
PYTHON = "python:"  # of one that only a program has


@dataclass(frozen=True)
class Transform:
    """A callable of one image. `name`: ``package.module:attribute``, or ``python:NAME`` where no module has it.
    `digest`: of its source."""

    name: str
    digest: str
    function: Callable[[Any], Any] = field(compare=False, repr=False)

    @classmethod
    def of(cls, function: Any) -> Transform:
        """A callable that is given in Python."""
        if not callable(function):
            raise UserError(
                f"augment = {function!r} is a {type(function).__name__}; expected text such as 'shift=4,flip', or a "
                "callable of one image: change augment=…."
            )
        named = getattr(function, "__qualname__", type(function).__qualname__)
        return cls(place_of(function) or f"{PYTHON}{named}", source_digest(function), function)

    @classmethod
    def named(cls, name: str) -> Transform:
        """The callable at `package.module:attribute`; a class is called to make one, and arguments stand in the name,
        `package.module:attribute?size=3`."""
        if name.startswith(PYTHON):
            raise UserError(
                f"the transform of augment '{name}' was given in Python, which a recipe cannot hold; expected it "
                "again: pass augment= to the function."
            )
        place, arguments = split_query(name, "augment")
        function = find_callable(place, "augment", "takes an image and returns one")
        refuse_unknown(function, arguments, f"augment {name!r}")
        if not isinstance(function, type):
            function = functools.partial(function, **arguments) if arguments else function
        else:
            try:
                function = function(**arguments)
            except Exception as error:
                raise UserError(
                    f"augment {name!r} cannot be made with {typed(error)}; name a function, or a class whose arguments "
                    "have defaults or stand in the name."
                ) from error
        return cls(name, source_digest(function, name.partition(":")[0]), function)

    def __str__(self) -> str:
        return self.name

    def try_on(self, shape: tuple[int, ...]) -> None:
        """Raise `UserError` unless it makes of an image of this shape (C, H, W) the same each time, and one of the same
        shape."""
        _kind_taken(self, shape)


def transformed(transform: Transform, images: Tensor, seed: int, index: Tensor, view: int) -> Tensor:
    """Images uint8 [B, C, H, W] after the transform, each under the generators of its view."""
    random = draws(seed, index.cpu(), view, Draw.OWN_LOW + 1).tolist()
    made = torch.empty_like(images, device="cpu")
    kind = _kind_taken(transform, tuple(images.shape[1:]))
    with _generators_kept():
        for at, (image, numbers) in enumerate(zip(images.cpu(), random, strict=True)):
            try:
                made[at] = _called(transform, image, kind, numbers[Draw.OWN_HIGH] << 32 | numbers[Draw.OWN_LOW])
            except UserError:
                raise
            except Exception as error:
                raise UserError(
                    f"augment '{transform}' fails on sample {int(index[at])} with {typed(error)}; correct it."
                ) from error
    return made.to(images.device)


def _called(transform: Transform, image: Tensor, kind: type, seed: int) -> Tensor:
    """The transform of an image uint8 [C, H, W], given as a tensor or PIL image, with generators seeded so."""
    given: Any = image.clone(memory_format=torch.contiguous_format)
    if kind is Image.Image:
        given = Image.fromarray(given[0].numpy() if len(given) == 1 else given.permute(1, 2, 0).contiguous().numpy())
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    result = transform.function(given)
    if isinstance(result, Image.Image) and len(image) in (1, 3):
        result = result.convert("L" if len(image) == 1 else "RGB")
    try:
        pixels, _ = image_pixels(result, f"what augment '{transform}' returns", ImageKind(len(image)))
    except Deviation as error:
        raise UserError(f"{error}; expected an image of {len(image)} channel, as it was given: correct it.") from error
    made = pixels.permute(2, 0, 1)
    if made.shape != image.shape:
        raise UserError(
            f"augment '{transform}' makes an image of shape {tuple(made.shape)} of one of {tuple(image.shape)} "
            "(channels, height, width); expected the same shape: let it resize, or leave that out."
        )
    return made


@functools.lru_cache(maxsize=64)
def _kind_taken(transform: Transform, shape: tuple[int, ...]) -> type:
    """Whether a transform takes a tensor or a PIL image of this shape: its annotation says so, else what it does not
    fail on. Tried on noise, so that all processes decide alike."""
    kinds = _annotated(transform.function) or ((Tensor, Image.Image) if shape[0] in (1, 3) else (Tensor,))
    image = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    failure: Exception | None = None
    for kind in kinds:
        try:
            with _generators_kept():
                first = [_called(transform, image, kind, seed) for seed in range(_TRIED)]
                again = [_called(transform, image, kind, seed) for seed in reversed(range(_TRIED))]
        except Exception as error:
            failure = failure or error
            continue
        if not all(torch.equal(*pair) for pair in zip(first, reversed(again), strict=True)):
            raise UserError(
                f"augment '{transform}' does not make the same of an image with the same seeds; expected one that "
                "draws from torch's, NumPy's or Python's global generator and keeps nothing between calls: correct it."
            )
        return kind
    if isinstance(failure, UserError):
        raise failure
    raise UserError(
        f"augment '{transform}' cannot be called with an image ({typed(failure or ValueError())}); expected a function "
        "of one uint8 tensor [C, H, W] or PIL image: correct it."
    ) from failure


def _annotated(function: Any) -> tuple[type, ...]:
    """The kind of image that the annotation of the first argument names."""
    try:
        first = next(iter(inspect.signature(function).parameters.values()))
    except (TypeError, ValueError, StopIteration):
        return ()
    text = first.annotation if isinstance(first.annotation, str) else getattr(first.annotation, "__name__", "")
    return {"Image": (Image.Image,), "Tensor": (Tensor,)}.get(text.rpartition(".")[2], ())


@contextmanager
def _generators_kept() -> Iterator[None]:
    """The global generators of torch, NumPy and Python stand afterwards where they stood."""
    kept = torch.get_rng_state(), random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        torch.set_rng_state(kept[0])
        random.setstate(kept[1])
        np.random.set_state(kept[2])
