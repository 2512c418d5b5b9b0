"""A run's report: headline, cards, curves, classes, where time went, recipe, how to load the student."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from .. import words
from .classes import class_change, confusion
from .curves import run_charts, where_measured
from .headline import headline
from .networks import networks
from .page import Card, write_page
from .read import Run, is_number, numbers, read_run, records, seconds_of
from .segmentation import segmentation
from .snippets import snippets
from .solved import error, solved
from .speed import SpeedTable, speed_table

TIMING = {
    "data": ("reading data", "c2"),
    "teacher": ("teacher", "c1"),
    "student": ("student", "c0"),
    "solve": ("solving", "c5"),
    "evaluate": ("evaluation", "c3"),
    "other": ("the rest", "c4"),
}
Facts = list[tuple[str, str]]
KINDS = {"fit": "trained", "solve": "solved"}


def write_run_report(folder: Path) -> Path:
    """Write ``folder/report.html`` from the run's files and return its path; of an unfinished run, so far.

    Raises UserError when the folder holds no run, a damaged result.json, or cannot be written.
    """
    run = read_run(Path(folder))
    metric = words.primary_metric(run.measured)
    scenes = segmentation(run)
    return write_page(
        run.folder,
        "run.html",
        run=run,
        title=" · ".join(filter(None, [run.setting("method"), run.part("data").get("name"), "protege run"])),
        headline=headline(run, metric),
        marks=marks(run, metric),
        cards=cards(run, metric),
        charts=run_charts(run, metric),
        phases=phase_rows(run, metric),
        choice=choice(run),
        networks=networks(run),
        solved=solved(run),
        speed=speed(run),
        scenes=scenes,
        change=None if scenes and scenes.rows else class_change(run),
        confusion=confusion(run),
        slices=time_slices(run),
        time_facts=time_facts(run),
        snippets=snippets(run) if run.finished else [],
        environment=[(k, str(v)) for k, v in run.part("environment").items() if not isinstance(v, dict | list)],
    )


def marks(run: Run, metric: str) -> list[str]:
    data, recipe = run.part("data"), run.recipe
    name, classes = data.get("name") or run.setting("data"), numbers(data).get("classes")
    target = recipe.get("target", "kd") if run.part("teacher") else "kd"
    k = f" with k = {recipe['k']}" if recipe.get("k") else ""
    return [
        f"method {run.setting('method')}" if run.setting("method") else "",
        f"target {target}{k}" if target != "kd" else "",  # what is taught, where that is not all
        f"data {name}" if name else "",
        f"{words.count(classes)} {'words' if run.noun == 'sample' else 'classes'}" if classes else "",
        f"seed {run.setting('seed')}" if run.setting("seed") else "",
        words.guess_to_beat(metric, run.metrics("student", "guess")),
    ]


def cards(run: Run, metric: str) -> list[Card]:
    """Teacher, student before, and student after or so far."""
    student, teacher = run.part("student"), run.part("teacher")
    before, after, taught = run.metrics("student", "before"), run.metrics("student"), run.metrics("teacher")
    specs = {role: str(run.part(role).get("spec") or run.setting(role)) for role in ("teacher", "student")}
    shown = []
    if teacher:
        shown.append(card("teacher", "Teacher", specs["teacher"], metric, taught, sizes(teacher, {})))
    if before:
        samples = numbers(student.get("before_measured_on")).get("samples")
        facts = [*sizes(student, {}), *([("measured on", f"{words.count(samples)} test samples")] if samples else [])]
        shown.append(card("before", "Student before", specs["student"], metric, before, facts))
    if run.finished and (after or student.get("params")):
        notes = []
        for reference, name in ((before, "before"), (taught, "the teacher")):
            if metric in reference and metric in after:
                delta = after[metric] - reference[metric]
                notes.append((words.verdict(metric, delta), f"{words.difference(metric, delta)} against {name}"))
        facts = sizes(student, teacher)
        shown.append(card("after", "Student after", specs["student"], metric, after, facts, notes))
    elif run.latest and not run.finished:
        where = f", on the {where_measured(run)}" if where_measured(run) else ""
        title, facts = f"Student so far{where}", sizes(student, teacher)
        shown.append(card("after", title, specs["student"], metric, run.latest, facts))
    return shown


def card(
    role: str, title: str, spec: str, metric: str, metrics: dict[str, float], sizes: Facts, notes: Any = ()
) -> Card:
    facts = [(words.metric_name(name), words.metric_value(name, metrics[name])) for name in metrics if name != metric]
    label, value = words.metric_name(metric), words.metric_value(metric, metrics.get(metric))
    if metric not in metrics and sizes:  # there was nothing to measure it on: how large it is
        (label, value), *sizes = sizes
    return Card(role, title, spec, label, value, [*facts, *sizes], notes)


def sizes(model: dict[str, Any], teacher: dict[str, Any]) -> Facts:
    counts, of = numbers(model), numbers(teacher)
    share = {key: f" ({words.rough_share(counts[key] / of[key])})" for key in counts if of.get(key)}
    names = {"params": "parameters", "macs": "MACs"}
    return [(name, words.size(counts[key]) + share.get(key, "")) for key, name in names.items() if key in counts]


def speed(run: Run) -> SpeedTable | None:
    """Size and speed of the teacher and the student, where they were timed."""
    times = run.part("speed")
    rows = [
        {"role": role, "spec": run.setting(role), **run.part(role), "speed": times.get(role)}
        for role in ("teacher", "student")
    ]
    environment = run.part("environment")
    device = str(environment.get("device", ""))
    where = "" if device.startswith("cpu") or not device else f"on {device}"
    return speed_table([row for row in rows if records(row.get("speed"))], environment.get("threads"), where)


def choice(run: Run) -> dict[str, Any]:
    """How method auto chose: a sentence, and a row of each trial; empty where nothing was tried."""
    made = run.part("choice")
    rows = []
    for tried in records(made.get("tried")):
        known, metric = numbers(tried), str(tried.get("metric", ""))
        epochs = words.count(known.get("epochs") or None)
        figure = words.metric_value(metric, known.get("held_out")) if "held_out" in known else "failed"
        rows.append([str(tried.get("name", "")), epochs, figure, words.duration(known.get("seconds"))])
    if not rows:
        return {}
    name = words.metric_name(
        next((str(tried["metric"]) for tried in records(made["tried"]) if tried.get("metric")), "")
    )
    why = f"Method auto chose {made.get('method', '')}: {made.get('why', '')} Each was taught briefly, its rate "
    why += "falling to nothing, and judged on samples that it had not learned from; none of them is of the test set."
    return {"note": why, "columns": ["tried", "epochs", name, "time"], "rows": rows}


def phase_rows(run: Run, metric: str) -> list[list[str]]:
    """Each phase's name, kind, parameters, epochs, time and what was kept: of the result, or counted from the epochs
    while the run is unfinished."""
    learning = {str(phase.get("name")): phase.get("learning_parameters") for phase in run.planned}
    rows = []
    for phase in run.phases if run.finished else phases_so_far(run, metric):
        name, kind, known = str(phase.get("name", "")), str(phase.get("kind", "")), numbers(phase)
        epochs = words.count(known.get("epochs") if kind != "solve" else None)
        kept = kept_text(phase.get("best"), metric) or "—"
        size, time = words.size(learning.get(name)), words.duration(known.get("seconds"))
        rows.append([name, KINDS.get(kind, kind), size, epochs, time, kept])
    return rows


def phases_so_far(run: Run, metric: str) -> list[dict[str, Any]]:
    """The phases of an unfinished run, with what of their epochs would be kept."""
    planned = {str(phase.get("name", "")): phase for phase in run.phases}
    choose = min if words.lower_is_better(metric) else max
    done = []
    for name in dict.fromkeys([*planned, *(record["phase"] for record in run.epochs)]):
        records = [record for record in run.epochs if record["phase"] == name]
        measured = [(numbers(r["eval"])[metric], r["epoch"]) for r in records if metric in numbers(r.get("eval"))]
        best: dict[str, Any] = {}
        if measured:
            last = run.setting("select") == "last"
            value, epoch = measured[-1] if last else choose(measured, key=lambda pair: pair[0])
            best = {"epoch": epoch, metric: value}
        kind = planned.get(name, {}).get("kind", "fit")
        done.append({"name": name, "kind": kind, "epochs": len(records), "seconds": seconds_of(records), "best": best})
    return done


def kept_text(best: Any, metric: str) -> str:
    """What a phase kept: the metric that the run is judged by, else all it was judged by; of a solve, what it did."""
    values = numbers(best)
    epoch = values.pop("epoch", None)
    if metric in values:
        values = {metric: values[metric]}
    errors = (values.pop(key) for key in ("before", "after")) if {"before", "after"} <= values.keys() else ()
    texts = [f"error {' → '.join(map(error, errors))}"] if errors else []
    for name, value in values.items():
        exact = value == int(value) and not words.is_fraction(name)
        texts.append(f"{words.metric_name(name)} {words.count(value) if exact else words.metric_value(name, value)}")
    where = "" if epoch is None else f" (epoch {epoch:g})" if epoch else " (as it began)"
    return ", ".join(texts) + where if texts else ""


def time_slices(run: Run) -> list[dict[str, str]]:
    """What took at least a thousandth of the time."""
    timing = {key: seconds for key, seconds in numbers(run.part("timing")).items() if seconds > 0}
    total = sum(timing.values())
    slices = []
    for key in sorted(timing, key=lambda key: list(TIMING).index(key) if key in TIMING else len(TIMING)):
        (name, colour), part = TIMING.get(key, (key, "c5")), timing[key] / total
        if part >= 0.001:
            text = f"{words.duration(timing[key])}, {words.share(part, 0)}"
            slices.append({"name": name, "colour": colour, "width": f"{100 * part:.2f}", "text": text})
    return slices


def time_facts(run: Run) -> Facts:
    result, cache, noun = run.result, run.part("cache"), run.noun + "s"
    filling = seconds_of(run.fills)
    known: list[tuple[str, Any, Callable[[float], str]]] = [
        ("whole run", result.get("seconds"), words.duration),
        ("epochs so far", None if run.finished else seconds_of(run.epochs) or None, words.duration),
        (f"{noun} seen by the student", result.get("student_samples_seen") or None, words.count),
    ]
    if run.part("teacher") and result.get("student_samples_seen"):  # else all was solved
        known += [
            (f"{noun} forwarded by the teacher", result.get("teacher_samples_forwarded"), words.count),
            ("its answers remembered from earlier runs", result.get("teacher_samples_remembered") or None, words.count),
        ]
    known += [
        ("answers served from the cache", cache.get("hits"), words.count),
        ("views stored in the cache", cache.get("views"), words.count),
        ("size of the cache", cache.get("bytes"), words.bytes_size),
        ("spent filling the cache", filling or None, words.duration),
    ]
    return [(name, say(value)) for name, value, say in known if is_number(value)]
