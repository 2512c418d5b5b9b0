"""The house in one picture: rooms, and which imports which. Run as `make house`, it draws `docs/house.svg`."""

from __future__ import annotations

import ast
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "protege"
FLOORS = [  # from the street down to the cellar: a room imports only rooms on floors below it
    {"commands": "one file a command; alone knows flags"},
    {"compression": "a budget in, a file for a device out"},
    {"run": "from settings to a folder; one file a verb"},
    {"diagnosis": "reading a teacher", "report": "a folder as one HTML file"},
    {"methods": "one file a method: a plan of phases"},
    {"training": "phases, the one loop, checkpoints"},
    {"signals": "a teacher's outputs, computed or kept"},
    {"tasks": "rows, loss, metrics, pictures"},
    {"losses": "functions for anybody's loop"},
    {"models": "networks and how they want their input"},
    {"data": "sets by name, views, batches", "surgery": "exact changes to networks"},
]
WIDTH, HEIGHT, GAP, STEP = 330, 56, 40, 92
STYLE = """
svg { font-family: system-ui, sans-serif; background: #fff }
rect { fill: #f4f6fa; stroke: #64748b } .name { font-weight: 600; font-size: 16px; fill: #0f172a }
.what { font-size: 12.5px; fill: #475569 } path { stroke: #94a3b8; fill: none; stroke-width: 1.5 }
marker path { fill: #94a3b8; stroke: none }
@media (prefers-color-scheme: dark) {
  svg { background: #0f172a } rect { fill: #1e293b } .name { fill: #f1f5f9 } .what { fill: #cbd5e1 }
}
"""


def imports(room: str) -> dict[str, list[str]]:
    """The rooms that a room imports, each with the files that do so."""
    entered: dict[str, list[str]] = {}
    for path in sorted((SOURCE / room).rglob("*.py")):
        package = ("protege", *path.relative_to(SOURCE).parts[:-1])
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                base = package[: len(package) - node.level + 1] if node.level else ()
                parts = [*base, *(node.module or "").split(".")]
                names = parts[1:2] if len(parts) > 1 and parts[1] else [alias.name for alias in node.names]
                for other in names if parts[0] == "protege" else ():
                    if other in floor_of and other != room:
                        entered.setdefault(other, []).append(str(path.relative_to(SOURCE)))
    return entered


floor_of = {room: number for number, floor in enumerate(FLOORS) for room in floor}


def upwards() -> list[str]:
    """The imports that go up or sideways, as ``file imports room``."""
    wrong = []
    for room in floor_of:
        for other, files in imports(room).items():
            if floor_of[other] <= floor_of[room]:
                wrong += [f"{file} imports {other}" for file in sorted({*files})]
    return wrong


def arrows() -> list[tuple[str, str]]:
    """Which room imports which, but for what follows from other arrows."""
    direct = {room: {other for other in imports(room) if floor_of[other] > floor_of[room]} for room in floor_of}
    below: dict[str, set[str]] = {}
    for room in sorted(floor_of, key=floor_of.__getitem__, reverse=True):
        below[room] = direct[room].union(*(below[other] for other in direct[room]))
    return [
        (room, other)
        for room in floor_of
        for other in sorted(direct[room])
        if not any(other in below[between] for between in direct[room] - {other})
    ]


def picture() -> str:
    """The SVG."""
    width = 2 * WIDTH + 3 * GAP
    corners = {}
    for number, floor in enumerate(FLOORS):
        left = (width - len(floor) * WIDTH - (len(floor) - 1) * GAP) / 2
        for place, room in enumerate(floor):
            corners[room] = (left + place * (WIDTH + GAP), 20 + number * STEP)
    shapes = []
    for room, other in arrows():
        (x, y), (to_x, to_y) = corners[room], corners[other]
        x, y, to_x, to_y = x + WIDTH / 2, y + HEIGHT, to_x + WIDTH / 2, to_y - 4
        middle = (y + to_y) / 2
        curve = f"M{x:g},{y:g} C{x:g},{middle:g} {to_x:g},{middle:g} {to_x:g},{to_y:g}"
        shapes.append(f'<path d="{curve}" marker-end="url(#head)"/>')
    for floor in FLOORS:
        for room, what in floor.items():
            x, y = corners[room]
            shapes.append(
                f'<rect x="{x:g}" y="{y:g}" width="{WIDTH}" height="{HEIGHT}" rx="8"/>'
                f'<text class="name" x="{x + 14:g}" y="{y + 23:g}">{room}/</text>'
                f'<text class="what" x="{x + 14:g}" y="{y + 43:g}">{what}</text>'
            )
    height = 20 + len(FLOORS) * STEP
    head = '<marker id="head" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="The rooms of protege and which imports which"><style>{STYLE}</style>'
        f'<defs>{head}<path d="M0,0 L8,4 L0,8 z"/></marker></defs>{"".join(shapes)}</svg>\n'
    )


if __name__ == "__main__":
    for line in upwards():
        print(line)
    (SOURCE.parents[1] / "docs" / "house.svg").write_text(picture(), encoding="utf-8")
