"""Where a shrunken student is aligned with its teacher (FSKD, arXiv 1812.01839): found through the graphs.

A point is a convolution or linear layer of the student, with the BatchNorm right behind it, and the teacher's layer of
the same name: its output at the same place, before the nonlinearity, in the channels that the student kept. Where the
student adds that output to a shortcut, as residual networks do, the *sum* is what later layers read, so the target is
the teacher's sum less the student's own shortcut: what went wrong earlier is put right there.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from ...errors import UserError
from ...torch_utils import trained_by
from ..layers import SOLVABLE
from ..tracing.walk import Live, Walk, input_name
from .absorb import blocks_of, fixed, patches
from .room import parts_on

WIDEST = 2400  # weights of an output, beyond which its kernel is not solved for: an eigendecomposition takes a minute
PATCHES = 2**22  # values of a layer's unfolded input that are held at once
SAMPLES = 64
ROWS = 2048  # pixels or tokens of a layer that are compared
EQUAL = 1e-3  # of a correlation: channels that say the same are each other's counterparts
COPIED = 0.75  # the share of a copy's channels that are most like their counterparts

_ADDS = {"call_function": (operator.add, operator.iadd, torch.add), "call_method": ("add", "add_")}
_PASSES = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_UNSUPPORTED = (
    nn.modules.conv._ConvTransposeNd,
    nn.RNNBase,
    nn.RNNCellBase,
    nn.MultiheadAttention,
    nn.Bilinear,
)


@dataclass(frozen=True)
class Point:
    """One alignment: ``layer`` (and ``norm``) of the student changes, towards ``teacher``'s ``kept`` channels.

    ``kind`` is "kernel" where its whole kernel is sought, and otherwise what a Q behind it can be.
    ``kept`` None means all of them, in order. ``value`` is the student's node that holds what is aligned; it is known,
    and not yet used, when the student's nodes before ``stop`` have run. ``target`` is the teacher's node, ``shortcut``
    the student's node that it is to be added to. ``dim`` is the dimension of the channels.
    """

    layer: str
    norm: str | None
    teacher: str
    kept: tuple[int, ...] | None
    kind: str
    value: str
    stop: int
    target: str
    shortcut: str | None
    dim: int

    def row(self) -> dict[str, Any]:
        """For a table: what is aligned with what, and where Q goes."""
        return {
            "student": self.layer,
            "teacher": self.teacher + (" + shortcut" if self.shortcut else ""),
            "channels": "all" if self.kept is None else len(self.kept),
            "absorbed into": self.layer + (f" and {self.norm}" if self.norm else ""),
            "kind": self.kind,
        }

    def missing(self, student: Live, teacher: Live) -> tuple[Tensor, Tensor]:
        """Rows ``[M, C]``: what the student's value lacks to its target, and the teacher's value that comes from."""
        x, whole = student[self.value], teacher[self.target]
        if self.kept is not None:
            whole = whole.index_select(self.dim, torch.tensor(self.kept, device=whole.device))
        y = whole if self.shortcut is None else whole - student[self.shortcut]
        return _rows(y - x, self.dim), _rows(whole, self.dim)

    def rows(self, student: Live, layer: nn.Module) -> Iterator[Tensor]:
        """``[M, C]``, in parts: what is multiplied by what is sought, the student's value or what its kernel sees."""
        if self.kind == "kernel":
            inputs = student[input_name(self.layer)]
            yield from patches(layer, inputs, PATCHES * parts_on(inputs.device))
        else:
            yield _rows(student[self.value], self.dim)

    def change(self, student: Live, layer: nn.Module, delta: Tensor, intercept: Tensor | None) -> None:
        """Give the student's value what it will be: ``rows·Δ + c`` more (``[blocks, n, m]`` and ``[blocks·m]``)."""
        value = student[self.value].movedim(self.dim, -1)
        parts = [x.unflatten(1, delta.shape[:2]).transpose(0, 1) @ delta.to(x) for x in self.rows(student, layer)]
        value = value + torch.cat(parts, 1).transpose(0, 1).reshape(value.shape)
        if intercept is not None:
            value += intercept.to(value)
        student[self.value] = value.movedim(-1, self.dim)
        student.pop(input_name(self.layer), None)


def plan_alignment(
    student: Walk, teacher: Walk, kept: Mapping[str, Sequence[int]], kernels: bool = False
) -> list[Point]:
    """The points in the order in which the student runs; with ``kernels`` those are sought, of layers not too wide.

    ``kept`` names, for layers of the student, the teacher's output channels they kept; without an entry it is all of
    them. Raises `UserError` where the two do not correspond and for layers that cannot take a Q.

    >>> pruned = shrink(network, x, ratio=0.5)
    >>> points = plan_alignment(Walk(pruned.network, "student", x), Walk(network, "teacher", x), pruned.kept)
    >>> [(point.layer, point.kind) for point in points]
    [('0', 'full'), ('2', 'full'), ('5', 'linear')]
    """
    teacher_nodes = {name: node for node in teacher.nodes if (name := teacher.name(node)) is not None}
    # where a layer's value is ready: the node of the layer, or of its norm, or what hands that on to a sum
    ends = {
        name: _end(teacher, node) for name, node in teacher_nodes.items() if isinstance(teacher.modules[name], SOLVABLE)
    }
    held = set(student.modules.values()) - trained_by(student.modules[""])
    depth: dict[str, int] = {}
    for node in student.nodes:
        depth[node.name] = 1 + max((depth[other.name] for other in node.all_input_nodes), default=0)
    points = []
    layers, missing = _layers(student), dict.fromkeys(ends)
    for node, name, layer in layers:
        counterpart = _counterpart(name, ends, teacher)
        if counterpart is None:
            raise UserError(
                f"the student's layer {name!r} has no layer of that name in the teacher; expected a student made by "
                "shrinking this teacher: name the teacher it was made from."
            )
        missing.pop(counterpart, None)
        parts = [other for _, other, _ in layers if f"{other}.".startswith(f"{counterpart}.")]
        if parts[-1] != name or _frozen(layer):
            continue  # of a decoupled convolution Q goes into the layer that runs last
        value, norm, total = _end(student, node)
        end, _, their_total = ends[counterpart]
        if norm and (_frozen(student.modules[norm]) or student.modules[norm] in held):  # what goes into it is aligned
            value, norm, total, end = node, None, None, teacher_nodes[counterpart]
        stop, target, shortcut = student.index[value.name] + 1, end, None
        if total is not None and their_total is not None:
            other = next(o for o in total.all_input_nodes if o is not value)
            rival = student.shapes.get(other.name) == student.shapes[value.name] and _is_branch(student, other)
            # of two branches without a plain shortcut the deeper one, the main one, answers for the sum
            main = (depth[value.name], student.index[value.name]) > (depth[other.name], student.index[other.name])
            if student.shapes.get(other.name) == student.shapes[value.name] and (main or not rival):
                stop, target, shortcut = student.index[total.name], their_total, other.name
        channels = _kept(name, counterpart, layer, kept, teacher)
        dim = -1 if isinstance(layer, nn.Linear) else 1
        shape, target_shape = list(student.shapes[value.name]), list(teacher.shapes[target.name])
        target_shape[dim] = shape[dim]
        if shape != target_shape:
            raise UserError(
                f"the student's layer {name!r} yields {shape[1:]} where the teacher's {counterpart!r} yields "
                f"{list(teacher.shapes[target.name])[1:]}; expected maps of one size: align networks that differ in "
                "channels only."
            )
        weight: Any = layer.weight
        groups = blocks_of(layer)
        kind = "full" if groups == 1 else "scale" if groups == len(weight) else f"{groups} blocks"
        kind = "linear" if isinstance(layer, nn.Linear) else kind
        kind = "kernel" if kernels and weight[0].numel() <= WIDEST else kind
        points.append(Point(name, norm, counterpart, channels, kind, value.name, stop, target.name, shortcut, dim))
    if missing:
        raise UserError(
            f"the teacher's layer {next(iter(missing))!r} has no counterpart in the student; expected a student made "
            "by shrinking this teacher: shrink the teacher, or teach this student with method='kd' or 'skd'."
        )
    if layers and not points:
        raise UserError(
            "every layer of the student is frozen; expected some that may change: call requires_grad_(True) on them."
        )
    points.sort(key=lambda point: (point.stop, teacher.index[point.target]))
    order = [teacher.index[point.target] for point in points]
    if not points or order != sorted(order):
        raise UserError(
            f"the student has {len(points)} layers to align, and not in the teacher's order; expected a student made "
            "by shrinking this teacher: name the teacher it was made from."
        )
    return points


def _frozen(module: nn.Module) -> bool:
    """Whether any parameter of a module must stay as it is."""
    return any(not parameter.requires_grad for parameter in module.parameters())


def _layers(walk: Walk) -> list[tuple[fx.Node, str, nn.Module]]:
    """The convolutions and linear layers in the order in which they run, each once."""
    layers: list[tuple[fx.Node, str, nn.Module]] = []
    owners = {f"{name}.{key}": value for name, m in walk.modules.items() for key, value in m._parameters.items()}
    for node in walk.nodes:
        module, name = walk.module(node), walk.name(node)
        if module is None or name is None:
            continue
        for inner, part in module.named_modules():
            plain = type(part) in SOLVABLE and "weight" in part._parameters
            if not isinstance(part, _UNSUPPORTED) and (plain or not isinstance(part, SOLVABLE)):
                continue
            where = ".".join(filter(None, (name, inner)))
            raise UserError(
                f"the {walk.who}'s layer {where!r} is a {type(part).__name__}, which cannot absorb an alignment; "
                "expected plain convolutions and linear layers: teach this network with method='kd'."
            )
        if isinstance(module, SOLVABLE):
            if any(name == other for _, other, _ in layers):
                raise UserError(
                    f"the {walk.who}'s layer {name!r} is called more than once; expected layers with one place in the "
                    "network: teach this one with method='kd'."
                )
            if other := next((o for o, w in owners.items() if w is module.weight and o != f"{name}.weight"), None):
                raise UserError(
                    f"the {walk.who}'s {other!r} is the weight of its layer {name!r} too; expected a weight for each: "
                    "teach this network with method='kd'."
                )
            layers.append((node, name, module))
    return layers


def _end(walk: Walk, node: fx.Node) -> tuple[fx.Node, str | None, fx.Node | None]:
    """(the node with a layer's value, its norm's name, the sum that alone uses the value)."""
    norm, linear = None, isinstance(walk.module(node), nn.Linear)
    follower = _only_user(node)
    if (
        follower is not None
        and fixed(walk.module(follower) or nn.Identity())
        and sum(other.target == follower.target for other in walk.nodes) == 1  # a norm that nothing else uses
        and not (linear and len(walk.shapes[node.name]) > 2)  # where it would be over another dimension
    ):
        node, norm = follower, walk.name(follower)
    value = node
    while (user := _only_user(value)) is not None and isinstance(walk.module(user), _PASSES):
        value = user
    adds = user is not None and user.target in _ADDS.get(user.op, ()) and not user.kwargs
    if user is not None and adds and len(user.all_input_nodes) == len(user.args) == 2:
        return value, norm, user
    return node, norm, None


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _is_branch(walk: Walk, node: fx.Node) -> bool:
    """Whether a node is itself a layer's value that goes nowhere but into its sum."""
    while isinstance(walk.module(node), (*_PASSES, nn.modules.batchnorm._BatchNorm)) and node.all_input_nodes:
        node = node.all_input_nodes[0]
    return isinstance(walk.module(node), SOLVABLE) and _end(walk, node)[2] is not None


def _counterpart(name: str, layers: Mapping[str, Any], teacher: Walk) -> str | None:
    """The teacher's layer of that name, or of the name of what the layer is a part of (a decoupled convolution)."""
    while name:
        if name in layers:
            return name
        if name in teacher.modules:  # the same container, but nothing like this layer in it
            return None
        name = name.rpartition(".")[0]
    return None


def _kept(
    name: str, counterpart: str, layer: nn.Module, kept: Mapping[str, Sequence[int]], teacher: Walk
) -> tuple[int, ...] | None:
    count, whole = len(layer.weight), len(teacher.modules[counterpart].weight)  # type: ignore[arg-type]
    named = kept.get(name, kept.get(counterpart))
    if named is None:
        if count != whole:
            raise UserError(
                f"the student's layer {name!r} has {count} channels of the teacher's {whole}, and it is not known "
                "which; expected a student with its list of kept channels: make it with protege.shrink."
            )
        return None
    if len(named) != count or (count and not 0 <= min(named) <= max(named) < whole):
        raise UserError(
            f"the student's layer {name!r} has {count} channels, but its list of kept channels has {len(named)} "
            f"between {min(named, default=0)} and {max(named, default=0)}; expected {count} of the teacher's {whole}: "
            "name the teacher it was made from."
        )
    channels = tuple(int(channel) for channel in named)
    return None if channels == tuple(range(whole)) else channels


def _rows(value: Tensor, dim: int) -> Tensor:
    return value.movedim(dim, -1).flatten(0, -2)


# ---- whether a student is a shrunken copy of its teacher, by what both make of the same samples ---------------------
# Layers of one name and shape say nothing: a fresh network of the teacher's family has them too. In a copy, whatever
# was cut off, trained or rounded since, many a channel is more like the channel that it was than like the others.


@torch.no_grad()
def refuse_unrelated(student: Walk, teacher: Walk, points: Sequence[Point], x: Tensor, y: Tensor) -> None:
    """Raise `UserError` where no more channels than by chance, and by three deviations fewer than of a copy, are like
    their counterparts, of all points but that of the outputs (which separately trained networks share); ``x`` and ``y``
    are the same samples, as each takes them."""
    needed = {name for point in points for name in (point.value, point.shortcut) if name}
    kept: list[Live] = []
    for walk, names, inputs in ((student, needed, x), (teacher, {point.target for point in points}, y)):
        live: Live = {}
        kept.append({})
        for i, node in enumerate(walk.nodes):
            walk.advance(live, i, i + 1, inputs[:SAMPLES].clone() if i == 0 else None)
            if node.name in names and node.name in live:
                kept[-1][node.name] = live[node.name].clone()
    student_values, teacher_values = kept
    hits, total, mean, variance = 0, 0, 0.0, 0.0
    for point in points[:-1] or points:
        missing, _ = point.missing(student_values, teacher_values)
        rows = student_values[point.value].movedim(point.dim, -1).flatten(0, -2)
        chosen = torch.linspace(0, len(rows) - 1, min(ROWS, len(rows))).long()
        a, b = (values[chosen].double() for values in (rows, rows + missing))
        a, b = a - a.mean(0), b - b.mean(0)
        lengths = a.norm(dim=0), b.norm(dim=0)
        alive = (lengths[0] > 1e-9) & (lengths[1] > 1e-9)
        count = int(alive.sum())
        if count < 2:
            continue
        alike = (a[:, alive] / lengths[0][alive]).T @ (b[:, alive] / lengths[1][alive])
        hits += int((alike.diagonal() >= alike.amax(1) - EQUAL).sum())
        total, mean, variance = total + count, mean + 1, variance + 1 - 1 / count
    of_copy = COPIED * total - 3 * math.sqrt(COPIED * (1 - COPIED) * total)
    if total and hits < of_copy and hits <= mean + 3 * math.sqrt(variance):
        raise UserError(
            f"the student's layers have the teacher's names but give other values ({hits} of {total} channels are most "
            "like their counterparts, as by chance); expected a student made by shrinking this teacher: shrink the "
            "teacher, or teach this student with method='kd' or 'skd'."
        )
