"""The one loop: executes a plan of phases, with precision, progress, validation, checkpoints and resume.

The inner loop is `Loop._train_epoch`; everything else prepares it, and `Journal` remembers it. Processes, devices and
trackers are Accelerate's: a run started by ``accelerate launch`` or ``torchrun`` needs nothing more.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import Tensor, nn

from ..data import CLEAN, Samples, forward_size
from ..models.placing import place
from ..models.precision import autocast_for
from ..numerics import exact
from ..signals import Signals, Source, Views
from ..signals.exchange import by_first
from ..signals.signals import BLOCK
from ..signals.views import shuffled
from ..tasks import Metrics, Task
from ..torch_utils import tensors_of
from .batch_size import refuse_too_large
from .evaluate import evaluate
from .feeder import Feeder
from .in_progress import FitInProgress, restore_random, seed_everything, share_buffers
from .journal import Journal
from .judge import held_out_losses, remember_best, remember_start
from .phase import Fit, FitSettings, Phase, Solve
from .plan import Plan
from .progress import Display, in_words
from .rehearsal import refuse_failing_step, refuse_lone_samples
from .schedule import MovingAverage, factor, load_optimizer, make_optimizer
from .state import State
from .step import Step
from .stop import Stops


class Loop:
    """Runs phases on a student in a run folder, with ``settings`` and, by the name of a phase, their ``overrides``.

    They learn from ``train``, and are judged by what is ``held`` out or, where nothing is, shown on ``monitor``. The
    teacher's signals lie in ``cache`` (None: by fingerprint) and take at most ``budget`` bytes. Calls to `run` and
    `evaluate` are the same in every process of a distributed run; only the first writes.
    """

    def __init__(
        self,
        student: nn.Module,
        task: Task,
        phases: Sequence[Phase],
        settings: FitSettings,
        train: Views,
        held: Views | None,
        monitor: Views | None,
        out: Path,
        *,
        classes: int,
        overrides: Mapping[str, dict[str, Any]] = MappingProxyType({}),
        cache: Path | None,
        budget: int,
        accelerator: Accelerator,
        precision: str,
        seed: int,
        checkpoint_seconds: float,
        compile: str = "auto",
        display: Display,
    ) -> None:
        self.student, self.task, self.out, self.classes = student, task, out, classes
        self.plan = Plan(phases, settings, overrides, len(train), held is not None)
        self.train, self.held, self.monitor, self.judged = train, held, monitor, monitor if held is None else held
        self.accelerator, self.device, self.seed = accelerator, accelerator.device, seed
        self.rank, self.world = accelerator.process_index, accelerator.num_processes
        self.precision = precision
        self.autocast = autocast_for(precision, self.device)
        self.compile, self.display = compile, display
        passing, record = out / "signals", compile != "off"
        self.feeder = Feeder(train, cache, budget, passing, precision, accelerator, display, record)
        self.stops = Stops(display, self.world == 1)
        self.journal = Journal(student, out, accelerator, checkpoint_seconds, self.stops)

    @property
    def state(self) -> State:
        return self.journal.state

    # ---- the plan -------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise what the plan would raise later, before anything is trained or written elsewhere."""
        self.plan.check(self.world)
        for phase in (phase for phase in self.plan.phases if isinstance(phase, Fit)):
            parts = [self.train, *([self.judged] if phase.select_by and self.judged is not None else [])]
            for source in phase.sources:
                for part in parts if source.lasting else ():  # the others are what earlier phases will make
                    self._signals(source, part).open()
            refuse_lone_samples(phase, self.plan, self.train, self.world, self.autocast)

    def rehearse(self) -> None:
        """Try a step of each fit phase, as of a method that nobody has tested; raises what it raises."""
        for phase in self.plan.phases:
            if isinstance(phase, Fit):
                refuse_failing_step(phase, self.plan, self.train, self.autocast)

    def disk(self) -> dict[str, int]:
        """About how many bytes a run takes at most: ``signals`` in caches, and ``checkpoints`` (two, and one more while
        it is written)."""
        asked: dict[int, int] = {}  # by network: its signals lie together where they fit
        for phase in self.plan.phases:
            for source in phase.sources if isinstance(phase, Fit) else ():
                if source.lasting:
                    network = id(source.network)
                    signals = self._signals(source, self.train)
                    asked[network] = max(asked.get(network, 0), signals.bytes_at_most())
        return {"signals": sum(asked.values()), "checkpoints": 3 * self.plan.checkpoint_bytes(self.student)}

    def begin(self, beginning: dict[str, Any]) -> None:
        """Open the log with what is known before anything is trained, so that a report can be made meanwhile.

        This is the first thing that a run writes to its folder, which is known by it.
        """
        self.journal.begin({"event": "start", **beginning, "phases": self.plan.describe()})

    def run(self, checkpoint: tuple[int, dict[str, Any]] | None, origin: Any = None) -> State:
        """Execute the phases in order, from the ``checkpoint`` where there is one; returns the final state.

        ``origin`` has digests of what must be the same when the run is resumed, and is kept in checkpoints.
        """
        saved = None if checkpoint is None else self._restore(*checkpoint)
        self.feeder.clear()
        state = self.state
        state.origin = dict(origin or {})
        if self.world > 1:
            batch = self.plan.lengths(self.plan.settings)[0]
            share = batch / self.world
            self._tell(f"an update has {batch} samples, about {share:.0f} in each of the {self.world} processes")
        self.journal.begin_phase()
        if checkpoint is None:
            self.journal.save({})  # to go on from the weights it began with, whatever happens to a user's network
        with self.stops:
            while state.phase < len(self.plan.phases):
                phase = self.plan.phases[state.phase]
                outcome = self._fit(phase, saved) if isinstance(phase, Fit) else self._solve(phase)
                saved = None
                seconds = self.journal.phase_seconds()
                state.done.append({"name": phase.name, "kind": phase.kind, **outcome, "seconds": seconds})
                state.begin_next_phase()
                self.journal.begin_phase()
                self.journal.save({})
                self.stops.heed()
                self.stops.waiting = False
        self.feeder.clear()
        return state

    def refuse_too_large(self) -> None:
        """Raise the `UserError` for an update that the device had no memory for; call it when that has let go of it."""
        phase = self.plan.phases[self.state.phase]
        if isinstance(phase, Fit):
            refuse_too_large(phase, self.plan, self.train, self.autocast, self.world)

    def _restore(self, number: int, content: dict[str, Any]) -> dict[str, Any] | None:
        """Take up checkpoint ``number``; what it holds of a fit phase, None where it was saved between two phases."""
        self.journal.restore(number, content["state"])
        self.student.load_state_dict(content["student"])
        self.journal.cut_log()
        self.display.say(f"going on {self._where()}", always=True)
        return content if "trainee" in content else None

    def _where(self) -> str:
        """Where the run stands, in words."""
        state, phases = self.state, self.plan.phases
        if state.phase == len(phases):
            return "after the last phase"
        place = f"with phase {phases[state.phase].name} ({state.phase + 1} of {len(phases)})"
        return f"{place} after {state.updates:,} updates ({state.epoch} whole epochs)"

    def _left(self) -> str:
        """About how long the whole run will take from here on, judged by the updates made so far."""
        state = self.state
        made, to_come = state.past + state.updates, self.plan.updates(state.phase) - state.updates
        if not made or not to_come:
            return ""
        spent = sum(phase["seconds"] for phase in state.done) + self.journal.phase_seconds()
        return f" · {in_words(spent / made * to_come)} left"

    def _tell(self, line: str) -> None:
        self.display.say(line, always=True)

    def _solve(self, phase: Solve) -> dict[str, Any]:
        seed_everything(self.seed, self.state.phase, self.rank)
        clock = self.journal.now()
        report = self.display.reporter(phase.name)

        def solve() -> tuple[dict[str, Any], dict[str, Any]]:
            with exact():
                solved = phase.solve(report)
            return solved, {k: v for k, v in self.student.state_dict().items() if not isinstance(v, Tensor)}

        solved, others = by_first(solve)
        if self.world > 1:  # all go on from its solution
            for value in tensors_of(self.student).values():
                torch.distributed.broadcast(value, 0)
            if others:
                self.student.load_state_dict(self.student.state_dict() | others)
        self.journal.spent("solve", clock)
        for block in (blocks := solved.pop("blocks", [])):
            self.journal.log({"event": "block", "phase": phase.name, **block})
        self.journal.log({"event": "solve", "phase": phase.name, "blocks": len(blocks), "values": solved})
        return {"epochs": 0, "best": solved}

    # ---- a fit phase ----------------------------------------------------------------------------------------

    def _fit(self, phase: Fit, saved: dict[str, Any] | None) -> dict[str, Any]:
        """Train until the phase ends; what it came to."""
        state, learning = self.state, _requires_grad(phase)
        fit = self._begin_fit(phase, saved)
        settings, begins = fit.settings, not state.updates and state.best is None
        if begins and phase.continues and settings.select == "best" and self.judged is not None:
            remember_start(state, fit, self.task, fit.kept, self._judge(fit, fit.kept, self.judged))
        step = Step(fit, state.sums, self.autocast, self.accelerator, self.compile, self._tell)
        every = settings.eval_every or max(1, fit.epochs // 10)
        while state.epoch < fit.epochs:
            self._train_epoch(fit, step)
            state.epoch, state.step = state.epoch + 1, 0
            last = state.epoch == fit.epochs
            self._end_epoch(fit, last or state.epoch % every == 0)
            if settings.patience and state.stale >= settings.patience:
                stopped = f"{phase.name}: no improvement in {settings.patience} evaluations; stopping"
                self.display.say(stopped, always=True)
                break
            self.journal.save_when_due(fit, last)
        del step  # and what was recorded of it, whose memory is a step's
        self._end_fit(fit)
        fit.bring_back_modes()
        for parameter, learned in learning.items():
            parameter.requires_grad_(learned)
        best = state.best or {}
        return {"epochs": state.epoch, "best": {"epoch": best.get("epoch", state.epoch), **best.get("metrics", {})}}

    def _begin_fit(self, phase: Fit, saved: dict[str, Any] | None) -> FitInProgress:
        """Optimizer, average and signals of a phase, as they were ``saved`` where it goes on."""
        settings, state, trainee = self.plan.settings_of(phase), self.state, phase.trainee
        place(trainee, self.device)
        for name, parameter in trainee.named_parameters():
            parameter.requires_grad_(parameter.requires_grad and phase.learns(name))
        batch_size, steps, epochs = self.plan.lengths(settings)
        optimizer = make_optimizer(trainee, settings, batch_size)
        average = MovingAverage(trainee, settings.ema) if settings.ema else None
        seed_everything(self.seed, state.phase, self.rank)
        if saved:
            trainee.load_state_dict(saved["trainee"])
            load_optimizer(optimizer, saved["optimizer"])
            if average is not None:
                average.load_state_dict(saved["average"])
        # BatchNorm's statistics of the first process are kept in any case (`share_buffers`)
        options = {"broadcast_buffers": False, "gradient_as_bucket_view": True}
        self.accelerator.ddp_handler = DistributedDataParallelKwargs(**options)
        with warnings.catch_warnings():  # of a newer name for that
            warnings.simplefilter("ignore", FutureWarning)
            wrapped, optimizer = self.accelerator.prepare(trainee, optimizer)
        signals = [self._signals(source, self.train) for source in phase.sources]
        judged = self.judged if phase.select_by else None
        held_signals = [] if judged is None else [self._signals(source, judged) for source in phase.sources]
        for number, asked in enumerate([*signals, *held_signals]):
            if (cache := asked.open().cache) is not None:
                # a resumed run stores the views it began to store, whatever the disk now has
                cache.capacity = state.capacities.setdefault(f"{state.phase}/{number}", cache.capacity)
        if getattr(phase.step, "__module__", "").partition(".")[0] == __name__.partition(".")[0]:
            # another's may look at a teacher's weights without a call, which would not bring it back
            self.feeder.dismiss(signals, epochs, trainee, self.student)
        if saved:
            restore_random(saved["random"], self.rank, self.device)
        return FitInProgress(
            phase, settings, self.student, wrapped, trainee, optimizer, average, signals, held_signals, steps, epochs
        )

    def _end_fit(self, fit: FitInProgress) -> None:
        """Give the student what the phase keeps, and let go of the rest."""
        if fit.settings.select == "best" and self.state.best is not None:
            fit.kept.load_state_dict(self.state.best["state"])
        if fit.kept is not fit.trainee:
            fit.trainee.load_state_dict(fit.kept.state_dict())
        if fit.phase.readout:
            self.student.load_state_dict(fit.phase.readout(fit.trainee).state_dict())
        for asked in fit.signals:
            if asked.cache is not None and asked.source.lasting:
                self.state.caches.append(asked.cache.describe())
        self.feeder.recall()
        self.accelerator.wait_for_everyone()
        for asked in [*fit.signals, *fit.held_signals]:
            asked.release()
            if asked.cache is not None and not asked.source.lasting and self.accelerator.is_main_process:
                asked.cache.remove()
        self.accelerator.free_memory()

    def _train_epoch(self, fit: FitInProgress, step: Step) -> None:
        """One pass over the samples: store the signals of this view, then for each batch data, signals, update."""
        journal, state, settings = self.journal, self.state, fit.settings
        fit.clock = time.perf_counter()
        view = self.train.of_epoch(state.epoch)
        computed = sum(self._fill(asked, view, fit) for asked in fit.signals)
        if computed:  # so that it stays counted
            journal.save(fit.state_dict())
        order = self._order(state.epoch, fit.steps)[state.step :]
        fit.set_modes()
        self.stops.waiting = True  # from here on a stop is heeded where all that was done can be kept
        self.display.start(f"{fit.phase.name} {state.epoch + 1}/{fit.epochs}", fit.steps, state.step)
        fit.began, seen = time.perf_counter(), state.seen
        fit.rows = sum(map(len, order))
        mine = [part.tensor_split(self.world)[self.rank] for part in order]
        stream = self.feeder.stream(fit.phase, self.train, mine, view, fit.signals)
        for part in order:
            clock = journal.now()
            batch = next(stream)
            clock = journal.spent("data", clock)
            for asked in fit.signals:
                served = asked.attach(batch)
                if asked.source.lasting:  # the teacher's; the rows of every process
                    state.served += len(part) if served else 0
                    state.forwarded += 0 if served else len(part)
            clock = journal.spent("teacher", clock)
            progress = (state.updates + 0.5) / (fit.steps * fit.epochs)
            step.set(factor(settings.schedule, settings.warmup, progress))
            step.update(batch, len(part))
            state.step, state.updates = state.step + 1, state.updates + 1
            state.seen += len(part)
            journal.spent("student", clock)

            if self.display.due():
                rate = (state.seen - seen) / (time.perf_counter() - fit.began)
                loss = fit.check_finite(float(state.sums["loss"]) * self.world / state.step, state)
                self.display.move(state.step, f"loss {loss:.3f} · {rate:,.0f} samples/s{self._left()}")
            journal.save_when_due(fit)

    def _end_epoch(self, fit: FitInProgress, evaluate: bool) -> None:
        """Log the epoch's losses and, where it is time to ``evaluate``, what the phase would keep."""
        state = self.state
        for asked in fit.signals:
            asked.check()
        share_buffers(fit, self.world)
        clock = self.journal.now()
        sums = self.accelerator.reduce(torch.stack(list(state.sums.values())), "sum")
        means = dict(zip(state.sums, (sums / fit.steps).tolist(), strict=True))  # waits for the device
        self.journal.spent("student", clock)
        rate = fit.rows / (time.perf_counter() - fit.began) if fit.rows else None  # none were left to a resumed run
        fit.check_finite(means["loss"], state)
        for value in state.sums.values():  # which stay where a recorded step finds them
            value.zero_()
        event: dict[str, Any] = {
            "event": "epoch",
            "phase": fit.phase.name,
            "epoch": state.epoch,
            "step": state.updates,
            "lr": float(fit.optimizer.param_groups[0]["lr"]),
            "train": means,
            "images_per_second": rate,
        }
        if evaluate and self.judged is not None:
            metrics = self._judge(fit, fit.kept, self.judged)
            for name, value in metrics.items():
                fit.check_finite(value, state, name)
            event["eval"], event["eval_on"] = metrics, "test" if self.held is None else "validation"
            event["eval_samples"] = len(self.judged)
            if metrics:
                remember_best(state, fit, self.task, fit.kept, metrics)
        event["seconds"] = time.perf_counter() - fit.clock
        self.journal.log(event)
        shown = {**{f"train {k}": v for k, v in means.items() if k == "loss"}, **event.get("eval", {})}
        text = "  ".join(f"{k} {v:.4f}" for k, v in shown.items())
        text += (f"  {rate:,.0f} samples/s" if rate else "") + self._left()
        self.display.say(
            f"{fit.phase.name} epoch {state.epoch}/{fit.epochs}  {text}",
            always=evaluate,
        )

    def _judge(self, fit: FitInProgress, network: nn.Module, judged: Views) -> dict[str, float]:
        """Task metrics of the network that the phase would keep, or its own loss on these samples."""
        if fit.phase.select_by is not None:
            for asked in fit.held_signals:
                self._fill(asked, CLEAN)
        clock = self.journal.now()
        if fit.phase.select_by is None:
            kept = fit.phase.readout(network) if fit.phase.readout else network
            metrics = self.evaluate(kept, judged.samples, judged.positions)[0]
        else:
            order = judged.positions.split(forward_size(judged.samples, BLOCK))[self.rank :: self.world]
            batches = self.feeder.stream(fit.phase, judged, order, CLEAN, fit.held_signals)
            metrics = held_out_losses(fit, network, batches, len(judged), self.autocast, self.world)
        self.journal.spent("evaluate", clock)
        return metrics

    # ---- what the loop stands on ----------------------------------------------------------------------------

    def evaluate(
        self,
        network: nn.Module,
        samples: Samples,
        positions: Tensor | None = None,
        title: str = "",
        metrics: Metrics | None = None,
    ) -> Any:
        """(metrics, details) of a network on samples, shared among the processes; the task's, unless others are
        given."""
        return evaluate(
            network,
            samples,
            metrics or self.task.metrics(self.classes, self.device),
            positions=positions,
            device=self.device,
            autocast=self.autocast,
            workers=self.train.workers,
            rank=self.rank,
            world=self.world,
            progress=self.display.reporter(title) if title else None,
        )

    def _signals(self, source: Source, views: Views) -> Signals:
        return self.feeder.signals(source, views, self.state.phase)

    def _fill(self, asked: Signals, view: int, fit: FitInProgress | None = None) -> int:
        """Store a view's missing signals; returns how many samples all processes forwarded for it."""
        clock, began = self.journal.now(), time.perf_counter()
        count = self.feeder.fill(asked, view, lambda: self.journal.save_if_stopped(fit))
        self.state.forwarded += count if asked.source.lasting else 0
        self.journal.count_remembered(asked, view, count)
        if count:
            seconds = time.perf_counter() - began
            filled = {"source": asked.source.name, "view": view, "samples": count, "seconds": seconds}
            self.journal.log({"event": "fill", **filled})
        self.journal.spent("teacher", clock)
        return count

    def _order(self, epoch: int, steps: int) -> list[Tensor]:
        """The epoch's batches: a permutation by (seed, phase, epoch), cut into pieces whose sizes differ by ≤ 1."""
        return shuffled(self.train.positions, steps, self.seed, self.state.phase, epoch)


def _requires_grad(phase: Fit) -> dict[nn.Parameter, bool]:
    """Which of the trainee's parameters learn before the phase freezes some, so that they do again after it."""
    return {parameter: parameter.requires_grad for parameter in phase.trainee.parameters()}
