"""`protege export`: a model as a file for use elsewhere (`formats` has the kinds), checked against the model itself.

All kinds take raw pixels, uint8: the model's normalisation is part of the file, so nobody can forget it.
"""

from __future__ import annotations

import importlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import words
from ..data import CLEAN, Augment, Data, Samples, batches, choose, forward_size
from ..errors import UserError
from ..files import drafts, is_export, write_json
from ..models import Model, count_macs, count_parameters, framed_for, load_model, seen_by
from ..models.classes import in_order_of
from ..models.storage import bytes_of, locate
from ..numerics import exact
from ..report import write_export_report
from ..settings import public
from ..tasks import TASKS, shipped_task
from ..torch_utils import copy_network
from ..training.agreement import judges_of
from ..training.evaluate import evaluate as run_evaluation
from ..version import __version__
from .folder import check_out
from .formats import FORMATS, Format, Images, Made
from .formats.closeness import closeness
from .formats.program import quietly
from .latency import MOST, speeds
from .recipe import checked
from .shrinking import example_of, open_for

RECORD = "export.json"
SAME = 1e-3  # the largest difference of outputs of a file in floating point, as a share of the largest output
RESIZED = 1e-2  # the same where images are resized in the file: pixels halfway between two levels may go to either
BATCH = 16  # images at once
JUDGES = 64  # images by which an int8 file is chosen, at most
COMPARED = 500  # images on which a file is compared with its model, at most
SLOWER = 1.05  # of the time in floating point; below that it is the same

logger = logging.getLogger(__name__)


@public
@exact()
def export(
    model: str | Path | nn.Module,
    *,
    to: str,
    out: str | Path,
    data: Any = None,
    image_size: int | None = None,
    skip_bad: int = 0,
    samples: int = 200,
    seed: int = 0,
    compiled: bool = False,
    overwrite: bool = False,
    trust: bool = False,
) -> dict[str, Any]:
    """Write the model to the folder ``out`` as ``to``, one of `FORMATS`, and return what ``export.json`` there holds.

    ``data`` is needed for int8 files, whose ranges are read off ``samples`` training images, or as many as there are
    (chosen by ``seed`` as for `fskd`: labels are not used). With it a file is compared with its model on test images,
    or images that it was not made with, labels or not, and both are judged by labels where there are some; images are
    brought to ``image_size``, less ``skip_bad`` damaged files, as in a run with these. ``compiled`` also compiles a
    program of torch and times it, which takes a C++ compiler and a minute.

    `export.json`: what the ``input`` is and what the ``classes`` are called (both are in the file, too), sizes in
    bytes, the largest ``difference`` of outputs as a share of the largest output, how far both agree (``compared``),
    seconds an image, metrics as fractions, and under ``networks`` the same of the teacher and
    of the student before, where a run made the model, all timed in turns; `report.html` shows them side by side.
    ``trust`` is that of `protege.load_model`. Raises `UserError` for bad input, a missing extra, and a file in floating
    point that computes something else.
    """
    if to not in FORMATS:
        raise UserError(f"export to {to!r} is unknown; expected one of {', '.join(FORMATS)}: change to=….")
    kind = FORMATS[to]
    checked(samples=samples, seed=seed)
    require(kind.packages, kind.extra)
    if kind.int8 and data is None:
        raise UserError(f"export to {to} got no data; expected a few images to calibrate on: give data=….")
    out = Path(out)
    replaced = RECORD, kind.file, f"{kind.file}.data", "report.html"
    check_out(out, resume=None, overwrite=overwrite, owned=is_export, proof=f"{RECORD} of an export", replaced=replaced)
    opened = open_for(data, image_size, model, skip_bad)
    original = copy_network(load_model(model, data=opened, trained=True, trust=trust)).cpu().eval()
    opened = opened and framed_for(original, in_order_of(original, opened))
    raw = example_of(original, opened)
    chosen = torch.arange(0)
    if kind.int8:
        assert opened is not None
        count = min(samples, len(opened.train))
        chosen = choose(None, samples=count, seed=seed, count=len(opened.train))
        if count < samples:
            logger.info("calibrated on %d images: there are no more", count)
    interface = interface_of(original, kind, raw, opened)
    out.mkdir(parents=True, exist_ok=True)
    with drafts(out, "export") as work:  # what is there stays until the new one is whole
        file = work / kind.file
        with quietly():
            made = kind.make(
                original, raw, file, texts_of(original, interface), _images(opened, chosen) if kind.int8 else Images()
            )
        inputs = [torch.randint(0, 256, (count, *raw.shape[1:]), dtype=torch.uint8) for count in (1, 2, 5)]
        if opened is not None:
            inputs += list(_batches(opened.train, chosen[:BATCH] if len(chosen) else torch.arange(1)))
        difference = _difference(original, made.network, inputs)
        allowed = SAME if original.input.size in (None, tuple(raw.shape[2:])) else RESIZED
        if not kind.int8 and not difference <= allowed:
            raise UserError(
                f"the {kind.title} file gives outputs that differ by {difference:.1e} of the largest; expected at most "
                f"{allowed:g}: the network has an operation that {kind.title} computes otherwise, so export another."
            )
        files = sorted(work.iterdir())  # weights beyond a size have a file of their own
        result: dict[str, Any] = {
            "version": 1,
            "to": to,
            "file": file.name,
            **interface,
            "task": original.task,
            "difference": difference,
            "samples": len(chosen) if kind.int8 else None,
            "bytes": {
                "float": bytes_of(original.network),
                "exported": sum(x.stat().st_size for x in files),
            },
            "compared": _compared(original, made.network, opened, chosen),
            **made.facts,
        }
        result |= _measured(model, result, original, made, raw, opened, compiled)
        write_json(out / RECORD, result)  # first: what lies beside it may be made anew
        for path in files:
            path.replace(out / path.name)
    write_export_report(out)
    logger.info("%s", _line(result, out / file.name))
    if advice := _slower(result):
        logger.warning("%s", advice)
    return result


def interface_of(model: Model, kind: Format, raw: Tensor, data: Data | None) -> dict[str, Any]:
    """What the input of a file is, and what its outputs are called."""
    form = {"dtype": "uint8", "shape": kind.shape(raw), "layout": kind.layout}
    return {"input": {**form, **model.input.to_dict()}, "classes": _classes(model, data)}


def texts_of(model: Model, interface: Mapping[str, Any]) -> dict[str, str]:
    """What a file's metadata say."""
    texts = {key: json.dumps(value, ensure_ascii=False) for key, value in interface.items()}
    return texts | {"task": model.task, "made_by": f"protege {__version__}"}


def _classes(model: Model, data: Data | None) -> list[str]:
    """What the outputs are called: by the model, else by the data; numbers for want of names."""
    return list(data.classes if data is not None and data.named and not model.named else model.classes)


def _measured(
    model: Any, result: dict[str, Any], original: Model, made: Made, raw: Tensor, data: Data | None, compiled: bool
) -> dict[str, Any]:
    """Metrics and latency of the model and of the file, and a row (``networks``) of each of those that it comes from,
    all timed in turns on as many threads as torch has."""
    to = result["to"]
    kind, task = FORMATS[to], shipped_task(original.task)
    judged = data if task is not None and task.labelled else None
    metrics = {"float": metrics_on_test(original, judged), "exported": metrics_on_test(made.network, judged)}
    sizes = _figures(original, raw)
    rows = _forerunners(model, raw, data)
    networks: list[nn.Module | None] = [*(row["latency"] for row in rows), original]
    rows.append({"role": "student", "spec": _named(model), **sizes, "metrics": metrics["float"]})
    if made.in_float is not None:
        rows.append({"role": "float", "spec": "the same runtime", **sizes, "metrics": {}})
        networks.append(made.in_float)
    file = {"spec": kind.file, **sizes, "bytes": result["bytes"]["exported"], "metrics": metrics["exported"]}
    rows.append({"role": to, **file})
    networks.append(made.network)
    with ExitStack() as held:
        if compiled and to == "int8":
            from .formats.pt2 import compiled as compile_program

            inputs = [raw[:1].repeat(batch, 1, 1, 1) for batch in kind.batches]
            networks.append(held.enter_context(compile_program(made.network, inputs)))
            rows.append({"role": f"{to}, compiled", **file})
        timed = [network for network in networks if network is not None]
        times = speeds(timed, raw, kind.batches, rounds=MOST)
    for row, network in zip(rows, networks, strict=True):
        speed = times.pop(0) if network is not None else []
        row |= {"latency": speed[-1].seconds / speed[-1].batch if speed else None}
        row["speed"] = [latency.record() for latency in speed]
    by_role = {row["role"]: row["latency"] for row in rows}
    latency = {"float": by_role["student"], "exported": by_role[to]}
    if compiled and to == "int8":
        latency["compiled"] = by_role[f"{to}, compiled"]
        rows = [row for row in rows if row["role"] != f"{to}, compiled" or row["latency"] is not None]
    return {"metrics": metrics, "latency": latency, "networks": rows, "threads": torch.get_num_threads()}


def _named(model: Any) -> str:
    return str(model) if isinstance(model, str | Path) else type(getattr(model, "network", model)).__name__


def _figures(model: Model, raw: Tensor) -> dict[str, Any]:
    params, macs = count_parameters(model.network), count_macs(model, raw)
    return {"params": params, "macs": macs, "bytes": bytes_of(model.network)}


def _forerunners(model: Any, raw: Tensor, data: Data | None) -> list[dict[str, Any]]:
    """The teacher, and the student before, of the run that made the model, measured like the exported file.

    ``latency`` is the network, still to be timed. Only folders of models are opened: nothing that a result names is
    imported. Of a teacher that is none, or does not
    take the same images, what the run tells of its size is all there is.
    """
    if not isinstance(model, str | Path):
        return []
    try:
        result = json.loads((locate(Path(model)).parent / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, UserError):  # no folder, or not a run's
        return []
    rows = []
    for role, part in (("teacher", "teacher"), ("before", "student")):
        recorded = result.get(part) if isinstance(result, dict) else None
        if not isinstance(recorded, dict) or not isinstance(recorded.get("spec"), str):
            continue
        row: dict[str, Any] = {"role": role, "spec": recorded["spec"]}
        try:
            network = load_model(Path(recorded["spec"]), data=data).cpu().eval()
            ordered = data and in_order_of(network, data)
            row |= _figures(network, raw) | {"metrics": metrics_on_test(network, ordered), "latency": network}
        except (UserError, RuntimeError):
            if role == "before":
                continue
            row |= {key: recorded[key] for key in ("params", "macs", "bytes") if isinstance(recorded.get(key), int)}
            row |= {"metrics": {}, "latency": None}
        rows.append(row)
    return rows


def require(packages: Sequence[str], extra: str) -> None:
    """Raise `UserError` where a package is missing, with the extra that brings it."""
    for package in packages:
        try:
            with quietly():
                importlib.import_module(package)
        except ImportError as error:
            raise UserError(
                f"the package {error.name or package!r} is missing; expected the extra {extra!r}: install it with "
                f"`pip install 'protege[{extra}]'`."
            ) from error


def _images(data: Data | None, chosen: Tensor) -> Images:
    """The chosen training images, and some that judge: others if there are enough."""
    assert data is not None
    judges, _ = judges_of(chosen, len(data.train))
    return Images(list(_batches(data.train, chosen)), list(_batches(data.train, judges[:JUDGES])))


def _batches(samples: Samples, positions: Tensor) -> Iterator[Tensor]:
    """Raw images on the CPU, clean views."""
    for batch in batches(samples, list(positions.split(forward_size(samples, BATCH))), CLEAN, Augment()):
        yield batch.inputs.cpu().contiguous()


def _compared(model: Model, exported: nn.Module, data: Data | None, chosen: Tensor) -> dict[str, Any] | None:
    """How near the file comes to its model on images that need no labels: those of the test set, else those that it was
    not calibrated on, if there are enough; ``unseen`` says which."""
    if data is None:
        return None
    if data.test is not None:
        samples, unseen = seen_by(model, data.test), True
        positions = torch.arange(len(samples))
    else:
        samples = data.train
        positions, unseen = judges_of(chosen, len(samples))
    positions = positions[choose(None, samples=min(COMPARED, len(positions)), seed=0, count=len(positions))]
    near = closeness(model, exported, _batches(samples, positions))
    return {"images": near.images, "unseen": unseen, **near.record()}


@torch.no_grad()
def _difference(model: nn.Module, exported: nn.Module, inputs: list[Tensor]) -> float:
    pairs = [(model(raw), exported(raw)) for raw in inputs]
    scale = max(float(ours.abs().max()) for ours, _ in pairs)
    return max(float((ours - theirs).abs().max()) for ours, theirs in pairs) / max(scale, 1e-30)


def metrics_on_test(network: nn.Module, data: Data | None) -> dict[str, float]:
    """Of a network or an opened file on the test set; none where there is none, or no labels."""
    if data is None or data.test is None or not data.classes:
        return {}
    return run_evaluation(network, seen_by(network, data.test).to("cpu"), TASKS[data.task].metrics(len(data.classes)))[
        0
    ]


def _slower(result: dict[str, Any]) -> str:
    """The advice where a file is slower here than the same network in floating point; "" where it is not."""
    rows = {row["role"]: row["speed"] for row in result["networks"]}
    to, threads = result["to"], result["threads"]
    reference = rows.get("float", rows["student"])
    file = rows.get(f"{to}, compiled", rows[to])
    slow = [
        (mine["batch"], mine["milliseconds"], other["milliseconds"])
        for mine, other in zip(file, reference, strict=True)
        if FORMATS[to].int8 and mine["milliseconds"] > SLOWER * other["milliseconds"]
    ]
    if not slow:
        return ""
    batch, mine, other = slow[0]
    return (
        f"this int8 file is slower here than the network in floating point ({mine:.3g} ms against {other:.3g} ms at "
        f"batch {batch}, on {words.plural(threads, 'thread')}); the faster way on this machine: {FORMATS[to].faster}."
    )


def _line(result: dict[str, Any], file: Path) -> str:
    sizes = result["bytes"]
    text = f"{file}: {sizes['exported']:,} bytes (float weights {sizes['float']:,}), outputs differ by at most "
    text += f"{result['difference']:.1e} of the largest"
    if near := result["compared"]:
        text += f", the same decisions on {near['agreement']:.1%} of {near['images']:,} images"
    for name in [key for key in ("accuracy", "miou") if key in result["metrics"]["float"]]:
        values = result["metrics"]
        text += f", {name} {values['float'][name]:.4f} → {values['exported'][name]:.4f}"
    return text
