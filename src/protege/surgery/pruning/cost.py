"""What removing channels costs once the layers that read them are solved anew, and in which order they go the cheapest.

A layer that reads a group's channels x is y = W x. Without the channels R the best that the others K can do in their
place is W' over K, and the error that stays is the trace of A (G_RR - G_RK G_KK⁻¹ G_KR), with G the covariance of x and
A = Wᵀ D W. D weighs each output of the layer by the mean squared gradient of the network's outputs along random
directions, so that the costs of all layers are squared changes of the network's outputs: they add up, and a channel of
one layer can be compared with a channel of another. Channels go one small step after another, those whose loss costs
least first (optimal brain surgery on channels: Hassibi and Stork 1993; Frantar and Alistarh 2022, arXiv 2208.11580,
section 4). A convolution's kernel positions, and channels that go together, count as if they were uncorrelated.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from ...torch_utils import eval_mode, seeded
from ..laws import outputs_in
from ..layers import LAYERS, let_learn, outputs_of
from .groups import Group
from .removal import renewed

STEPS = 64  # in which a group's channels go
DRAWS = 2  # random directions of the outputs, for each chunk of inputs
DAMPING = 1e-3  # of the covariance's mean diagonal


@dataclass(frozen=True)
class Step:
    """Units of one group that go together, and by how much the network's outputs change for it: the mean square of the
    change as a share of the outputs' variance."""

    units: list[int]
    cost: float


@dataclass
class _Reading:
    """One layer that reads a group: the columns of its input, [slots, units], and what they amount to."""

    layer: str
    columns: Tensor
    gram: Tensor
    total: Tensor
    rows: int = 0

    def add(self, x: Tensor) -> None:
        x = x[:, self.columns].flatten(0, 1)
        self.gram += x.T @ x
        self.total += x.sum(0)
        self.rows += len(x)

    def covariance(self) -> Tensor:
        mean = self.total / self.rows
        return (self.gram / self.rows - torch.outer(mean, mean)).float()


def steps_of(network: nn.Module, groups: Sequence[Group], inputs: Iterable[Tensor]) -> list[list[Step] | None]:
    """For each group the steps in which its units go, all but the last one, measured on the prepared `inputs` (chunks
    [B, …]); None for a group that no convolution and no linear layer reads."""
    copied = renewed(network)
    let_learn(copied)
    modules: dict[str, Any] = {name: module for name, module in copied.named_modules() if isinstance(module, LAYERS)}
    readings = [_readings(group, modules) for group in groups]
    watched = {reading.layer for some in readings for reading in some}
    squares = {name: torch.zeros(outputs_of(modules[name]), dtype=torch.float64) for name in watched}
    samples, variance = 0, 0.0

    def note(name: str, module: nn.Module, gradient: Tensor) -> None:
        squares[name] += _squares(gradient, module)

    def read(name: str, some: list[_Reading]) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            x = _rows(args[0].detach(), module, 1)
            for reading in some:
                reading.add(x)
            if output.requires_grad:
                output.register_hook(lambda gradient: note(name, module, gradient))

        return hook

    hooks = [
        modules[name].register_forward_hook(read(name, [r for some in readings for r in some if r.layer == name]))
        for name in watched
    ]
    try:
        with eval_mode(copied), seeded(), torch.enable_grad():
            for x in inputs:
                outputs = [y for y in outputs_in(copied(x.clone())) if y.is_floating_point() and y.requires_grad]
                for draw in range(DRAWS):
                    directions = [torch.randn_like(y) for y in outputs]
                    torch.autograd.backward(outputs, directions, retain_graph=draw + 1 < DRAWS)
                samples += len(x)
                variance += sum(float((y.detach() - y.detach().mean(0)).double().square().sum()) for y in outputs)
    finally:
        for hook in hooks:
            hook.remove()
    weights = {name: square / max(samples * DRAWS, 1) for name, square in squares.items()}
    scale = max(variance / max(samples, 1), 1e-30)
    return [_eliminated(some, modules, weights, scale) if some else None for some in readings]


def _readings(group: Group, modules: dict[str, Any]) -> list[_Reading]:
    """The layers that read the group, of those that are called and whose weight can be told apart by its channels."""
    place = {unit[0]: number for number, unit in enumerate(group.units)}
    readings = []
    for site, wires in group.sites.items():
        if site.side != "in" or site.name not in modules:
            continue
        of_unit: list[list[int]] = [[] for _ in group.units]
        for position, root in wires:
            of_unit[place[root]].append(position)
        slots = {len(positions) for positions in of_unit}
        if len(slots) != 1 or slots == {0}:
            continue
        size = len(group.units)
        columns = torch.tensor([sorted(positions) for positions in of_unit]).T.contiguous()
        zeros = torch.zeros(size, size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)
        if _weight(modules[site.name], columns, torch.ones(outputs_of(modules[site.name]))) is not None:
            readings.append(_Reading(site.name, columns, *zeros))
    return readings


def _rows(x: Tensor, module: nn.Module, batched: int) -> Tensor:
    """The channel vectors [rows, channels] of a layer's input or output."""
    if isinstance(module, _ConvNd):
        spatial = len(module.kernel_size)
        x = x if x.dim() == spatial + 2 else x.unsqueeze(0)
        return x.movedim(1, -1).flatten(0, -2).float()
    return x.reshape(-1, x.shape[-1]).float()


def _squares(gradient: Tensor, module: nn.Module) -> Tensor:
    return _rows(gradient, module, 0).double().square().sum(0)


def _weight(module: Any, columns: Tensor, weights: Tensor) -> Tensor | None:
    """A = Wᵀ D W [units, units] of a layer for the columns [slots, units] of its input; None where the columns of one
    slot lie in several groups of a convolution."""
    weight = module.weight.detach()
    if getattr(module, "transposed", False):
        if module.groups > 1:
            return None
        weight = weight.transpose(0, 1)
    groups = getattr(module, "groups", 1)
    size, outputs = weight.shape[1], len(weight) // groups  # of a group
    total = torch.zeros(columns.shape[1], columns.shape[1])
    for slot in columns:
        group = slot // size
        if (group != group[0]).any():
            return None
        rows = slice(int(group[0]) * outputs, (int(group[0]) + 1) * outputs)
        part = weight[rows][:, slot % size].float()  # [outputs, units, *kernel]
        part = part * weights[rows].float().sqrt().view(-1, *[1] * (part.dim() - 1))
        flat = part.movedim(1, -1).flatten(0, -2)
        total += flat.T @ flat
    return total


def _eliminated(
    readings: Sequence[_Reading], modules: dict[str, Any], weights: dict[str, Tensor], scale: float
) -> list[Step]:
    """The units in the order in which they go, by backward elimination in blocks, exact for each block."""
    states: list[tuple[Tensor, Tensor]] = []  # A of the weights as solved for those left, and the inverse of their G
    for reading in readings:
        covariance = reading.covariance().double()
        covariance.diagonal().add_(DAMPING * covariance.diagonal().mean() + 1e-30)
        cost = _weight(modules[reading.layer], reading.columns, weights[reading.layer])
        assert cost is not None
        states.append((cost.double() / scale, torch.linalg.inv(covariance)))
    left = torch.arange(len(states[0][0]))
    block = max(1, len(left) // STEPS)
    steps: list[Step] = []
    while len(left) > 1:
        costs = torch.stack([a.diagonal() / h.diagonal() for a, h in states]).sum(0)
        count = min(block, len(left) - 1)
        gone = costs.argsort(stable=True)[:count]
        keep = torch.ones(len(left), dtype=torch.bool).index_fill_(0, gone, False).nonzero().flatten()
        increase, after = 0.0, []
        for a, h in states:
            mixed = torch.linalg.solve(h[gone][:, gone], h[gone][:, keep]).T  # what the others take over
            within = a[gone][:, gone]
            increase += float((within * torch.linalg.inv(h[gone][:, gone]).T).sum())
            across = mixed @ a[gone][:, keep]
            after.append(
                (
                    a[keep][:, keep] - across - across.T + mixed @ within @ mixed.T,
                    h[keep][:, keep] - mixed @ h[gone][:, keep],
                )
            )
        states = after
        steps.append(Step(sorted(left[gone].tolist()), max(increase, 0.0)))
        left = left[keep]
    return steps
