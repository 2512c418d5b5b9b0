"""Where to cut two networks so that the pieces correspond (Stagewise KD, arXiv 1911.06786, section 3).

A cut is the output of a module at which a stage may end: nothing else is alive there but it and, in a U-Net, skip
connections on their way to the decoder. Networks are paired at the last cut before each change of resolution, relative
to their own input; transformers, which keep one resolution, at blocks of proportional depth.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

from torch import Tensor, fx, nn

from ...errors import UserError, nearest, told
from ...numerics import exact
from ...torch_utils import untouched
from ..laws import tensors_in
from ..tracing.graph import Trace, Untraceable, trace
from ..tracing.taps import first_outputs

SAME = 0.3  # halvings: convolutions without padding shrink a map too, but stay at a resolution
TOKEN_STAGES = 4  # transformers are cut into at most this many stages before the head
NO_ENDS = ("torch.nn.modules.pooling", "torch.nn.modules.dropout")  # they belong to what follows


@dataclass(frozen=True)
class Cut:
    """The first output of module `name`, its `shape` for one sample: [C, H, W], or [L, C] for tokens.

    `level` is how often the input was halved on the way, None for tokens and vectors.
    """

    name: str
    shape: tuple[int, ...]
    level: int | None

    def __str__(self) -> str:
        place = f" (the input halved {self.level} times)" if self.level is not None else ""
        return f"output of shape {list(self.shape)}{place}"


@dataclass(frozen=True)
class Pair:
    """A cut of the student and the teacher's that it learns to match."""

    student: Cut
    teacher: Cut

    @property
    def adapter(self) -> bool:
        """Whether the channels differ, so that a 1×1 layer must stand between."""
        a, b = (cut.shape[0] if len(cut.shape) == 3 else cut.shape[-1] for cut in (self.student, self.teacher))
        return a != b


@exact()
def pair(
    student: nn.Module,
    teacher: nn.Module,
    student_example: Tensor,
    teacher_example: Tensor,
    stages: str | None = None,
) -> list[Pair]:
    """The cuts of two networks that correspond, in forward order.

    `stages` names them: "student_module=teacher_module,…"; a name alone means the same in both. Without it they are
    found (`find_cuts`) and paired by level, in order, or for transformers by depth. Examples [N, …] are prepared inputs
    on the networks' devices. Raises `UserError` for names that do not exist, come twice or out of order, for outputs
    that do not match in resolution, and where nothing corresponds.

    >>> [(matched.student.name, matched.teacher.name) for matched in pair(network, network, x, x, "1,3")]
    [('1', '1'), ('3', '3')]
    """
    if stages is not None:
        named = [[name.strip() for name in item.split("=")] for item in stages.split(",")]
        for names, item in zip(named, stages.split(","), strict=True):
            if len(names) > 2 or not all(names):
                raise UserError(
                    f"stages = {stages!r} cannot be read at {item!r}; expected student_module=teacher_module,… or a "
                    "name alone where both have it."
                )
        measured = []
        for network, role, names, example in (
            (student, "student", [names[0] for names in named], student_example),
            (teacher, "teacher", [names[-1] for names in named], teacher_example),
        ):
            outputs = outputs_at(network, names, example, role)
            measured.append([Cut(name, tuple(x.shape[1:]), _level(x, example)) for name, x in outputs.items()])
        pairs = list(map(Pair, *measured))
    else:
        pairs = _corresponding(find_cuts(student, student_example), find_cuts(teacher, teacher_example))
        if not pairs:
            raise UserError(
                f"no stages of the student ({type(student).__name__}) and the teacher ({type(teacher).__name__}) "
                'correspond by themselves; name them as stages = "student_module=teacher_module,…".'
            )
    for matched in pairs:
        a, b = matched.student, matched.teacher
        for role, cut in (("student", a), ("teacher", b)):
            if cut.level is None and len(cut.shape) == 3 and cut.shape[1:] != (1, 1):
                raise UserError(
                    f"the {role}'s module {cut.name!r} gives {cut}; expected a map [channels, height, width] "
                    "that shrinks alike in both directions: name another."
                )
        if a.level != b.level or len(a.shape) != len(b.shape) or (len(a.shape) == 2 and a.shape[0] != b.shape[0]):
            raise UserError(
                f"the stage {a.name}={b.name} pairs the student's {a} with the teacher's {b}; expected "
                "the same resolution in relation to the input: pair modules that match."
            )
    return pairs


@exact()
def find_cuts(network: nn.Module, example: Tensor) -> list[Cut]:
    """Where a network is best cut, in forward order: the last cut at each resolution, or a transformer's blocks.

    `example` [N, …] is a prepared input. Modules whose own code cannot be traced are taken whole. Every stage
    and the head have parameters. Raises `UserError` where nothing can be seen inside the network.

    >>> [(cut.name, cut.shape) for cut in find_cuts(network, x)]
    [('1', (8, 6, 6)), ('3', (8, 4, 4))]
    """
    openable = {
        m for m in network.modules() if not type(m).__module__.startswith("torch.nn") or isinstance(m, nn.Sequential)
    }
    try:
        traced = trace(network, example, openable & {network}, welcome=openable)
    except Untraceable as error:
        raise UserError(
            f"the code of {type(network).__name__} cannot be traced to find its stages ({error.reason}); name "
            'them as stages = "student_module=teacher_module,…" or take a method without stages.'
        ) from error
    nodes = traced.nodes
    order = {node: number for number, node in enumerate(nodes)}
    names: dict[fx.Node, list[tuple[str, nn.Module]]] = defaultdict(list)
    for name, module in network.named_modules():
        node = traced.first.get(module)
        if name and node is not None and isinstance(traced.values[node], Tensor):
            names[node].append((name, module))
    learned = [
        order[node]
        for node in nodes
        if (node.op == "call_module" and any(True for _ in traced.entry.get_submodule(str(node.target)).parameters()))
        or any(n.op == "get_attr" and isinstance(traced.values[n], nn.Parameter) for n in node.all_input_nodes)
    ]
    levels = {node: _halvings(traced.values[node], example) for node in nodes}
    ends = [
        node
        for node in sorted(names, key=order.__getitem__)
        if (levels[node] is not None or traced.values[node].dim() == 3)
        and not any(type(module).__module__ in NO_ENDS for _, module in names[node])
        and learned[:1] < [order[node] + 1]
        and learned[-1:] > [order[node]]
    ]
    ends = _uncrossed(ends, traced, order, levels)

    runs: list[list[Cut]] = []  # of one resolution each
    last: fx.Node | None = None
    kinds: dict[Any, list[Cut]] = defaultdict(list)
    for node in ends:
        shape, level = tuple(traced.values[node].shape[1:]), levels[node]
        if level is None:
            for name, module in names[node]:
                kinds[type(module), shape].append(Cut(name, shape, None))
            continue
        cut = Cut(min((name for name, _ in names[node]), key=lambda name: name.count(".")), shape, round(level))
        if last and abs((levels[last] or 0) - level) < SAME:
            runs[-1].append(cut)
        elif any((order[last] if last else -1) < place <= order[node] for place in learned):
            runs.append([cut])
        else:
            continue
        last = node
    blocks = max(kinds.values(), key=len, default=[])
    if len(blocks) > len(runs):
        return blocks
    ended = {
        name: _level(traced.values[node], example)
        for node, same in names.items()
        for name, module in same
        if not isinstance(module, nn.Sequential)
    }
    chosen = [_last(run, ended) for run in runs]
    result = nodes[-1].args[0]
    for name, module in network.named_modules():  # a block that gives the network's outputs is the head as a whole
        inside = [cut for cut in chosen if cut.name.startswith(f"{name}.")]
        if (
            name
            and not isinstance(module, nn.Sequential)
            and traced.first.get(module) is result
            and inside
            and inside == chosen[1:][-1:]
        ):
            chosen.pop()
    return chosen


def _last(run: Sequence[Cut], ended: Mapping[str, int | None]) -> Cut:
    """The last cut of a resolution, but not within a block that goes on to the next one, if that can be."""

    def depth(cut: Cut) -> int:
        around = [cut.name[:at] for at, letter in enumerate(cut.name) if letter == "."]
        return sum(ended.get(name, cut.level) != cut.level for name in around)

    least = min(map(depth, run))
    return [cut for cut in run if depth(cut) == least][-1]


def _uncrossed(
    candidates: list[fx.Node], traced: Trace, order: dict[fx.Node, int], levels: dict[fx.Node, float | None]
) -> list[fx.Node]:
    """Those through which all goes that is used later, but for long skips: what is used next at a finer resolution,
    or at the same after a detour through coarser ones."""
    moving = {traced.nodes[0]}  # what depends on the input
    uses: list[tuple[int, int, float | None]] = []  # from where to where a tensor is needed, and the level there
    for node in traced.nodes:
        if any(source in moving for source in node.all_input_nodes):
            moving.add(node)
            if tensors_in(traced.values[node]):
                uses += [
                    (order[n], order[node], levels[node])
                    for n in node.all_input_nodes
                    if n in moving and tensors_in(traced.values[n])
                ]
    kept = []
    for node in candidates:
        here, level = order[node], levels[node]
        others = [(end, used) for start, end, used in uses if start < here < end]
        if level is None:
            clear = not others
        else:
            coarser = (order[later] for later in traced.nodes[here:] if (levels[later] or 0) > level + SAME)
            detour = next(coarser, len(traced.nodes))
            clear = all(used is not None and used < level + (SAME if end > detour else -SAME) for end, used in others)
        if clear:
            kept.append(node)
    return kept


def _corresponding(student: Sequence[Cut], teacher: Sequence[Cut]) -> list[Pair]:
    if student and teacher and student[0].level is None and teacher[0].level is None:
        count = min(TOKEN_STAGES, len(student), len(teacher))
        last = [[cuts[len(cuts) * n // count - 1] for n in range(1, count + 1)] for cuts in (student, teacher)]
        return list(map(Pair, *last))
    levels, others = ([cut.level for cut in cuts] for cuts in (student, teacher))
    blocks = SequenceMatcher(None, levels, others, autojunk=False).get_matching_blocks()
    pairs = [Pair(student[i + n], teacher[j + n]) for i, j, size in blocks for n in range(size)]
    return [pair for pair in pairs if pair.student.level is not None]


def outputs_at(network: nn.Module, names: Sequence[str], example: Tensor, who: str) -> dict[str, Tensor]:
    """What the named modules give in a plain forward pass. Raises `UserError` unless they exist, once each, are run in
    this order and return a tensor; ``who`` is the network in sentences."""
    modules = dict(network.named_modules(remove_duplicate=False))
    for name in names:
        if not name or name not in modules:
            raise UserError(f"the {who} has no module {name!r} to cut at; {nearest(name, modules)}.")
        if names.count(name) > 1:
            raise UserError(f"the {who}'s module {name!r} is named twice in the stages; name each once.")
    try:
        with first_outputs({name: modules[name] for name in names}) as outputs, untouched(network):
            network(example.clone())
    except Exception as error:
        raise UserError(
            f"the {who} fails on samples of shape {list(example.shape[1:])} ({told(error)}); expected some that its "
            "forward takes, prepared and not raw: give others."
        ) from error
    for name in names:
        if name not in outputs:
            raise UserError(f"the {who}'s module {name!r} is never called in a forward pass; name one that is.")
        if not isinstance(outputs[name], Tensor):
            raise UserError(f"the {who}'s module {name!r} does not return a single tensor; name one that does.")
    if list(outputs) != list(names):
        raise UserError(
            f"the {who}'s stages are named in the order {', '.join(names)} but are run in the order "
            f"{', '.join(outputs)}; name them in that order."
        )
    return outputs


def _halvings(value: Any, example: Tensor) -> float | None:
    """How often the input was halved; None for what is no map [N, C, H, W] of it, such as a pooled one or a gate."""
    if not isinstance(value, Tensor) or value.dim() != 4 or example.dim() != 4 or value.shape[2:].numel() < 2:
        return None
    across, down = (math.log2(n / max(m, 1)) for n, m in zip(example.shape[2:], value.shape[2:], strict=True))
    return (across + down) / 2 if abs(across - down) < 2 * SAME else None


def _level(value: Any, example: Tensor) -> int | None:
    halvings = _halvings(value, example)
    return None if halvings is None else round(halvings)
