"""How many samples a step has room for on a device, and the rate that goes with them."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from ..errors import UserError
from ..signals import Views
from .phase import Fit, FitSettings, Phase
from .plan import Plan
from .rehearsal import step_bytes
from .schedule import default_batch_size, default_lr

S = TypeVar("S", bound=FitSettings)
SHARE = 0.8  # of a device's free memory that a step may take: other kernels and a validation need some

Measure = Callable[[int], float]
"""The bytes that a step takes with so many samples; `math.inf` where the device has not so much."""


def fitting(measure: Measure, room: float, first: int, most: int) -> int:
    """About the most samples, up to ``most``, whose step takes ``room`` at most, 0 where one is too many: of those that
    fit, seven eighths at least. ``first`` is where to begin.
    """

    def fits(count: int) -> bool:
        return (size := measure(count)) <= room and size < math.inf

    count = max(1, min(first, most))
    beyond = most + 1
    while not fits(count):
        if count == 1:
            return 0
        beyond, count = count, count // 2
    while beyond > most and count < most:
        further = min(2 * count, most)
        if fits(further):
            count = further
        else:
            beyond = further
    while beyond - count > max(1, count // 8):
        middle = (count + beyond) // 2
        if fits(middle):
            count = middle
        else:
            beyond = middle
    return count


def with_batch_size(
    settings: S,
    phases: Sequence[Phase],
    train: Views,
    autocast: Callable[[], AbstractContextManager[Any]],
    accelerator: Accelerator,
    tell: Callable[[str], None],
) -> S:
    """The settings of a run with a number for ``batch_size = "auto"``: as many samples as all its phases have room for
    on the device, but a tenth of all at most; the default on a processor, whose memory tells nothing of its speed.

    A rate that the user did not set grows by the square root of the batch.
    """
    fits = [phase for phase in phases if isinstance(phase, Fit)]
    if any(changes.get("batch_size") == "auto" for changes in getattr(settings, "phases", {}).values()):
        raise UserError("batch_size = 'auto' is for all phases of a run; expected a number for a single one.")
    if settings.batch_size != "auto":
        return settings
    usual, processes = default_batch_size(len(train)), accelerator.num_processes
    if train.device.type != "cuda" or not fits:
        tell(f"batch_size = {usual}, the default, as there is no GPU to fill")
        return settings.model_copy(update={"batch_size": usual})
    plan = Plan(fits, settings.model_copy(update={"batch_size": usual}), {}, len(train))
    room = _room(train.device, plan.checkpoint_bytes(fits[0].trainee))
    most = max(usual, len(train) // 10)
    count = most
    for phase in fits:
        share = math.ceil(count / processes)
        measure = _measure(phase, train, autocast)
        count = min(count, max(1, fitting(measure, room, math.ceil(usual / processes), share)) * processes)
    count = min(gather_object([count])) if processes > 1 else count
    factor = math.sqrt(count / usual)
    changes: dict[str, Any] = {"batch_size": count}
    if settings.lr is None or "lr" not in settings.model_fields_set:  # another optimizer has its own
        changes["lr"] = factor * (settings.lr or default_lr(settings.optimizer, usual))
        tell(f"batch_size = {count} fills the device; lr = {changes['lr']:.3g}, {factor:.2g} times that for {usual}.")
    else:
        tell(f"batch_size = {count} fills the device; lr = {settings.lr:g} stays as it was set.")
    return settings.model_copy(update=changes)


def refuse_too_large(
    phase: Fit, plan: Plan, train: Views, autocast: Callable[[], AbstractContextManager[Any]], processes: int
) -> None:
    """Raise the `UserError` for a step that the device had no memory for, with the batch that it has memory for."""
    settings = plan.settings_of(phase)
    batch = plan.lengths(settings)[0]
    room = _room(train.device, plan.checkpoint_bytes(phase.trainee))
    piece = math.ceil(batch / processes / settings.accumulate)
    count = fitting(_measure(phase, train, autocast), room, max(1, piece // 2), max(1, piece - 1)) * processes
    remedy = "take smaller images or a smaller network"
    if count:
        remedy = f"set batch_size={count}, or accumulate={math.ceil(batch / count)} for the same batch in pieces"
    raise UserError(
        f"phase {phase.name!r} does not fit the device with batch_size = {batch}; expected at most about {count} "
        f"samples at once: {remedy}."
    )


def _room(device: torch.device, kept: int) -> float:
    """The bytes that a step may take beside what is ``kept``, once what nobody uses any more was given back."""
    gc.collect()
    torch.cuda.empty_cache()
    return SHARE * torch.cuda.mem_get_info(device)[0] - kept if device.type == "cuda" else math.inf


def _measure(phase: Fit, train: Views, autocast: Callable[[], AbstractContextManager[Any]]) -> Measure:
    def measure(count: int) -> float:
        try:
            return step_bytes(phase, train, count, autocast)
        except torch.OutOfMemoryError:
            return math.inf
        finally:
            torch.cuda.empty_cache()

    return measure
