"""A run's report: headline, cards, curves, classes, where time went, recipe, how to load the student."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import words
from .classes import class_change, confusion
from .curves import keys_of, run_charts, where_measured
from .guess import told_guess
from .headline import headline, sample_noun
from .networks import networks
from .page import write_page
from .read import Run, is_number, numbers, phases, read_run
from .segmentation import segmentation
from .snippets import snippets
from .solved import solved

TIMING = (
    ("data", "reading data", "c2"),
    ("teacher", "teacher", "c1"),
    ("student", "student", "c0"),
    ("solve", "solving", "c5"),
    ("evaluate", "evaluation", "c3"),
    ("other", "the rest", "c4"),
)


@dataclass(frozen=True)
class Card:
    """Teacher, student before, or student after: one large figure and what belongs to it."""

    role: str
    title: str
    spec: str
    label: str
    value: str
    facts: list[tuple[str, str]]
    notes: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Slice:
    name: str
    colour: str
    width: str
    text: str


def write_run_report(folder: Path) -> Path:
    """Write ``folder/report.html`` from the run's files and return its path; of an unfinished run, so far.

    Raises UserError when the folder holds no run, a damaged result.json, or cannot be written.
    """
    folder = Path(folder)
    run = read_run(folder)
    student, teacher = run.part("student"), run.part("teacher")
    measured = [
        *numbers(student.get("metrics")),
        *numbers(teacher.get("metrics")),
        *keys_of(run.epochs, "eval"),
    ]
    metric = words.primary_metric(measured, run.setting("task"))
    scenes, bars = segmentation(run), solved(run)
    return write_page(
        folder,
        "run.html",
        run=run,
        title=" · ".join(filter(None, [run.setting("method"), run.part("data").get("name"), "protege run"])),
        headline=headline(run, metric),
        marks=[*marks(run), told_guess(metric, student, words.metric_value)],
        cards=cards(run, metric),
        charts=run_charts(run, metric),
        phases=phase_rows(run, metric),
        networks=networks(run),
        bars=bars,
        solved=None if bars else solved_table(run),
        scenes=scenes,
        change=None if scenes and scenes.rows else class_change(run),
        confusion=confusion(run),
        slices=time_slices(run),
        time_facts=time_facts(run),
        snippets=snippets(run) if run.finished else [],
        environment=[(str(k), str(v)) for k, v in run.part("environment").items() if not isinstance(v, dict | list)],
    )


def target(run: Run) -> str:
    """What of the teacher's row is taught, where that is not all of it."""
    name = run.recipe.get("target")
    if not run.part("teacher") or name in (None, "kd"):
        return ""
    return f"target {name}" + (f" with k = {run.recipe['k']}" if run.recipe.get("k") else "")


def marks(run: Run) -> list[str]:
    data = run.part("data")
    classes = data.get("classes")
    language = run.setting("task").startswith("lang")
    found = [
        f"method {run.setting('method')}" if run.setting("method") else "",
        target(run),
        f"data {data.get('name') or run.setting('data')}" if data.get("name") or run.setting("data") else "",
        f"{words.count(classes)} {'words' if language else 'classes'}" if is_number(classes) else "",
        f"seed {run.setting('seed')}" if run.setting("seed") else "",
    ]
    return [text for text in found if text]


def sizes(model: dict[str, Any], teacher: dict[str, Any]) -> list[tuple[str, str]]:
    facts = []
    for key, name in (("params", "parameters"), ("macs", "MACs")):
        value, reference = model.get(key), teacher.get(key)
        if is_number(value):
            share = f" ({words.rough_share(value / reference)})" if is_number(reference) and reference else ""
            facts.append((name, words.size(value) + share))
    return facts


def card(
    role: str, title: str, spec: Any, metric: str, metrics: dict[str, float], facts: list[tuple[str, str]]
) -> Card:
    others = [
        (words.metric_name(key), words.metric_value(key, value)) for key, value in metrics.items() if key != metric
    ]
    label, value = words.metric_name(metric), words.metric_value(metric, metrics.get(metric))
    if metric not in metrics and facts:  # there was nothing to measure it on: how large it is
        (label, value), *facts = facts
    return Card(role, title, str(spec or ""), label, value, others + facts)


def cards(run: Run, metric: str) -> list[Card]:
    student, teacher = run.part("student"), run.part("teacher")
    spec = student.get("spec") or run.setting("student")
    shown = []
    if teacher:
        of_teacher = numbers(teacher.get("metrics"))
        name = teacher.get("spec") or run.setting("teacher")
        shown.append(card("teacher", "Teacher", name, metric, of_teacher, sizes(teacher, {})))
    before = numbers(student.get("before"))
    if before:
        shown.append(card("before", "Student before", spec, metric, before, sizes(student, {})))
    after = numbers(student.get("metrics"))
    if run.finished and (after or student.get("params")):
        last = card("after", "Student after", spec, metric, after, sizes(student, teacher))
        for reference, against in (
            (before, "against before"),
            (numbers(teacher.get("metrics")), "against the teacher"),
        ):
            if metric in reference and metric in after:
                delta = after[metric] - reference[metric]
                last.notes.append((words.verdict(metric, delta), f"{words.difference(metric, delta)} {against}"))
        shown.append(last)
    elif not run.finished:
        recent = next((numbers(r.get("eval")) for r in reversed(run.epochs) if numbers(r.get("eval"))), {})
        if recent:
            where = f", on the {where_measured(run)}" if where_measured(run) else ""
            shown.append(card("after", f"Student so far{where}", spec, metric, recent, sizes(student, teacher)))
    return shown


def phase_rows(run: Run, metric: str) -> list[dict[str, str]]:
    """A row for each phase: of the result, or counted from the epochs while the run is unfinished."""
    known = phases(run)
    if not run.finished:
        names = dict.fromkeys([*(str(p.get("name", "")) for p in known), *(r["phase"] for r in run.epochs)])
        kinds = {str(p.get("name", "")): p.get("kind", "fit") for p in known}
        known = []
        for name in names:
            records = [r for r in run.epochs if r["phase"] == name]
            seconds = sum(r["seconds"] for r in records if is_number(r.get("seconds")))
            measured = [(r["epoch"], numbers(r["eval"])[metric]) for r in records if metric in numbers(r.get("eval"))]
            choose = min if words.lower_is_better(metric) else max
            last = run.setting("select") == "last"
            best = None if not measured else measured[-1] if last else choose(measured, key=lambda pair: pair[1])
            known.append(
                {
                    "name": name,
                    "kind": kinds.get(name, "fit"),
                    "epochs": len(records),
                    "seconds": seconds,
                    "best": {"epoch": best[0], metric: best[1]} if best else {},
                }
            )
    learning = {str(phase.get("name")): phase.get("learning_parameters") for phase in run.planned}
    rows = []
    for phase in known:
        best = phase.get("best")
        found = dict(best) if isinstance(best, dict) else {}
        epoch = found.pop("epoch", None)
        values = numbers(found)
        keys = [key for key in (metric, *values) if key in values]
        said = {k: words.count(v) for k, v in found.items() if isinstance(v, int)}
        said = {k: said.get(k, words.metric_value(k, values[k])) for k in dict.fromkeys(keys)}
        text = ", ".join(f"{words.metric_name(k)} {value}" for k, value in said.items())
        if is_number(epoch) and text:
            text += f" (epoch {epoch:g})" if epoch else " (as it began)"
        epochs = phase.get("epochs")
        rows.append(
            {
                "name": str(phase.get("name", "")),
                "kind": {"fit": "trained", "solve": "solved"}.get(str(phase.get("kind")), str(phase.get("kind", ""))),
                "learning": words.size(learning.get(str(phase.get("name")))),
                "epochs": words.count(epochs) if is_number(epochs) and phase.get("kind") != "solve" else "—",
                "seconds": words.duration(phase["seconds"]) if is_number(phase.get("seconds")) else "—",
                "kept": text or "—",
            }
        )
    return rows


def solved_table(run: Run) -> tuple[list[str], list[list[str]]] | None:
    """``block`` records as they are: one row a block, a column for every plain field."""
    if not run.blocks:
        return None
    hidden = {"event", "phase"} if len({r["phase"] for r in run.blocks}) == 1 else {"event"}
    keys = [k for k in dict.fromkeys(k for r in run.blocks for k in r) if k not in hidden]
    keys = [k for k in keys if not any(isinstance(r.get(k), dict | list) for r in run.blocks)]

    def text(key: str, value: Any) -> str:
        if key == "seconds" and is_number(value):
            return words.duration(value)
        return "—" if value is None else words.plain(value) if is_number(value) else str(value)

    rows = [[text(key, record.get(key)) for key in keys] for record in run.blocks]
    return [key.replace("_", " ") for key in keys], rows


def time_slices(run: Run) -> list[Slice]:
    timing = numbers(run.part("timing"))
    names = {key: (name, colour) for key, name, colour in TIMING}
    order = [key for key in names if key in timing] + [key for key in timing if key not in names]
    total = sum(timing.values())
    return [
        Slice(
            name=names.get(key, (key, "c5"))[0],
            colour=names.get(key, (key, "c5"))[1],
            width=f"{100 * timing[key] / total:.2f}",
            text=f"{words.duration(timing[key])}, {words.share(timing[key] / total, 0)}",
        )
        for key in order
        if total > 0 and timing[key] > 0
    ]


def time_facts(run: Run) -> list[tuple[str, str]]:
    result, facts = run.result, []
    done = sum(r["seconds"] for r in run.epochs if is_number(r.get("seconds")))
    if is_number(result.get("seconds")):
        facts.append(("whole run", words.duration(result["seconds"])))
    elif done:
        facts.append(("epochs so far", words.duration(done)))
    noun = sample_noun(run) + "s"
    for key, name in (
        ("student_samples_seen", f"{noun} seen by the student"),
        ("teacher_samples_forwarded", f"{noun} forwarded by the teacher"),
        ("teacher_samples_remembered", "its answers remembered from earlier runs"),
    ):
        if key.endswith("remembered") and not result.get(key):
            continue
        if is_number(result.get(key)) and result.get("student_samples_seen"):  # else all was solved
            facts.append((name, words.count(result[key])))
    cache = run.part("cache")
    for key, name, say in (
        ("hits", "answers served from the cache", words.count),
        ("views", "views stored in the cache", words.count),
        ("bytes", "size of the cache", words.bytes_size),
    ):
        if is_number(cache.get(key)):
            facts.append((name, say(cache[key])))
        elif key == "views" and cache.get(key) is not None:
            facts.append((name, str(cache[key])))
    spent = sum(f["seconds"] for f in run.fills if is_number(f.get("seconds")))
    if spent:
        facts.append(("spent filling the cache", words.duration(spent)))
    return facts
