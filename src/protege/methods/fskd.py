"""Knowledge distillation from few samples (FSKD: Li et al. 2020, arXiv 1812.01839): teaching by solving.

The student is a shrunken teacher. For each layer in forward order, a matrix Q behind the student's layer is chosen by
least squares so that its outputs match the teacher's on a few samples, and absorbed: no parameter is added, no label is
read. Unlike the authors' code, which runs both networks from the start for every layer, both are run once: their values
at the frontier are kept, and a solved Q is applied to what is kept there.

Beyond the paper, ``solve = "kernel"`` seeks what is to be added to the layer's whole kernel, by the same least squares
on what the kernel sees: a k×k convolution then has k² times as many unknowns an input.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ..data import CLEAN, Batch
from ..errors import UserError
from ..losses.targets import HOTTEST
from ..models import Model
from ..models.placing import place
from ..signals import Logits, Source
from ..surgery import Frontier, Moments, Point, Walk, absorb, plan_alignment, solve
from ..surgery.solving.absorb import folded, has_intercept, settle
from ..surgery.solving.likeness import refuse_unrelated
from ..surgery.solving.room import parts_on, room_on
from ..surgery.tracing import Live
from ..torch_utils import eval_mode, logits_in
from ..training.phase import Fit, Phase, Solve
from .method import MethodSettings, Setup

logger = logging.getLogger(__name__)

FOLDS = 4  # parts of the samples, each once left out to choose the ridge
PIXELS = 2**16  # in a chunk, on a processor: what is computed at once stays small, whatever the number of samples
ENOUGH = 1000  # samples to solve on; fewer are looked at in augmented views as well
MOST_VIEWS = 8  # of a sample
JUDGED = 64  # samples whose outputs are compared before and after

Inputs = Callable[[int], tuple[Tensor, Tensor]]  # number of a chunk → inputs for the student and for the teacher


class Settings(MethodSettings):
    """What is solved for, how far it may move away from what is, and what follows the solve."""

    solve: Literal["matrix", "kernel"] = Field(
        "matrix", description="what is solved for: a matrix behind each layer (the paper) or the layer's whole kernel"
    )
    ridge: float | None = Field(
        None,
        ge=0,
        description="pull towards no change, in units of XᵀX's mean diagonal; default: by held-out samples",
    )
    augmented: int | None = Field(
        None,
        ge=0,
        description="augmented views of each sample to solve on, beside the clean one; default: up to 1000 in all",
    )
    sweeps: int = Field(1, ge=1, description="passes over the layers; further ones stop where the error stops falling")
    finetune_steps: int = Field(0, ge=0, description="updates on the teacher's logits after the solve (whole epochs)")
    finetune_lr: float | None = Field(
        None,
        gt=0,
        description="peak learning rate of the fine-tuning (skd: of an inherited head, too); "
        "default: 0.01 (fskd) or 0.002 (skd)",
    )
    temperature: float = Field(
        4.0, gt=0, le=HOTTEST, description="T of the fine-tuning: how far both distributions are softened"
    )

    def idle(self, taught: bool) -> dict[str, str]:
        """The labels' always, those of the fine-tuning where there is none."""
        reasons = dict.fromkeys(
            ["label_smoothing", "class_weights"], "fskd reads no label; expected a method that does"
        )
        why = "nothing is fine-tuned; expected finetune_steps above 0"
        return reasons | ({} if self.finetune_steps else dict.fromkeys(["finetune_lr", "temperature"], why))


def recover(
    student: nn.Module,
    teacher: nn.Module,
    kept: Mapping[str, Sequence[int]],
    inputs: Inputs,
    folds: Sequence[int],
    *,
    kernels: bool = False,
    ridge: float | None = None,
    sweeps: int = 1,
    budget: int | None = None,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Align the student with the teacher, layer by layer; changes its weights (and norms) in place.

    ``inputs`` gives each chunk of samples, prepared for both networks; ``folds`` says which part of the samples a chunk
    is of, for they are left out in turn to choose the ridge. ``kept`` names the teacher's output channels that the
    student's layers kept. With ``kernels`` whole kernels are sought, where not too wide, rather than matrices behind
    them. Returns ``before`` and ``after``, the relative error ``‖S-T‖²/‖T‖²`` of the student's outputs on the first
    chunks; the number of ``sweeps``; and ``blocks``, that error of each layer just before and after it is solved. A
    sweep that does not lessen the error of the outputs is undone. Raises `UserError` where the two do not correspond
    or a value is not finite.
    """
    with eval_mode(student, teacher):
        x, y = inputs(0)
        room = room_on(x.device) if budget is None else (budget, 0)
        walks = Walk(student, "student", x[:2]), Walk(teacher, "teacher", y[:2])
        alignment = plan_alignment(*walks, kept, kernels)
        points = alignment.points
        if len(points) > 1 or not alignment.left:  # of the outputs alone little can be said
            refuse_unrelated(*walks, points, x, y)
        for reason in dict.fromkeys(alignment.left.values()):
            names = [repr(layer) for layer, why in alignment.left.items() if why == reason]
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            logger.warning("left as it is in the student: %s%s (%s)", ", ".join(names[:3]), more, reason)
        outcome: dict[str, Any] = {"sweeps": 0, "blocks": [], "left": alignment.left}
        for sweep in range(sweeps):
            saved = copy.deepcopy(student.state_dict())

            def progress(done: int, total: int, base: int = sweep) -> None:
                report(base * total + done, sweeps * total)

            before, after, blocks = _sweep(*walks, points, inputs, folds, ridge, room, progress)
            outcome.setdefault("before", before)
            if not after < before:
                student.load_state_dict(saved)
                outcome.setdefault("after", before)
                if sweep == 0 and before > 0:
                    logger.warning("aligning the student did not bring its outputs nearer to the teacher's: undone")
                break
            outcome["after"], outcome["sweeps"] = after, sweep + 1
            outcome["blocks"] += [{**block, "sweep": sweep + 1} for block in blocks] if sweeps > 1 else blocks
    return outcome


def _sweep(
    student: Walk,
    teacher: Walk,
    points: list[Point],
    inputs: Inputs,
    folds: Sequence[int],
    ridge: float | None,
    room: tuple[int, int],
    report: Callable[[int, int], None],
) -> tuple[float, float, list[dict[str, Any]]]:
    """(error of the outputs before, after, what became of each layer): every layer solved once, in forward order."""
    blocks: list[dict[str, Any]] = []
    mine = theirs = 0  # nodes that each network has run
    watched = {point.node: [point.call] for point in points if point.kind == "kernel" and not point.inside}
    with Frontier(*room) as frontier:
        sizes, judged = list[int](), 0
        for chunk in range(len(folds)):
            x, y = inputs(chunk)
            known = {"outputs before": _logits(student.run(x.clone()))} if judged < JUDGED else {}
            judged += len(x) if known else 0
            sizes.append(len(x))
            frontier.put(chunk, {"inputs": x, **known}, {"inputs": y})
        change: Callable[[Live], None] | None = None  # what was solved last

        def advanced(chunk: int, to: int, their_to: int) -> tuple[Live, ...]:
            """A chunk's values with both networks run on; what was solved last is applied to them first."""
            s, t = frontier.take(chunk)
            if change is not None:
                change(s)
            student.advance(s, mine, to, s.pop("inputs", None), watched)
            teacher.advance(t, theirs, their_to, t.pop("inputs", None))
            return s, t

        for number, point in enumerate(points):
            stop, their_stop = point.stop, max(theirs, point.their_stop)
            layer, norm = point.linear, student.modules[point.norm] if point.norm else None
            moments, size = Moments.zeros(max(folds) + 1, *point.unknowns, student.example.device), 0.0
            for chunk, fold in enumerate(folds):
                s, t = advanced(chunk, stop, their_stop)
                if point.inside:
                    student.look(s, point.stop, point.call)
                    teacher.look(t, point.their_stop, point.their_call)
                chosen = point.chosen(s, sizes[chunk], sizes[chunk] / sum(sizes), seed=chunk)
                missing, whole = point.missing(s, t, chosen)
                done = 0
                for x in point.rows(s, chosen):
                    moments.add(fold, x, missing[done : done + len(x)])
                    done += len(x)
                size += float(torch.linalg.vector_norm(whole, dtype=torch.float64)) ** 2
                if point.inside:
                    point.forget(s, t)
                frontier.put(chunk, s, t)
            _check_finite(moments, size, point)
            solution = solve(moments, has_intercept(layer, norm), ridge)
            delta, c = solution.delta, solution.intercept
            if point.kind == "kernel":
                weight, constant = folded(layer, norm)
                weight, constant = weight + delta.to(weight), constant if c is None else constant + c.to(constant)
                settle(layer, norm, weight, constant, moments.image(weight, constant))
            else:
                absorb(layer, solution.q, c, norm, moments.image(solution.q, c))
            change = None if point.inside else partial(point.change, delta=delta, intercept=c)
            mine, theirs = stop, their_stop
            errors = {"before": _relative(solution.before, size), "after": _relative(solution.after, size)}
            strength = solution.ridge if math.isfinite(solution.ridge) else None
            blocks.append({"name": point.layer, **errors, "ridge": strength})
            report(number + 1, len(points))

        before = after = size = 0.0
        for chunk in range(len(folds)):  # those with outputs before come first
            s, t = frontier.take(chunk)
            if "outputs before" not in s:
                break
            teacher.advance(t, theirs, len(teacher.nodes))
            target = _logits(t["output"]).double()
            before += float((s["outputs before"].double() - target).square().sum())
            # of the network itself: hooks may part it from the frontier
            after += float((_logits(student.run(inputs(chunk)[0].clone())).double() - target).square().sum())
            size += float(target.square().sum())
    return _relative(before, size), _relative(after, size), blocks


def _relative(error: float, size: float) -> float:
    return error / size if size else float(error > 0)


def _logits(outputs: Any) -> Tensor:
    logits = logits_in(outputs)
    if not isinstance(logits, Tensor):
        raise UserError(
            f"a network's output is a {type(outputs).__name__}; expected one tensor: wrap the network in a module that "
            "returns its logits."
        )
    return logits


def _check_finite(moments: Moments, size: float, point: Point) -> None:
    if math.isfinite(size) and all(bool(value.isfinite().all()) for value in vars(moments).values()):
        return
    who = f"student's layer {point.layer!r}" if math.isfinite(size) else f"teacher's layer {point.teacher!r}"
    raise UserError(
        f"the {who} yields values that are not finite; expected numbers: check the network's weights, its "
        "normalisation and the samples."
    )


def _chunks(setup: Setup) -> tuple[Inputs, list[int]]:
    """The transfer samples in chunks, and the fold of each: clean ones first, then their augmented views.

    A chunk is spread over all samples, so that sorted ones make like folds; all views of a sample lie in one fold.
    """
    transfer, count = setup.transfer, len(setup.transfer.positions)
    if count == 0:
        raise UserError("there are no samples to recover the student from; expected at least one: raise samples=….")
    augmented = setup.settings.augmented
    if augmented is None:  # they help most where samples are fewest
        augmented = min(MOST_VIEWS, ENOUGH // count - 1) if count < ENOUGH else 0
    views = range(augmented if transfer.augment.changes else 0)
    most = max(1, PIXELS * parts_on(transfer.device) // math.prod(transfer.samples.shape[1:]))
    size = min(most, math.ceil(count / FOLDS))
    parts, together = math.ceil(count / size), max(1, most // size)
    groups = [(CLEAN,), *(views[first : first + together] for first in range(0, len(views), together))]

    def inputs(chunk: int) -> tuple[Tensor, Tensor]:
        group, part = divmod(chunk, parts)
        positions = transfer.positions[part::parts]
        raw = [next(iter(transfer.batches(len(positions), view, positions))).inputs for view in groups[group]]
        return _prepared(setup.student, torch.cat(raw)), _prepared(setup.teacher, torch.cat(raw))

    return inputs, [part % FOLDS for part in range(parts)] * len(groups)


def _prepared(model: Model, raw: Tensor) -> Tensor:
    return model.run(nn.Identity(), raw)


def preview(setup: Setup) -> list[dict[str, Any]]:
    """The alignment points, one row each: what a preview prints. Raises where the two do not correspond.

    A run calls it before `plan`.
    """
    inputs, _ = _chunks(setup)
    x, y = inputs(0)
    for model in (setup.student, setup.teacher):
        place(model, setup.transfer.device)
    walks = Walk(setup.student.network, "student", x[:2]), Walk(setup.teacher.network, "teacher", y[:2])
    alignment = plan_alignment(*walks, setup.student.kept, setup.settings.solve == "kernel")
    with eval_mode(setup.student, setup.teacher):
        if len(alignment.points) > 1 or not alignment.left:
            refuse_unrelated(*walks, alignment.points, x, y)
    return alignment.table()


def plan(setup: Setup) -> list[Phase]:
    """Solve layer by layer; then, if asked for, a few updates on the teacher's logits of the same samples."""
    s = setup.settings

    def align(report: Callable[[int, int], None]) -> dict[str, Any]:
        networks = setup.student.network, setup.teacher.network
        settings = {"kernels": s.solve == "kernel", "ridge": s.ridge, "sweeps": s.sweeps}
        return recover(*networks, setup.student.kept, *_chunks(setup), **settings, report=report)

    def step(student: nn.Module, batch: Batch) -> dict[str, Tensor]:
        nobody = torch.zeros_like(batch.labels)  # every row counts, and no label is read
        z, _, weights = setup.task.rows(student(batch.inputs), nobody)
        v = setup.task.flat(batch.signals["teacher"]["logits"], nobody)
        return {"loss": setup.task.imitation(z, v, weights, s.temperature)}

    phases: list[Phase] = [Solve("align", align)]
    if s.finetune_steps:
        size = min(64, len(setup.transfer.positions))
        epochs = math.ceil(s.finetune_steps / math.ceil(len(setup.transfer.positions) / size))
        overrides = {"batch_size": size, "epochs": epochs, "lr": s.finetune_lr or 0.01}
        source = Source("teacher", setup.teacher, [Logits()], setup.task)
        phases.append(Fit("finetune", setup.student, step, sources=(source,), overrides=overrides, continues=True))
    return phases
