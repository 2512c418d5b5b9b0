"""The curves of a run: the metric it is judged by over all phases, each phase's losses, gaps, the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .charts import COLOURS, Axis, Chart, Point, Series, line_chart
from .read import Run, is_number, numbers, phases
from .words import (
    MINUS,
    capital,
    difference,
    duration,
    factor,
    lower_is_better,
    metric_name,
    metric_value,
    plain,
    unit,
    verdict,
)

Record = dict[str, Any]
Pick = Callable[[Record], Any]
LOSS_COLOURS = ("c0", "c2", "c3", "c5", "c6", "c7", "c4")
MOST_PANELS = 24
SMALL = 140  # pixels of height


class Timeline:
    """Epoch records laid out end to end: phase after phase, each epoch at its number since the run began."""

    def __init__(self, epochs: Sequence[Record]) -> None:
        self.phases: dict[str, list[tuple[float, Record]]] = {}
        for record in epochs:
            self.phases.setdefault(record["phase"], []).append((record["epoch"], record))
        self.start: dict[str, float] = {}
        at = 0.0
        for phase, records in self.phases.items():
            records.sort(key=lambda pair: pair[0])
            self.start[phase] = at
            at += records[-1][0]
        self.length = at
        several = len(self.phases) > 1
        self.axis = Axis("epoch, counted over all phases" if several else "epoch")
        self.shown: dict[str, Any] = {"x": self.axis, "bands": self.bands() if several else []}

    def bands(self) -> list[tuple[float, float, str]]:
        """(from, to, name) of each phase."""
        names = list(self.phases)
        first = self.start[names[0]] + self.phases[names[0]][0][0]
        edges = [first] + [self.start[name] + 0.5 for name in names[1:]] + [self.length]
        return [(edges[n], edges[n + 1], name) for n, name in enumerate(names)]

    def segments(self, pick: Pick, factor: float = 1) -> list[list[Point]]:
        """One segment for each phase of the points where ``pick(record)`` is a finite number."""
        return [
            [(self.start[phase] + epoch, factor * pick(record)) for epoch, record in records if is_number(pick(record))]
            for phase, records in self.phases.items()
        ]


def read_from(table: str, key: str, where: str | None = None) -> Pick:
    """What picks a number of a record's table; with ``where``, only of what was measured there."""

    def pick(record: Record) -> Any:
        value = record.get(table)
        elsewhere = where is not None and measured_on(record) != where
        return value.get(key) if isinstance(value, dict) and not elsewhere else None

    return pick


def column(key: str) -> Pick:
    return lambda record: record.get(key)


def keys_of(epochs: Sequence[Record], table: str) -> list[str]:
    return list(dict.fromkeys(key for record in epochs for key in numbers(record.get(table))))


def measured_on(record: Record) -> str:
    return str(record.get("eval_on") or "") if record.get("eval") else ""


def where_measured(run: Run) -> str:
    """``"test set"``, ``"validation set"`` or ``""``: what the epochs were evaluated on."""
    names = {measured_on(record) for record in run.epochs} - {""}
    return f"{names.pop()} set" if len(names) == 1 else ""


def metric_chart(run: Run, timeline: Timeline, metric: str) -> Chart | None:
    """One evaluated metric over all phases, with the teacher's level and each phase's best epoch."""
    scale = factor(metric)
    sets = list(dict.fromkeys(measured_on(record) for record in run.epochs if record.get("eval")))
    series = [
        Series(
            f"student, {where}" if where else "student",
            timeline.segments(read_from("eval", metric, where), scale),
            colour,
        )
        for where, colour in zip(sets, ("c0", "c3", "c5"), strict=False)
    ]
    segments = timeline.segments(read_from("eval", metric), scale)
    in_training = timeline.segments(read_from("train", metric), scale)
    if any(in_training):
        series.append(Series("student, training samples", in_training, "c4", dashed=True))
    choose = min if lower_is_better(metric) else max
    names, best = list(timeline.phases), []
    for name, segment in zip(names, segments, strict=True):
        if segment and metric != "ece":  # a calibration error has no best epoch: it is least before learning starts
            x, y = choose(segment, key=lambda point: point[1])
            where = f"at epoch {x - timeline.start[name]:.0f}" + (f" of {name}" if len(names) > 1 else "")
            best.append((x, y, f"best: {metric_value(metric, y / scale)} {where}"))
    note = f"{capital(best[-1][2])}." if best else ""  # of the last phase, whose state the run keeps
    kept = next((phase.get("best") for phase in phases(run) if best and phase.get("name") == names[-1]), None)
    if isinstance(kept, dict) and kept.get("epoch") == 0 and metric in kept:
        note = f"Kept: {metric_value(metric, kept[metric])}, with which {names[-1]} began."
    level = numbers(run.part("teacher").get("metrics")).get(metric)
    where = where_measured(run)
    elsewhere = "" if where == "test set" else " (test set)"
    return line_chart(
        capital(metric_name(metric)) + (f" on the {where}" if where else ""),
        series,
        note=note,
        level=(scale * level, f"teacher {metric_value(metric, level)}{elsewhere}") if level is not None else None,
        best=best,
        loss=lower_is_better(metric),
        unit=unit(metric),
        **timeline.shown,
    )


def phase_loss_chart(timeline: Timeline, phase: str, height: int) -> Chart | None:
    """The loss of one phase and its parts, and the validation loss where the phase is judged by one."""
    records = [record for _, record in timeline.phases[phase]]
    alone, series = Timeline(records), []
    names = sorted((key for key in keys_of(records, "train") if "loss" in key), key=lambda key: key != "loss")
    for n, key in enumerate(names):
        label = "total" if key == "loss" else key.removesuffix("_loss").replace("_", " ")
        series.append(Series(label, alone.segments(read_from("train", key)), LOSS_COLOURS[n % len(LOSS_COLOURS)]))
    for key in (key for key in keys_of(records, "eval") if "loss" in key or key == "mse"):
        label = f"validation {key.replace('_', ' ')}"
        series.append(Series(label, alone.segments(read_from("eval", key)), f"c{len(series) % COLOURS}", dashed=True))
    title = f"Loss in {phase}" if len(timeline.phases) > 1 else "Training loss"
    return line_chart(title, series, loss=True, height=height)


def ordered_losses(run: Run, timeline: Timeline) -> Chart | None:
    """The losses of all phases side by side, in order, each over its own epochs; of phases that are judged by theirs.

    Stages have losses of their own kind, so that the axis is logarithmic where they differ by much.
    """
    if len(timeline.phases) < 2 or not any("loss" in numbers(record.get("eval")) for record in run.epochs):
        return None
    known = {str(phase.get("name")): phase for phase in phases(run)}
    lines: dict[str, list[list[Point]]] = {"train": [], "eval": []}
    bands, ticks, places, best = [], {}, {}, []
    for n, (name, records) in enumerate(timeline.phases.items()):
        bands.append((float(n), n + 1.0, name))
        seconds = known.get(name, {}).get("seconds")
        if not is_number(seconds):
            seconds = sum(record["seconds"] for _, record in records if is_number(record.get("seconds")))
        ticks[n + 0.5] = duration(seconds)
        chosen = known.get(name, {}).get("best")
        kept = chosen.get("epoch") if isinstance(chosen, dict) else None
        for table in lines:
            lines[table].append([])
        for epoch, record in records:
            at = n + (epoch - 0.5) / records[-1][0]
            places[at] = f"{epoch:g} of {name}"
            losses = {table: numbers(record.get(table)).get("loss") for table in ("eval", "train")}
            for table, loss in losses.items():
                lines[table][n] += [] if loss is None else [(at, loss)]
            value = next((loss for loss in losses.values() if loss is not None), None)
            if epoch == kept and value is not None:
                best.append((at, value, f"{name}: epoch {epoch:.0f} is kept, loss {plain(value)}"))
    judged = where_measured(run).removesuffix(" set") or "validation"
    crowded = len(ticks) > 12
    title = "" if crowded else "time that each phase took"
    axis = Axis(title, (0.0, float(len(ticks))), ticks={} if crowded else ticks, places=places, said="epoch")
    return line_chart(
        "Loss of each phase, in order",
        [Series("training", lines["train"], "c0"), Series(judged, lines["eval"], "c2", dashed=True)],
        note="Rings mark the epochs that were kept.",
        x=axis,
        best=best,
        bands=bands,
        loss=True,
        fold=10,
    )


STANDING = {"student": ("student", "c0"), "dynamic": ("dynamic teacher", "c2"), "static": ("static teacher", "c1")}


def standing_keys(run: Run) -> dict[str, tuple[str, list[str]]]:
    """metric → (table, names of networks) where records tell a dynamic teacher's metric beside the student's."""
    shown: dict[str, tuple[str, list[str]]] = {}
    for table in ("eval", "train"):
        keys = keys_of(run.epochs, table)
        for metric in (key.removeprefix("dynamic_") for key in keys if key.startswith("dynamic_")):
            names = [name for name in STANDING if f"{name}_{metric}" in keys]
            if "student" in names and "loss" not in metric:
                shown.setdefault(metric, (table, names))
    return shown


def standing_chart(run: Run, timeline: Timeline, metric: str, table: str, names: Sequence[str]) -> Chart | None:
    """Where student, dynamic and static teacher stand on the same samples: the gap over time."""
    scale, last, series = factor(metric), {}, []
    for name in names:
        segments = timeline.segments(read_from(table, f"{name}_{metric}"), scale)
        last[name] = next((segment[-1][1] / scale for segment in reversed(segments) if segment), 0.0)
        series.append(Series(STANDING[name][0], segments, STANDING[name][1]))
    delta = last["dynamic"] - last["student"]
    ahead = {"better": "ahead of", "worse": "behind"}.get(verdict(metric, delta), "level with")
    amount = difference(metric, delta).lstrip("+±" + MINUS) + " " if delta else ""
    where = "On training samples, as they are learned from" if table == "train" else f"On the {where_measured(run)}"
    level = numbers(run.part("teacher").get("metrics")).get(metric) if "static" not in names else None
    label = f"static teacher {metric_value(metric, level)}" + (" (test set)" if table == "train" else "")
    return line_chart(
        f"The gap in {metric_name(metric)}",
        series,
        note=f"{where}. At the end the dynamic teacher is {amount}{ahead} the student.",
        level=(scale * level, label) if level is not None else None,
        loss=lower_is_better(metric),
        unit=unit(metric),
        **timeline.shown,
    )


@dataclass(frozen=True)
class RunCharts:
    """The charts of a run: its phases in order, the story, the losses of single phases, and what explains oddities."""

    ordered: Chart | None
    story: list[Chart]
    phases: list[Chart]
    closer: list[Chart]


def run_charts(run: Run, primary: str) -> RunCharts:
    """All charts that the run's records give; those of up to two phases' losses are part of the story."""
    timeline, standing = Timeline(run.epochs), standing_keys(run)
    drawn = {f"{name}_{metric}" for metric, (_, names) in standing.items() for name in names}
    evaluated = [key for key in keys_of(run.epochs, "eval") if "loss" not in key and key != "mse" and key not in drawn]
    evaluated.sort(key=lambda key: key != primary)
    ordered = ordered_losses(run, timeline)
    parted = [name for name in timeline.phases if not ordered or has_parts(timeline, name)]
    apart = len(parted) > 2
    losses = present([phase_loss_chart(timeline, name, SMALL if apart else 210) for name in parted])
    metrics = [metric_chart(run, measuring(timeline, metric), metric) for metric in evaluated]
    gaps = sorted(standing.items(), key=lambda item: item[0] != primary)
    story = [*metrics[:1], *(standing_chart(run, timeline, metric, *where) for metric, where in gaps)]
    story += [*([] if apart else losses), *metrics[1:]]
    rates: dict[str, Pick] = {
        capital(key.replace("_", " ")) + ", training": read_from("train", key)
        for key in keys_of(run.epochs, "train")
        if "loss" not in key and key not in evaluated and key not in drawn
    }
    names = {"lr": "Learning rate", "images_per_second": "Samples per second", "seconds": "Seconds an epoch"}
    rates |= {title: column(key) for key, title in names.items()}
    closer = [rate_chart(timeline, title, pick) for title, pick in rates.items()]
    return RunCharts(ordered, present(story), losses if apart else [], present(closer))


def measuring(timeline: Timeline, metric: str) -> Timeline:
    """The phases that measure a metric: those that learn by another measure take no room in its picture."""

    def measured(record: Record) -> bool:
        return any(metric in numbers(record.get(table)) for table in ("eval", "train"))

    kept = [[r for _, r in pairs] for pairs in timeline.phases.values() if any(measured(r) for _, r in pairs)]
    return Timeline([record for records in kept for record in records])


def has_parts(timeline: Timeline, phase: str) -> bool:
    """Whether a phase's loss is a sum of others."""
    return sum("loss" in key for key in keys_of([record for _, record in timeline.phases[phase]], "train")) > 1


def rate_chart(timeline: Timeline, title: str, pick: Pick) -> Chart | None:
    series = [Series(title, timeline.segments(pick), "c4")]
    return line_chart(title, series, y_range=[0.0], height=SMALL, **timeline.shown)


def present(charts: Sequence[Chart | None]) -> list[Chart]:
    return [chart for chart in charts if chart][:MOST_PANELS]
