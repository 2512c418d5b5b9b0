"""Code to copy out of a run's report: load the student, run it, measure it. Only what works as it stands is printed."""

from __future__ import annotations

import ast
import json
import re
import shlex
from pathlib import Path
from typing import Any

from ..errors import UserError
from .read import Run, is_number, numbers, read_json, table

BUILT = ("zoo", "timm", "smp", "transformers")  # networks that are built without running Python that a folder names


def snippets(run: Run) -> list[tuple[str, str]]:
    """Title and text of each piece of code: Python, and a command where one can name both the student and the data."""
    place = (run.folder.resolve() / "student").as_posix()
    config = _config(run.folder / "student")
    in_python = config.get("model", "") is None  # built there, and named by no spec
    data = str(run.recipe.get("data") or run.part("data").get("name") or "")
    measured = set(numbers(run.part("student").get("metrics"))) - {"agreement"}  # which no labels were needed for
    size = run.recipe.get("image_size")
    python = _python(run, place, config)
    if not measured or not data:
        return [("Python", python)]
    if data.startswith("python:"):
        python += "\n# and protege.evaluate(student, data) measures it on a Dataset like the run's"
    elif in_python:
        more = f", image_size={size}" if is_number(size) else ""
        python += f"\nprint(protege.evaluate(student, {_text(data)}{more}))"
    else:
        shell = f"protege evaluate --model {shlex.quote(place)} --data {shlex.quote(data)}"
        shell += " --trust" if _names_code(config) else ""
        return [("Python", python), ("Shell", shell + (f" --image-size {size}" if is_number(size) else ""))]
    return [("Python", python)]


def _python(run: Run, place: str, config: dict[str, Any]) -> str:
    """Loading and one call; of a network that was built in Python with that network, by its class's own name."""
    images = run.noun == "image"
    shape = ", ".join(map(str, [1, *_shape(run, config)]))
    example = f"torch.zeros({shape}, dtype=torch.{'uint8' if images else 'int64'})"
    comment = "raw uint8 images [N, C, H, W]" if images else "int64 tokens [N, L]"
    lines, given = ["import torch", "", "import protege"], ", trust=True" if _names_code(config) else ""
    if config.get("model", "") is None:
        kind, call, given = str(config.get("class", "")), str(config.get("call", "")), ", network=network"
        module, _, name = kind.partition(":") if re.fullmatch(r"[\w.]+:[\w.<>]+", kind) else ("__main__", "", "")
        call = call if _is_plain(call, name) else "my_network"
        if call != "my_network" and module != "__main__" and "." not in name:
            lines.append(f"from {module} import {name}")
        ready = "(...)" not in call and call != "my_network"
        kind = name.rpartition(".")[2] or "network"
        lines += ["", f"network = {call}" + ("" if ready else f"  # your own {kind}, built as the student was")]
    inputs = "images" if images else "tokens"
    mode = "  # in eval mode" + ("; trust=True runs the code that the folder names" if _names_code(config) else "")
    return "\n".join(
        [
            *lines,
            *([] if "network" in given else [""]),
            f"student = protege.load_model({_text(place)}{given}){mode}",
            f"{inputs} = {example}  # yours: {comment}",
            f"logits = student({inputs})",
        ]
    )


def _names_code(config: dict[str, Any]) -> bool:
    """Whether the network is built by Python that the folder names, which takes trust."""
    name = config.get("model")
    return isinstance(name, str) and name.partition(":")[0] not in BUILT


def _shape(run: Run, config: dict[str, Any]) -> list[int]:
    """The shape of an input that the student takes."""
    check, spec = table(config.get("check")), table(config.get("input"))
    shape, size = check.get("shape"), spec.get("size") or [32, 32]
    if not isinstance(shape, list):
        shape = [spec.get("channels", 3), *(size if isinstance(size, list) else [])]
        shape = shape if run.noun == "image" else [16]
    return [size for size in shape if type(size) is int]


def _is_plain(call: str, name: str) -> bool:
    """Whether it is a call of the class on nothing but values, as it is written: what is printed here will be run."""
    if call == f"{name.rpartition('.')[2]}(...)":
        return name.rpartition(".")[2].isidentifier()
    try:
        tree = ast.parse(call, mode="eval").body
        if not isinstance(tree, ast.Call) or ast.unparse(tree.func) != name.rpartition(".")[2] or tree.args:
            return False
        for keyword in tree.keywords:
            ast.literal_eval(keyword.value)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return "\n" not in call


def _config(folder: Path) -> dict[str, Any]:
    try:
        return read_json(folder / "config.json")
    except UserError:
        return {}


def _text(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)
