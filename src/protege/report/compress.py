"""A compression's report: the frontier, what was chosen and why, the file beside the teacher, and where they differ."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from .. import words
from .charts import Axis, Chart, Series, line_chart
from .page import write_page
from .read import numbers, read_json, records, table
from .segmentation import scenes_in

WAYS = {  # of shrinking: what they are called, and their colour (c1 is the teacher's)
    "path": ("by cost", "c0"),
    "pixels": ("on smaller images", "c4"),
    "hidden": ("by cost within blocks", "c7"),
    "decouple": ("decoupled", "c3"),
    "l1": ("by l1", "c2"),
    "slim": ("by scales", "c5"),
}


def write_compress_report(folder: Path) -> Path:
    """Write ``folder/report.html`` from the compress.json there and return its path.

    Raises UserError when that is damaged, or the page cannot be written.
    """
    folder = Path(folder)
    made = read_json(folder / "compress.json")
    metric = str(made.get("metric", "agreement"))
    teacher, student = table(made.get("teacher")), table(made.get("student"))
    candidates = records(made.get("frontier"))
    chosen = table(made.get("chosen"))
    return write_page(
        folder,
        "compress.html",
        title="protege compress",
        headline=headline(made, teacher, student, metric),
        metric=metric,
        chart=picture(candidates, teacher, student, metric, str(chosen.get("name", ""))),
        rows=[row(each, teacher, metric, chosen) for each in candidates],
        networks=[
            ("teacher", teacher),
            ("student as int8" if made.get("in_float") else "student", student),
            ("student before int8", table(made.get("in_float"))),
        ],
        figures=figures,
        chosen=str(chosen.get("why", "")),
        notes=notes(made, metric),
        mistakes=pictures(folder, records(made.get("mistakes"))),
        scenes=scenes_in(folder / "pictures"),
        labelled=bool(table(made.get("samples")).get("labelled")),
    )


def picture(
    candidates: list[dict[str, Any]], teacher: dict[str, Any], student: dict[str, Any], metric: str, chosen: str
) -> Chart | None:
    """Multiply-adds against quality, from the teacher down a line for each way; the chosen one, and it taught on."""
    whole, factor = numbers(teacher.get("figures")).get("macs"), words.factor(metric)
    level = numbers(teacher.get("metrics")).get(metric)
    if not whole:
        return None

    def point(network: dict[str, Any]) -> tuple[float, float] | None:
        value, macs = numbers(network.get("metrics")).get(metric), numbers(network.get("figures")).get("macs")
        return None if value is None or macs is None else (100 * macs / whole, factor * value)

    start = point(teacher)
    series, best = [], []
    places = {} if start is None else {start[0]: "the teacher"}
    for how, (label, colour) in WAYS.items():
        points = []
        for each in candidates:
            if each.get("how") == how and (place := point(each)) is not None:
                points.append(place)
                places[place[0]] = f"{each.get('name')} ({label})"
                if each.get("name") == chosen:
                    best.append((*place, "chosen"))
        if points:
            series.append(Series(label, [sorted([*points, *([start] if start else [])])], colour, marks=True))
    if table(student).get("metrics") and (taught := point(student)) is not None:
        best.append((*taught, "taught on"))
    return line_chart(
        f"{words.metric_name(metric)} after solving, on images held out",
        series,
        x=Axis("multiply-adds, % of the teacher's", (0, 100), places=places, whole=False, point="candidate"),
        level=None if level is None else (factor * level, "teacher"),
        best=best,
        y_range=[value for _, value, _ in best],
        unit=words.unit(metric),
        height=280,
    )


def row(each: dict[str, Any], teacher: dict[str, Any], metric: str, chosen: dict[str, Any]) -> dict[str, Any]:
    """One candidate of the table."""
    costs, whole = numbers(each.get("figures")), numbers(teacher.get("figures"))
    return {
        "name": str(each.get("name")),
        "how": WAYS.get(str(each.get("how")), (str(each.get("how")),))[0],
        "folder": f"candidates/{Path(str(each.get('folder'))).name}",
        "chosen": each.get("name") == chosen.get("name"),
        "costs": [
            words.rough_share(costs[k] / whole[k]) if k in costs and whole.get(k) else "—" for k in ("macs", "params")
        ],
        "before": words.metric_value(metric, numbers(each.get("before")).get(metric)),
        "after": words.metric_value(metric, numbers(each.get("metrics")).get(metric)),
    }


def figures(network: dict[str, Any], first: dict[str, Any]) -> list[tuple[str, str]]:
    """What a network costs, with its share of the first one's."""
    own, whole = numbers(network.get("figures")), numbers(first.get("figures"))
    say = {"macs": words.size, "params": words.size, "size": words.bytes_size, "latency": milliseconds}
    return [
        (text(own[key]), "" if network is first or not whole.get(key) else words.rough_share(own[key] / whole[key]))
        if key in own
        else ("—", "")
        for key, text in say.items()
    ]


def milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.3g}{words.NBSP}ms"


def headline(made: dict[str, Any], teacher: dict[str, Any], student: dict[str, Any], metric: str) -> str:
    """What came of it, in a sentence."""
    if not student:
        return f"{words.plural(len(records(made.get('frontier'))), 'candidate')} so far."
    own, whole = numbers(student.get("figures")), numbers(teacher.get("figures"))
    parts = [f"{words.rough_share(own['macs'] / whole['macs'])} of the multiply-adds"]
    if own.get("latency") and whole.get("latency"):
        parts.append(f"{words.rough_share(own['latency'] / whole['latency'])} of the time")
    values = [numbers(each.get("test")) or numbers(each.get("metrics")) for each in (teacher, student)]
    text = f"The student has {' and '.join(parts)}"
    if all(metric in value for value in values):
        text += f" and reaches {words.metric_value(metric, values[1][metric])} {words.metric_name(metric)}"
        if metric != "agreement":
            text += f", the teacher {words.metric_value(metric, values[0][metric])}"
    return text + "."


def notes(made: dict[str, Any], metric: str) -> list[tuple[str, str]]:
    """What else is worth knowing."""
    samples, lesson, file = numbers(made.get("samples")), table(made.get("taught")), table(made.get("file"))
    facts = [("model", str(made.get("model"))), ("budget", budget(table(made.get("budget"))))]
    if samples:
        facts.append(
            ("images", f"solved for on {samples.get('solved', 0):,.0f}, judged on {samples.get('judged', 0):,.0f}")
        )
    if lesson:
        before, after = (numbers(lesson.get(key)).get(metric) for key in ("before", "after"))
        text = str(lesson.get("why", ""))
        if after is not None:
            text = f"{words.metric_value(metric, before)} → {words.metric_value(metric, after)}" + (
                f"; {text}" if text else ""
            )
        how = f"{lesson['method']}, {words.plural(lesson.get('epochs', 0), 'epoch')}: " if lesson.get("method") else ""
        facts.append(("taught on", how + text))
    if file:
        facts.append(("file", str(file.get("file", ""))))
    if missed := [str(name) for name, kept in table(made.get("met")).items() if kept is False]:
        facts.append(("limits that are not kept", ", ".join(missed)))
    facts.append(("time", words.duration(numbers(made).get("seconds"))))
    return facts


def budget(limits: dict[str, Any]) -> str:
    """The limits in words."""
    parts = []
    for name, limit in limits.items():
        if name == "accuracy_drop":
            parts.append(f"at most {100 * limit:g} points lost")
            continue
        value, share = table(limit).get("most"), table(limit).get("share")
        if share is not None:
            parts.append(f"{words.rough_share(share)} of the {name}")
        elif name == "size":
            parts.append(words.bytes_size(float(value or 0)))
        else:
            parts.append(milliseconds(float(value or 0)) if name == "latency" else f"{name} {value:g}")
    return ", ".join(parts)


def pictures(folder: Path, items: list[dict[str, Any]]) -> list[dict[str, str]]:
    """The images with what the two take them for; those that are there."""
    shown = []
    for item in items:
        path = folder / str(item.get("file"))
        if path.is_file():
            data = base64.b64encode(path.read_bytes()).decode()
            shown.append({"data": data, **{key: str(item.get(key)) for key in ("teacher", "student")}})
    return shown
