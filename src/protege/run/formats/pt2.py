"""int8 by torchao's PT2E flow for x86: a `torch.export` program with weights int8 by channel and activations uint8 by
tensor. As it loads it computes with int8 values but in floating point; `torch.compile` with
`torch._inductor.config.freezing = True` makes true int8 kernels of it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import UserError, told
from ...models import Model
from . import Images, Made
from .program import program_of, quietly

logger = logging.getLogger(__name__)


class Program(nn.Module):
    """A program in the place of the model; it knows no modes, which `train` and `eval` would complain about."""

    def __init__(self, program: Any) -> None:
        super().__init__()
        self.run = program.forward
        self.program = [program]  # hidden from nn.Module

    def forward(self, raw: Tensor) -> Tensor:
        return self.run(raw)


def opened(file: Path, threads: int | None) -> Program:
    import torchao  # noqa: F401  registers the operations of int8

    try:
        return Program(torch.export.load(file).module())
    except Exception as error:
        raise UserError(
            f"{str(file)!r} cannot be loaded ({told(error)}); expected a program of torch.export."
        ) from error


def make(model: Model, raw: Tensor, file: Path, texts: Mapping[str, str], images: Images) -> Made:
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
    program = program_of(model, raw).module()
    try:
        with torch.no_grad():
            observed = prepare_pt2e(program, quantizer)
            for batch in images.calibrating:
                observed(batch)
            quantised = convert_pt2e(observed)
    except Exception as error:
        raise UserError(
            f"the model cannot be quantised ({type(error).__name__}: {told(error)}); expected convolutions and linear "
            "layers in patterns that torchao knows: export to onnx-int8 or onnx instead."
        ) from error
    if not any("quantize_per" in str(node.target) for node in quantised.graph.nodes):
        raise UserError("no layer of the model can be quantised; expected convolutions or linear layers: use another.")
    _drop_unused(quantised)
    made = program_of(quantised, raw)
    for node in made.graph.nodes:  # where it stood in the code: more bytes than the weights of a small network
        for key in ("stack_trace", "nn_module_stack", "source_fn_stack", "from_node"):
            node.meta.pop(key, None)
    torch.export.save(made, file, extra_files=dict(texts))
    return Made(opened(file, None))  # what is judged is what lies on the disk


@contextmanager
def compiled(program: nn.Module, inputs: Sequence[Tensor]) -> Iterator[nn.Module | None]:
    """The program with int8 kernels, compiled for these inputs; None where this machine cannot compile it."""
    import torch._inductor.config as inductor

    assert isinstance(program, Program)
    made, why = Program(torch.compile(program.program[0])), ""
    with quietly(), inductor.patch(freezing=True), torch.no_grad():
        try:
            for raw in inputs:
                made(raw)
        except Exception as error:
            why = told(error)
        yield None if why else made
    if why:
        logger.warning("the int8 program cannot be compiled here (%s)", why)


def _drop_unused(program: Any) -> None:
    """Forget the float weights that int8 ones have replaced, which the file would hold beside these."""
    used = {str(node.target) for node in program.graph.nodes if node.op == "get_attr"}
    for name, _ in [*program.named_parameters(), *program.named_buffers()]:
        if name not in used:
            owner, _, key = name.rpartition(".")
            delattr(program.get_submodule(owner), key)
