"""`protege export`: a model as a file for use elsewhere, checked against the model itself.

Both kinds take raw pixels, uint8 [batch, channels, height, width] for any batch: the model's normalisation is part of
the file, so nobody can forget it.

- "onnx": `torch.onnx.export`; compared with onnxruntime on several inputs and batch sizes.
- "int8": static post-training quantisation of convolutions and linear layers (weights int8 by channel, activations
  uint8 by tensor) with torchao's PT2E flow for x86, its ranges read off a few unlabelled samples. The file is a
  `torch.export` program: `import torchao; torch.export.load(file).module()`. Run so it computes with int8 values but in
  floating point; `torch.compile` with `torch._inductor.config.freezing = True` makes true int8 kernels of it.
"""

from __future__ import annotations

import importlib
import json
import logging
import re
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..data import CLEAN, Augment, Data, batches, choose
from ..errors import UserError, told
from ..files import drafts, is_export, write_json
from ..models import Model, count_macs, count_parameters, framed_for, load_model, seen_by
from ..models.classes import in_order_of
from ..models.storage import locate
from ..numerics import exact
from ..report import write_export_report
from ..settings import public
from ..tasks import TASKS, shipped_task
from ..torch_utils import copy_network
from ..training.evaluate import evaluate as run_evaluation
from .folder import check_out
from .recipe import checked
from .shrinking import example_of, open_for

KINDS = {"onnx": "model.onnx", "int8": "model_int8.pt2"}
EXTRAS = {"onnx": (("onnx", "onnxscript", "onnxruntime"), "onnx"), "int8": (("torchao",), "quantize")}
RECORD = "export.json"
SAME = 1e-3  # the largest difference of an ONNX output, as a share of the largest output
BATCH = 64  # images at once, for calibration and latency

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
    """Write the model to the folder ``out`` as ``to`` ("onnx" or "int8"), and return what ``export.json`` there holds.

    ``data`` is needed for "int8", which is calibrated on ``samples`` training images (chosen by ``seed`` as for `fskd`:
    their labels are not used), and gives both kinds their accuracy before and after, on images brought to
    ``image_size``, less ``skip_bad`` damaged files, as in a run with these. ``compiled`` also
    compiles the int8 program and times it, which takes a C++ compiler and a minute. `export.json`: sizes in bytes, the
    largest difference of outputs as a share of the largest output, seconds an image, metrics as fractions, and under
    ``networks`` the same of the teacher and of the student before, where a run made the model; `report.html` shows
    them side by side. ``trust`` is that of `protege.load_model`. Raises
    `UserError` for bad input, a missing extra, and an ONNX file that computes something else.
    """
    if to not in KINDS:
        raise UserError(f"export to {to!r} is unknown; expected {' or '.join(KINDS)}: change to=….")
    checked(samples=samples, seed=seed)
    _require(*EXTRAS[to])
    if to == "int8" and data is None:
        raise UserError("export to int8 got no data; expected a few images to calibrate on: give data=….")
    out = Path(out)
    replaced = RECORD, KINDS[to], f"{KINDS[to]}.data", "report.html"
    check_out(out, resume=None, overwrite=overwrite, owned=is_export, proof=f"{RECORD} of an export", replaced=replaced)
    opened = open_for(data, image_size, model, skip_bad)
    original = copy_network(load_model(model, data=opened, trained=True, trust=trust)).cpu().eval()
    opened = opened and framed_for(original, in_order_of(original, opened))
    raw = example_of(original, opened)
    out.mkdir(parents=True, exist_ok=True)
    with drafts(out, "export") as work:  # what is there stays until the new one is whole
        file = work / KINDS[to]
        with _quietly():
            if to == "onnx":
                exported: nn.Module = _onnx(original, raw, file)
            else:
                assert opened is not None
                exported = _int8(original, raw, _images(opened, samples, seed), file)
        inputs = [torch.randint(0, 256, (count, *raw.shape[1:]), dtype=torch.uint8) for count in (1, 2, 5)]
        if opened is not None:
            inputs += list(_images(opened, min(samples, 32), seed))[:1]
        difference = _difference(original, exported, inputs)
        if to == "onnx" and not difference <= SAME:
            raise UserError(
                f"the ONNX file gives outputs that differ by {difference:.1e} of the largest; expected at most "
                f"{SAME:g}: the network has an operation that ONNX computes otherwise, so export another."
            )
        files = sorted(work.iterdir())  # weights beyond a size have a file of their own
        result: dict[str, Any] = {
            "version": 1,
            "to": to,
            "file": file.name,
            "input": {"dtype": "uint8", "shape": ["batch", *raw.shape[1:]], **original.input.framing()},
            "difference": difference,
            "samples": samples if to == "int8" else None,
            "bytes": {
                "float": 4 * count_parameters(original.network),
                "exported": sum(x.stat().st_size for x in files),
            },
        }
        result |= _measured(model, original, exported, raw, opened, compiled and to == "int8")
        sizes, last = _figures(original, raw), {"role": to, **_part(result, "exported")}
        if result["latency"].get("compiled"):
            last |= {"role": f"{to}, compiled", "latency": result["latency"]["compiled"]}
        student = {"role": "student", "spec": _named(model), **sizes, **_part(result, "float")}
        file_row = {"spec": file.name, **sizes, "bytes": result["bytes"]["exported"], **last}
        result["networks"] += [student, file_row]
        write_json(out / RECORD, result)  # first: what lies beside it may be made anew
        for path in files:
            path.replace(out / path.name)
    write_export_report(out)
    logger.info("%s", _line(result, out / file.name))
    return result


def _measured(
    model: Any, original: Model, exported: Any, raw: Tensor, data: Data | None, compiled: bool
) -> dict[str, Any]:
    """Metrics and latency of the model and of the file, and rows (``networks``) of those that it comes from."""
    task = shipped_task(original.task)
    judged = data if task is not None and task.labelled else None
    metrics = {"float": _metrics(original, judged), "exported": _metrics(exported, judged)}
    rows = _forerunners(model, raw, data)
    networks = [original, exported, *(row["latency"] for row in rows if row["latency"])]
    times = dict(zip(map(id, networks), _latencies(networks, raw), strict=True))
    latency: dict[str, float | None] = {"float": times[id(original)], "exported": times[id(exported)]}
    if compiled:
        latency["compiled"] = _compiled_latency(exported, raw)
    rows = [{**row, "latency": times.get(id(row["latency"]))} for row in rows]
    return {"metrics": metrics, "latency": latency, "networks": rows}


def _part(result: dict[str, Any], which: str) -> dict[str, Any]:
    return {key: result[key][which] for key in ("metrics", "latency")}


def _named(model: Any) -> str:
    return str(model) if isinstance(model, str | Path) else type(getattr(model, "network", model)).__name__


def _figures(model: Model, raw: Tensor) -> dict[str, Any]:
    params = count_parameters(model.network)
    return {"params": params, "macs": count_macs(model, raw), "bytes": 4 * params}


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
            data = data and in_order_of(network, data)
            row |= _figures(network, raw) | {"metrics": _metrics(network, data), "latency": network}
        except (UserError, RuntimeError):
            if role == "before":
                continue
            row |= {key: recorded[key] for key in ("params", "macs") if isinstance(recorded.get(key), int)}
            row |= {"metrics": {}, "latency": None}
        rows.append(row)
    return rows


def _require(packages: tuple[str, ...], extra: str) -> None:
    for package in packages:
        try:
            with _quietly():
                importlib.import_module(package)
        except ImportError as error:
            raise UserError(
                f"the package {error.name or package!r} is missing; expected the extra {extra!r}: install it with "
                f"`pip install 'protege[{extra}]'`."
            ) from error


def _program(model: nn.Module, raw: Tensor) -> Any:
    """The model as a program for any batch size. Traced strictly: a module used twice then stays two operations."""
    batch = torch.export.Dim("batch", min=1, max=65536)
    try:
        with torch.no_grad(), _in_parts():
            return torch.export.export(model, (raw,), dynamic_shapes=({0: batch},), strict=True)
    except Exception as error:
        raise UserError(
            f"the model cannot be traced for export ({type(error).__name__}: {told(error)}); expected a forward "
            "without Python that depends on values: rewrite that part."
        ) from error


@contextmanager
def _in_parts() -> Iterator[None]:
    """Attention as the operations that it is made of, where torch would else trace its own fused ones."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _operation(error: BaseException | None) -> str:
    """The operation that an exporter's error, or one that it came from, is about; "" where none is named."""
    while error is not None:
        if match := re.search(r"op='([\w.]+)'|target=torch\.ops\.(\w+\.\w+)", str(error)):
            return match[1] or match[2]
        error = error.__cause__ or error.__context__
    return ""


class _Session(nn.Module):
    """An ONNX file in the place of the model: raw images → outputs."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        import onnxruntime

        self.session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])

    def forward(self, raw: Tensor) -> Tensor:
        return torch.from_numpy(self.session.run(None, {"images": raw.contiguous().numpy()})[0])


def _onnx(model: Model, raw: Tensor, file: Path) -> nn.Module:
    program = _program(model, raw)
    try:
        made = torch.onnx.export(
            program, (), dynamo=True, input_names=["images"], output_names=["outputs"], verbose=False
        )
        assert made is not None
        made.save(file)
    except Exception as error:
        operation = _operation(error)
        why = f"the operation {operation} has no counterpart" if operation else f"{type(error).__name__}: {told(error)}"
        raise UserError(
            f"the model cannot be exported to ONNX ({why}); expected operations that ONNX has: export to int8 instead, "
            "or rewrite that part."
        ) from error
    return _Session(file)


class _Quantised(nn.Module):
    """An int8 program in the place of the model; it knows no modes, which `train` and `eval` would complain about."""

    def __init__(self, program: Any) -> None:
        super().__init__()
        self.run = program.forward
        self.program = [program]  # hidden from nn.Module

    def forward(self, raw: Tensor) -> Tensor:
        return self.run(raw)


def _int8(model: Model, raw: Tensor, images: Iterator[Tensor], file: Path) -> nn.Module:
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
    program = _program(model, raw).module()
    try:
        with torch.no_grad():
            observed = prepare_pt2e(program, quantizer)
            for batch in images:
                observed(batch)
            quantised = convert_pt2e(observed)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"the model cannot be quantised ({type(error).__name__}: {told(error)}); expected convolutions and linear "
            "layers in patterns that torchao knows: export to onnx instead."
        ) from error
    if not any("quantize_per" in str(node.target) for node in quantised.graph.nodes):
        raise UserError("no layer of the model can be quantised; expected convolutions or linear layers: use another.")
    _drop_unused(quantised)
    made = _program(quantised, raw)
    for node in made.graph.nodes:  # where it stood in the code: more bytes than the weights of a small network
        for key in ("stack_trace", "nn_module_stack", "source_fn_stack", "from_node"):
            node.meta.pop(key, None)
    torch.export.save(made, file)
    return _Quantised(torch.export.load(file).module())  # what is judged is what lies on the disk


def _drop_unused(program: Any) -> None:
    """Forget the float weights that int8 ones have replaced, which the file would hold beside these."""
    used = {str(node.target) for node in program.graph.nodes if node.op == "get_attr"}
    for name, _ in [*program.named_parameters(), *program.named_buffers()]:
        if name not in used:
            owner, _, key = name.rpartition(".")
            delattr(program.get_submodule(owner), key)


def _images(data: Data, samples: int, seed: int) -> Iterator[Tensor]:
    """Raw training images on the CPU in batches, clean views."""
    train, count = data.train, min(samples, len(data.train))
    positions = choose(None, samples=count, seed=seed, count=len(train))
    for batch in batches(train, list(positions.split(BATCH)), CLEAN, Augment()):
        yield batch.inputs.cpu().contiguous()


@torch.no_grad()
def _difference(model: nn.Module, exported: nn.Module, inputs: list[Tensor]) -> float:
    pairs = [(model(raw), exported(raw)) for raw in inputs]
    scale = max(float(ours.abs().max()) for ours, _ in pairs)
    return max(float((ours - theirs).abs().max()) for ours, theirs in pairs) / max(scale, 1e-30)


def _metrics(network: nn.Module, data: Data | None) -> dict[str, float]:
    if data is None or data.test is None or not data.classes:
        return {}
    return run_evaluation(network, seen_by(network, data.test).to("cpu"), TASKS[data.task].metrics(len(data.classes)))[
        0
    ]


@torch.no_grad()
def _latencies(networks: list[Any], raw: Tensor, seconds: float = 0.5) -> list[float]:
    """Seconds an image in batches of `BATCH`, the best of some runs in turn, on as many threads as torch has."""
    images = raw[:1].repeat(BATCH, 1, 1, 1)
    for network in networks:
        network(images)
    best, until = [float("inf")] * len(networks), time.perf_counter() + seconds * len(networks)
    while time.perf_counter() < until or float("inf") in best:
        for n, network in enumerate(networks):
            start = time.perf_counter()
            network(images)
            best[n] = min(best[n], time.perf_counter() - start)
    return [value / BATCH for value in best]


def _compiled_latency(exported: Any, raw: Tensor) -> float | None:
    """The same of the compiled int8 program; None where this machine cannot compile it."""
    import torch._inductor.config as inductor

    try:
        with _quietly(), inductor.patch(freezing=True):
            return _latencies([torch.compile(exported.program[0])], raw)[0]
    except Exception as error:
        logger.warning("the int8 program cannot be compiled here (%s)", told(error))
        return None


@contextmanager
def _quietly() -> Iterator[None]:
    """Exporters talk a lot about what is no concern of the user."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stderr(StringIO()):  # where they fail they print whole graphs
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _line(result: dict[str, Any], file: Path) -> str:
    sizes = result["bytes"]
    text = f"{file}: {sizes['exported']:,} bytes (float weights {sizes['float']:,}), outputs differ by at most "
    text += f"{result['difference']:.1e} of the largest"
    for name in [key for key in ("accuracy", "miou") if key in result["metrics"]["float"]]:
        values = result["metrics"]
        text += f", {name} {values['float'][name]:.4f} → {values['exported'][name]:.4f}"
    return text
