"""An export's report: teacher, student before and after, and exported file beside each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .. import words
from .page import write_page
from .read import numbers, read_json, records, table
from .speed import ROLES, speed_table


def write_export_report(folder: Path) -> Path:
    """Write ``folder/report.html`` from the export.json there and return its path.

    Raises UserError when that is damaged, or the page cannot be written.
    """
    export = read_json(Path(folder) / "export.json")
    networks = records(export.get("networks"))
    measured = [name for network in networks for name in numbers(network.get("metrics"))]
    metric = words.primary_metric(measured) if measured else ""
    return write_page(
        Path(folder),
        "export.html",
        title=f"{export.get('to', 'export')} · protege export",
        headline=headline(export, networks, metric),
        metric=metric,
        speed=speed_table(networks, export.get("threads")),
        notes=notes(export),
    )


def headline(export: dict[str, Any], networks: list[dict[str, Any]], metric: str) -> str:
    """What the exported file is, how large, and what it costs in accuracy."""
    kind, size = str(export.get("to", "")), numbers(networks[-1]).get("bytes") if networks else None
    text = f"The student as {ROLES.get(kind, kind)}" + (f" is {words.bytes_size(size)}" if size else "")
    metrics = table(export.get("metrics"))
    before, after = (numbers(metrics.get(which)).get(metric) for which in ("float", "exported"))
    near = numbers(export.get("compared"))
    if before is not None and after is not None:
        changed = f"{words.difference(metric, after - before)} against" if after != before else "the same as"
        text += f" and reaches {words.metric_value(metric, after)} {words.metric_name(metric)}"
        text += f", {changed} the float student"
    elif near.get("images"):
        text += f" and decides as the float student on {words.share(near['agreement'])} of "
        text += words.plural(near["images"], "image")
    return text + "."


def notes(export: dict[str, Any]) -> list[tuple[str, str]]:
    """What else is worth knowing of the file."""
    kind, facts = str(export.get("to", "")), [("file", str(export.get("file", "")))]
    shape, known = table(export.get("input")).get("shape"), numbers(export)
    if isinstance(shape, list):
        facts.append(("input", "uint8 " + "×".join(map(str, shape))))
    classes = export.get("classes")
    if isinstance(classes, list) and classes:
        named = ", ".join(map(str, classes[:3])) + (" …" if len(classes) > 3 else "")
        facts.append(("classes, named in the file" if kind.startswith("onnx") else "classes", named))
    if "difference" in known:
        facts.append(("largest difference of outputs", words.rough_share(known["difference"]) + " of the largest"))
    if "samples" in known:
        facts.append(("calibrated on", words.plural(known["samples"], "image")))
    if "images" in (near := numbers(export.get("compared"))):
        unseen = "" if table(export.get("compared")).get("unseen") else " that it was calibrated on"
        facts.append(("compared on", words.plural(near["images"], "image") + unseen))
        facts.append(("the same decisions on", words.share(near.get("agreement", 0.0))))
        facts.append(("error of its outputs", words.rough_share(near.get("error", 0.0)) + " of their spread"))
    if isinstance(floats := export.get("float_layers"), list):
        facts.append(("layers left in floating point", ", ".join(map(str, floats)) or "none"))
    if kind == "int8":
        compiled = numbers(export.get("latency")).get("compiled") is not None
        loaded = "as it loads, in floating point; compiled=True times int8 kernels"
        facts.append(("timed", "compiled; the networks before it are not" if compiled else loaded))
    return facts
