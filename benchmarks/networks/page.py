"""docs/networks.md, from the results."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ABILITIES = ("kd", "skd", "shrink", "fskd", "gpd", "onnx", "int8")
VERDICTS = ("works", "partly", "refused", "broken", "no end", "not tried")
Cells = dict[tuple[str, str], dict[str, Any]]

HEAD = Path(__file__).with_name("head.md").read_text(encoding="utf-8")


def read(path: Path) -> list[dict[str, Any]]:
    """The cells of a file of results, in order; a line that was not finished is none."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return [row for row in rows if "ability" in row]


def last(path: Path) -> Cells:
    return {(cell["network"], cell["ability"]): cell for cell in read(path)}


def write(page: Path, results: Path, names: Sequence[str]) -> None:
    before, now = last(results / "before.jsonl"), last(results / "now.jsonl")
    parts = [HEAD]
    for title, cells, path in (("Before", before, "before.jsonl"), ("Now", now, "now.jsonl")):
        if cells:
            parts.append(f"\n{title} ({_place(results / path)}):\n\n{_totals(cells, names)}")
    shown = "An arrow shows what has changed, brackets what has not been tried again since."
    parts.append(f"\n## Network by network\n\n{shown}\n\n{_table(before, now, names)}")
    parts.append(f"\n## Why not\n\n{_reasons(now, names)}")
    page.write_text("".join(parts), encoding="utf-8")


def _place(path: Path) -> str:
    heads = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if '"machine"' in line]
    used = {cell["commit"] for cell in last(path).values()}
    heads = [head for head in heads if head["commit"] in used] or heads
    spans = [list(dict.fromkeys(head[key] for head in heads)) for key in ("commit", "date")]
    commits, dates = (" to ".join(dict.fromkeys((span[0], span[-1]))) for span in spans)
    versions = ", ".join(f"{name} {number}" for name, number in heads[-1]["versions"].items())
    limit = f"at most {max(head['limit'] for head in heads):.0f} s a cell"
    return f"commit {commits}, {dates}, {heads[-1]['machine']}, {limit}; {versions}"


def _totals(cells: Cells, names: Sequence[str]) -> str:
    lines = [f"| ability | {' | '.join(VERDICTS)} | of | works |", "|---|" + "---:|" * (len(VERDICTS) + 2)]
    for ability in ABILITIES:
        counts = Counter(cells[name, ability]["verdict"] for name in names if (name, ability) in cells)
        if count := sum(counts.values()):
            shown = " | ".join(str(counts[verdict] or "") for verdict in VERDICTS)
            lines.append(f"| {ability} | {shown} | {count} | {counts['works'] / count:.0%} |")
    return "\n".join(lines) + "\n"


def _table(before: Cells, now: Cells, names: Sequence[str]) -> str:
    lines = [f"| network | {' | '.join(ABILITIES)} |", "|---|" + "---|" * len(ABILITIES)]
    for name in names:
        shown = []
        for ability in ABILITIES:
            old, new = (cells.get((name, ability), {}).get("verdict", "") for cells in (before, now))
            shown.append(f"{old} → {new}" if old and new and old != new else new or (f"({old})" if old else ""))
        if any(shown):
            lines.append(f"| {name} | {' | '.join(shown)} |")
    return "\n".join(lines) + "\n"


def _reasons(now: Cells, names: Sequence[str]) -> str:
    lines = []
    for name in names:
        for ability in ABILITIES:
            cell = now.get((name, ability), {"verdict": "works"})
            if cell["verdict"] not in ("works", "not tried"):
                note = cell["note"].replace("|", "\\|").replace("<", "\\<")
                lines.append(f"- {name}, {ability}: {cell['verdict']}: {note}")
    return "\n".join(lines) + "\n" if lines else "Everything works.\n"
