"""The curves of a run: the metric it is judged by over all phases, each phase's losses, gaps, the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from protege.report.charts import COLOURS, Chart, Point, Scale, Series, line_chart, per_cent
from protege.report.read import Run, is_number, numbers, phases
from protege.report.words import (
    MINUS,
    capital,
    difference,
    duration,
    is_fraction,
    lower_is_better,
    metric_name,
    metric_value,
    plain,
    verdict,
)

LOSS_COLOURS = ("c0", "c2", "c3", "c5", "c6", "c7", "c4")
MOST_PANELS = 24


class Timeline:
    """Epoch records laid out end to end: phase after phase, each epoch at its number since the run began."""

    def __init__(self, epochs: Sequence[dict[str, Any]]) -> None:
        self.phases: dict[str, list[tuple[float, dict[str, Any]]]] = {}
        for record in epochs:
            self.phases.setdefault(record["phase"], []).append((record["epoch"], record))
        self.start: dict[str, float] = {}
        at = 0.0
        for phase, records in self.phases.items():
            records.sort(key=lambda pair: pair[0])
            self.start[phase] = at
            at += records[-1][0]
        self.length = at
        self.label = "epoch, counted over all phases" if len(self.phases) > 1 else "epoch"

    def bands(self) -> list[tuple[float, float, str]]:
        """(from, to, name) of each phase; nothing to tell where there is only one."""
        if len(self.phases) < 2:
            return []
        names = list(self.phases)
        first = self.start[names[0]] + self.phases[names[0]][0][0]
        edges = [first] + [self.start[name] + 0.5 for name in names[1:]] + [self.length]
        return [(edges[n], edges[n + 1], name) for n, name in enumerate(names)]

    def segments(self, pick: Callable[[dict[str, Any]], Any]) -> list[list[Point]]:
        """One segment for each phase of the points where ``pick(record)`` is a finite number."""
        return [
            [(self.start[phase] + epoch, float(pick(record))) for epoch, record in records if is_number(pick(record))]
            for phase, records in self.phases.items()
        ]


def read_from(table: str, key: str) -> Callable[[dict[str, Any]], Any]:
    def pick(record: dict[str, Any]) -> Any:
        value = record.get(table)
        return value.get(key) if isinstance(value, dict) else None

    return pick


def keys_of(epochs: Sequence[dict[str, Any]], table: str) -> list[str]:
    return list(dict.fromkeys(key for record in epochs for key in numbers(record.get(table))))


def percent_points(metric: str, segments: list[list[Point]]) -> list[list[Point]]:
    factor = 100 if is_fraction(metric) else 1
    return [[(x, factor * y) for x, y in segment] for segment in segments]


def where_measured(run: Run) -> str:
    """``"test set"``, ``"validation set"`` or ``""``: what the epochs were evaluated on."""
    names = {str(record["eval_on"]) for record in run.epochs if record.get("eval") and record.get("eval_on")}
    return f"{names.pop()} set" if len(names) == 1 else ""


def metric_chart(run: Run, timeline: Timeline, metric: str) -> Chart | None:
    """One evaluated metric over all phases, with the teacher's level and each phase's best epoch."""
    factor = 100 if is_fraction(metric) else 1
    segments = percent_points(metric, timeline.segments(read_from("eval", metric)))
    series = [Series("student", segments, "c0")]
    in_training = percent_points(metric, timeline.segments(read_from("train", metric)))
    if any(in_training):
        series.append(Series("student, on training samples", in_training, "c4", dashed=True))
    choose = min if lower_is_better(metric) else max
    phase_of, best = list(timeline.phases), []
    for n, segment in enumerate(segments):
        if segment and metric != "ece":  # a calibration error has no best epoch: it is least before learning starts
            x, y = choose(segment, key=lambda point: point[1])
            where = f"at epoch {x - timeline.start[phase_of[n]]:.0f}"
            where += f" of {phase_of[n]}" if len(phase_of) > 1 else ""
            best.append((x, y, f"best: {metric_value(metric, y / factor)} {where}"))
    level = numbers(run.part("teacher").get("metrics")).get(metric)
    note = f"{capital(best[-1][2])}." if best else ""  # of the last phase, whose state the run keeps
    kept = next((phase.get("best") for phase in phases(run) if best and phase.get("name") == phase_of[-1]), None)
    if isinstance(kept, dict) and kept.get("epoch") == 0 and metric in kept:
        note = f"Kept: {metric_value(metric, kept[metric])}, with which {phase_of[-1]} began."
    elsewhere = "" if where_measured(run) == "test set" else " (test set)"
    name = metric_name(metric)
    return line_chart(
        capital(name) + (f" on the {where_measured(run)}" if where_measured(run) else ""),
        series,
        note=note,
        unit=" %" if factor == 100 else "",
        level=(factor * level, f"teacher {metric_value(metric, level)}{elsewhere}") if level is not None else None,
        best=best,
        x_label=timeline.label,
        bands=timeline.bands(),
        loss=lower_is_better(metric),
    )


def phase_loss_chart(timeline: Timeline, phase: str) -> Chart | None:
    """The loss of one phase and its parts, and the validation loss where the phase is judged by one."""
    records = [record for _, record in timeline.phases[phase]]
    alone = Timeline(records)
    series = []
    names = [key for key in keys_of(records, "train") if "loss" in key]
    names.sort(key=lambda key: key != "loss")
    for n, key in enumerate(names):
        label = "total" if key == "loss" else key.removesuffix("_loss").replace("_", " ")
        series.append(Series(label, alone.segments(read_from("train", key)), LOSS_COLOURS[n % len(LOSS_COLOURS)]))
    for key in (key for key in keys_of(records, "eval") if "loss" in key or key == "mse"):
        colour = f"c{len(series) % COLOURS}"
        label = f"validation {key.replace('_', ' ')}"
        series.append(Series(label, alone.segments(read_from("eval", key)), colour, dashed=True))
    title = f"Loss in {phase}" if len(timeline.phases) > 1 else "Training loss"
    return line_chart(title, series, loss=True)


def ordered_losses(run: Run, timeline: Timeline) -> Chart | None:
    """The losses of all phases side by side, in order, each over its own epochs; of phases that are judged by theirs.

    Stages have losses of their own kind, so that the axis is logarithmic where they differ by much.
    """
    judged = any("loss" in numbers(record.get("eval")) for record in run.epochs)
    if len(timeline.phases) < 2 or not judged:
        return None
    known = {str(phase.get("name")): phase for phase in phases(run)}
    bands, ticks, best = [], [], []
    place = {}
    for n, (name, records) in enumerate(timeline.phases.items()):
        count = records[-1][0]
        place[name] = lambda epoch, n=n, count=count: n + (epoch - 0.5) / count
        bands.append((float(n), n + 1.0, name))
        seconds = known.get(name, {}).get("seconds")
        if not is_number(seconds):
            seconds = sum(record["seconds"] for _, record in records if is_number(record.get("seconds")))
        ticks.append((n + 0.5, duration(seconds)))
        chosen = known.get(name, {}).get("best")
        kept = chosen.get("epoch") if isinstance(chosen, dict) else None
        for epoch, record in records:
            losses = [numbers(record.get(table)).get("loss") for table in ("eval", "train")]
            value = next((loss for loss in losses if loss is not None), None)
            if record["epoch"] == kept and value is not None:
                best.append((place[name](epoch), value, f"{name}: epoch {epoch:.0f} is kept, loss {plain(value)}"))

    def line(table: str) -> list[list[Point]]:
        pick = read_from(table, "loss")
        return [
            [(place[name](epoch), float(pick(record))) for epoch, record in records if is_number(pick(record))]
            for name, records in timeline.phases.items()
        ]

    crowded = len(ticks) > 12
    return line_chart(
        "Loss of each phase, in order",
        [Series("training", line("train"), "c0"), Series(where_judged(run), line("eval"), "c2", dashed=True)],
        note="Circles: the epoch that was kept.",
        x_label="phase" if crowded else "time that each phase took, its epochs from left to right",
        x_axis=(Scale(0, len(ticks)), [] if crowded else ticks),
        best=best,
        bands=bands,
        loss=True,
        fold=10,
        tick_room=per_cent(100 / len(ticks)),
    )


def where_judged(run: Run) -> str:
    return where_measured(run).removesuffix(" set") or "validation"


STANDING = {"student": ("student", "c0"), "dynamic": ("dynamic teacher", "c2"), "static": ("static teacher", "c1")}


def standing_keys(run: Run) -> dict[str, tuple[str, list[str]]]:
    """metric → (table, names of networks) where records tell a dynamic teacher's metric beside the student's."""
    found: dict[str, tuple[str, list[str]]] = {}
    for table in ("eval", "train"):
        keys = keys_of(run.epochs, table)
        for metric in (key.removeprefix("dynamic_") for key in keys if key.startswith("dynamic_")):
            names = [name for name in STANDING if f"{name}_{metric}" in keys]
            if "student" in names and "loss" not in metric:
                found.setdefault(metric, (table, names))
    return found


def standing_chart(run: Run, timeline: Timeline, metric: str, table: str, names: Sequence[str]) -> Chart | None:
    """Where student, dynamic and static teacher stand on the same samples: the gap over time."""
    factor, last = (100 if is_fraction(metric) else 1), {}
    series = []
    for name in names:
        label, colour = STANDING[name]
        segments = timeline.segments(read_from(table, f"{name}_{metric}"))
        last[name] = next((segment[-1][1] for segment in reversed(segments) if segment), 0.0)
        series.append(Series(label, percent_points(metric, segments), colour))
    delta = last["dynamic"] - last["student"]
    ahead = {"better": "ahead of", "worse": "behind"}.get(verdict(metric, delta), "level with")
    amount = difference(metric, delta).lstrip("+±" + MINUS) + " " if delta else ""
    where = "On training samples, as they are learned from" if table == "train" else f"On the {where_measured(run)}"
    level = numbers(run.part("teacher").get("metrics")).get(metric) if "static" not in names else None
    shown = f"static teacher {metric_value(metric, level)}" + (" (test set)" if table == "train" else "")
    return line_chart(
        f"The gap in {metric_name(metric)}",
        series,
        note=f"{where}. At the end the dynamic teacher is {amount}{ahead} the student.",
        level=(factor * level, shown) if level is not None else None,
        unit=" %" if factor == 100 else "",
        x_label=timeline.label,
        bands=timeline.bands(),
        loss=lower_is_better(metric),
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
    timeline = Timeline(run.epochs)
    standing = standing_keys(run)
    drawn = {f"{name}_{metric}" for metric, (_, names) in standing.items() for name in names}
    evaluated = [key for key in keys_of(run.epochs, "eval") if "loss" not in key and key != "mse"]
    evaluated = [key for key in evaluated if key not in drawn]
    evaluated.sort(key=lambda key: key != primary)
    ordered = ordered_losses(run, timeline)
    losses = present(
        [phase_loss_chart(timeline, name) for name in timeline.phases if not ordered or has_parts(timeline, name)]
    )
    apart = len(losses) > 2
    story = [metric_chart(run, measuring(timeline, metric), metric) for metric in evaluated[:1]]
    story += [
        standing_chart(run, timeline, metric, *found)
        for metric, found in sorted(standing.items(), key=lambda item: item[0] != primary)
    ]
    story += [] if apart else losses
    story += [metric_chart(run, measuring(timeline, metric), metric) for metric in evaluated[1:]]
    closer = []
    for key in keys_of(run.epochs, "train"):
        if "loss" not in key and key not in evaluated and key not in drawn:
            title = capital(key.replace("_", " ")) + ", training"
            closer.append(rate_chart(timeline, title, read_from("train", key)))
    rates = (
        ("lr", "Learning rate"),
        ("images_per_second", "Samples per second"),
        ("seconds", "Seconds an epoch"),
    )
    for key, title in rates:
        closer.append(rate_chart(timeline, title, lambda record, key=key: record.get(key)))
    return RunCharts(ordered, present(story), losses if apart else [], present(closer))


def measuring(timeline: Timeline, metric: str) -> Timeline:
    """The phases that measure a metric: those that learn by another measure take no room in its picture."""

    def measured(record: dict[str, Any]) -> bool:
        return any(metric in numbers(record.get(table)) for table in ("eval", "train"))

    kept = [[r for _, r in pairs] for pairs in timeline.phases.values() if any(measured(r) for _, r in pairs)]
    return Timeline([record for records in kept for record in records])


def has_parts(timeline: Timeline, phase: str) -> bool:
    """Whether a phase's loss is a sum of others."""
    records = [record for _, record in timeline.phases[phase]]
    return sum("loss" in key for key in keys_of(records, "train")) > 1


def rate_chart(timeline: Timeline, title: str, pick: Callable[..., Any]) -> Chart | None:
    series = [Series(title, timeline.segments(pick), "c4")]
    return line_chart(title, series, x_label=timeline.label, bands=timeline.bands(), y_range=[0.0])


def present(charts: Sequence[Chart | None]) -> list[Chart]:
    return [chart for chart in charts if chart][:MOST_PANELS]
