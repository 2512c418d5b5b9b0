"""Where to cut two networks so that the pieces correspond (Stagewise KD, arXiv 1911.06786, section 3).

Networks are paired at the last cut before each change of resolution, relative to their own input; those that keep one
resolution, such as transformers, at blocks of proportional depth, and so is a resolution that would hold nearly all of
a network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from torch import Tensor, nn

from ...errors import UserError, nearest, told
from ...numerics import exact
from ...torch_utils import untouched
from ..tracing.taps import feature, first_outputs
from .places import Cut, cut_at, places_of
from .runs import VECTOR, Run, runs_of

MOST_PARTS = 4  # into so many stages a resolution is divided at most


@dataclass(frozen=True)
class Pair:
    """A cut of the student and the teacher's that it learns to match."""

    student: Cut
    teacher: Cut

    @property
    def adapter(self) -> bool:
        """Whether the channels differ, so that a 1×1 layer must stand between."""
        return self.student.channels != self.teacher.channels


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
        ours = _named(student, [names[0] for names in named], student_example, "student")
        pairs = list(map(Pair, ours, _named(teacher, [names[-1] for names in named], teacher_example, "teacher")))
    else:
        pairs = _corresponding(runs_of(student, student_example), runs_of(teacher, teacher_example))
        if not pairs:
            raise UserError(
                f"no stages of the student ({type(student).__name__}) and the teacher ({type(teacher).__name__}) "
                'correspond by themselves; name them as stages = "student_module=teacher_module,…".'
            )
    for matched in pairs:
        a, b = matched.student, matched.teacher
        if a.level != b.level or len(a.grid) != len(b.grid) or (len(a.grid) == 1 and a.grid != b.grid):
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
    runs = runs_of(network, example)
    return [cut for run in runs if run.heavy or run.key != VECTOR for cut in (run.parts if run.heavy else [run.last])]


def _named(network: nn.Module, names: Sequence[str], example: Tensor, who: str) -> list[Cut]:
    outputs = outputs_at(network, names, example, who)
    places = places_of(network, outputs, example)
    for name in names:
        if name not in places:
            raise UserError(
                f"the {who}'s module {name!r} gives an output of shape {list(outputs[name].shape[1:])}; expected a map "
                "that shrinks alike in both directions, tokens or a vector for each sample: name another."
            )
    return [cut_at(name, outputs[name], places[name]) for name in names]


def _corresponding(student: Sequence[Run], teacher: Sequence[Run]) -> list[Pair]:
    pairs: list[Pair] = []
    keys, others = ([run.key for run in runs] for runs in (student, teacher))
    for i, j, size in SequenceMatcher(None, keys, others, autojunk=False).get_matching_blocks():
        for ours, theirs in zip(student[i : i + size], teacher[j : j + size], strict=True):
            if ours.heavy:
                count = min(MOST_PARTS, len(ours.parts), len(theirs.parts))
                a, b = (
                    [run.parts[len(run.parts) * n // count - 1] for n in range(1, count + 1)] for run in (ours, theirs)
                )
                pairs += map(Pair, a, b)
            elif ours.key != VECTOR:
                pairs.append(Pair(ours.last, theirs.last))
    return pairs


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
        outputs[name] = feature(outputs[name])
        if not isinstance(outputs[name], Tensor):
            raise UserError(f"the {who}'s module {name!r} does not return a single tensor; name one that does.")
    if list(outputs) != list(names):
        raise UserError(
            f"the {who}'s stages are named in the order {', '.join(names)} but are run in the order "
            f"{', '.join(outputs)}; name them in that order."
        )
    return outputs
