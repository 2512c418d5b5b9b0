"""Segmentation in a run's report: scenes as truth, teacher and student see them, and how well each class is found."""

from __future__ import annotations

import base64
import colorsys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError
from . import words
from .read import Run, is_number, read_json, table

PICTURES, INDEX = "pictures", "index.json"

Colour = tuple[int, int, int]

NO_LABEL: Colour = (28, 30, 36)
TONES: dict[str, Colour] = {"student": (31, 111, 178), "teacher": (226, 120, 30), "wrong": (140, 25, 85)}
"""Colours of the picture of differences: only the student is right, only the teacher, nobody (or a lone student)."""

FIRST = "8cc3ee b26242 f6cc46 746e80 e098c0 3e8e4a d62832 9c883e 304ac4 fa7a22 00a8a2 843ea4"
KINDS = {".png": "image/png", ".jpg": "image/jpeg"}
CAPTIONS = ("image", "truth", "teacher", "student", "difference")
GOLDEN = 0.6180339887498949


@dataclass(frozen=True)
class Swatch:
    name: str
    colour: str


@dataclass(frozen=True)
class Picture:
    """A picture as a data URI, and what stands below it."""

    name: str
    source: str
    caption: str


@dataclass(frozen=True)
class ClassRow:
    """A class with its share of the pixels, and (network, text, per cent of the room) of each network's IoU."""

    name: str
    colour: str
    share: str
    bars: list[tuple[str, str, str]]


@dataclass(frozen=True)
class Segmentation:
    """What a segmentation run shows beside the figures of all runs."""

    scenes: list[list[Picture]]
    classes: list[Swatch]
    tones: list[Swatch]
    columns: list[str]
    rows: list[ClassRow]


def palette(classes: int) -> list[Colour]:
    """A colour for each class: twelve chosen ones, then hues a golden section apart."""
    colours: list[Colour] = [(code[0], code[1], code[2]) for code in map(bytes.fromhex, FIRST.split())][:classes]
    for n in range(len(colours), classes):
        red, green, blue = colorsys.hsv_to_rgb((n * GOLDEN + 0.8) % 1, (0.9, 0.5)[n % 2], (0.45, 0.8, 1.0)[n % 3])
        colours.append((round(255 * red), round(255 * green), round(255 * blue)))
    return colours


def hexadecimal(colour: Colour) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)


def segmentation(run: Run) -> Segmentation | None:
    """The section of a segmentation run; None where neither pictures nor IoUs are there."""
    names = run.result.get("classes")
    names = list(map(str, names)) if isinstance(names, list) else []
    classes = [Swatch(name, hexadecimal(c)) for name, c in zip(names, palette(len(names)), strict=True)]
    scenes, overlaps = read_scenes(run.folder / PICTURES), {role: overlap(run, role) for role in ("teacher", "student")}
    columns = [role for role, values in overlaps.items() if values]
    rows = class_rows(run, classes, {role: overlaps[role] for role in columns if len(overlaps[role]) == len(names)})
    if not scenes and not rows:
        return None
    tones = {"wrong": "the student is wrong"}
    if any(picture.name == "teacher" for scene in scenes for picture in scene):
        tones = {
            "student": "only the student is right",
            "teacher": "only the teacher is right",
            "wrong": "both are wrong",
        }
    return Segmentation(
        scenes,
        [*classes, Swatch("no label", hexadecimal(NO_LABEL))],
        [Swatch(text, hexadecimal(TONES[tone])) for tone, text in tones.items()],
        columns,
        rows,
    )


def read_scenes(folder: Path) -> list[list[Picture]]:
    """The pictures of each scene; what is damaged or gone is left out."""
    try:
        scenes = read_json(folder / INDEX).get("scenes")
    except UserError:
        return []
    return [pictures for scene in scenes if (pictures := read_scene(folder, scene))] if isinstance(scenes, list) else []


def read_scene(folder: Path, scene: Any) -> list[Picture]:
    files, right = (table(table(scene).get(key)) for key in ("files", "right"))
    pictures = []
    for name in CAPTIONS:
        path = folder / Path(str(files.get(name, ""))).name
        if path.suffix in KINDS and path.is_file():
            share = right.get(name)
            source = f"data:{KINDS[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}"
            caption = f"{name}, {words.share(share, 0)} right" if is_number(share) else name
            pictures.append(Picture(name, source, caption))
    return pictures


def overlap(run: Run, role: str) -> list[Any]:
    value = run.part(role).get("per_class_iou")
    return value if isinstance(value, list) and any(map(is_number, value)) else []


def class_rows(run: Run, classes: list[Swatch], overlaps: dict[str, list[Any]]) -> list[ClassRow]:
    if "student" not in overlaps:
        return []
    counts = pixels(run, len(classes))
    total = sum(counts) or 1
    rows = []
    for n, swatch in enumerate(classes):
        bars = []
        for role, values in overlaps.items():
            value = values[n] if is_number(values[n]) else None
            width = 100 * min(1.0, max(0.0, value or 0.0))
            bars.append((role, "—" if value is None else words.share(value), f"{width:.2f}"))
        share = words.rough_share(counts[n] / total) if counts else ""
        rows.append(ClassRow(swatch.name, swatch.colour, share, bars))
    return rows


def pixels(run: Run, classes: int) -> list[float]:
    """How many test pixels each class has, from the confusion matrix where there is one."""
    matrix = run.part("student").get("confusion")
    if not isinstance(matrix, list) or len(matrix) != classes:
        return []
    if not all(isinstance(row, list) and all(map(is_number, row)) for row in matrix):
        return []
    return [float(sum(row)) for row in matrix]
