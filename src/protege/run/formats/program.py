"""A model as a `torch.export` program, from which most files are made."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import UserError, told


def program_of(model: nn.Module, raw: Tensor) -> Any:
    """The model as a program for any batch size. Traced strictly: a module used twice then stays two operations."""
    batch = torch.export.Dim("batch", min=1, max=65536)
    try:
        with torch.no_grad(), in_parts():
            return torch.export.export(model, (raw,), dynamic_shapes=({0: batch},), strict=True)
    except Exception as error:
        raise untraceable(error) from error


def untraceable(error: Exception) -> UserError:
    return UserError(
        f"the model cannot be traced for export ({type(error).__name__}: {told(error)}); expected a forward "
        "without Python that depends on values: rewrite that part."
    )


@contextmanager
def in_parts() -> Iterator[None]:
    """Attention as the operations that it is made of, where torch would else trace its own fused ones."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def operation_in(error: BaseException | None) -> str:
    """The operation that an exporter's error, or one that it came from, is about; "" where none is named."""
    while error is not None:
        if match := re.search(r"op='([\w.]+)'|target=torch\.ops\.(\w+\.\w+)", str(error)):
            return match[1] or match[2]
        error = error.__cause__ or error.__context__
    return ""


@contextmanager
def quietly() -> Iterator[None]:
    """Exporters talk a lot about what is no concern of the user."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stderr(StringIO()), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")  # and where they fail they print whole graphs
            yield
    finally:
        logging.disable(before)
