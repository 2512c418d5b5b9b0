"""What a run of segmentation leaves to look at: a few scenes with truth, teacher, student and where they differ.

The pictures are files of the run folder, so that its report can be made again without data or weights.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from ..data.labels import UNLABELLED
from ..files import write_json
from ..torch_utils import eval_mode

if TYPE_CHECKING:
    from .task import Shown

Colour = tuple[int, int, int]

VOID = 255  # the value of a pixel without a label in a picture of labels
NO_LABEL: Colour = (28, 30, 36)
TONES: dict[str, tuple[str, Colour]] = {  # of the picture of differences
    "student": ("only the student is right", (31, 111, 178)),
    "teacher": ("only the teacher is right", (226, 120, 30)),
    "wrong": ("both are wrong", (140, 25, 85)),
}
FIRST = "8cc3ee b26242 f6cc46 746e80 e098c0 3e8e4a d62832 9c883e 304ac4 fa7a22 00a8a2 843ea4"
GOLDEN = 0.6180339887498949


@torch.no_grad()
def draw_scenes(shown: Shown, out: Path) -> None:
    """Write ``out/pictures/``: of each scene the image, and pictures of its true labels, of what each network says, and
    of where they are right. The networks' modes are as before afterwards."""
    guesses = {role: _guesses(network, shown) for role, network in shown.networks.items()}
    truth = shown.labels.cpu().numpy()
    images = shown.inputs.cpu().permute(0, 2, 3, 1).numpy()
    folder = out / "pictures"
    folder.mkdir(exist_ok=True)
    colours = palette(len(shown.classes))
    scenes: list[dict[str, Any]] = []
    for n, position in enumerate(shown.positions):
        pictures = {
            "image": Image.fromarray(images[n].repeat(3 // images.shape[-1], axis=-1)),
            "truth": _labels(np.where(truth[n] == UNLABELLED, VOID, truth[n]), colours),
            **{role: _labels(guess[n], colours) for role, guess in guesses.items()},
        }
        right = {role: guess[n] == truth[n] for role, guess in guesses.items()}
        pictures["difference"] = _difference(images[n], truth[n], right)
        files = {}
        for name, picture in pictures.items():
            photo = name in ("image", "difference")
            files[name] = f"{n}-{name}.{'jpg' if photo else 'png'}"
            picture.save(folder / files[name], **({"quality": 92, "subsampling": 0} if photo else {"optimize": True}))
        labelled = max(1, int((truth[n] != UNLABELLED).sum()))
        shares = {role: float(hits.sum()) / labelled for role, hits in right.items()}
        scenes.append({"position": position, "files": files, "right": shares})
    tones = list(TONES.values()) if "teacher" in guesses else [("the student is wrong", TONES["wrong"][1])]
    classes = [*zip(shown.classes, colours, strict=True), ("no label", NO_LABEL)]
    legend = {"classes": classes, "difference": tones}
    named = {part: [(name, "#{:02x}{:02x}{:02x}".format(*colour)) for name, colour in legend[part]] for part in legend}
    write_json(folder / "index.json", {"scenes": scenes, "legend": named})


def palette(classes: int) -> list[Colour]:
    """A colour for each class: twelve chosen ones, then hues a golden section apart."""
    colours: list[Colour] = [(code[0], code[1], code[2]) for code in map(bytes.fromhex, FIRST.split())][:classes]
    for n in range(len(colours), classes):
        red, green, blue = colorsys.hsv_to_rgb((n * GOLDEN + 0.8) % 1, (0.9, 0.5)[n % 2], (0.45, 0.8, 1.0)[n % 3])
        colours.append((round(255 * red), round(255 * green), round(255 * blue)))
    return colours


def _guesses(network: nn.Module, shown: Shown) -> np.ndarray:
    """The class that a network sees in each pixel, [N, H, W]; one image at a time, as pixels are many."""
    with eval_mode(network), shown.autocast():
        return torch.cat([network(image).argmax(1).cpu() for image in shown.inputs.split(1)]).numpy()


def _labels(values: np.ndarray, colours: Sequence[Colour]) -> Image.Image:
    """A picture whose pixels are label values, shown in the classes' colours."""
    picture = Image.fromarray(values.astype(np.uint8))
    table = [*colours, *[NO_LABEL] * (256 - len(colours))]
    picture.putpalette([part for colour in table for part in colour])
    return picture


def _difference(image: np.ndarray, truth: np.ndarray, right: dict[str, np.ndarray]) -> Image.Image:
    """The image, pale and grey, coloured where somebody is wrong."""
    grey = image.mean(-1, keepdims=True)
    shown = np.repeat(140 + grey * (100 / 255), 3, axis=-1)
    student = right["student"]
    teacher = right.get("teacher", np.zeros_like(student))
    where = {"student": student & ~teacher, "teacher": teacher & ~student, "wrong": ~student & ~teacher}
    if "teacher" not in right:
        del where["student"]  # alone, being right is nothing to point at
    for tone, mask in where.items():
        shown[mask] = 0.15 * shown[mask] + 0.85 * np.array(TONES[tone][1])
    shown[truth == UNLABELLED] = NO_LABEL
    return Image.fromarray(shown.round().astype(np.uint8))
