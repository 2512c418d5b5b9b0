"""The networks of a run, loaded and tried on its data, which comes back in the order of their classes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.nn.modules.batchnorm import _NormBase

from ..data import Data, check_complete
from ..data.classes import VECTORS
from ..errors import UserError
from ..torch_utils import is_quantised, own_dtype, plain_parts
from . import Model, check_classes, framed_for, load_model
from .classes import in_order_of, with_classes, with_names


@contextmanager
def about(role: str, spec: Any) -> Iterator[None]:
    """What is raised within about "the model" says which one that is."""
    who = f"the {role} {str(spec)!r}" if isinstance(spec, str | Path) else f"the {role} {type(spec).__name__!r}"
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace("the model ", f"{who} ", 1)) from None


def open_networks(
    given: Mapping[str, Any],
    teacher_spec: str | None,
    student_spec: str,
    data: Data,
    seed: int,
    device: torch.device,
    trust: bool,
    names: Sequence[str] = (),
) -> tuple[Model | None, Model, Data]:
    """The teacher (if there is to be one), the student, and the data in the order of the teacher's classes, else of the
    student's, by which the student is named. ``given`` has the networks by role, or their specs; ``names`` are for the
    outputs of a network that has none: the teacher's, if there is one, else the student's."""
    teacher = None
    if names and data.numbering == VECTORS:
        raise UserError("classes are given, but the outputs are vectors, which have none; leave out classes=….")
    torch.manual_seed(seed)
    if teacher_spec is None:
        check_complete(data)
        data = with_classes(data, names)
    else:
        with about("teacher", teacher_spec):
            teacher = with_names(load_model(given["teacher"], data=data, trained=True, trust=trust), names)
            data = framed_for(teacher, in_order_of(teacher.to(device), data), sized=False)
        torch.manual_seed(seed)  # a fresh student is the same whatever teaches it
    with about("student", student_spec):
        student = load_model(given["student"], data=data, trust=trust)
        if data.ranges:  # what it learns from is what it will read
            student.input = replace(student.input, ranges=data.ranges)
        if teacher is None:  # one that was trained before knows its classes
            student = with_names(student, names)
            data = in_order_of(student, data, must=False)
        else:
            check_classes(student, data)
    data = framed_for(student, data)
    student.classes, student.named = data.classes, data.named
    _refuse_coarse(student)
    if teacher is not None:
        _refuse_shared(student, teacher)
    return teacher, student, data


def _refuse_coarse(student: Model) -> None:
    """Raise where a student's weights are too coarse to move by a learning rate's small steps."""
    dtype, buffers = own_dtype(student.network), dict(student.network.named_buffers())
    if any(is_quantised(value) for name, value in student.network.state_dict().items() if name not in buffers):
        raise UserError(
            "the student is quantised, and whole numbers cannot learn; expected floating weights: train it before it "
            "is quantised."
        )
    if dtype in (torch.float16, torch.bfloat16):
        raise UserError(
            f"the student has {str(dtype).removeprefix('torch.')} weights, too coarse to learn by small steps; "
            "expected single precision: convert it with .float(), and train with precision = bf16."
        )


def _refuse_shared(student: Model, teacher: Model) -> None:
    """Raise where teaching the student would change the teacher."""
    norms = (module for module in student.modules() if isinstance(module, _NormBase) and not module.affine)
    learning = [*(p for p in student.parameters() if p.requires_grad), *(b for norm in norms for b in norm.buffers())]
    owned = {part.data_ptr() for value in teacher.state_dict().values() for part, _ in plain_parts(value)} - {0}
    if any(value.data_ptr() in owned for value in learning):
        raise UserError(
            "the student shares weights with the teacher, which would change while it teaches; expected two networks: "
            "give the student a copy.deepcopy."
        )
