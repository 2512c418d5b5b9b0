"""A diagnosis as a page: the verdict first, what to do, then the pictures that it rests on (`readings`)."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import words
from .page import Card, write_page
from .read import read_json
from .readings import TITLES, charts, maps, signed

TONES = {"healthy": "better", "at risk": "risk", "failing": "worse", "cannot tell": "unclear"}
SETTINGS = {
    "target": "target {}",
    "temperature": "T\u00a0=\u00a0{:g}",
    "k": "k\u00a0=\u00a0{}",
    "weight": "λ\u00a0=\u00a0{:g}",
}


def write_diagnosis_report(folder: Path) -> Path:
    """Write ``folder/report.html`` from ``diagnosis.json`` and return its path. Raises UserError where it cannot."""
    diagnosis = read_json(Path(folder) / "diagnosis.json")
    return write_page(
        Path(folder),
        "diagnosis.html",
        title=f"{diagnosis['data']['name']} · protege diagnosis",
        headline=headline(diagnosis),
        diagnosis=diagnosis,
        tones=TONES,
        command=command(diagnosis),
        cards=[card(diagnosis, role) for role in ("teacher", "student") if diagnosis[role]],
        charts=charts(diagnosis),
        maps=maps(diagnosis),
        related=related(diagnosis["relations"]),
    )


def headline(diagnosis: dict[str, Any]) -> str:
    """One sentence: what stands in the way, and what is recommended."""
    titles = {status: [v["title"] for v in diagnosis["verdicts"] if v["status"] == status] for status in TONES}
    if titles["failing"]:
        start = f"This teacher will not teach well: {listed(titles['failing'])}."
    elif titles["at risk"]:
        start = f"This teacher can teach, with care: {listed(titles['at risk'])}."
    elif titles["healthy"]:
        start = "Nothing found stands in the way of this teacher."
    else:
        start = "There was too little to go by."
    settings = diagnosis["recommendation"]["settings"]
    advised = ", ".join(text.format(settings[key]) for key, text in SETTINGS.items() if key in settings)
    return f"{start} Recommended: {diagnosis['recommendation']['method']}{' with ' if advised else ''}{advised}."


def listed(titles: Sequence[str]) -> str:
    *first, last = [title[:1].lower() + title[1:] for title in titles]
    return f"{', '.join(first)} and {last}" if first else last


def command(diagnosis: dict[str, Any]) -> str:
    """The recommended distillation as a command line, with placeholders for what only the user knows."""
    specs = {role: (diagnosis[role] or {}).get("spec") for role in ("teacher", "student")}
    options = {
        role: shlex.quote(spec) if spec and (":" in spec or Path(spec).exists()) else role.upper()
        for role, spec in specs.items()
    }
    options |= {"data": shlex.quote(diagnosis["data"]["name"]), "method": diagnosis["recommendation"]["method"]}
    options |= diagnosis["recommendation"]["settings"]
    settings = diagnosis["settings"]
    options |= {key: settings[key] for key in ("fraction", "samples", "image_size", "seed") if settings.get(key)}
    given = (f"--{key.replace('_', '-')} {words.short(value)}" for key, value in options.items())
    return f"protege distill {' '.join(given)} --out DIR"


def card(diagnosis: dict[str, Any], role: str) -> Card:
    network = diagnosis[role]
    reading = network["test"] or network["transfer"]
    where = "on unseen samples" if network["test"] else "on the transfer set"
    facts = [
        ("on the transfer set", words.metric_value("accuracy", network["transfer"]["accuracy"])),
        ("mean confidence", words.metric_value("accuracy", reading["confidence"])),
        ("guess to beat", words.metric_value("accuracy", (reading["chance"] or {}).get("accuracy"))),
        ("NLL", words.metric_value("nll", reading["nll"])),
        ("ECE", words.metric_value("ece", reading["ece"])),
        ("parameters", words.size(network["params"])),
        ("MACs", words.size(network["macs"])),
    ]
    title = "Teacher" if role == "teacher" else "Student as it is" + ("" if network["trained"] else ", not trained")
    metric, value = "accuracy", reading["accuracy"]
    if diagnosis["task"] == "language" and value is not None:
        facts.insert(0, (f"accuracy {where}", words.metric_value("accuracy", value)))
        metric, value = "perplexity", math.exp(min(reading["nll"], 700.0))
    shown = words.metric_value(metric, value)
    return Card("teacher" if role == "teacher" else "after", title, network["spec"], f"{metric} {where}", shown, facts)


def related(relations: dict[str, Any]) -> list[tuple[str, str]]:
    """Summaries of the maps."""
    facts = []
    for key, title in TITLES.items():
        for name, label in (("spread", "spread"), ("within_minus_between", "within minus between superclasses")):
            facts.append((f"{title}: {label}", (relations[key] or {}).get(name)))
    facts += [(f"correlation of {pair}", value) for pair, value in relations["agreement"].items()]
    return [(label, signed(value)) for label, value in facts if value is not None]
