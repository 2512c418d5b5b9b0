"""A diagnosis as a page: the verdict first, what to do, then the pictures that it rests on."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import words
from .charts import Axis, Chart, Point, Series, heatmap, line_chart
from .page import write_page
from .read import is_number, read_json
from .run import Card

TONES = {"healthy": "better", "at risk": "risk", "failing": "worse", "cannot tell": "unclear"}
TITLES = {
    "weights": "Teacher’s logit layer",
    "predictions": "Teacher’s predictions",
    "student": "Student’s logit layer",
}
PAIRS = 5
MOST_WRITTEN = 20  # classes up to which a map's cells say their values


def percent_axis(title: str) -> Axis:
    return Axis(f"{title}, %", (0.0, 100.0), whole=False)


@dataclass(frozen=True)
class Judged:
    """A finding with the tone it is shown in."""

    title: str
    status: str
    tone: str
    evidence: str
    advice: str


def write_diagnosis_report(folder: Path) -> Path:
    """Write ``folder/report.html`` from ``diagnosis.json`` and return its path. Raises UserError where it cannot."""
    folder = Path(folder)
    found = read_json(folder / "diagnosis.json")
    drawn = over_temperature, confidence_in_truth, rescaled, reliable, top_mass, other_classes
    return write_page(
        folder,
        "diagnosis.html",
        title=f"{found['data']['name']} · protege diagnosis",
        headline=headline(found),
        marks=marks(found),
        findings=[judged(finding) for finding in found["verdicts"]],
        reasons=found["recommendation"]["reasons"],
        command=command(found),
        cards=cards(found),
        charts=[chart for chart in (draw(found) for draw in drawn) if chart],
        maps=maps(found),
        related=related(found),
        order=ordered(found),
    )


def judged(finding: dict[str, str]) -> Judged:
    shown = {key: finding[key] for key in ("title", "status", "evidence", "advice")}
    return Judged(tone=TONES[finding["status"]], **shown)


def headline(found: dict[str, Any]) -> str:
    """One sentence: what stands in the way, and what is recommended."""
    titles = {status: [f["title"] for f in found["verdicts"] if f["status"] == status] for status in TONES}
    method = found["recommendation"]["method"]
    if titles["failing"]:
        start = "This teacher will not teach well: " + _listed(titles["failing"]) + "."
    elif titles["at risk"]:
        start = "This teacher can teach, with care: " + _listed(titles["at risk"]) + "."
    elif titles["healthy"]:
        start = "Nothing found stands in the way of this teacher."
    else:
        start = "There was too little to go by."
    return f"{start} Recommended: {method}{_settings_text(found['recommendation']['settings'])}."


def _listed(titles: Sequence[str]) -> str:
    lowered = [title[:1].lower() + title[1:] for title in titles]
    return lowered[0] if len(lowered) == 1 else ", ".join(lowered[:-1]) + " and " + lowered[-1]


def _settings_text(settings: dict[str, Any]) -> str:
    names = {
        "target": "target {}",
        "temperature": "T\u00a0=\u00a0{:g}",
        "k": "k\u00a0=\u00a0{}",
        "weight": "λ\u00a0=\u00a0{:g}",
    }
    told = [text.format(settings[key]) for key, text in names.items() if key in settings]
    return f" with {', '.join(told)}" if told else ""


def marks(found: dict[str, Any]) -> list[str]:
    data, seen = found["data"], found["teacher"]["transfer"]
    texts = [
        f"data {data['name']}",
        f"{words.count(found['classes'])} classes",
        f"transfer set of {words.count(data['transfer_samples'])} samples",
        f"{words.count(seen['rows'])} rows read",
        f"T = {found['settings']['temperature']:g}, λ = {found['settings']['weight']:g} asked for",
    ]
    if found["teacher"]["test"]:
        texts.append(f"{words.count(found['teacher']['test']['rows'])} unseen rows")
    return texts


def command(found: dict[str, Any]) -> str:
    """The recommended distillation as a command line, with placeholders for what only the user knows."""
    advised = found["recommendation"]
    known = {role: (found[role] or {}).get("spec") for role in ("teacher", "student")}
    roles = [
        f"--{role} {shlex.quote(spec) if spec and (':' in spec or Path(spec).exists()) else role.upper()}"
        for role, spec in known.items()
    ]
    text = f"protege distill {' '.join(roles)} --data {shlex.quote(found['data']['name'])}"
    text += f" --method {advised['method']}"
    text += "".join(
        f" --{key.replace('_', '-')} {value:g}" if is_number(value) else f" --{key.replace('_', '-')} {value}"
        for key, value in advised["settings"].items()
    )
    for key in ("fraction", "samples", "image_size"):
        if found["settings"].get(key):
            text += f" --{key.replace('_', '-')} {found['settings'][key]}"
    if found["settings"].get("seed"):
        text += f" --seed {found['settings']['seed']}"
    return text + " --out DIR"


def cards(found: dict[str, Any]) -> list[Card]:
    shown = []
    for role in ("teacher", "student"):
        one = found[role]
        if not one:
            continue
        reading = one["test"] or one["transfer"]
        where = "on unseen samples" if one["test"] else "on the transfer set"
        facts = [
            ("on the transfer set", words.metric_value("accuracy", one["transfer"]["accuracy"])),
            ("mean confidence", words.metric_value("accuracy", reading["confidence"])),
            ("guess to beat", words.metric_value("accuracy", (reading["chance"] or {}).get("accuracy"))),
            ("NLL", words.metric_value("nll", reading["nll"])),
            ("ECE", words.metric_value("ece", reading["ece"])),
            ("parameters", words.size(one["params"])),
            ("MACs", words.size(one["macs"])),
        ]
        title = "Teacher" if role == "teacher" else "Student as it is" + ("" if one["trained"] else ", not trained")
        metric, value = "accuracy", reading["accuracy"]
        if found["task"] == "language" and value is not None:
            facts.insert(0, (f"accuracy {where}", words.metric_value("accuracy", value)))
            metric, value = "perplexity", math.exp(min(reading["nll"], 700.0))
        kind = "teacher" if role == "teacher" else "after"
        shown.append(Card(kind, title, str(one["spec"]), f"{metric} {where}", words.metric_value(metric, value), facts))
    return shown


def steps(histogram: Sequence[float]) -> list[Point]:
    """A histogram over 0 … 1 in per cent, as steps: each bar's value at its left end, the last one's at both."""
    values = [*histogram, histogram[-1]]
    return [(100 * n / len(histogram), 100 * value) for n, value in enumerate(values)]


def _sets(found: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    """What is drawn for each network and set: name, colour, reading."""
    shown = [("teacher, transfer set", "c1", found["teacher"]["transfer"])]
    if found["teacher"]["test"]:
        shown.append(("teacher, unseen", "c3", found["teacher"]["test"]))
    if found["student"] and found["student"]["trained"]:
        shown.append(("student, transfer set", "c0", found["student"]["transfer"]))
    return shown


def over_temperature(found: dict[str, Any]) -> Chart | None:
    """Mass on the truth, largest probability, and what is left of the teacher's word, over T."""
    seen = found["teacher"]["transfer"]
    lines = (
        ("mass on the truth", "truth", "c1", False),
        ("largest probability", "confidence", "c4", False),
        ("left of what it says", "left", "c2", True),
    )
    series = [
        Series(label, [[(at["temperature"], 100 * at[key]) for at in seen["temperatures"]]], colour, dashed)
        for label, key, colour, dashed in lines
    ]
    first, last = (seen["temperatures"][n]["temperature"] for n in (0, -1))
    axis = Axis("T", (first, last), log=True, ticks={float(t): str(t) for t in (1, 2, 4, 8, 20) if t <= last})
    asked = min(seen["temperatures"], key=lambda at: abs(at["temperature"] - found["settings"]["temperature"]))
    accuracy = seen["accuracy"]
    return line_chart(
        "Behaviour over the temperature",
        series,
        note="Which class comes first does not depend on T; how much it gets does. The ring is the T asked for.",
        x=axis,
        y_range=(0, 100),
        unit=" %",
        level=None if accuracy is None else (100 * accuracy, f"accuracy {words.share(accuracy, 0)}"),
        best=[(asked["temperature"], 100 * asked["truth"], f"T = {asked['temperature']:g}")],
    )


def confidence_in_truth(found: dict[str, Any]) -> Chart | None:
    """The distribution of p_t."""
    series = [
        Series(name, [steps(reading["truth"]["histogram"])], colour, name.startswith("student"))
        for name, colour, reading in _sets(found)
    ]
    return line_chart(
        "Probability of the true class",
        series,
        note="Share of rows, T = 1. All at the right end: the teacher says no more than the label.",
        x=percent_axis("p of the true class"),
        y_range=(0,),
        unit=" %",
        steps=True,
    )


def rescaled(found: dict[str, Any]) -> Chart | None:
    """ω against the teacher's confidence."""
    about = found["rescaling"]
    bins = about["bins"]
    if not bins:
        return None
    series = [Series("median", [[(100 * b["p"], b["median"]) for b in bins]], "c1", marks=True)]
    if about["measured"]:
        series += [
            Series(f"{which} quartile", [[(100 * b["p"], b[key]) for b in bins]], "c4", dashed=True)
            for which, key in (("lower", "low"), ("upper", "high"))
        ]
    series = [one for one in series if one.segments[0]]
    rank = about["rank_correlation"]
    whose = "this student" if about["measured"] else "a student that knows nothing yet"
    note = f"KD’s gradient at the true class is the label’s times ω; for {whose}, λ = {about['weight']:g}."
    if rank is not None and about["measured"]:
        note += f" Rank correlation with p: {rank:.2f}.".replace("-", words.MINUS)
    return line_chart(
        "Gradient rescaling by the teacher’s confidence",
        series,
        note=note,
        x=percent_axis("p of the true class"),
    )


def reliable(found: dict[str, Any]) -> Chart | None:
    """The reliability diagram."""
    series = [Series("calibrated", [[(0, 0), (100, 100)]], "c4", dashed=True)]
    for name, colour, reading in _sets(found):
        bins = [b for b in reading["reliability"] if b["share"] >= 0.002]
        if bins:
            series.append(
                Series(name, [[(100 * b["confidence"], 100 * b["accuracy"]) for b in bins]], colour, marks=True)
            )
    if len(series) == 1:
        return None
    return line_chart(
        "Reliability",
        series,
        note="Above the diagonal: right more often than sure.",
        x=percent_axis("confidence"),
        y_range=(0, 100),
        unit=" %",
    )


def top_mass(found: dict[str, Any]) -> Chart | None:
    """Mass of the k largest probabilities."""
    series = []
    for name, colour, reading in _sets(found):
        series.append(
            Series(name, [[(int(k), min(100.0, 100 * mass)) for k, mass in reading["top"].items()]], colour, marks=True)
        )
    largest = max(x for one in series for x, _ in one.segments[0])
    if largest < 3:
        return None
    ticks = {float(k): str(k) for k in (1, 2, 5, 10, 25, 100) if k <= largest}
    return line_chart(
        "Mass of the k largest",
        series,
        note="What target topk keeps, and a cache stores, at T = 1.",
        x=Axis("k", (1.0, float(largest)), log=True, ticks=ticks),
        y_range=(100,),
        unit=" %",
    )


def other_classes(found: dict[str, Any]) -> Chart | None:
    """The distribution of the entropy of the classes other than the true one."""
    series = [
        Series(name, [steps(reading["others"]["histogram"])], colour, name.startswith("student"))
        for name, colour, reading in _sets(found)
        if reading["others"]
    ]
    return line_chart(
        "Evenness of the other classes",
        series,
        note="Entropy of what is not the true class. All at the right end: its relations are erased.",
        x=percent_axis("normalised entropy"),
        y_range=(0,),
        unit=" %",
        steps=True,
    )


def maps(found: dict[str, Any]) -> list[Chart]:
    """Similarities of classes, all on one scale: from the 2nd to the 98th percentile of what is off the diagonals."""
    relations = found["relations"]
    shown = (key for key in TITLES if relations[key] and relations[key]["spread"])  # else all classes are alike
    known = {key: relations[key]["values"] for key in shown}
    if not known:
        return []
    names, groups = relations["names"], relations["superclasses"]
    others = sorted(v for m in known.values() for i, row in enumerate(m) for j, v in enumerate(row) if i != j)
    bounds = others[round(0.02 * (len(others) - 1))], others[round(0.98 * (len(others) - 1))]
    between = [n for n in range(1, len(names)) if groups and groups[n] != groups[n - 1]]
    charts = []
    for key, values in known.items():
        pairs = sorted(((values[i][j], i, j) for i in range(len(names)) for j in range(i)), reverse=True)[:PAIRS]
        alike = "; ".join(f"{names[j]} and {names[i]}, {_number(value)}" for value, i, j in pairs)
        cells = [[None if i == j else v for j, v in enumerate(row)] for i, row in enumerate(values)]
        note = f"From {_number(bounds[0])} (light) to {_number(bounds[1])} (dark). Most alike: {alike}."
        called = ("class", "and", "cosine")
        few = len(names) <= MOST_WRITTEN
        texts = [["" if v is None else _number(v) for v in row] for row in cells] if few else None
        charts.append(
            heatmap(TITLES[key], cells, names, bounds=bounds, called=called, note=note, between=between, texts=texts)
        )
    return charts


def ordered(found: dict[str, Any]) -> str:
    relations = found["relations"]
    how = (
        "by superclass, which the lines divide" if relations["superclasses"] else "so that like classes are neighbours"
    )
    total, shown = found["classes"], len(relations["names"])
    part = f" The {shown} most frequent of {words.count(total)} classes." if shown < total else ""
    return f"Cosines of class vectors, {how}. All maps share one scale; the diagonal is left out.{part}"


def related(found: dict[str, Any]) -> list[tuple[str, str]]:
    """Summaries of the maps."""
    facts = []
    for key, title in TITLES.items():
        matrix = found["relations"][key]
        if matrix:
            facts.append((f"{title}: spread", _number(matrix["spread"])))
            if matrix["within_minus_between"] is not None:
                facts.append((f"{title}: within minus between superclasses", _number(matrix["within_minus_between"])))
    for pair, value in found["relations"]["agreement"].items():
        if value is not None:
            facts.append((f"correlation of {pair}", _number(value)))
    return facts


def _number(value: float) -> str:
    return f"{value:.2f}".replace("-", words.MINUS)
