"""How large and how fast networks are, as rows of a table: those of a run and those of an export."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .. import words
from .read import is_number, numbers, records

ROLES = {
    "teacher": "teacher",
    "before": "student before",
    "student": "student",
    "float": "the file in floating point",
    "onnx": "ONNX",
    "onnx-int8": "int8 ONNX",
    "litert": "LiteRT",
}
COLUMNS = ("parameters", "MACs", "bytes", "one image", "a batch")


@dataclass(frozen=True)
class SpeedTable:
    """Networks with their cells, what is to be known of these, and the columns' names."""

    rows: list[tuple[dict[str, Any], list[tuple[str, str]]]]
    note: str
    columns: tuple[str, ...] = COLUMNS
    roles: Mapping[str, str] = field(default_factory=lambda: ROLES)


def speed_table(networks: list[dict[str, Any]], threads: Any, device: str = "") -> SpeedTable | None:
    """None without networks."""
    if not networks:
        return None
    first = str(networks[0].get("role", ""))
    where = f"on {words.plural(threads, 'thread')}" if is_number(threads) else "on the machine that measured"
    note = (
        f"Per cents are of the {ROLES.get(first, first)}’s. Bytes are those on disk. Times are of one image and of a "
        f"batch of 64 (a smaller one where that would take long), {device or where}: the median of turns that the "
        "networks had one after the other, and ± half of what lies between the quartiles."
    )
    return SpeedTable([(network, size_and_speed(network, networks[0])) for network in networks], note)


def size_and_speed(network: dict[str, Any], first: dict[str, Any]) -> list[tuple[str, str]]:
    """What each of `COLUMNS` says of a network, and its share of the first network's."""
    sizes, of = numbers(network), {} if network is first else numbers(first)
    cells = []
    for key, say in (("params", words.size), ("macs", words.size), ("bytes", words.bytes_size)):
        share = words.rough_share(sizes[key] / of[key]) if key in sizes and of.get(key) else ""
        cells.append((say(sizes[key]) if key in sizes else "—", share))
    speed = [numbers(record) for record in records(network.get("speed"))]
    cells += [_time(record, network is first) for record in speed[:2] if {"milliseconds", "batch"} <= record.keys()]
    if not speed and is_number(latency := network.get("latency")):  # of an export by an earlier version
        return [*cells, ("—", ""), (milliseconds(1000 * latency), "an image")]
    return [*cells, *[("—", "")] * (len(COLUMNS) - len(cells))]


def _time(record: dict[str, float], alone: bool) -> tuple[str, str]:
    text = f"{milliseconds(record['milliseconds'])} ± {record.get('spread', 0) / 2:.2g}"
    notes = [] if record["batch"] in (1, 64) else [f"{record['batch']:.0f} images"]
    if not alone and "ratio" in record:
        notes.append(words.rough_share(record["ratio"]))
    return text, ", ".join(notes)


def milliseconds(value: float) -> str:
    return f"{value:.3g}{words.NBSP}ms" if value < 1000 else f"{value:,.0f}{words.NBSP}ms"
