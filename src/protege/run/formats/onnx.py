"""ONNX by `torch.onnx.export`, for any batch size: the first axis is called ``batch``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ...errors import UserError, told
from ...models import Model
from . import Images, Made
from .program import operation_in, program_of

INPUT, OUTPUT, BATCH = "images", "outputs", "batch"


class Session(nn.Module):
    """An ONNX file run by onnxruntime on the processor."""

    def __init__(self, file: str | Path | bytes, threads: int | None = None) -> None:
        super().__init__()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or torch.get_num_threads()
        options.log_severity_level = 3
        options.add_session_config_entry("session.force_spinning_stop", "1")  # idle threads leave the cores to others
        source = file if isinstance(file, bytes) else str(file)
        self.session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])

    def forward(self, raw: Tensor) -> Tensor:
        return torch.from_numpy(self.session.run([OUTPUT], {INPUT: raw.cpu().contiguous().numpy()})[0])


def opened(file: Path, threads: int | None) -> Session:
    try:
        return Session(file, threads)
    except Exception as error:
        raise UserError(f"{str(file)!r} cannot be run by onnxruntime ({told(error)}); expected an export.") from error


def make(model: Model, raw: Tensor, file: Path, texts: Mapping[str, str], images: Images) -> Made:
    program = program_of(model, raw)
    try:
        made = torch.onnx.export(program, (), dynamo=True, input_names=[INPUT], output_names=[OUTPUT], verbose=False)
        assert made is not None
        name_batch(made.model)
        made.model.metadata_props.update(texts)
        made.save(file)
    except Exception as error:
        operation = operation_in(error)
        why = f"the operation {operation} has no counterpart" if operation else f"{type(error).__name__}: {told(error)}"
        raise UserError(
            f"the model cannot be exported to ONNX ({why}); expected operations that ONNX has: export to int8 instead, "
            "or rewrite that part."
        ) from error
    return Made(Session(file))


def name_batch(model) -> None:
    """Call the first axis of the input ``batch`` wherever it stands, not by the symbol that it was traced as."""
    import onnx_ir as ir

    traced = str(model.graph.inputs[0].shape[0])
    values = [*model.graph.inputs, *model.graph.outputs, *(v for node in model.graph for v in node.outputs)]
    for value in values:
        if value.shape is not None:
            dims = [BATCH if isinstance(d, ir.SymbolicDim) and d.value == traced else d for d in value.shape]
            value.shape = ir.Shape(dims)
