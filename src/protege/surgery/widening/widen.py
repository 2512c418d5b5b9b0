"""Widening: a network with ``ratio`` times the channels that computes exactly what the student computes.

Inverse reparameterisation (Guo et al. 2025, "Gap Preserving Distillation", arXiv 2410.04140): every hidden channel is
copied, and a layer's input weights are shared out over the copies. Symmetry is broken exactly: with out-copy i and
in-copy j of a weight written ``w/r + δ_ij``, the wide network computes the student's function if ``Σ_j δ_ij = 0`` for
every i, and the first copies, times r, *are* the student if ``δ_11 = 0``.

    student      y = W x                     [C_out, C_in]
    wide         [y; y] = [[W/2,     W/2    ],  [x; x]
                           [W/2 + δ, W/2 - δ]]
    projection   W = 2 · (first rows, first columns)
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ...errors import UserError, shown, told
from ...numerics import exact
from ...torch_utils import copy_network, follow, forget, logits_in
from ..laws import other_samples, random_state
from ..layers import put
from ..nests import tensors_in
from .copies import CallEdit, Placement, gather, spread
from .scalars import differing
from .watch import layouts_of

Projection = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]


@torch.no_grad()
@exact()
def widen(
    student: nn.Module, ratio: int, example: Tensor, *, perturbation: float = 0.05
) -> tuple[nn.Module, Projection]:
    """A copy of the student with ``ratio`` times the hidden channels, and the projection back.

    ``example`` is a batch of what the student's ``forward`` takes. ``perturbation`` is the size of δ, drawn by torch's
    own generator, as a share of a weight's root mean square. The student is left as it is. The wide network has the
    student's module names and modes, and parameters and buffers of its own; its inputs and outputs keep their sizes.
    ``projection`` maps tensors of the wide network by name (parameters, buffers or both) to the student's,
    differentiably.

    Raises `UserError` for a ratio that is not a whole number from 2, and for a network that cannot be widened, naming
    the module and the function.

    >>> wide, projection = widen(network, 2, x)
    >>> wide[0].out_channels, torch.allclose(wide(x), network(x), atol=1e-4)
    (16, True)
    >>> torch.equal(projection(dict(wide.named_parameters()))["0.weight"], network[0].weight)
    True
    """
    if type(ratio) is not int or ratio < 2:
        raise UserError(f"ratio = {shown(ratio)} cannot widen a network; expected a whole number from 2: set ratio 2.")
    if not isinstance(perturbation, int | float) or not 0 <= perturbation < math.inf:
        raise UserError(
            f"perturbation = {shown(perturbation)} is no size; expected a number from 0: set perturbation 0.05."
        )
    _refuse_unfit(student, example)
    example = example[torch.tensor([0, 1]) % len(example)]
    network = copy_network(student).eval()
    forget(network)
    precise = _in_double(network, example)
    if precise:
        network, example = network.double(), example.double() if example.is_floating_point() else example
    layouts = layouts_of(network, ratio, example)
    placements = layouts.placements
    if not any(any(placement.layout) for placement in placements.values()):
        raise UserError(
            f"{type(student).__name__} has no hidden channels to copy; expected a convolution or linear layer before "
            "the last, whose weight is a parameter (weight_norm and its like compute it): remove what computes it, or "
            "use a deeper student."
        )
    _refuse_too_large(network, ratio, placements, layouts.names)
    wide = copy_network(network)
    grown: dict[int, Tensor] = {}
    for name, tensor in named_tensors(wide):
        if id(tensor) not in grown:
            placement = placements.get(layouts.names[id(attrgetter(name)(network))])
            grown[id(tensor)] = _grown(tensor, placement, perturbation) if placement else tensor
        put(wide, name, grown[id(tensor)])
    for path, module in wide.named_modules():
        _adjust(module, layouts.modules.get(path, {}), layouts.edits.get(path, {}))
    _keep_scalars(network, wide, example, layouts.edits)
    tolerance = 1e-6 if precise else 1e-4
    for rows in ([0, 1], [0, 1, 0]):  # whatever the batch
        _check(network, wide, example[rows], tolerance)
    for count in (2, 3):  # and whatever is in it
        _check(network, wide, other_samples(example, count), tolerance)
    _check_training(network, wide, example[[0, 1, 0]], tolerance if precise else math.inf)
    originals = dict(named_tensors(student))
    for name, tensor in named_tensors(wide):
        tensor.data = tensor.data.to(originals[name])
    forget(wide)
    follow(wide, [module.training for module in student.modules()])
    names = {name: layouts.names[id(tensor)] for name, tensor in named_tensors(network)}
    return wide, functools.partial(
        _project, {name: _Slice.of(placements.get(known), example.device) for name, known in names.items()}
    )


def _refuse_unfit(student: nn.Module, example: Any) -> None:
    """Raise for what is no plain module, and for an example that it does not take."""
    if any(isinstance(module, torch.jit.ScriptModule) or hasattr(module, "_orig_mod") for module in student.modules()):
        raise UserError(
            f"{type(student).__name__} is compiled and cannot be widened; expected the module it was made of: pass "
            "that, and compile the student that comes out."
        )
    if not isinstance(example, Tensor) or example.dim() == 0 or len(example) == 0:
        raise UserError(
            f"the example is a {type(example).__name__}; expected one tensor with samples along its first "
            "dimension: give a batch of what forward takes."
        )
    try:
        outputs = tensors_in(logits_in(copy_network(student).eval()(example)))
    except Exception as error:
        raise UserError(
            f"{type(student).__name__} fails on the example of shape {list(example.shape)} and {example.dtype} "
            f"({told(error)}); expected what its forward takes, prepared and not raw: give another example."
        ) from error
    if not all(bool(x.isfinite().all()) for x in outputs):
        raise UserError(
            f"{type(student).__name__} gives values that are not finite; expected finite outputs: check its weights "
            "and the example."
        )


def _refuse_too_large(network: nn.Module, ratio: int, placements: Mapping[str, Placement], names: Any) -> None:
    """Raise where the wide network would take more memory than there is."""
    count = 0
    for tensor in network.parameters():
        placement = placements.get(names[id(tensor)])
        sizes = zip(tensor.shape, placement.layout if placement else [None] * tensor.dim(), strict=True)
        count += math.prod(size if copies is None else len(copies.index) for size, copies in sizes)
    if 8 * count > psutil.virtual_memory().available / 2 and next(network.parameters()).device.type == "cpu":
        raise UserError(
            f"a wide network of ratio {ratio} would have {count:,} parameters, too many for this machine's memory; "
            "expected fewer: lower ratio."
        )


def _in_double(network: nn.Module, example: Tensor) -> bool:
    """Whether the network also runs in double precision, in which laws are checked best."""
    try:
        copy_network(network).double()(example.double() if example.is_floating_point() else example)
    except RuntimeError:
        return False
    return True


# ---- parameters ---------------------------------------------------------------------------------------------


def _grown(tensor: Tensor, placement: Placement, perturbation: float) -> Tensor:
    """The wide tensor: copies, shared out along the input dimension, plus a δ that sums to zero over copies."""
    wide, shared = gather(tensor.detach(), placement.layout), placement.shared
    if shared is not None:
        index = placement.layout[shared].index.to(tensor.device)  # type: ignore[union-attr]
        wide = wide / index.bincount()[index].view(_along(shared, wide.dim()))
        size = perturbation * wide.square().mean().sqrt()
        delta = torch.randn(wide.shape, dtype=torch.float64).to(wide) * size
        pinned = torch.ones_like(wide, dtype=torch.bool)  # first copies of rows and columns: the student itself
        for dim, copied in enumerate(placement.layout):
            if copied is not None:
                first = torch.zeros(len(copied.index), dtype=torch.bool)
                first[_first(copied.index)] = True
                pinned &= first.to(wide.device).view(_along(dim, wide.dim()))
        delta.masked_fill_(pinned, 0)
        free = (~pinned).to(wide)
        zeros = torch.zeros(tensor.shape, dtype=wide.dtype, device=wide.device)
        for dim, copied in enumerate(placement.layout):
            if copied is not None and dim != shared:
                zeros = zeros.index_select(dim, copied.index.to(wide.device))
        total = zeros.index_add(shared, index, delta) / zeros.index_add(shared, index, free).clamp(min=1)
        wide = wide + delta - total.index_select(shared, index) * free
    return nn.Parameter(wide, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else wide


def _along(dim: int, dims: int) -> list[int]:
    """The shape of a vector that lies along one of several dimensions."""
    return [-1 if d == dim else 1 for d in range(dims)]


def _first(index: Tensor) -> Tensor:
    """channel → the wide position of its first copy."""
    first = torch.full((int(index.max()) + 1,), len(index))
    return first.scatter_reduce(0, index, torch.arange(len(index)), "amin")


@dataclass(eq=False)
class _Slice:
    """Where the student's tensor lies in a wide one, and what it is multiplied by; it follows the tensor's device.

    ``blocks``: (dimension, channels a block, positions a block), where copies are made block by block, as mostly.
    ``positions``: (dimension, positions) of the other dimensions.
    """

    blocks: tuple[tuple[int, int, int], ...] = ()
    positions: tuple[tuple[int, Tensor], ...] = ()
    scale: float | Tensor = 1.0

    @staticmethod
    def of(placement: Placement | None, device: torch.device) -> _Slice:
        layout = placement.layout if placement else ()
        blocks: list[tuple[int, int, int]] = []
        positions: list[tuple[int, Tensor]] = []
        scale: float | Tensor = 1.0
        for dim, copies in enumerate(layout):
            if copies is None:
                continue
            counts = copies.index.bincount()
            channels, ratio = len(counts), int(counts[0])
            uniform = bool((counts == ratio).all())
            inners = [k for k in range(1, channels + 1) if channels % k == 0] if uniform else []
            inner = next((k for k in inners if torch.equal(spread(channels, ratio, k), copies.index)), None)
            if inner:
                blocks.append((dim, inner, inner * ratio))
            else:
                positions.append((dim, _first(copies.index).to(device)))
            if placement and dim == placement.shared:
                scale = float(ratio) if uniform else counts.view(_along(dim, len(layout))).to(device)
        return _Slice(tuple(blocks), tuple(positions), scale)

    def __call__(self, wide: Tensor) -> Tensor:
        for dim, inner, size in self.blocks:
            if inner == 1:
                wide = wide[(slice(None),) * dim + (slice(None, None, size),)]
            else:
                wide = wide.unflatten(dim, (-1, size)).narrow(dim + 1, 0, inner).flatten(dim, dim + 1)
        self.positions = tuple((dim, index.to(wide.device)) for dim, index in self.positions)
        for dim, index in self.positions:
            wide = wide.index_select(dim, index)
        if isinstance(self.scale, Tensor):
            self.scale = self.scale.to(wide)
            return wide * self.scale
        return wide * self.scale if self.scale != 1.0 else wide


def _project(slices: dict[str, _Slice], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: slices[name](tensor) for name, tensor in state.items()}


def named_tensors(network: nn.Module) -> list[tuple[str, Tensor]]:
    """Parameters and buffers under every name they have."""
    return [*network.named_parameters(remove_duplicate=False), *network.named_buffers(remove_duplicate=False)]


# ---- modules ------------------------------------------------------------------------------------------------


def _adjust(module: nn.Module, attributes: dict[str, Any], edits: dict[tuple[Callable, int], CallEdit]) -> None:
    """Make a module of the wide network agree with its parameters: its attributes, or else the calls it makes."""
    weight = getattr(module, "weight", None)
    transposed = isinstance(module, nn.modules.conv._ConvTransposeNd)
    for name, value in attributes.items():
        setattr(module, name, value)
    if isinstance(module, nn.modules.conv._ConvNd):
        rows, columns = module.weight.shape[:2]
        module.out_channels = columns * module.groups if transposed else rows
        module.in_channels = rows if transposed else columns * module.groups
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.Embedding):
        module.embedding_dim = module.weight.shape[1]
    elif (
        isinstance(module, nn.modules.batchnorm._NormBase)
        and (weight if weight is not None else module.running_mean) is not None
    ):
        module.num_features = len(weight if weight is not None else module.running_mean)  # type: ignore[arg-type]
    elif isinstance(module, nn.GroupNorm):
        for edit in edits.values():
            module.num_groups = next((wide for _, wide in edit.numbers.values()), module.num_groups)
        module.num_channels = len(weight) if weight is not None else module.num_channels
        return
    elif isinstance(module, nn.LayerNorm | nn.RMSNorm):
        for edit in edits.values():
            shape = [edit.numbers.get(i, (0, size))[1] for i, size in enumerate(module.normalized_shape)]
            module.normalized_shape = tuple(shape)
        return
    if edits:
        _edit(module, edits)


def _edit(module: nn.Module, edits: dict[tuple[Callable, int], CallEdit]) -> None:
    module.forward = functools.partial(_Edits(edits), module.forward)  # type: ignore[method-assign]


def _keep_scalars(
    student: nn.Module, wide: nn.Module, example: Tensor, edits: dict[str, dict[tuple[Callable, int], CallEdit]]
) -> None:
    """Have the wide network compute with the student's numbers (a scale) where its own come of its larger sizes."""
    forget(wide)
    for (path, func, count), factors in differing(student, wide, example).items():
        if path not in edits:
            _edit(wide.get_submodule(path), edits.setdefault(path, {}))
        edits[path][func, count] = replace(edits[path].get((func, count), CallEdit()), scalars=factors)


@dataclass(frozen=True)
class _Edits:
    """The edits of one module's calls: (function, how many-eth call of it) → edit. Shared by copies of the module."""

    calls: dict[tuple[Callable, int], CallEdit]

    def __call__(self, forward: Callable, *args: Any, **kwargs: Any) -> Any:
        with _Editing(self):
            return forward(*args, **kwargs)

    def __deepcopy__(self, memo: Any) -> _Edits:
        return self


class _Editing(TorchFunctionMode):
    """While a module runs, some of the calls it makes are made otherwise."""

    def __init__(self, edits: _Edits) -> None:
        super().__init__()
        self.calls, self.counts = edits.calls, Counter[Callable]()
        self.functions = {func for func, _ in edits.calls}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self.functions and tensors_in((args, kwargs)):
            self.counts[func] += 1
            if edit := self.calls.get((func, self.counts[func])):
                return edit(func, args, kwargs or {})
        return func(*args, **(kwargs or {}))


def _check(student: nn.Module, wide: nn.Module, example: Tensor, tolerance: float, where: str = "") -> None:
    """Both must give the same outputs, whatever the layouts said."""
    name = f"{type(student).__name__} cannot be widened"
    random_before = random_state(example)
    try:
        expected = tensors_in(logits_in(student(example)))
        drawn = random_before != random_state(example)  # it answers otherwise each time
        actual = tensors_in(logits_in(wide(example)))
    except Exception as error:
        raise UserError(
            f"{name}: {where}{told(error)}; expected a network that reads sizes from its tensors or names them in its "
            "calls, and does the same in training: use another student."
        ) from error
    if [x.shape for x in expected] != [x.shape for x in actual]:
        raise UserError(f"{name}: {where}its wide copy gives other outputs; expected the same: use another student.")
    for a, b in zip(expected, actual, strict=True):
        apart = (a - b).abs().max() / a.abs().max().clamp(min=1e-30) if a.is_floating_point() else (a != b).any()
        if not (apart <= tolerance or drawn or tolerance == math.inf):
            raise UserError(
                f"{name}: {where}its wide copy differs by {float(apart):.1e}; expected the same outputs: use a student "
                "that treats copies of a channel alike."
            )


def _check_training(student: nn.Module, wide: nn.Module, example: Tensor, tolerance: float) -> None:
    """They must agree in training mode, too, in which a network may do other things.

    In single precision a BatchNorm of few rows makes too much of rounding: then both only have to run.
    """
    student, wide = (copy_network(network).train() for network in (student, wide))
    for module in (*student.modules(), *wide.modules()):
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.eval()
    _check(student, wide, example, tolerance, "in training mode ")
