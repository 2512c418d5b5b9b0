"""The curves of a run: the metric it is judged by over all phases, each phase's losses, gaps, the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from understudy.report.charts import COLOURS, Chart, Point, Series, line_chart
from understudy.report.read import Run, is_number, numbers
from understudy.report.words import capital, is_fraction, lower_is_better, metric_name, metric_value

LOSS_COLOURS = ("c0", "c2", "c3", "c5", "c6", "c7", "c4")
MOST_PANELS = 24
RATES = (("lr", "Learning rate"), ("images_per_second", "Samples per second"), ("seconds", "Seconds an epoch"))


class Timeline:
    """Epoch records laid out end to end: phase after phase, each epoch at its number since the run began."""

    def __init__(self, epochs: Sequence[dict[str, Any]]) -> None:
        first = min((record["epoch"] for record in epochs), default=1)
        self.phases: dict[str, list[tuple[float, dict[str, Any]]]] = {}
        for record in epochs:
            self.phases.setdefault(record["phase"], []).append((record["epoch"] + (1 if first == 0 else 0), record))
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
    note = f"{capital(choose(best, key=lambda mark: mark[1])[2])}." if best else ""
    name = metric_name(metric)
    return line_chart(
        capital(name) + (f" on the {where_measured(run)}" if where_measured(run) else ""),
        series,
        note=note,
        unit=" %" if factor == 100 else "",
        level=(factor * level, f"teacher {metric_value(metric, level)}") if level is not None else None,
        best=best,
        x_label=timeline.label,
        bands=timeline.bands(),
        loss=lower_is_better(metric),
        level_above=not lower_is_better(metric),
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


def gap_chart(timeline: Timeline, epochs: Sequence[dict[str, Any]]) -> Chart | None:
    """Everything recorded under a name that starts with ``gap``: how far teachers are ahead."""
    series: list[Series] = []
    for table in ("eval", "train"):
        for key in keys_of(epochs, table):
            if key.startswith("gap"):
                label = key.removeprefix("gap").strip("_").replace("_", " ") or "gap"
                label += " (training)" if table == "train" else ""
                colour = LOSS_COLOURS[len(series) % len(LOSS_COLOURS)]
                series.append(Series(label, timeline.segments(read_from(table, key)), colour, table == "train"))
    return line_chart("Gap to the student", series, x_label=timeline.label, bands=timeline.bands(), y_range=[0.0])


@dataclass(frozen=True)
class RunCharts:
    """The charts of a run: the story, the losses of its phases, and what one looks at when something is odd."""

    story: list[Chart]
    phases: list[Chart]
    closer: list[Chart]


def run_charts(run: Run, primary: str) -> RunCharts:
    """All charts that the run's records give; those of up to two phases' losses are part of the story."""
    timeline = Timeline(run.epochs)
    evaluated = [key for key in keys_of(run.epochs, "eval") if "loss" not in key and key != "mse"]
    evaluated = [key for key in evaluated if not key.startswith("gap")]
    evaluated.sort(key=lambda key: key != primary)
    losses = present([phase_loss_chart(timeline, phase) for phase in timeline.phases])
    apart = len(losses) > 2
    story = [metric_chart(run, timeline, metric) for metric in evaluated[:1]]
    story += [] if apart else losses
    story += [gap_chart(timeline, run.epochs)]
    story += [metric_chart(run, timeline, metric) for metric in evaluated[1:]]
    closer = []
    for key in keys_of(run.epochs, "train"):
        if "loss" not in key and not key.startswith("gap") and key not in evaluated:
            title = capital(key.replace("_", " ")) + ", training"
            closer.append(rate_chart(timeline, title, read_from("train", key)))
    rates = (
        ("lr", "Learning rate"),
        ("images_per_second", "Samples per second"),
        ("seconds", "Seconds an epoch"),
    )
    for key, title in rates:
        closer.append(rate_chart(timeline, title, lambda record, key=key: record.get(key)))
    return RunCharts(present(story), losses if apart else [], present(closer))


def rate_chart(timeline: Timeline, title: str, pick: Callable[..., Any]) -> Chart | None:
    series = [Series(title, timeline.segments(pick), "c4")]
    return line_chart(title, series, x_label=timeline.label, bands=timeline.bands(), y_range=[0.0])


def present(charts: Sequence[Chart | None]) -> list[Chart]:
    return [chart for chart in charts if chart][:MOST_PANELS]
