"""LiteRT (formerly TensorFlow Lite), what phones take, by litert-torch: one image at a time, channels last."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ...errors import UserError, told
from ...models import Model
from . import Images, Made
from .program import in_parts, operation_in


class Interpreter(nn.Module):
    """A .tflite file run by LiteRT's own interpreter, image by image."""

    def __init__(self, file: Path, threads: int | None = None) -> None:
        super().__init__()
        from ai_edge_litert.interpreter import Interpreter as Runtime

        self.runtime = Runtime(str(file), num_threads=threads or torch.get_num_threads())
        self.runtime.allocate_tensors()
        self.input, self.output = (
            details[0]["index"] for details in (self.runtime.get_input_details(), self.runtime.get_output_details())
        )

    def forward(self, raw: Tensor) -> Tensor:
        outputs = []
        for image in raw.cpu().permute(0, 2, 3, 1).contiguous().split(1):
            self.runtime.set_tensor(self.input, image.numpy())
            self.runtime.invoke()
            outputs.append(torch.from_numpy(self.runtime.get_tensor(self.output)))
        return torch.cat(outputs)


class _ChannelsLast(nn.Module):
    """The model on raw images [N, H, W, C]."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images.permute(0, 3, 1, 2))


def opened(file: Path, threads: int | None) -> Interpreter:
    try:
        return Interpreter(file, threads)
    except Exception as error:
        raise UserError(f"{str(file)!r} cannot be run by LiteRT ({told(error)}); expected an export.") from error


def make(model: Model, raw: Tensor, file: Path, texts: Mapping[str, str], images: Images) -> Made:
    import litert_torch

    example = raw[:1].permute(0, 2, 3, 1).contiguous()
    try:
        with torch.no_grad(), in_parts():
            litert_torch.convert(_ChannelsLast(model).eval(), (example,), strict_export="auto").export(str(file))
    except Exception as error:
        operation = operation_in(error)
        why = f"the operation {operation} has no counterpart" if operation else f"{type(error).__name__}: {told(error)}"
        raise UserError(
            f"the model cannot be exported to LiteRT ({why}); expected operations that LiteRT has: export to onnx "
            "instead, or rewrite that part."
        ) from error
    return Made(opened(file, None))
