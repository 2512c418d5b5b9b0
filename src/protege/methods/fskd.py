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
from collections import defaultdict
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

FOLDS = 4  # parts of the samples, of which one is left out to choose the ridge
PIXELS = 2**16  # in a chunk, on a processor: what is computed at once stays small, whatever the number of samples
ENOUGH = 1000  # samples to solve on; fewer are looked at in augmented views as well
MOST_VIEWS = 8  # of a sample
JUDGED = 64  # samples whose outputs are compared before and after
ENDS = ("before", "after")

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
    is of: they are left out in turn to choose each layer's ridge, and whether it changes at all. ``kept`` names the
    teacher's output channels that the student's layers kept. With ``kernels`` whole kernels are sought, where not too
    wide, rather than matrices behind them.

    Returns ``before`` and ``after``, the relative error ``‖S-T‖²/‖T‖²`` of the student's outputs on the first chunks,
    and ``held_out_before`` and ``held_out_after``, the same where the layers are solved without the fold that they are
    judged on; the number of ``sweeps``; and ``blocks``, these four of each layer just before and after it is solved.
    Held out, the error before tells what was lost up to there, and the one after what solving does not bring back on
    other samples either. Nothing is held out where a ridge is given or there is one fold only. A sweep that does not
    lessen the errors of the outputs is undone. Raises `UserError` where the two do not correspond or a value is not
    finite.
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

            errors, blocks = _sweep(*walks, points, inputs, folds, ridge, room, progress)
            kinds = [name.removesuffix("before") for name in errors if name.endswith("before")]
            if not all(errors[kind + "after"] < errors[kind + "before"] for kind in kinds):
                student.load_state_dict(saved)
                stayed = {kind + at: errors[kind + "before"] for kind in kinds for at in ENDS}
                outcome = stayed | outcome
                if sweep == 0 and errors["before"] > 0:
                    logger.warning("aligning the student did not bring its outputs nearer to the teacher's: undone")
                break
            outcome |= {
                name: value for name, value in errors.items() if name.endswith("after") or not outcome["sweeps"]
            }
            outcome["sweeps"] = sweep + 1
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
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """(errors of the outputs, what became of each layer): every layer solved once, in forward order.

    Samples run twice where the ridge is to be chosen: with what is solved on all of them, and with what is solved
    without their fold. Only these second values tell what a layer is worth on other samples; those that went through
    layers that were solved on them do not.
    """
    blocks: list[dict[str, Any]] = []
    mine = theirs = 0  # nodes that each network has run
    watched = {point.node: [point.call] for point in points if point.kind == "kernel" and not point.inside}
    apart = ridge is None and len(set(folds)) > 1
    with Frontier(*room) as frontier:
        counts, judged = list[int](), 0
        for chunk in range(len(folds)):
            x, y = inputs(chunk)
            known = {"outputs before": _logits(student.run(x.clone()))} if judged < JUDGED else {}
            judged += len(x) if known else 0
            counts.append(len(x))
            judge = [{"inputs": x.clone()}] if apart else []
            frontier.put(chunk, {"inputs": y}, {"inputs": x, **known}, *judge)
        changes: list[Callable[[Live], None]] = []  # what was solved last, on all samples and without each fold

        def advanced(chunk: int, to: int, their_to: int) -> tuple[Live, ...]:
            """A chunk's values with both networks run on; what was solved last is applied to them first."""
            t, *students = frontier.take(chunk)
            for change, live in zip(changes[:1] + changes[1 + folds[chunk] :][:1], students, strict=False):
                change(live)
            for live in students:
                student.advance(live, mine, to, live.pop("inputs", None), watched)
            teacher.advance(t, theirs, their_to, t.pop("inputs", None))
            return t, *students

        for number, point in enumerate(points):
            stop, their_stop = point.stop, max(theirs, point.their_stop)
            layer, norm = point.linear, student.modules[point.norm] if point.norm else None
            parts = max(folds) + 1 if apart else 1
            sums = [Moments.zeros(parts, *point.unknowns, student.example.device) for _ in range(1 + apart)]
            sizes = [0.0] * parts  # of the teacher's values in each fold
            for chunk, fold in enumerate(folds):
                t, *students = advanced(chunk, stop, their_stop)
                if point.inside:
                    teacher.look(t, point.their_stop, point.their_call)
                chosen = point.chosen(t, counts[chunk], counts[chunk] / sum(counts), seed=chunk)
                for i, live in enumerate(students):
                    if point.inside:
                        student.look(live, point.stop, point.call)
                    if i and fold and len(sums[i].rows) < parts:
                        continue  # of wide layers the first fold alone is judged
                    size = point.add(sums[i], fold, live, t, chosen)
                sizes[fold if apart else 0] += size
                if point.inside:
                    point.forget(t, *students)
                frontier.put(chunk, t, *students)
            _check_finite(sums[0], sum(sizes), point)
            solution = solve(sums[0], has_intercept(layer, norm), ridge, sums[1] if apart else None)
            delta, c = solution.delta, solution.intercept
            if point.kind == "kernel":
                weight, constant = folded(layer, norm)
                weight, constant = weight + delta.to(weight), constant if c is None else constant + c.to(constant)
                settle(layer, norm, weight, constant, sums[0].image(weight, constant))
            else:
                absorb(layer, solution.q, c, norm, sums[0].image(solution.q, c))
            without = [*solution.apart, *[solution] * (parts - len(solution.apart))] if apart else []
            changes = [
                partial(point.change, delta=each.delta, intercept=each.intercept) for each in [solution, *without]
            ]
            changes = [] if point.inside else changes
            mine, theirs = stop, their_stop
            strength = None if solution.ridge is None or math.isinf(solution.ridge) else solution.ridge
            errors = {at: _relative(getattr(solution, at), sum(sizes)) for at in ENDS} | {"ridge": strength}
            for at in ENDS if apart else ():
                error = sum(getattr(each, at) for each in solution.apart)
                errors["held_out_" + at] = _relative(error, sum(sizes[: len(solution.apart)]))
            blocks.append({"name": point.layer, **errors})
            report(number + 1, len(points))

        squares, targets = defaultdict[str, float](float), defaultdict[str, float](float)
        for chunk in range(len(folds)):  # those with outputs before come first
            t, s, *judge = frontier.take(chunk)
            if "outputs before" not in s:
                break
            teacher.advance(t, theirs, len(teacher.nodes))
            # of the network itself: hooks may part it from the frontier
            after = {"": _logits(student.run(inputs(chunk)[0].clone()))}
            for live in judge:
                for change in changes[1 + folds[chunk] :][:1]:
                    change(live)
                student.advance(live, mine, len(student.nodes))
                after["held_out_"] = _logits(live["output"])
            target = _logits(t["output"]).double()
            for kind, outputs in after.items():
                squares[kind + "before"] += float((s["outputs before"].double() - target).square().sum())
                squares[kind + "after"] += float((outputs.double() - target).square().sum())
                targets[kind] += float(target.square().sum())
    return {kind + at: _relative(squares[kind + at], targets[kind]) for kind in targets for at in ENDS}, blocks


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
