"""The curves of a run: the metric it is judged by over all phases, each phase's losses, gaps, the rest."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .. import words
from .charts import COLOURS, Axis, Chart, Point, Series, line_chart
from .read import Run, is_number, numbers, seconds_of, table

Record = dict[str, Any]
LOSS_COLOURS = ("c0", "c2", "c3", "c5", "c6", "c7", "c4")
STANDING = {"student": ("student", "c0"), "dynamic": ("dynamic teacher", "c2"), "static": ("static teacher", "c1")}
RATES = {"lr": "Learning rate", "images_per_second": "Samples per second", "seconds": "Seconds an epoch"}
MOST_PANELS = 24
TALL, SMALL = 210, 140  # pixels of height


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
        several, names = len(self.phases) > 1, list(self.phases)
        first = [self.start[name] + self.phases[name][0][0] for name in names[:1]]
        edges = [*first, *(self.start[name] + 0.5 for name in names[1:]), at]
        bands = [(edges[n], edges[n + 1], name) for n, name in enumerate(names)]
        title = "epoch, all phases" if several else "epoch"
        self.shown: dict[str, Any] = {"x": Axis(title, point="epoch"), "bands": bands if several else []}

    def read(self, part: str, key: str, scale: float = 1, where: str | None = None) -> list[list[Point]]:
        """The numbers of a ``part`` of the records (or of the records themselves), a segment for each phase; with
        ``where``, only of what was measured there."""
        return [
            [
                (self.start[phase] + epoch, scale * value)
                for epoch, record in records
                if is_number(value := (table(record.get(part)) if part else record).get(key))
                and where in (None, measured_on(record))
            ]
            for phase, records in self.phases.items()
        ]


def keys_of(epochs: Sequence[Record], part: str) -> list[str]:
    return list(dict.fromkeys(key for record in epochs for key in numbers(record.get(part))))


def measured_on(record: Record) -> str:
    return str(record.get("eval_on") or "") if record.get("eval") else ""


def where_measured(run: Run) -> str:
    """``"test set"``, ``"validation set"`` or ``""``: what the epochs were evaluated on."""
    names = {measured_on(record) for record in run.epochs} - {""}
    return f"{names.pop()} set" if len(names) == 1 else ""


def metric_chart(run: Run, whole: Timeline, metric: str, height: int = TALL) -> Chart | None:
    """One evaluated metric over the phases that measure it, with the teacher's level and each phase's best epoch."""
    timeline, scale = measuring(whole, metric), words.factor(metric)
    series: list[Series] = []
    sets = dict.fromkeys(measured_on(record) for record in run.epochs if record.get("eval"))
    for where, colour in zip(sets, ("c0", "c3", "c5"), strict=False):
        label = f"student, {where}" if where else "student"
        series.append(Series(label, timeline.read("eval", metric, scale, where), colour))
    in_training = timeline.read("train", metric, scale)
    if any(in_training):
        series.append(Series("student, training samples", in_training, "c4", dashed=True))
    choose = min if words.lower_is_better(metric) else max
    names, best = list(timeline.phases), []
    for name, segment in zip(names, timeline.read("eval", metric, scale), strict=True):
        if segment and metric != "ece":  # a calibration error has no best epoch: it is least before learning starts
            x, y = choose(segment, key=lambda point: point[1])
            at = f"at epoch {x - timeline.start[name]:.0f}" + (f" of {name}" if len(names) > 1 else "")
            best.append((x, y, f"best: {words.metric_value(metric, y / scale)} {at}"))
    note = f"{words.capital(best[-1][2])}." if best else ""  # of the last phase, whose state the run keeps
    kept = next((table(phase.get("best")) for phase in run.phases if best and phase.get("name") == names[-1]), {})
    if kept.get("epoch") == 0 and metric in kept:
        note = f"Kept: {words.metric_value(metric, kept[metric])}, with which {names[-1]} began."
    on = where_measured(run)
    elsewhere = "" if on == "test set" else " (test set)"
    return line_chart(
        words.capital(words.metric_name(metric)) + (f" on the {on}" if on else ""),
        series,
        note=note,
        level=teacher_level(run.metrics("teacher"), metric, where=elsewhere),
        best=best,
        height=height,
        **how(metric),
        **timeline.shown,
    )


def teacher_level(
    metrics: Mapping[str, float], metric: str, who: str = "teacher", where: str = ""
) -> tuple[float, str] | None:
    """A teacher's metric as a level in a chart, and what is written of it."""
    if metric not in metrics:
        return None
    return words.factor(metric) * metrics[metric], f"{who} {words.metric_value(metric, metrics[metric])}{where}"


def how(metric: str) -> dict[str, Any]:
    """How a chart of a metric is drawn: a share has no log scale."""
    fold = math.inf if words.is_fraction(metric) else 50
    return {"loss": words.lower_is_better(metric), "fold": fold, "unit": words.unit(metric)}


def phase_loss_chart(timeline: Timeline, phase: str, height: int) -> Chart | None:
    """The loss of one phase and its parts, and the validation loss where the phase is judged by one."""
    records = [record for _, record in timeline.phases[phase]]
    alone = Timeline(records)
    series: list[Series] = []
    names = sorted((key for key in keys_of(records, "train") if "loss" in key), key=lambda key: key != "loss")
    for n, key in enumerate(names):
        label = "total" if key == "loss" else key.removesuffix("_loss").replace("_", " ")
        values = alone.read("train", key)
        if not series or values != series[0].segments:  # a part that is all of it says nothing
            series.append(Series(label, values, LOSS_COLOURS[n % len(LOSS_COLOURS)]))
    for key in (key for key in keys_of(records, "eval") if "loss" in key or key == "mse"):
        label = f"validation {key.replace('_', ' ')}"
        series.append(Series(label, alone.read("eval", key), f"c{len(series) % COLOURS}", dashed=True))
    title = f"Loss in {phase}" if len(timeline.phases) > 1 else "Training loss"
    return line_chart(title, series, loss=True, height=height)


def ordered_losses(run: Run, timeline: Timeline) -> Chart | None:
    """The losses of all phases side by side, in order, each over its own epochs; of phases that are judged by theirs.

    Stages have losses of their own kind, so that the axis is logarithmic where they differ by much.
    """
    if len(timeline.phases) < 2 or not any("loss" in numbers(record.get("eval")) for record in run.epochs):
        return None
    known = {str(phase.get("name")): phase for phase in run.phases}
    lines: dict[str, list[list[Point]]] = {"train": [], "eval": []}
    bands, ticks, places, best = [], {}, {}, []
    for n, (name, records) in enumerate(timeline.phases.items()):
        phase = known.get(name, {})
        ticks[n + 0.5] = words.duration(numbers(phase).get("seconds", seconds_of(record for _, record in records)))
        bands.append((float(n), n + 1.0, name))
        for part in lines.values():
            part.append([])
        for epoch, record in records:
            at = n + (epoch - 0.5) / records[-1][0]
            places[at] = f"{epoch:g} of {name}"
            losses = {t: loss for t in ("eval", "train") if (loss := numbers(record.get(t)).get("loss")) is not None}
            for key, loss in losses.items():
                lines[key][n].append((at, loss))
            if losses and epoch == table(phase.get("best")).get("epoch"):
                kept = next(iter(losses.values()))
                best.append((at, kept, f"{name}: epoch {epoch:.0f} is kept, loss {words.plain(kept)}"))
    judged = where_measured(run).removesuffix(" set") or "validation"
    crowded = len(ticks) > 12
    title = "" if crowded else "time that each phase took"
    return line_chart(
        "Loss of each phase, in order",
        [Series("training", lines["train"], "c0"), Series(judged, lines["eval"], "c2", dashed=True)],
        note="Rings mark the epochs that were kept." if best else "",
        x=Axis(title, (0.0, float(len(ticks))), ticks={} if crowded else ticks, places=places, point="epoch"),
        best=best,
        bands=bands,
        loss=True,
        fold=10,
    )


def standing_keys(run: Run) -> dict[str, tuple[str, list[str]]]:
    """metric → (part, names of networks) where records tell a dynamic teacher's metric beside the student's."""
    standing: dict[str, tuple[str, list[str]]] = {}
    for part in ("eval", "train"):
        keys = keys_of(run.epochs, part)
        for metric in (key.removeprefix("dynamic_") for key in keys if key.startswith("dynamic_")):
            names = [name for name in STANDING if f"{name}_{metric}" in keys]
            if "student" in names and "loss" not in metric:
                standing.setdefault(metric, (part, names))
    return standing


def standing_chart(run: Run, timeline: Timeline, metric: str, part: str, names: Sequence[str]) -> Chart | None:
    """Where student, dynamic and static teacher stand on the same samples: the gap over time."""
    scale, last, series = words.factor(metric), {}, []
    for name in names:
        segments = timeline.read(part, f"{name}_{metric}", scale)
        last[name] = next((segment[-1][1] / scale for segment in reversed(segments) if segment), 0.0)
        series.append(Series(STANDING[name][0], segments, STANDING[name][1]))
    delta = last["dynamic"] - last["student"]
    ahead = {"better": "ahead of", "worse": "behind"}.get(words.verdict(metric, delta), "level with")
    amount = f"{words.amount(metric, delta)} " if delta else ""
    where = "On training samples, as they are learned from" if part == "train" else f"On the {where_measured(run)}"
    elsewhere = " (test set)" if part == "train" else ""
    level = None if "static" in names else teacher_level(run.metrics("teacher"), metric, "static teacher", elsewhere)
    return line_chart(
        f"The gap in {words.metric_name(metric)}",
        series,
        note=f"{where}. At the end the dynamic teacher is {amount}{ahead} the student.",
        level=level,
        **how(metric),
        **timeline.shown,
    )


@dataclass(frozen=True)
class RunCharts:
    """The charts of a run: its phases in order, the story, the losses of single phases, other measures than the one
    that it is judged by, and what explains oddities."""

    ordered: Chart | None
    story: list[Chart]
    phases: list[Chart]
    measures: list[Chart]
    closer: list[Chart]


def run_charts(run: Run, primary: str) -> RunCharts:
    """All charts that the run's records give; those of up to two phases' losses are part of the story."""
    timeline, standing = Timeline(run.epochs), standing_keys(run)
    drawn = {f"{name}_{metric}" for metric, (_, names) in standing.items() for name in names}
    evaluated = [key for key in keys_of(run.epochs, "eval") if "loss" not in key and key != "mse" and key not in drawn]
    ordered = ordered_losses(run, timeline)
    parted = [name for name in timeline.phases if not ordered or has_parts(timeline, name)]
    apart = len(parted) > 2
    losses = [phase_loss_chart(timeline, name, SMALL if apart else TALL) for name in parted]
    gaps = sorted(standing.items(), key=lambda item: item[0] != primary)
    story = [metric_chart(run, timeline, primary)] if primary in evaluated else []
    story += [*(standing_chart(run, timeline, metric, *where) for metric, where in gaps), *([] if apart else losses)]
    measures = [metric_chart(run, timeline, metric, SMALL) for metric in evaluated if metric != primary]
    known = {*evaluated, *drawn}
    others = [key for key in keys_of(run.epochs, "train") if "loss" not in key and key not in known]
    rates = [("train", key, words.capital(key.replace("_", " ")) + ", training") for key in others]
    rates += [("", key, title) for key, title in RATES.items()]
    look: dict[str, Any] = {"y_range": [0.0], "height": SMALL, **timeline.shown}
    closer = [line_chart(title, [Series(title, timeline.read(part, key), "c4")], **look) for part, key, title in rates]
    return RunCharts(ordered, *map(present, (story, losses if apart else [], measures, closer)))


def measuring(timeline: Timeline, metric: str) -> Timeline:
    """The phases that measure a metric: those that learn by another measure take no room in its picture."""
    phases = ([record for _, record in pairs] for pairs in timeline.phases.values())
    kept = [records for records in phases if metric in {*keys_of(records, "eval"), *keys_of(records, "train")}]
    return Timeline([record for records in kept for record in records])


def has_parts(timeline: Timeline, phase: str) -> bool:
    """Whether a phase's loss is a sum of others."""
    return sum("loss" in key for key in keys_of([record for _, record in timeline.phases[phase]], "train")) > 1


def present(charts: Sequence[Chart | None]) -> list[Chart]:
    return [chart for chart in charts if chart][:MOST_PANELS]
