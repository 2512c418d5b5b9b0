"""Where a shrunken student is aligned with its teacher (FSKD, arXiv 1812.01839): found as both run.

A point is a layer of the student that is linear in its weight, with the BatchNorm right behind it, and the teacher's
layer of the same name: its output at the same place, before the nonlinearity, in the channels that the student kept.
Where the student adds that output to a shortcut, as residual networks do, the *sum* is what later layers read, so the
target is the teacher's sum less the student's own shortcut: what went wrong earlier is put right there. A layer that
cannot take a matrix is left as it is, with the reason; the rest is aligned.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ...errors import UserError
from ...torch_utils import eval_mode, trained_by
from ..laws import close
from ..tracing.tracer import ROOT
from ..tracing.walk import Call, Live, Walk, input_name, output_name
from .absorb import fixed, scaled
from .linear import Linear, mixed, patches, product, settable
from .moments import Moments
from .room import parts_on
from .sites import Site, Sites, sites_of

WIDEST = 2400  # weights of an output, beyond which its kernel is not solved for: it takes seconds and gigabytes
PATCHES = 2**22  # values of a layer's unfolded input that are held at once
ROWS, TIMES = 2**14, 16  # at least so many rows are looked at, and so many times as many as there are columns; or all

_ADDS = {"call_function": (operator.add, operator.iadd, torch.add), "call_method": ("add", "add_")}


@dataclass(frozen=True)
class Point:
    """One alignment: ``layer`` (and ``norm``) of the student changes, towards ``teacher``'s ``kept`` channels.

    ``kind`` is "kernel" where its whole kernel is sought, and otherwise what a Q behind it can be.
    ``kept`` None means all of them, in order. ``value`` is the student's node that holds what is aligned; it is known,
    and not yet used, when the student's nodes before ``stop`` have run. ``target`` is the teacher's node, known when
    those before ``their_stop`` have run, ``shortcut`` the student's node that it is to be added to. ``dim`` is the
    dimension of the channels. Where the layer is ``inside`` a node, both stand before it, and it runs for this layer
    alone: ``call`` and ``their_call`` say which call of the node is meant.
    """

    layer: str
    norm: str | None
    teacher: str
    kept: tuple[int, ...] | None
    kind: str
    value: str
    stop: int
    target: str
    their_stop: int
    shortcut: str | None
    dim: int
    linear: Linear
    node: int
    call: Call
    their_call: Call
    inside: bool

    def row(self) -> dict[str, Any]:
        """For a table: what is aligned with what, and where Q goes."""
        return {
            "student": self.layer,
            "teacher": self.teacher + (" + shortcut" if self.shortcut else ""),
            "channels": "all" if self.kept is None else len(self.kept),
            "absorbed into": self.layer + (f" and {self.norm}" if self.norm else ""),
            "kind": self.kind,
        }

    @property
    def unknowns(self) -> tuple[int, int, int]:
        """Blocks, columns and outputs of a block of what is sought."""
        blocks, outputs = self.linear.blocks, self.linear.channels // self.linear.blocks
        return blocks, self.linear.width if self.kind == "kernel" else outputs, outputs

    def chosen(self, teacher: Live, samples: int, share: float, seed: int) -> Tensor | None:
        """The numbers of the rows to look at, as many of each of these ``samples``; None for all.

        ``share`` is that of these among all samples. Further rows hardly change what is solved: those of one sample are
        much alike.
        """
        value = teacher[self.target].movedim(self.dim, -1)
        rows = value.shape[:-1].numel()
        groups = samples if rows % samples == 0 else 1
        wanted = math.ceil(share * max(ROWS, TIMES * self.unknowns[1]) / groups)
        if wanted * groups >= rows:
            return None
        order = torch.rand(groups, rows // groups, generator=torch.Generator().manual_seed(seed)).topk(wanted).indices
        return (order.sort().values + rows // groups * torch.arange(groups)[:, None]).flatten().to(value.device)

    def missing(self, student: Live, teacher: Live, chosen: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Rows ``[M, C]``: what the student's value lacks to its target, and the teacher's value that comes from."""
        x, whole = (
            _rows(live[name], self.dim, chosen) for live, name in ((student, self.value), (teacher, self.target))
        )
        if self.kept is not None:
            whole = whole[:, list(self.kept)]
        y = whole if self.shortcut is None else whole - _rows(student[self.shortcut], self.dim, chosen)
        return y - x, whole

    def rows(self, student: Live, chosen: Tensor | None = None) -> Iterator[Tensor]:
        """``[M, C]``, in parts: what is multiplied by what is sought, the student's value or what its kernel sees."""
        if self.kind == "kernel":
            inputs = student[input_name(self.layer)]
            yield from patches(self.linear, inputs, PATCHES * parts_on(inputs.device), chosen)
            return
        rows = _rows(student[self.value], self.dim, chosen)
        if self.linear.bias is not None and self.linear.set_bias is None:  # it stays; Q goes into the weight alone
            rows = rows - self.linear.bias.read().detach().flatten().to(rows)
        yield rows

    def change(self, student: Live, delta: Tensor, intercept: Tensor | None) -> None:
        """Give the student's value what it will be: ``rows·Δ + c`` more (``[blocks, n, m]`` and ``[blocks·m]``)."""
        value = student[self.value].movedim(self.dim, -1)
        if self.kind == "kernel":
            more = product(self.linear, student.pop(input_name(self.layer)), delta)
        else:
            (rows,) = self.rows(student)
            more = mixed(rows, delta, -1)
        value = value + more.reshape(value.shape)
        if intercept is not None:
            value += intercept.to(value)
        student[self.value] = value.movedim(-1, self.dim)

    def add(self, moments: Moments, fold: int, student: Live, teacher: Live, chosen: Tensor | None) -> float:
        """Add these rows to the sums; gives the square of the teacher's values there."""
        missing, whole = self.missing(student, teacher, chosen)
        done = 0
        for x in self.rows(student, chosen):
            moments.add(fold, x, missing[done : done + len(x)])
            done += len(x)
        return float(torch.linalg.vector_norm(whole, dtype=torch.float64)) ** 2

    def forget(self, teacher: Live, *students: Live) -> None:
        """Drop what was kept of the calls for this point alone."""
        for live, name in ((teacher, self.teacher), *((live, self.layer) for live in students)):
            live.pop(input_name(name), None)
            live.pop(output_name(name), None)


@dataclass(frozen=True)
class Alignment:
    """The points in the order in which the student runs, and why other layers stay as they are: name → reason."""

    points: list[Point]
    left: dict[str, str]

    def table(self) -> list[dict[str, Any]]:
        """A row for each point, and one for each layer that is left as it is."""
        left = [
            {
                "student": name,
                "teacher": "",
                "channels": "",
                "absorbed into": f"left as it is: {reason}",
                "kind": "none",
            }
            for name, reason in self.left.items()
        ]
        return [point.row() for point in self.points] + left


def plan_alignment(student: Walk, teacher: Walk, kept: Mapping[str, Sequence[int]], kernels: bool = False) -> Alignment:
    """Where both are aligned, and where not; with ``kernels`` those are sought, of layers not too wide.

    ``kept`` names, for layers of the student, the teacher's output channels they kept; without an entry it is all of
    them. Raises `UserError` where the two do not correspond and where no layer can be aligned.

    >>> pruned = shrink(network, x, ratio=0.5)
    >>> plan = plan_alignment(Walk(pruned.network, "student", x), Walk(network, "teacher", x), pruned.kept)
    >>> [(point.layer, point.kind) for point in plan.points]
    [('0', 'full'), ('2', 'full'), ('5', 'linear')]
    """
    with eval_mode(student.modules[""], teacher.modules[""]):
        mine, theirs = _Ends(student, sites_of(student)), _Ends(teacher, sites_of(teacher))
    counterparts = {name: _counterpart(name, theirs.layers, teacher) for name in mine.layers}
    for name, counterpart in counterparts.items():
        if counterpart is None:
            raise UserError(
                f"the student's layer {name!r} has no layer of that name in the teacher; expected a student made by "
                "shrinking this teacher: name the teacher it was made from."
            )
    if missing := [name for name in theirs.layers if name not in counterparts.values()]:
        raise UserError(
            f"the teacher's layer {missing[0]!r} has no counterpart in the student; expected a student made "
            "by shrinking this teacher: shrink the teacher, or teach this student with method='kd' or 'skd'."
        )
    last = {counterpart: name for name, counterpart in counterparts.items()}
    points, left = [], {}
    for name, counterpart in counterparts.items():
        if counterpart is None or last[counterpart] != name:
            continue  # of a decoupled convolution Q goes into the layer that runs last
        site, other = mine.layers[name], theirs.layers[counterpart]
        layer, reason = _writable(site, other)
        if layer is None:
            left[name] = reason
            continue
        channels = _kept(name, counterpart, layer, other.linear, kept, teacher)
        if isinstance(channels, str):
            left[name] = channels
            continue
        point = _point(mine, theirs, replace(site, linear=layer), other, channels, kernels)
        if isinstance(point, str):
            left[name] = point
        else:
            points.append(point)
    if left and not points:
        if set(left.values()) == {FROZEN}:
            raise UserError(
                "every layer of the student is frozen; expected some that may change: call requires_grad_(True) on "
                "them."
            )
        name, reason = next(iter(left.items()))
        raise UserError(
            f"no layer of the student can be aligned ({name!r}: {reason}); expected one that is linear in a weight of "
            "its own: teach this network with method='kd'."
        )
    points.sort(key=lambda point: (point.stop, point.their_stop, point.call.number if point.inside else -1))
    order = [point.their_stop for point in points]
    if not points or order != sorted(order):
        raise UserError(
            f"the student has {len(points)} layers to align, and not in the teacher's order; expected a student made "
            "by shrinking this teacher: name the teacher it was made from."
        )
    return Alignment(points, left)


FROZEN = "its weights are frozen"


def _writable(site: Site, other: Site) -> tuple[Linear | None, str]:
    """The student's layer with the ways in which it is set; or None, and why it cannot take a matrix."""
    layer = site.linear
    if layer is None or other.linear is None:
        return None, "what it computes is not linear in its weight"
    if site.twice:
        return None, "its weight is used more than once"
    layer = settable(layer)
    if layer.set_weight is None:
        return None, "its weight is computed in a way that gives no product with a matrix"
    changes = [*layer.set_weight.changes, *(layer.set_bias.changes if layer.set_bias else ())]
    if not all(tensor.requires_grad for tensor in changes):
        return None, FROZEN
    if layer.dim != other.linear.dim:
        return None, "its channels lie on another dimension than the teacher's"
    return layer, ""


def _point(
    mine: _Ends, theirs: _Ends, site: Site, other: Site, channels: tuple[int, ...] | None, kernels: bool
) -> Point | str:
    """The point of a layer; or why it cannot be one."""
    layer, student, teacher = site.linear, mine.walk, theirs.walk
    assert layer is not None
    inside = site.dim is None or other.dim is None
    norm = shortcut = None
    if inside:
        value, stop, target, their_stop = output_name(site.name), site.node, output_name(other.name), other.node
        shape, target_shape = list(site.gives), list(other.gives)
        dim = layer.dim
    else:
        node, their_node, dim = student.nodes[site.node], teacher.nodes[other.node], layer.dim
        (at, norm, total), (end, _, their_total) = mine.end(node, dim), theirs.end(their_node, dim)
        fixed_bias = layer.bias is not None and layer.set_bias is None
        if norm and (fixed_bias or norm in mine.held):  # what goes into it is aligned
            at, norm, total, end = node, None, None, their_node
        stop, goal = student.index[at.name] + 1, end
        if total is not None and their_total is not None:
            rest = next(o for o in total.all_input_nodes if o is not at)
            alike = student.shapes.get(rest.name) == student.shapes[at.name]
            # of two branches without a plain shortcut the deeper one, the main one, answers for the sum
            main = (mine.depth[at.name], student.index[at.name]) > (mine.depth[rest.name], student.index[rest.name])
            if alike and (main or not mine.is_branch(rest)):
                stop, goal, shortcut = student.index[total.name], their_total, rest.name
        value, target, their_stop = at.name, goal.name, teacher.index[goal.name] + 1
        shape, target_shape = list(student.shapes[value]), list(teacher.shapes[target])
    whole = list(target_shape)
    whole[dim] = shape[dim]
    if shape != whole:
        if len(shape) == len(whole) and all(a <= b for a, b in zip(shape, whole, strict=True)):
            return f"it yields {shape[1:]} where the teacher's yields {target_shape[1:]}"
        raise UserError(
            f"the student's layer {site.name!r} yields {shape[1:]} where the teacher's {other.name!r} yields "
            f"{target_shape[1:]}; expected maps of one size: align networks that differ in channels only."
        )
    kind = "full" if layer.blocks == 1 else "scale" if layer.blocks == layer.channels else f"{layer.blocks} blocks"
    kind = "linear" if layer.weight.value.dim() == 2 else kind
    able = layer.kernel and layer.set_weight is not None and layer.set_weight.any
    kind = "kernel" if kernels and able and layer.width <= WIDEST else kind
    calls = site.node, site.call, other.call, inside
    return Point(
        site.name, norm, other.name, channels, kind, value, stop, target, their_stop, shortcut, dim, layer, *calls
    )


class _Ends:
    """A walk's layers, and where what each of them gives is ready."""

    def __init__(self, walk: Walk, sites: Sites) -> None:
        self.walk, self.layers, self.passes = walk, sites.layers, sites.passes
        self.norms: dict[str, str] = {}  # node → its norm
        for node in walk.nodes:
            if (name := _norm(walk, node)) is not None:
                self.norms[node.name] = name
        self.depth: dict[str, int] = {}
        for node in walk.nodes:
            self.depth[node.name] = 1 + max((self.depth[other.name] for other in node.all_input_nodes), default=0)

    @cached_property
    def held(self) -> set[str]:
        """The norms that must stay as they are."""
        learning = trained_by(self.walk.modules[""])
        return {n for n, m in self.walk.modules.items() if fixed(m) and (m not in learning or _frozen(m))}

    def end(self, node: fx.Node, dim: int) -> tuple[fx.Node, str | None, fx.Node | None]:
        """(the node with a layer's value, its norm's name, the sum that alone uses the value)."""
        norm, follower = None, _only_user(node)
        name = None if follower is None else self.norms.get(follower.name)
        over = len(self.walk.shapes[node.name]) + dim == 1  # the channels are what a norm normalises
        if follower is not None and name and over and sum(n == name for n in self.norms.values()) == 1:
            node, norm = follower, name
        value = node
        while (user := _only_user(value)) is not None and user.name in self.passes:
            if dim != -1 and self.walk.shapes[user.name] != self.walk.shapes[value.name]:
                break
            value = user
        adds = user is not None and user.target in _ADDS.get(user.op, ()) and not user.kwargs
        if user is not None and adds and len(user.all_input_nodes) == len(user.args) == 2:
            return value, norm, user
        return node, norm, None

    def is_branch(self, node: fx.Node) -> bool:
        """Whether a node is itself a layer's value that goes nowhere but into its sum."""
        while (node.name in self.passes or node.name in self.norms) and node.all_input_nodes:
            node = node.all_input_nodes[0]
        layer = next((s for s in self.layers.values() if self.walk.nodes[s.node] is node and s.dim is not None), None)
        return layer is not None and layer.linear is not None and self.end(node, layer.linear.dim)[2] is not None


def _norm(walk: Walk, node: fx.Node) -> str | None:
    """The name of the BatchNorm that a node is, if in eval mode it is nothing but its scale and shift."""
    name, run = walk.name(node), walk.module(node)
    if node.op == "call_function" and node.target is F.batch_norm and len(node.args) > 2:
        statistics = node.args[1]
        if not isinstance(statistics, fx.Node) or statistics.op != "get_attr":
            return None
        name = str(statistics.target)[len(ROOT) :].rpartition(".")[0]
    norm: Any = None if name is None else walk.modules.get(name)
    if norm is None or not fixed(norm) or node.name not in walk.shapes:
        return None
    example = torch.randn(walk.shapes[node.name], generator=torch.Generator().manual_seed(0)).to(norm.running_mean)

    def given(argument: fx.Node) -> Any:
        if argument.op != "get_attr":
            return example
        return operator.attrgetter(str(argument.target)[len(ROOT) :])(walk.modules[""])

    with torch.no_grad():
        args: Any = fx.node.map_arg(node.args, given)
        kwargs: Any = fx.node.map_arg(node.kwargs, given)
        made = F.batch_norm(*args, **kwargs) if run is None else run(example)
        return name if close(made, scaled(norm, example)) else None


def _frozen(module: nn.Module) -> bool:
    """Whether any parameter of a module must stay as it is."""
    return any(not parameter.requires_grad for parameter in module.parameters())


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _counterpart(name: str, layers: Mapping[str, Any], teacher: Walk) -> str | None:
    """The teacher's layer of that name, or of the name of what the layer is a part of (a decoupled convolution)."""
    while name not in layers:
        if name in teacher.modules:  # the same container, but nothing like this layer in it
            return None
        name = name.rpartition(".")[0]
    return name


def _kept(
    name: str, counterpart: str, layer: Linear, other: Linear | None, kept: Mapping[str, Sequence[int]], teacher: Walk
) -> tuple[int, ...] | str | None:
    """Which of the teacher's channels the student's layer has, None for all in order; or why that is not known."""
    assert other is not None
    count, whole = layer.channels, other.channels
    named = kept.get(name, kept.get(counterpart))
    if named is None:
        if count == whole:
            return None
        if kept:
            return f"it has {count} channels of the teacher's {whole}, and it is not known which"
        raise UserError(
            f"the student's layer {name!r} has {count} channels of the teacher's {whole}, and it is not known "
            "which; expected a student with its list of kept channels: make it with protege.shrink."
        )
    if len(named) != count or (count and not 0 <= min(named) <= max(named) < whole):
        raise UserError(
            f"the student's layer {name!r} has {count} channels, but its list of kept channels has {len(named)} "
            f"between {min(named, default=0)} and {max(named, default=0)}; expected {count} of the teacher's {whole}: "
            "name the teacher it was made from."
        )
    channels = tuple(int(channel) for channel in named)
    return None if channels == tuple(range(whole)) else channels


def _rows(value: Tensor, dim: int, chosen: Tensor | None = None) -> Tensor:
    rows = value.movedim(dim, -1).flatten(0, -2)
    return rows if chosen is None else rows[chosen]
