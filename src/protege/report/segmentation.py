"""Segmentation in a run's report: scenes as truth, teacher and student see them, and how well each class is found."""

from __future__ import annotations

import base64
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import words
from ..errors import UserError
from .classes import class_names, confusion_matrix, per_class
from .read import Run, is_number, read_json, records, table

KINDS = {".png": "image/png", ".jpg": "image/jpeg"}
CAPTIONS = ("image", "truth", "teacher", "student", "difference")
Legend = list[tuple[str, str]]  # what a colour stands for, and the colour


@dataclass(frozen=True)
class ClassRow:
    """A class with its share of the pixels, and (network, text, per cent of the room) of each network's IoU."""

    name: str
    colour: str
    share: str
    bars: list[tuple[str, str, str]]


@dataclass(frozen=True)
class Scenes:
    """Pictures as (data URI, caption), one list a scene, and what their colours mean."""

    scenes: list[list[tuple[str, str]]]
    classes: Legend
    difference: Legend


@dataclass(frozen=True)
class Segmentation(Scenes):
    """What a segmentation run shows beside the figures of all runs."""

    columns: list[str]
    rows: list[ClassRow]


def segmentation(run: Run) -> Segmentation | None:
    """The section of a segmentation run; None where neither pictures nor IoUs are there."""
    seen = scenes_in(run.folder / "pictures")
    overlaps = {role: per_class(run.part(role)) for role in ("teacher", "student") if "per_class_iou" in run.part(role)}
    rows = class_rows(run, [colour for _, colour in seen.classes], overlaps)
    return Segmentation(**vars(seen), columns=list(overlaps), rows=rows) if seen.scenes or rows else None


def scenes_in(folder: Path) -> Scenes:
    """The scenes that a segmentation's pictures show; none where they are damaged or gone."""
    index = dict[str, Any]()
    with suppress(UserError):
        index = read_json(folder / "index.json")
    scenes = [pictures for scene in records(index.get("scenes")) if (pictures := read_scene(folder, scene))]
    return Scenes(scenes, legend(index, "classes"), legend(index, "difference"))


def legend(index: dict[str, Any], part: str) -> Legend:
    pairs = table(index.get("legend")).get(part)
    known = [pair for pair in pairs if isinstance(pair, list) and len(pair) == 2] if isinstance(pairs, list) else []
    return [(str(name), colour) for name, colour in known if re.fullmatch("#[0-9a-f]{6}", str(colour))]


def read_scene(folder: Path, scene: dict[str, Any]) -> list[tuple[str, str]]:
    """The pictures of a scene; what is gone is left out."""
    files, right = (table(scene.get(key)) for key in ("files", "right"))
    pictures = []
    for name in CAPTIONS:
        path = folder / Path(str(files.get(name, ""))).name
        if path.suffix in KINDS and path.is_file():
            share = right.get(name)
            source = f"data:{KINDS[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}"
            pictures.append((source, f"{name}, {words.share(share, 0)} right" if is_number(share) else name))
    return pictures


def class_rows(run: Run, colours: list[str], overlaps: dict[str, list[Any]]) -> list[ClassRow]:
    """A row for each class of the student, with its colour where pictures have one, and its share of the pixels."""
    classes = len(overlaps.get("student", []))
    pixels = [sum(row) for row in confusion_matrix(run)]
    rows = []
    for n, name in enumerate(class_names(run, classes)):
        bars = []
        for role, values in overlaps.items():
            value = values[n] if n < len(values) and is_number(values[n]) else None
            bars.append(
                (role, "—" if value is None else words.share(value), f"{100 * min(1.0, max(0.0, value or 0)):.2f}")
            )
        share = words.rough_share(pixels[n] / (sum(pixels) or 1)) if len(pixels) == classes else ""
        rows.append(ClassRow(name, colours[n] if n < len(colours) else "", share, bars))
    return rows
