"""An export's report: teacher, student before and after, and exported file beside each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from . import words
from .page import write_page
from .read import is_number, numbers, read_json

ROLES = {"teacher": "teacher", "before": "student before", "student": "student"}


def write_export_report(folder: Path) -> Path:
    """Write ``folder/report.html`` from the export.json there and return its path.

    Raises UserError when that is damaged, or the page cannot be written.
    """
    folder = Path(folder)
    export = read_json(folder / "export.json")
    found = export.get("networks")
    networks = [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []
    metric = words.primary_metric([name for one in networks for name in numbers(one.get("metrics"))])
    return write_page(
        folder,
        "export.html",
        title=f"{export.get('to', 'export')} · protege export",
        headline=headline(export, networks, metric),
        metric=words.metric_name(metric),
        rows=[row(one, networks, metric) for one in networks],
        notes=notes(export),
    )


def row(network: dict[str, Any], networks: list[dict[str, Any]], metric: str) -> dict[str, Any]:
    """Cells of one network; sizes and times with their share of the first network's."""
    first = networks[0]

    def cell(key: str, say: Any) -> tuple[str, str]:
        value, reference = network.get(key), first.get(key)
        if not is_number(value):
            return "—", ""
        if network is first or not is_number(reference) or reference <= 0:
            return say(value), ""
        return say(value), words.rough_share(value / reference)

    role = str(network.get("role", ""))
    return {
        "role": ROLES.get(role, role),
        "spec": str(network.get("spec") or ""),
        "cells": [
            cell("params", words.size),
            cell("macs", words.size),
            cell("bytes", words.bytes_size),
            cell("latency", lambda seconds: f"{1000 * seconds:.3g}{words.NBSP}ms"),
        ],
        "metric": words.metric_value(metric, numbers(network.get("metrics")).get(metric)),
    }


def headline(export: dict[str, Any], networks: list[dict[str, Any]], metric: str) -> str:
    """What the exported file is, how large, and what it costs in accuracy."""
    last = numbers(networks[-1]) if networks else {}
    kind = str(export.get("to", ""))
    text = f"The student as {'ONNX' if kind == 'onnx' else kind}"
    text += f" is {words.bytes_size(last['bytes'])}" if "bytes" in last else ""
    of_both = [numbers(one.get("metrics")).get(metric) for one in networks[-2:]]
    if len(of_both) == 2 and of_both[0] is not None and of_both[1] is not None:
        delta = of_both[1] - of_both[0]
        changed = f"{words.difference(metric, delta)} against" if delta else "the same as"
        text += f" and reaches {words.metric_value(metric, of_both[1])} {words.metric_name(metric)}"
        text += f", {changed} the float student"
    return text + "."


def notes(export: dict[str, Any]) -> list[tuple[str, str]]:
    """What else is worth knowing of the file."""
    found = [("file", str(export.get("file", "")))]
    shape = export.get("input", {}).get("shape") if isinstance(export.get("input"), dict) else None
    if isinstance(shape, list):
        found.append(("input", "uint8 " + "×".join(map(str, shape))))
    if is_number(export.get("difference")):
        found.append(("largest difference of outputs", words.rough_share(export["difference"]) + " of the largest"))
    if is_number(export.get("samples")):
        found.append(("calibrated on", words.plural(export["samples"], "image")))
    if export.get("to") == "int8":
        compiled = numbers(export.get("latency")).get("compiled") is not None
        loaded = "as it loads, in floating point; compiled=True times int8 kernels"
        found.append(("timed", "compiled; the networks before it are not" if compiled else loaded))
    return found
