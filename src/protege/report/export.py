"""An export's report: teacher, student before and after, and exported file beside each other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from .. import words
from .page import write_page
from .read import numbers, read_json, records, table

ROLES = {"teacher": "teacher", "before": "student before", "student": "student"}
COLUMNS: dict[str, Callable[[float], str]] = {
    "params": words.size,
    "macs": words.size,
    "bytes": words.bytes_size,
    "latency": lambda seconds: f"{1000 * seconds:.3g}{words.NBSP}ms",
}


def write_export_report(folder: Path) -> Path:
    """Write ``folder/report.html`` from the export.json there and return its path.

    Raises UserError when that is damaged, or the page cannot be written.
    """
    export = read_json(Path(folder) / "export.json")
    networks = records(export.get("networks"))
    metric = words.primary_metric([name for network in networks for name in numbers(network.get("metrics"))])
    return write_page(
        Path(folder),
        "export.html",
        title=f"{export.get('to', 'export')} · protege export",
        headline=headline(export, networks, metric),
        metric=metric,
        networks=networks,
        roles=ROLES,
        cells=[cells(network, networks[0]) for network in networks],
        notes=notes(export),
    )


def cells(network: dict[str, Any], first: dict[str, Any]) -> list[tuple[str, str]]:
    """Sizes and times of one network, with their share of the first network's."""
    sizes, of = numbers(network), {} if network is first else numbers(first)
    return [
        (say(sizes[key]), words.rough_share(sizes[key] / of[key]) if of.get(key) else "") if key in sizes else ("—", "")
        for key, say in COLUMNS.items()
    ]


def headline(export: dict[str, Any], networks: list[dict[str, Any]], metric: str) -> str:
    """What the exported file is, how large, and what it costs in accuracy."""
    kind, size = str(export.get("to", "")), numbers(networks[-1]).get("bytes") if networks else None
    text = f"The student as {'ONNX' if kind == 'onnx' else kind}" + (f" is {words.bytes_size(size)}" if size else "")
    measured = [values[metric] for network in networks[-2:] if metric in (values := numbers(network.get("metrics")))]
    if len(measured) == 2:
        before, after = measured
        changed = f"{words.difference(metric, after - before)} against" if after != before else "the same as"
        text += f" and reaches {words.metric_value(metric, after)} {words.metric_name(metric)}"
        text += f", {changed} the float student"
    return text + "."


def notes(export: dict[str, Any]) -> list[tuple[str, str]]:
    """What else is worth knowing of the file."""
    facts = [("file", str(export.get("file", "")))]
    shape, known = table(export.get("input")).get("shape"), numbers(export)
    if isinstance(shape, list):
        facts.append(("input", "uint8 " + "×".join(map(str, shape))))
    if "difference" in known:
        facts.append(("largest difference of outputs", words.rough_share(known["difference"]) + " of the largest"))
    if "samples" in known:
        facts.append(("calibrated on", words.plural(known["samples"], "image")))
    if export.get("to") == "int8":
        compiled = numbers(export.get("latency")).get("compiled") is not None
        loaded = "as it loads, in floating point; compiled=True times int8 kernels"
        facts.append(("timed", "compiled; the networks before it are not" if compiled else loaded))
    return facts
