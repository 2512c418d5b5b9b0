"""Reading the student out of a wide network, at any moment, and training both as one.

Channel-branch reparameterisation (Guo et al. 2025, "Gap Preserving Distillation", arXiv 2410.04140): the student *is*
a slice of the wide network: the first copy of every channel, input weights times the ratio, branches summed. Nothing of
the student is stored but its buffers; its own module runs on tensors that are computed from the wide network's, so
gradients of both flow into one set of parameters.

Branches (Hu et al. 2022, "Online Convolutional Re-parameterization", arXiv 2204.00826): a k×k kernel is a sum of an
unrestricted one, the origin, and restricted ones. The origin starts as the kernel minus the others. Two things of that
paper are left out: its frequency prior, and a learned scale for each branch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from ...errors import UserError, told
from ...numerics import exact
from ...torch_utils import copy_network, follow, forget, logits_in, without_autocast
from ..layers import put
from ..nests import tensors_in
from .widen import Projection, widen

SHARE = 0.1  # how large a branch starts, as a share of the kernel's root mean square


def _shapes(kernel: torch.Size) -> dict[str, list[list[int]]]:
    """The shapes of each branch's tensors for a kernel ``[O, I, …]``; without those that would restrict nothing."""
    out, into, *size = kernel
    ones = [1] * len(size)
    shapes = {"pointwise": [[out, into, *ones]], "average": [[out, into, *ones]]}
    if into > 1:
        shapes["series"] = [[max(1, into // 2), into], [out, max(1, into // 2), *size]]
        shapes["separable"] = [[1, into, *size], [out, into, *ones]]
    return shapes


BRANCHES: dict[str, Callable[..., Tensor]] = {  # the window's size and a branch's tensors → a kernel [O, I, …]
    # 1×1: the middle of the kernel
    "pointwise": lambda size, x: F.pad(x, [side for k in reversed(size) for side in (k // 2, k - 1 - k // 2)]),
    # 1×1, then an average over the window
    "average": lambda size, x: x / math.prod(size),
    # 1×1 [M, I], then k×k [O, M, …]
    "series": lambda size, first, second: torch.tensordot(second, first, ([1], [0])).movedim(-1, 1),
    # depthwise [1, I, …], then 1×1 [O, I, 1, …]
    "separable": lambda size, depthwise, pointwise: depthwise * pointwise,
}


class Shared(nn.Module):
    """A student and its wide network in one set of parameters; called, it gives the outputs of both.

    ``wide`` holds the parameters (of a convolution with branches: the origin), ``extra`` the other branches, ``plain``
    the student's own module without parameters, but with its buffers: each network has its own BatchNorm statistics.
    ``run(network, x)`` is how either is called. Merged kernels are formed once a call and serve both.
    """

    def __init__(
        self,
        student: nn.Module,
        wide: nn.Module,
        projection: Projection,
        *,
        branches: Sequence[str] = tuple(BRANCHES),
        run: Callable[[nn.Module, Any], Any] = lambda network, x: network(x),
    ) -> None:
        super().__init__()
        if unknown := [name for name in branches if name not in BRANCHES]:
            raise UserError(
                f"branch {unknown[0]!r} is not known; expected some of {', '.join(BRANCHES)}: correct branches."
            )
        self.wide, self.projection, self.run = wide, projection, run
        self.plain = copy_network(student)
        forget(self.plain)
        for module in self.plain.modules():
            for name in module._parameters:
                module._parameters[name] = None
        self.extra = nn.ParameterDict()
        self.branches: dict[str, tuple[str, ...]] = {}  # kernel → its branches beside the origin
        convolutions = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
        kernels = [f"{path}.weight".lstrip(".") for path, m in wide.named_modules() if isinstance(m, convolutions)]
        parameters = dict(wide.named_parameters())
        for name in kernels:
            kernel = parameters.get(name)
            if kernel is not None and kernel.requires_grad and math.prod(kernel.shape[2:]) > 1:
                self._branch(name, kernel, branches)

    @torch.no_grad()
    def _branch(self, name: str, kernel: nn.Parameter, branches: Sequence[str]) -> None:
        shapes = _shapes(kernel.shape)
        self.branches[name] = tuple(branch for branch in dict.fromkeys(branches) if branch in shapes)
        size = SHARE * kernel.square().mean().sqrt()
        for branch in self.branches[name]:
            parts = [torch.randn(shape).to(kernel) for shape in shapes[branch]]
            now = BRANCHES[branch](kernel.shape[2:], *parts).square().mean().sqrt()
            factor = (size / now.clamp(min=1e-12)) ** (1 / len(parts))
            for number, part in enumerate(parts):
                self.extra[_key(name, branch, number)] = nn.Parameter(part * factor)
        kernel.sub_(self._others(name, kernel))

    def _others(self, name: str, kernel: Tensor) -> Tensor | int:
        total: Tensor | int = 0
        for branch in self.branches.get(name, ()):
            count = len(_shapes(kernel.shape)[branch])
            parts = [self.extra[_key(name, branch, number)] for number in range(count)]
            total = total + BRANCHES[branch](kernel.shape[2:], *parts)
        return total

    def merged(self) -> dict[str, Tensor]:
        """The wide network's parameters, under all their names, with branches summed. Differentiable."""
        formed: dict[int, Tensor] = {}
        merged: dict[str, Tensor] = {}
        for name, parameter in self.wide.named_parameters(remove_duplicate=False):
            if id(parameter) not in formed:
                with without_autocast(parameter.device):
                    kernel = parameter + self._others(name, parameter) if self.branches.get(name) else parameter
                formed[id(parameter)] = kernel
            merged[name] = formed[id(parameter)]
        return merged

    def forward(self, x: Any) -> tuple[Any, Any]:
        """→ (wide outputs, student outputs)."""
        merged = self.merged()
        return self.wide_outputs(x, merged), self.student_outputs(x, merged)

    def wide_outputs(self, x: Any, merged: Mapping[str, Tensor] | None = None) -> Any:
        """The wide network's outputs, of kernels merged already or now."""
        merged = self.merged() if merged is None else merged
        return self.run(_Bound(self.wide, {name: merged[name] for name in merged if self.branches.get(name)}), x)

    def student_outputs(self, x: Any, merged: Mapping[str, Tensor] | None = None) -> Any:
        """The student's outputs, of kernels merged already or now."""
        follow(self.plain, [module.training for module in self.wide.modules()])  # eval mode where a layer is frozen
        return self.run(_Bound(self.plain, self.projection(self.merged() if merged is None else merged)), x)


class _Bound(nn.Module):
    """A network called on given tensors in the place of its parameters."""

    def __init__(self, network: nn.Module, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        self.network, self.tensors = network, tensors

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return (
            functional_call(self.network, self.tensors, args, kwargs) if self.tensors else self.network(*args, **kwargs)
        )


@torch.no_grad()
def readout(shared: Shared) -> nn.Module:
    """The student as it stands: a copy of its own module with parameters and buffers of its own.

    >>> torch.allclose(readout(share(network, 2, x))(x), network(x), atol=1e-4)
    True
    """
    network = copy_network(shared.plain)
    tensors = shared.projection(shared.merged())
    copied: dict[int, nn.Parameter] = {}
    for name, parameter in shared.wide.named_parameters(remove_duplicate=False):
        if id(parameter) not in copied:
            copied[id(parameter)] = nn.Parameter(
                tensors[name].clone(memory_format=torch.contiguous_format), parameter.requires_grad
            )
        put(network, name, copied[id(parameter)])
    forget(network)
    follow(network, [module.training for module in shared.wide.modules()])
    return network


@exact()
def share(
    student: nn.Module,
    ratio: int,
    example: Tensor,
    *,
    branches: Sequence[str] = tuple(BRANCHES),
    perturbation: float = 0.05,
    run: Callable[[nn.Module, Any], Any] = lambda network, x: network(x),
) -> Shared:
    """Widen a student (`widen`), add branches, and tie both together (`Shared`). The student is left as it is.

    Raises `UserError` as `widen` does, and for a branch that is not one of `BRANCHES`.

    >>> wide_outputs, outputs = share(network, 2, x)(x)
    >>> torch.allclose(wide_outputs, outputs, atol=1e-4)
    True
    """
    wide, projection = widen(student, ratio, example, perturbation=perturbation)
    batch = example[torch.tensor([0, 1, 0]) % len(example)]
    _check_backward(Shared(student, copy_network(wide), projection, branches=()), batch)
    return Shared(student, wide, projection, branches=branches, run=run)


def _check_backward(shared: Shared, example: Tensor) -> None:
    """Raise for a student whose backward pass needs parameters that are in place while it runs forward only."""
    shared.train()
    with torch.enable_grad():
        outputs = [x for x in tensors_in([logits_in(out) for out in shared(example)]) if x.requires_grad]
        try:
            sum((x.sum() for x in outputs), torch.zeros((), requires_grad=True)).backward()
        except Exception as error:
            raise UserError(
                f"{type(shared.plain).__name__} cannot learn beside its wide network: its backward pass fails "
                f"({told(error)}); expected one that needs no parameters anew: switch gradient checkpointing off."
            ) from error


def _key(name: str, branch: str, number: int) -> str:
    return f"{name.replace('.', '/')}:{branch}{number}"
