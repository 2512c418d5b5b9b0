"""Layers that are linear in their weight, by what they compute: a matrix behind such a layer can become part of it.

Which function a layer calls, where in its weight the output channels lie and how its weight comes about is not read off
its type: the matrix is put into the weight, and what comes out is compared with the matrix behind, on fresh inputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..laws import close
from ..layers import SOLVABLE
from ..nests import replaced, tensors_in
from ..tracing.calls import CONVOLUTIONS, FAILURES, Weight

EXACT = 1e-9  # of the largest value, in float64
STORED = 1e-5  # of the largest value, of a weight that was set and computed again
_CONVOLUTION = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")


@dataclass(frozen=True)
class Window:
    """How a convolution goes over its input."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: str | tuple[int, ...]
    dilation: tuple[int, ...]
    mode: str = "constant"

    @property
    def reach(self) -> tuple[int, ...]:
        """Places between the first and the last that are seen at once."""
        return tuple(dilation * (size - 1) for size, dilation in zip(self.size, self.dilation, strict=True))


@dataclass(frozen=True)
class Linear:
    """What is linear in its weight, and where things lie in it.

    The weight's output channels are on its dimension ``side``, those of what comes out on ``dim``. ``blocks`` is the
    number of blocks on the diagonal of a matrix behind it: 1 is a full matrix, one a channel a mere scale, for the
    groups of a convolution read different inputs, so that outputs mix within a group only. ``kernel`` tells that it
    multiplies its weight with rows of its input or, if it has a ``window``, with what that sees. ``set_weight`` and
    ``set_bias`` are None where they cannot be set, or are not known yet (see `settable`).
    """

    weight: Weight
    bias: Weight | None
    side: int
    dim: int
    blocks: int
    window: Window | None
    kernel: bool
    set_weight: Setter | None = None
    set_bias: Setter | None = None

    @property
    def channels(self) -> int:
        """Its output channels."""
        return self.weight.value.shape[self.side]

    @property
    def width(self) -> int:
        """Elements of its weight for one output channel."""
        return self.weight.value.numel() // self.channels


# ---- what a call computes -------------------------------------------------------------------------------------------


def linear_in(
    function: Callable[..., Any], args: tuple, kwargs: dict[str, Any], known: Mapping[int, Weight]
) -> Linear | None:
    """A call as linear in one of the weights among its arguments, of two dimensions or more; None where it is not."""
    for weight in known.values():
        if weight.value.is_floating_point() and weight.value.dim() > 1:
            try:
                layer = _linear_in(function, args, kwargs, known, weight)
            except FAILURES:
                layer = None  # it takes no float64, say
            if layer is not None:
                return layer
    return None


def _linear_in(
    function: Callable[..., Any], args: tuple, kwargs: dict[str, Any], known: Mapping[int, Weight], weight: Weight
) -> Linear | None:
    window, groups, shapes = None, 1, {}
    inputs = [t for t in tensors_in((args, kwargs)) if t.is_floating_point() and id(t) not in known]
    if function in CONVOLUTIONS:
        window, groups = _window(weight.value, {**dict(zip(_CONVOLUTION, args, strict=False)), **kwargs})
        spatial = [min(n, r + s + 1) for n, r, s in zip(inputs[0].shape[2:], window.reach, window.stride, strict=True)]
        shapes[id(inputs[0])] = (*inputs[0].shape[:2], *spatial)
    elif function is F.linear:
        shapes[id(inputs[0])] = (*(min(n, 2) for n in inputs[0].shape[:-1]), inputs[0].shape[-1])
    given = _fresh(args, kwargs, shapes)

    def run(given: Mapping[int, Tensor]) -> Any:
        return function(*replaced(args, given), **replaced(kwargs, given))

    output = run(given)
    if not isinstance(output, Tensor) or not output.is_floating_point() or not bool(output.isfinite().all()):
        return None
    key = id(weight.value)
    for side, dim in _places(weight.value, output):
        channels = output.shape[dim]
        biases = [w for other, w in known.items() if other != key and w.value.numel() == channels]
        bias = biases[0] if len(biases) == 1 else None
        shift = 0 if bias is None else given[id(bias.value)].reshape(-1, *[1] * (output.dim() - 1 - dim))
        q = _noise((2, groups, channels // groups), 1, output.device)
        expected = _neighbours_mixed(output - shift, q, dim) + shift
        if not close(run({**given, key: _neighbours_mixed(given[key], q, side)}), expected, EXACT):
            continue
        layer = Linear(weight, bias, side, dim - output.dim(), groups, window, kernel=False)
        whole = (output - shift).movedim(dim, -1).flatten(0, -2)
        return replace(layer, kernel=len(inputs) == 1 and _on_rows(layer, given[id(inputs[0])], given[key], whole))
    return None


def role_in(function: Callable[..., Any], args: tuple, kwargs: dict[str, Any], known: Mapping[int, Weight]) -> str:
    """What weights do in a call that is not linear in one: "none" where it does not depend on their values (it asks for
    their precision, say), "spread" where each number acts in its place (they are added, or scale, or stand beside
    something) or masks attention, and else "layer"."""
    if function is F.scaled_dot_product_attention:
        return "spread"
    try:
        given, roles = _fresh(args, kwargs, {}), set()
        for key in (key for key, weight in known.items() if weight.value.is_floating_point()):
            factor = _noise(given[key].shape, 2, given[key].device)
            runs = [{**given, key: given[key] * by} for by in (factor, 0, 1)]
            other, nothing, plain = (function(*replaced(args, run), **replaced(kwargs, run)) for run in runs)
            if close(other, plain, EXACT):
                continue
            roles.add(factor.dim() < 2 or close(other - nothing, factor * (plain - nothing), EXACT))
        return "none" if not roles else "spread" if all(roles) else "layer"
    except FAILURES:
        return "layer"


def _fresh(args: tuple, kwargs: dict[str, Any], shapes: Mapping[int, tuple[int, ...]]) -> dict[int, Tensor]:
    """Other values in float64 for the tensors that a call takes, by their id; of other ``shapes`` where these say."""
    given = {id(t): t for t in tensors_in((args, kwargs)) if t.is_floating_point()}
    return {key: _noise(shapes.get(key, t.shape), n, t.device) for n, (key, t) in enumerate(given.items())}


def _noise(shape: Sequence[int], seed: int, device: torch.device | None = None) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.empty(tuple(shape), dtype=torch.float64).uniform_(-1, 1, generator=generator).to(device or "cpu")


def _on_rows(layer: Linear, inputs: Tensor, weight: Tensor, outputs: Tensor) -> bool:
    """Whether outputs [M, C] are the weight times what it sees of the inputs."""
    matrix = weight.movedim(layer.side, 0).reshape(layer.blocks, layer.channels // layer.blocks, -1).mT
    (rows,) = patches(layer, inputs, math.inf)
    if rows.dim() != 2 or rows.shape[1] != matrix.shape[:2].numel():
        return False
    parts = rows.unflatten(1, matrix.shape[:2]).transpose(0, 1) @ matrix
    return close(parts.transpose(0, 1).flatten(1), outputs, EXACT)


def _places(weight: Tensor, output: Tensor) -> Iterator[tuple[int, int]]:
    """(dimension of the weight, dimension of the output) that may be the output channels', the usual ones first."""
    last = 1 if weight.dim() > 2 and output.dim() > 2 else output.dim() - 1
    dims = [last, *(dim for dim in range(output.dim()) if dim != last)]
    for side in range(weight.dim()):
        yield from ((side, dim) for dim in dims if output.shape[dim] == weight.shape[side])


def _window(weight: Tensor, given: Mapping[str, Any]) -> tuple[Window, int]:
    """The window of a convolution, by the names of its arguments, and its groups."""
    size = tuple(weight.shape[2:])

    def each(value: Any) -> Any:
        if isinstance(value, str):
            return value
        value = tuple(map(int, value)) if isinstance(value, Sequence) else (int(value),)
        return value if len(value) == len(size) else value * len(size)

    window = Window(size, each(given.get("stride", 1)), each(given.get("padding", 0)), each(given.get("dilation", 1)))
    return window, int(given.get("groups", 1))


def patches(layer: Linear, inputs: Tensor, room: float, chosen: Tensor | None = None) -> Iterator[Tensor]:
    """What the layer's weight is multiplied with: rows ``[M, blocks·n]``, a row for each of its outputs' places.

    ``inputs`` are a batch as the layer takes it; n is the elements of the weight for one output channel, in its order.
    Rows come in parts of about ``room`` values; ``chosen`` are the numbers of those wanted, None for all.
    """
    window = layer.window
    if window is None:
        rows = inputs.flatten(0, -2)
        rows = rows if chosen is None else rows[chosen]
        yield from rows.split(int(max(1, min(len(rows), room // rows.shape[1]))))
        return
    dims = len(window.size)
    windows = _padded(window, inputs)
    for dim in range(dims):
        windows = windows.unfold(2 + dim, window.reach[dim] + 1, window.stride[dim])[..., :: window.dilation[dim]]
    windows = windows.movedim(1, 1 + dims)  # [N, places, C, kernel], a view
    if chosen is not None:
        for some in chosen.split(int(max(1, min(len(chosen), room // windows.shape[1 + dims :].numel())))):
            yield windows[torch.unravel_index(some, windows.shape[: 1 + dims])].flatten(1)
        return
    line = windows[0, 0].numel()
    for chunk in windows.split(int(max(1, min(len(windows), room // (line * windows.shape[1]))))):
        step = max(1, min(windows.shape[1], room // line)) if len(chunk) == 1 else windows.shape[1]
        for part in chunk.split(int(step), dim=1):
            yield part.flatten(1 + dims).flatten(0, dims)


def product(layer: Linear, inputs: Tensor, weight: Tensor) -> Tensor:
    """``patches(layer, inputs)`` times a weight ``[blocks, n, m]``, as rows ``[M, blocks·m]``, without the patches."""
    if layer.window is None:
        rows = inputs.flatten(0, -2).unflatten(1, weight.shape[:2]).transpose(0, 1)
        return (rows @ weight.to(inputs)).transpose(0, 1).flatten(1)
    window = layer.window
    convolution: Any = (F.conv1d, F.conv2d, F.conv3d)[len(window.size) - 1]
    kernel = weight.mT.reshape(layer.channels, -1, *window.size).to(inputs)
    made = convolution(_padded(window, inputs), kernel, None, window.stride, 0, window.dilation, layer.blocks)
    return made.movedim(1, -1).flatten(0, -2)


def _padded(window: Window, inputs: Tensor) -> Tensor:
    """A convolution's input as a batch, with the values around it that it sees."""
    dims, pads = len(window.size), list[int]()
    inputs = inputs if inputs.dim() == 2 + dims else inputs.unsqueeze(0)
    for dim in reversed(range(dims)):  # F.pad begins with the last
        if isinstance(window.padding, str):
            total = window.reach[dim] if window.padding == "same" else 0
            pads += [total // 2, total - total // 2]
        else:
            pads += 2 * [window.padding[dim]]
    return F.pad(inputs, pads, window.mode)


def mixed(value: Tensor, q: Tensor, dim: int) -> Tensor:
    """A value whose channels, on ``dim``, are mixed by ``q`` [blocks, m, m], input channel first."""
    value = value.movedim(dim, -1)
    value = torch.einsum("...bi,bio->...bo", value.unflatten(-1, q.shape[:2]), q.to(value)).flatten(-2)
    return value.movedim(-1, dim)


def _neighbours_mixed(value: Tensor, q: Tensor, dim: int) -> Tensor:
    """A value each of whose channels is a sum of itself and of the one before it, times ``q`` [2, blocks, m]: a matrix,
    too, but in m steps and not in m². What is the same before and behind this one, drawn at random, is so for all."""
    value = value.movedim(dim, -1).unflatten(-1, q.shape[1:])
    return (value * q[0] + value.roll(1, -1) * q[1]).flatten(-2).movedim(-1, dim)


def of_module(layer: nn.Module) -> Linear:
    """A plain convolution or linear layer as it stands. Raises ValueError for other layers."""
    if type(layer) not in SOLVABLE or not isinstance(layer, SOLVABLE) or "weight" not in layer._parameters:
        raise ValueError(f"a {type(layer).__name__} cannot absorb a 1×1 layer")
    weight = Weight(layer.weight, {"weight": layer.weight})
    bias = None if layer.bias is None else Weight(layer.bias, {"bias": layer.bias})
    if isinstance(layer, nn.Linear):
        return settable(Linear(weight, bias, 0, -1, 1, None, True))
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    padding: Any = layer.padding
    window = Window(layer.kernel_size, layer.stride, padding, layer.dilation, mode)
    return settable(Linear(weight, bias, 0, 1 - layer.weight.dim(), layer.groups, window, True))


# ---- how a weight is set --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setter:
    """How a weight gets another value: ``put`` it; ``changes`` are the parameters that are set. ``any`` tells that it
    may be any value, and not only its product with a matrix."""

    put: Callable[[Tensor], None]
    changes: tuple[Tensor, ...]
    any: bool


def settable(layer: Linear) -> Linear:
    """The layer with the ways in which its weight and its bias are set."""
    bias = None if layer.bias is None else setter_of(layer.bias)
    return replace(layer, set_weight=setter_of(layer.weight, layer.side, layer.blocks), set_bias=bias)


@torch.no_grad()
def setter_of(weight: Weight, side: int = 0, blocks: int = 1) -> Setter | None:
    """How a weight's parameters are set so that it becomes what it should: by writing into one that it is a view of; by
    adding the difference to one; or by setting one, and then the gain of each channel. Each is tried, and what the
    weight then is compared with what it should be; None where no way leads there."""
    now, parameters = weight.read(), [p for p in weight.origins.values() if isinstance(p, nn.Parameter)]
    if weight.made is None:
        return Setter(partial(_write, weight), (weight.value,), True) if parameters else None
    ways: list[tuple[Callable[[Tensor], None], tuple[Tensor, ...]]] = []
    for p in parameters:
        if now.untyped_storage().data_ptr() == p.untyped_storage().data_ptr():
            ways.append((partial(_write, weight), (p,)))
        elif p.shape == now.shape:
            gains = [g for g in parameters if g is not p and g.numel() == now.shape[side]]
            ways.append((partial(_add, weight, p), (p,)))
            ways += [(partial(_scale, weight, p, g, side), (p, g)) for g in gains]
    generator = torch.Generator().manual_seed(0)
    m = now.shape[side] // blocks
    noise = torch.randn(blocks, m, m, generator=generator, dtype=torch.float64).to(now.device)
    product = mixed(now.double(), torch.eye(m).to(noise) + noise / m**0.5, side).to(now)
    other = (now.double() + now.double().std() * torch.randn(now.shape, generator=generator).to(noise)).to(now)
    for put, changes in ways:
        if _reaches(weight, put, changes, product):
            return Setter(put, changes, _reaches(weight, put, changes, other))
    return None


def _reaches(weight: Weight, put: Callable[[Tensor], None], changes: Sequence[Tensor], value: Tensor) -> bool:
    """Whether the weight becomes a value by this way of setting it; all is as it was afterwards."""
    before = [tensor.clone() for tensor in changes]
    try:
        put(value)
        return close(weight.read(), value, STORED)
    except RuntimeError:  # several of its elements share their memory
        return False
    finally:
        for tensor, was in zip(changes, before, strict=True):
            tensor.copy_(was)


def _write(weight: Weight, value: Tensor) -> None:
    weight.read().copy_(value)


def _add(weight: Weight, parameter: Tensor, value: Tensor) -> None:
    parameter.add_((value.double() - weight.read().double()).to(parameter))


def _scale(weight: Weight, parameter: Tensor, gain: Tensor, side: int, value: Tensor) -> None:
    parameter.copy_(value)
    gain.copy_(torch.where(gain == 0, 1.0, gain))  # what was switched off can be needed
    should, now = (w.double().movedim(side, 0).flatten(1) for w in (value, weight.read()))
    size = now.square().sum(1)
    gain.mul_(torch.where(size > 0, (should * now).sum(1) / size, 1.0).view(gain.shape).to(gain))
