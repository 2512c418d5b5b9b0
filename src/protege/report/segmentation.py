"""Segmentation in a run's report: scenes as truth, teacher and student see them, and how well each class is found."""

from __future__ import annotations

import base64
import colorsys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError
from . import words
from .read import Run, is_number, read_json

PICTURES, INDEX = "pictures", "index.json"

Colour = tuple[int, int, int]

NO_LABEL: Colour = (28, 30, 36)
TONES: dict[str, Colour] = {"student": (31, 111, 178), "teacher": (226, 120, 30), "wrong": (140, 25, 85)}
"""Colours of the picture of differences: only the student is right, only the teacher, nobody (or a lone student)."""

_FIRST: tuple[Colour, ...] = (
    (140, 195, 238),
    (178, 98, 66),
    (246, 204, 70),
    (116, 110, 128),
    (224, 152, 192),
    (62, 142, 74),
    (214, 40, 50),
    (156, 136, 62),
    (48, 74, 196),
    (250, 122, 34),
    (0, 168, 162),
    (132, 62, 164),
)
_CAPTIONS = {"image": "image", "truth": "truth", "teacher": "teacher", "student": "student", "difference": "difference"}
_GOLDEN = 0.6180339887498949


@dataclass(frozen=True)
class Picture:
    """A picture as a data URI, and what stands below it."""

    name: str
    source: str
    caption: str


@dataclass(frozen=True)
class Swatch:
    name: str
    colour: str


@dataclass(frozen=True)
class ClassRow:
    """A class with its share of the pixels, and (text, per cent of the room) of each network's IoU."""

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
    colours = list(_FIRST[:classes])
    for n in range(len(colours), classes):
        red, green, blue = colorsys.hsv_to_rgb((n * _GOLDEN + 0.8) % 1, (0.9, 0.5)[n % 2], (0.45, 0.8, 1.0)[n % 3])
        colours.append((round(255 * red), round(255 * green), round(255 * blue)))
    return colours


def hexadecimal(colour: Colour) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)


def segmentation(run: Run) -> Segmentation | None:
    """The section of a segmentation run; None for other runs, and where neither pictures nor IoUs are there."""
    if not run.setting("task").startswith("segment"):
        return None
    scenes, rows = _scenes(run.folder / PICTURES), _rows(run)
    if not scenes and not rows:
        return None
    teacher = any(picture.name == "teacher" for scene in scenes for picture in scene)
    named = {"student": "only the student is right", "teacher": "only the teacher is right", "wrong": "both are wrong"}
    named = named if teacher else {"wrong": "the student is wrong"}
    tones = [Swatch(text, hexadecimal(TONES[tone])) for tone, text in named.items()]
    names = _names(run)
    classes = [Swatch(n, hexadecimal(c)) for n, c in zip(names, palette(len(names)), strict=True)]
    no_label = Swatch("no label", hexadecimal(NO_LABEL))
    columns = [role for role in ("teacher", "student") if _overlaps(run, role)]
    return Segmentation(scenes, [*classes, no_label] if scenes else [], tones if scenes else [], columns, rows)


def _names(run: Run) -> list[str]:
    names = run.result.get("classes")
    return [str(name) for name in names] if isinstance(names, list) else []


def _scenes(folder: Path) -> list[list[Picture]]:
    """The pictures of each scene; what is damaged or gone is left out."""
    try:
        scenes = read_json(folder / INDEX).get("scenes")
    except UserError:
        return []
    found = []
    for scene in scenes if isinstance(scenes, list) else []:
        files, right = (scene.get(key) if isinstance(scene, dict) else None for key in ("files", "right"))
        if not isinstance(files, dict):
            continue
        pictures = []
        for name, caption in _CAPTIONS.items():
            share = right.get(name) if isinstance(right, dict) else None
            text = f"{caption}, {words.share(share, 0)} right" if is_number(share) else caption
            source = _embedded(folder / Path(str(files.get(name, ""))).name)
            if source:
                pictures.append(Picture(name, source, text))
        found.append(pictures)
    return [pictures for pictures in found if pictures]


def _embedded(path: Path) -> str:
    kinds = {".png": "image/png", ".jpg": "image/jpeg"}
    if path.suffix not in kinds or not path.is_file():
        return ""
    return f"data:{kinds[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _overlaps(run: Run, role: str) -> list[Any]:
    value = run.part(role).get("per_class_iou")
    return value if isinstance(value, list) and any(map(is_number, value)) else []


def _rows(run: Run) -> list[ClassRow]:
    names = _names(run)
    found = [(role, _overlaps(run, role)) for role in ("teacher", "student")]
    found = [(role, values) for role, values in found if values and len(values) == len(names)]
    if not any(role == "student" for role, _ in found):
        return []
    counts = _pixels(run, len(names))
    total = sum(counts) or 1
    rows = []
    for n, colour in enumerate(palette(len(names))):
        bars = []
        for role, values in found:
            known = is_number(values[n])
            width = f"{100 * min(1.0, max(0.0, values[n])):.2f}" if known else "0"
            bars.append((role, words.share(values[n]) if known else "—", width))
        share = words.rough_share(counts[n] / total) if counts else ""
        rows.append(ClassRow(names[n], hexadecimal(colour), share, bars))
    return rows


def _pixels(run: Run, classes: int) -> list[float]:
    """How many test pixels each class has, from the confusion matrix where there is one."""
    matrix = run.part("student").get("confusion")
    if not isinstance(matrix, list) or len(matrix) != classes:
        return []
    if not all(isinstance(row, list) and all(map(is_number, row)) for row in matrix):
        return []
    return [float(sum(row)) for row in matrix]
