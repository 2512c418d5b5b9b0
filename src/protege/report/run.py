"""A run's report: headline, cards, curves, classes, where time went, recipe, how to load the student."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from . import words
from .classes import class_change, confusion
from .curves import run_charts, where_measured
from .guess import told_guess
from .headline import headline, is_text, sample_noun
from .networks import networks
from .page import Card, write_page
from .read import Run, is_number, numbers, phases, read_run, table
from .segmentation import segmentation
from .snippets import snippets
from .solved import solved

TIMING = {
    "data": ("reading data", "c2"),
    "teacher": ("teacher", "c1"),
    "student": ("student", "c0"),
    "solve": ("solving", "c5"),
    "evaluate": ("evaluation", "c3"),
    "other": ("the rest", "c4"),
}
KINDS = {"fit": "trained", "solve": "solved"}


def write_run_report(folder: Path) -> Path:
    """Write ``folder/report.html`` from the run's files and return its path; of an unfinished run, so far.

    Raises UserError when the folder holds no run, a damaged result.json, or cannot be written.
    """
    run = read_run(Path(folder))
    metric = words.primary_metric(run.measured)
    scenes, layers = segmentation(run), solved(run)
    return write_page(
        run.folder,
        "run.html",
        run=run,
        title=" · ".join(filter(None, [run.setting("method"), run.part("data").get("name"), "protege run"])),
        headline=headline(run, metric),
        marks=[*marks(run), told_guess(metric, run.part("student"), words.metric_value)],
        cards=cards(run, metric),
        charts=run_charts(run, metric),
        phases=phase_rows(run, metric),
        networks=networks(run),
        bars=layers,
        solved=None if layers else solved_table(run),
        scenes=scenes,
        change=None if scenes and scenes.rows else class_change(run),
        confusion=confusion(run),
        slices=time_slices(run),
        time_facts=time_facts(run),
        snippets=snippets(run) if run.finished else [],
        environment=[(k, str(v)) for k, v in run.part("environment").items() if not isinstance(v, dict | list)],
    )


def marks(run: Run) -> list[str]:
    data, recipe = run.part("data"), run.recipe
    name, classes = data.get("name") or run.setting("data"), data.get("classes")
    noun = "words" if is_text(run) else "classes"
    target = recipe.get("target") if run.part("teacher") else None
    k = f" with k = {recipe['k']}" if recipe.get("k") else ""
    return [
        f"method {run.setting('method')}" if run.setting("method") else "",
        f"target {target}{k}" if target not in (None, "kd") else "",  # what is taught, where that is not all
        f"data {name}" if name else "",
        f"{words.count(classes)} {noun}" if is_number(classes) else "",
        f"seed {run.setting('seed')}" if run.setting("seed") else "",
    ]


def cards(run: Run, metric: str) -> list[Card]:
    student, teacher = run.part("student"), run.part("teacher")
    spec = student.get("spec") or run.setting("student")
    before, after, taught = map(numbers, (student.get("before"), student.get("metrics"), teacher.get("metrics")))
    shown = []
    if teacher:
        name = teacher.get("spec") or run.setting("teacher")
        shown.append(card("teacher", "Teacher", name, metric, taught, sizes(teacher, {})))
    if before:
        some = numbers(student.get("before_measured_on")).get("samples")
        facts = sizes(student, {}) + ([("measured on", f"{some:,.0f} test samples")] if some else [])
        shown.append(card("before", "Student before", spec, metric, before, facts))
    if run.finished and (after or student.get("params")):
        notes = []
        for reference, against in ((before, "against before"), (taught, "against the teacher")):
            if metric in reference and metric in after:
                delta = after[metric] - reference[metric]
                notes.append((words.verdict(metric, delta), f"{words.difference(metric, delta)} {against}"))
        shown.append(card("after", "Student after", spec, metric, after, sizes(student, teacher), notes))
    elif not run.finished:
        recent = next((numbers(r.get("eval")) for r in reversed(run.epochs) if numbers(r.get("eval"))), {})
        if recent:
            where = f", on the {where_measured(run)}" if where_measured(run) else ""
            shown.append(card("after", f"Student so far{where}", spec, metric, recent, sizes(student, teacher)))
    return shown


def card(role: str, title: str, spec: Any, metric: str, metrics: dict[str, float], sizes: Any, notes: Any = ()) -> Card:
    facts = [(words.metric_name(name), words.metric_value(name, metrics[name])) for name in metrics if name != metric]
    label, value = words.metric_name(metric), words.metric_value(metric, metrics.get(metric))
    if metric not in metrics and sizes:  # there was nothing to measure it on: how large it is
        (label, value), *sizes = sizes
    return Card(role, title, str(spec or ""), label, value, [*facts, *sizes], notes)


def sizes(model: dict[str, Any], teacher: dict[str, Any]) -> list[tuple[str, str]]:
    facts = []
    for key, name in (("params", "parameters"), ("macs", "MACs")):
        value, reference = model.get(key), teacher.get(key)
        if is_number(value):
            share = f" ({words.rough_share(value / reference)})" if is_number(reference) and reference else ""
            facts.append((name, words.size(value) + share))
    return facts


def phase_rows(run: Run, metric: str) -> list[dict[str, str]]:
    """A row for each phase: of the result, or counted from the epochs while the run is unfinished."""
    learning = {str(phase.get("name")): phase.get("learning_parameters") for phase in run.planned}
    rows = []
    for phase in phases(run) if run.finished else phases_so_far(run, metric):
        name, epochs, seconds = str(phase.get("name", "")), phase.get("epochs"), phase.get("seconds")
        rows.append(
            {
                "name": name,
                "kind": KINDS.get(str(phase.get("kind")), str(phase.get("kind", ""))),
                "learning": words.size(learning.get(name)),
                "epochs": words.count(epochs) if is_number(epochs) and phase.get("kind") != "solve" else "—",
                "seconds": words.duration(seconds) if is_number(seconds) else "—",
                "kept": kept_text(phase.get("best"), metric) or "—",
            }
        )
    return rows


def phases_so_far(run: Run, metric: str) -> list[dict[str, Any]]:
    """The phases of an unfinished run, with what of their epochs would be kept."""
    planned = {str(phase.get("name", "")): phase for phase in phases(run)}
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
        seconds = sum(record["seconds"] for record in records if is_number(record.get("seconds")))
        kind = planned.get(name, {}).get("kind", "fit")
        done.append({"name": name, "kind": kind, "epochs": len(records), "seconds": seconds, "best": best})
    return done


def kept_text(best: Any, metric: str) -> str:
    """What a phase kept: the deciding metric first, whole numbers as counts."""
    best = table(best)
    values = {key: value for key, value in best.items() if is_number(value) and key != "epoch"}
    texts = [
        f"{words.metric_name(key)} {words.count(value) if isinstance(value, int) else words.metric_value(key, value)}"
        for key, value in sorted(values.items(), key=lambda pair: pair[0] != metric)
    ]
    epoch = best.get("epoch")
    where = f" (epoch {epoch:g})" if is_number(epoch) and epoch else " (as it began)" if is_number(epoch) else ""
    return ", ".join(texts) + where if texts else ""


def solved_table(run: Run) -> tuple[list[str], list[list[str]]] | None:
    """``block`` records as they are: one row a block, a column for every plain field."""
    if not run.blocks:
        return None
    hidden = {"event", "phase"} if len({block["phase"] for block in run.blocks}) == 1 else {"event"}
    keys = [key for key in dict.fromkeys(key for block in run.blocks for key in block) if key not in hidden]
    keys = [key for key in keys if not any(isinstance(block.get(key), dict | list) for block in run.blocks)]

    def text(key: str, value: Any) -> str:
        if not is_number(value):
            return "—" if value is None else str(value)
        return words.duration(value) if key == "seconds" else words.plain(value)

    rows = [[text(key, block.get(key)) for key in keys] for block in run.blocks]
    return [key.replace("_", " ") for key in keys], rows


def time_slices(run: Run) -> list[dict[str, str]]:
    timing = {key: seconds for key, seconds in numbers(run.part("timing")).items() if seconds > 0}
    total = sum(timing.values())
    order = [key for key in TIMING if key in timing] + [key for key in timing if key not in TIMING]
    slices = []
    for key in order:
        (name, colour), part = TIMING.get(key, (key, "c5")), timing[key] / total
        text = f"{words.duration(timing[key])}, {words.share(part, 0)}"
        slices.append({"name": name, "colour": colour, "width": f"{100 * part:.2f}", "text": text})
    return slices


def time_facts(run: Run) -> list[tuple[str, str]]:
    result, cache, noun = run.result, run.part("cache"), sample_noun(run) + "s"
    facts: list[tuple[str, Any, Any]] = []
    if is_number(result.get("seconds")):
        facts.append(("whole run", result["seconds"], words.duration))
    else:
        done = sum(record["seconds"] for record in run.epochs if is_number(record.get("seconds")))
        facts.append(("epochs so far", done or None, words.duration))
    if result.get("student_samples_seen"):  # else all was solved
        facts += [
            (f"{noun} seen by the student", result["student_samples_seen"], words.count),
            (f"{noun} forwarded by the teacher", result.get("teacher_samples_forwarded"), words.count),
            ("its answers remembered from earlier runs", result.get("teacher_samples_remembered") or None, words.count),
        ]
    filling = sum(fill["seconds"] for fill in run.fills if is_number(fill.get("seconds")))
    facts += [
        ("answers served from the cache", cache.get("hits"), words.count),
        ("views stored in the cache", cache.get("views"), words.count),
        ("size of the cache", cache.get("bytes"), words.bytes_size),
        ("spent filling the cache", filling or None, words.duration),
    ]
    shown = [(name, say(value) if is_number(value) else value, value) for name, value, say in facts]
    return [(name, text) for name, text, value in shown if is_number(value) or (value and isinstance(value, str))]
