"""The pictures of a diagnosis: how the teacher's probabilities lie, and which classes it finds alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .. import words
from .charts import Axis, Chart, Point, Series, heatmap, line_chart

TITLES = {
    "weights": "Teacher’s logit layer",
    "predictions": "Teacher’s predictions",
    "student": "Student’s logit layer",
}
PAIRS = 5
MOST_WRITTEN = 14  # classes up to which a map has room for its values
Diagnosis = dict[str, Any]


def charts(diagnosis: Diagnosis) -> list[Chart]:
    """The charts that the numbers give, in the page's order."""
    drawn = (
        over_temperature(diagnosis),
        distribution(
            diagnosis,
            "truth",
            "Probability of the true class",
            "p of the true class",
            "Share of rows, T = 1. All at the right end: the teacher says no more than the label.",
        ),
        rescaled(diagnosis["rescaling"]),
        reliability(diagnosis),
        top_mass(diagnosis),
        distribution(
            diagnosis,
            "others",
            "Evenness of the other classes",
            "normalised entropy",
            "Entropy of what is not the true class. All at the right end: its relations are erased.",
        ),
    )
    return [chart for chart in drawn if chart]


def percent_axis(title: str) -> Axis:
    return Axis(f"{title}, %", (0.0, 100.0), whole=False)


def sets(diagnosis: Diagnosis) -> list[tuple[str, str, dict[str, Any]]]:
    """What is drawn for each network and set: name, colour, reading."""
    teacher, student = diagnosis["teacher"], diagnosis["student"] or {}
    known = [("teacher, transfer set", "c1", teacher["transfer"]), ("teacher, unseen", "c3", teacher["test"])]
    known.append(("student, transfer set", "c0", student["transfer"] if student.get("trained") else None))
    return [entry for entry in known if entry[2]]


def over_temperature(diagnosis: Diagnosis) -> Chart | None:
    """Mass on the truth, largest probability, and what is left of the teacher's word, over T."""
    transfer, asked = diagnosis["teacher"]["transfer"], diagnosis["settings"]["temperature"]
    rows, accuracy = transfer["temperatures"], transfer["accuracy"]
    lines = {
        "confidence": ("largest probability", "c4"),
        "truth": ("mass on the truth", "c1"),
        "left": ("left of what it says", "c2"),
    }
    series = [
        Series(label, [[(row["temperature"], 100 * row[key]) for row in rows]], colour, dashed=key == "left")
        for key, (label, colour) in lines.items()
    ]
    ends = rows[0]["temperature"], rows[-1]["temperature"]
    nearest = min(rows, key=lambda row: abs(row["temperature"] - asked))
    return line_chart(
        "Behaviour over the temperature",
        series,
        note="Which class comes first does not depend on T; how much it gets does. The ring is the T asked for.",
        x=Axis("T", ends, log=True, ticks={float(t): str(t) for t in (1, 2, 4, 8, 20) if t <= ends[1]}),
        y_range=(0, 100),
        unit=" %",
        level=None if accuracy is None else (100 * accuracy, f"accuracy {words.share(accuracy, 0)}"),
        best=[(nearest["temperature"], 100 * nearest["truth"], f"T = {nearest['temperature']:g}")],
    )


def distribution(diagnosis: Diagnosis, key: str, title: str, axis: str, note: str) -> Chart | None:
    """A histogram over 0 … 1 of each set's rows."""
    series = [
        Series(name, [steps(reading[key]["histogram"])], colour, dashed=name.startswith("student"))
        for name, colour, reading in sets(diagnosis)
        if reading[key]
    ]
    return line_chart(title, series, note=note, x=percent_axis(axis), y_range=(0,), unit=" %", steps=True)


def steps(histogram: Sequence[float]) -> list[Point]:
    """A histogram in per cent, as steps: each bar's value at its left end, the last one's at both."""
    values = [*histogram, histogram[-1]]
    return [(100 * n / len(histogram), 100 * value) for n, value in enumerate(values)]


def rescaled(rescaling: dict[str, Any]) -> Chart | None:
    """ω against the teacher's confidence."""
    bins, rank, measured = rescaling["bins"], rescaling["rank_correlation"], rescaling["measured"]
    series = [Series("median", [[(100 * b["p"], b["median"]) for b in bins]], "c1", marks=True)]
    for label, key in (("lower quartile", "low"), ("upper quartile", "high")) if measured else ():
        series.append(Series(label, [[(100 * b["p"], b[key]) for b in bins]], "c4", dashed=True))
    whose = "this student" if measured else "a student that knows nothing yet"
    note = f"KD’s gradient at the true class is the label’s times ω; for {whose}, λ = {rescaling['weight']:g}."
    if rank is not None and measured:
        note += f" Rank correlation with p: {signed(rank)}."
    title = "Gradient rescaling by the teacher’s confidence"
    return line_chart(title, series, note=note, x=percent_axis("p of the true class"))


def reliability(diagnosis: Diagnosis) -> Chart | None:
    series = [Series("calibrated", [[(0, 0), (100, 100)]], "c4", dashed=True)]
    for name, colour, reading in sets(diagnosis):
        bins = [b for b in reading["reliability"] if b["share"] >= 0.002]
        if bins:
            points = [(100 * b["confidence"], 100 * b["accuracy"]) for b in bins]
            series.append(Series(name, [points], colour, marks=True))
    if len(series) == 1:
        return None
    note = "Above the diagonal: right more often than sure."
    return line_chart("Reliability", series, note=note, x=percent_axis("confidence"), y_range=(0, 100), unit=" %")


def top_mass(diagnosis: Diagnosis) -> Chart | None:
    """Mass of the k largest probabilities."""
    series = []
    for name, colour, reading in sets(diagnosis):
        points = [(float(k), min(100.0, 100 * mass)) for k, mass in reading["top"].items()]
        series.append(Series(name, [points], colour, marks=True))
    largest = max(k for line in series for k, _ in line.segments[0])
    if largest < 3:
        return None
    axis = Axis("k", (1.0, largest), log=True, ticks={float(k): str(k) for k in (1, 2, 5, 10, 25, 100) if k <= largest})
    note = "What target topk keeps, and a cache stores, at T = 1."
    return line_chart("Mass of the k largest", series, note=note, x=axis, y_range=(100,), unit=" %")


def maps(diagnosis: Diagnosis) -> list[Chart]:
    """Similarities of classes, all on one scale: from the 2nd to the 98th percentile of what is off the diagonals."""
    relations = diagnosis["relations"]
    spread = (key for key in TITLES if relations[key] and relations[key]["spread"])  # else all classes are alike
    matrices = {key: relations[key]["values"] for key in spread}
    if not matrices:
        return []
    names, groups = relations["names"], relations["superclasses"]
    others = sorted(v for m in matrices.values() for i, row in enumerate(m) for j, v in enumerate(row) if i != j)
    low, high = (others[round(part * (len(others) - 1))] for part in (0.02, 0.98))
    between = [n for n in range(1, len(names)) if groups and groups[n] != groups[n - 1]]
    drawn = []
    for key, matrix in matrices.items():
        pairs = sorted(((matrix[i][j], i, j) for i in range(len(names)) for j in range(i)), reverse=True)[:PAIRS]
        alike = "; ".join(f"{names[j]} and {names[i]}, {signed(value)}" for value, i, j in pairs)
        cells = [[None if i == j else v for j, v in enumerate(row)] for i, row in enumerate(matrix)]
        texts = [["" if v is None else hundredths(v) for v in row] for row in cells]
        drawn.append(
            heatmap(
                TITLES[key],
                cells,
                names,
                bounds=(low, high),
                called=("class", "and", "cosine"),
                note=f"From {signed(low)} (faint) to {signed(high)} (strong). Most alike: {alike}.",
                between=between,
                texts=texts if len(names) <= MOST_WRITTEN else None,
            )
        )
    return drawn


def signed(value: float) -> str:
    return f"{value:.2f}".replace("-", words.MINUS)


def hundredths(value: float) -> str:
    """A number within ±1 without its leading zero, as there is little room in a cell: ``−.24``."""
    return signed(value).replace("0.", ".")
