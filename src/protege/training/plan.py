"""What a plan of phases comes to before any of it runs: settings, lengths, and whether it can run at all.

A setting of a phase is what the user sets for that phase, else what the phase itself overrides, else what the user sets
for the run, else the method's default for all runs, else the task's, else one by the number of samples (`schedule`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..errors import UserError
from .phase import Fit, FitSettings, Phase
from .schedule import default_batch_size, default_epochs, default_lr


@dataclass(frozen=True)
class Plan:
    """Phases with what the run sets for all of them (``settings``) and for some by name (``overrides``), on that many
    ``samples``; ``held_out``: whether there are others, by which a phase may be judged."""

    phases: Sequence[Phase]
    settings: FitSettings
    overrides: Mapping[str, dict[str, Any]]
    samples: int
    held_out: bool = False

    def settings_of(self, phase: Fit) -> FitSettings:
        """The run's settings, over them the phase's own, over them what the user sets for this phase.

        Rate and decay are those of an optimizer: one that the user sets for this phase alone has its own.
        """
        common = {**self.settings.model_dump(include=set(FitSettings.model_fields)), **phase.overrides}
        changes = self.overrides.get(phase.name, {})
        if changes.get("optimizer", common["optimizer"]) != common["optimizer"]:
            common |= {key: FitSettings.model_fields[key].default for key in ("lr", "weight_decay")}
        settings = FitSettings.model_validate({**common, **changes})
        if settings.lr is None and settings.optimizer == "sgd" and phase.parts > 1:
            lr = phase.parts * default_lr("sgd", self.lengths(settings)[0])
            settings = settings.model_copy(update={"lr": lr})
        return settings

    def lengths(self, settings: FitSettings) -> tuple[int, int, int]:
        """(batch size, updates in an epoch, epochs)."""
        given = settings.batch_size
        batch_size = given if isinstance(given, int) else default_batch_size(self.samples)
        steps = max(1, math.ceil(self.samples / batch_size))
        return batch_size, steps, settings.epochs or default_epochs(steps)

    def updates(self, first: int = 0) -> int:
        """How many updates the phases from number ``first`` on will make, if none stops early."""
        lengths = (self.lengths(self.settings_of(p)) for p in self.phases[first:] if isinstance(p, Fit))
        return sum(steps * epochs for _, steps, epochs in lengths)

    def defaults(self) -> dict[str, Any]:
        """The settings, those of single phases among them, that depend on the samples where they are not given."""
        if not any(isinstance(phase, Fit) for phase in self.phases):
            return {}
        common, phases = self._derived(self.settings), {name: dict(changes) for name, changes in self.overrides.items()}
        for phase in self.phases:  # what a phase derives from settings of its own must not become the common value
            if isinstance(phase, Fit):
                read = {**common, **phase.overrides, **phases.get(phase.name, {})}
                changes = self._derived(self.settings_of(phase))
                if others := {key: value for key, value in changes.items() if read[key] != value}:
                    phases[phase.name] = {**phases.get(phase.name, {}), **others}
        return common | {"phases": phases}

    def _derived(self, settings: FitSettings) -> dict[str, Any]:
        """Batch size, epochs and rate, which depend on the samples and on each other where they are not given."""
        batch_size, _, epochs = self.lengths(settings)
        lr = settings.lr or default_lr(settings.optimizer, batch_size)
        return {"batch_size": batch_size, "epochs": epochs, "lr": lr}

    def describe(self) -> list[dict[str, Any]]:
        """What each phase will do, as plain values: updates, rates and how many numbers learn."""
        return [{"name": phase.name, "kind": phase.kind, **self._described(phase)} for phase in self.phases]

    def _described(self, phase: Phase) -> dict[str, Any]:
        if not isinstance(phase, Fit):
            return {"inherited_layers": phase.layers} if phase.layers else {}
        settings = self.settings_of(phase)
        _, steps, epochs = self.lengths(settings)
        return {
            **self._derived(settings),
            "updates": epochs * steps,
            "optimizer": settings.optimizer,
            "learning_parameters": sum(p.numel() for p in _learning(phase)),
        }

    def checkpoint_bytes(self, student: nn.Module) -> int:
        """What about the largest checkpoint takes: weights, the optimizer's state, average and best state."""
        largest = 0
        for phase in self.phases:
            if isinstance(phase, Fit):
                settings = self.settings_of(phase)
                copies = 1 + bool(settings.ema) + (settings.select == "best")
                kept = (2 if settings.optimizer == "adamw" else 1) * sum(p.nbytes for p in _learning(phase))
                largest = max(largest, copies * _bytes(phase.trainee) + kept)
        return largest + _bytes(student)

    def check(self, world: int) -> None:
        """Raise what running it in ``world`` processes would raise later."""
        for phase in self.phases:
            if not isinstance(phase, Fit):
                continue
            settings = self.settings_of(phase)
            if not self.held_out and (settings.select == "best" or settings.patience):
                asked = [f"patience = {settings.patience}"] if settings.patience else []
                asked += ["select = best"] if settings.select == "best" else []
                raise UserError(
                    f"{' and '.join(asked)} cannot be had without held-out samples; expected "
                    "validation above 0: give a share, or turn them off with select='last' and patience=0."
                )
            batch_size, steps, _ = self.lengths(settings)
            if self.samples // steps < world:
                raise UserError(
                    f"batch_size = {batch_size} gives some of the {world} processes no sample; expected at least one "
                    "for each: raise batch_size=… or start fewer processes."
                )
            if not _learning(phase):
                raise UserError(
                    f"phase {phase.name!r} has nothing to learn; expected a parameter that is not frozen: call "
                    "requires_grad_(True) on what is to learn."
                )


def defaults(
    phases: Sequence[Phase], settings: FitSettings, overrides: Mapping[str, dict[str, Any]], samples: int
) -> dict[str, Any]:
    """What a run's settings leave to the number of samples (`Plan.defaults`)."""
    return Plan(phases, settings, overrides, samples).defaults()


def _bytes(network: nn.Module) -> int:
    return sum(value.nbytes for value in network.state_dict().values() if isinstance(value, Tensor))


def _learning(phase: Fit) -> list[nn.Parameter]:
    return [p for name, p in phase.trainee.named_parameters() if p.requires_grad and phase.learns(name)]
