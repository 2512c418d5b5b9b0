"""Code to copy out of a run's report: load the student, run it, measure it. Only what works as it stands is printed."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from protege.errors import UserError
from protege.report.headline import sample_noun
from protege.report.read import Run, is_number, numbers, read_json


def snippets(run: Run) -> list[tuple[str, str]]:
    """Title and text of each piece of code: Python, and a command where one can name both the student and the data."""
    place = (run.folder.resolve() / "student").as_posix()
    config = _config(run.folder / "student")
    own = config.get("model", "") is None
    data = str(run.recipe.get("data") or run.part("data").get("name") or "")
    measured = set(numbers(run.part("student").get("metrics"))) - {"agreement"}  # which no labels were needed for
    size = run.recipe.get("image_size")
    python = _python(run, place, config)
    if not measured or not data:
        return [("Python", python)]
    if data.startswith("python:"):
        python += "\n# and protege.evaluate(student, data) measures it on a Dataset like the run's"
    elif own:
        more = f", image_size={size}" if is_number(size) else ""
        python += f"\nprint(protege.evaluate(student, {_text(data)}{more}))"
    else:
        shell = f"protege evaluate --model {shlex.quote(place)} --data {shlex.quote(data)}"
        return [("Python", python), ("Shell", shell + (f" --image-size {size}" if is_number(size) else ""))]
    return [("Python", python)]


def _python(run: Run, place: str, config: dict[str, Any]) -> str:
    """Loading and one call; of a network that was built in Python with that network, by its class's own name."""
    images = sample_noun(run) == "image"
    shape = ", ".join(map(str, [1, *_shape(run, config)]))
    example = f"torch.zeros({shape}, dtype=torch.{'uint8' if images else 'int64'})"
    comment = "raw uint8 images [N, C, H, W]" if images else "int64 tokens [N, L]"
    lines, given = ["import torch", "", "import protege"], ""
    if config.get("model", "") is None:
        module, _, name = str(config.get("class", "")).partition(":")
        call, given = str(config.get("call", "my_network")), ", network=network"
        if call != "my_network" and module != "__main__" and "." not in name:
            lines.append(f"from {module} import {name}")
        ready = "(...)" not in call and call != "my_network"
        kind = name.rpartition(".")[2] or "network"
        lines += ["", f"network = {call}" + ("" if ready else f"  # your own {kind}, built as the student was")]
    inputs = "images" if images else "tokens"
    return "\n".join(
        [
            *lines,
            *([] if given else [""]),
            f"student = protege.load_model({_text(place)}{given})  # in eval mode",
            f"{inputs} = {example}  # yours: {comment}",
            f"logits = student({inputs})",
        ]
    )


def _shape(run: Run, config: dict[str, Any]) -> list[int]:
    """The shape of an input that the student takes."""
    check, spec = config.get("check") or {}, config.get("input") or {}
    if isinstance(check.get("shape"), list):
        return check["shape"]
    if sample_noun(run) != "image":
        return [16]
    return [spec.get("channels", 3), *(spec.get("size") or (32, 32))]


def _config(folder: Path) -> dict[str, Any]:
    try:
        return read_json(folder / "config.json")
    except UserError:
        return {}


def _text(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)
