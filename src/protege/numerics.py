"""How torch computes: single precision in full, and the same bits in every run. Its switches are the whole process's,
so each of these contexts brings back what its user had."""

from __future__ import annotations

import os
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

import torch

from .errors import UserError

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"  # how cuBLAS shares out its memory, and in what order it adds then
REPEATABLE = (":4096:8", ":16:8")  # values of it that torch trusts

Value = TypeVar("Value")


class _Reduced:
    """Torch's leave to multiply float32 in fewer bits (TF32, bfloat16), taken away while somebody is inside.

    Torch has older switches, the only ones before 2.9, and newer ones of each backend and operation. Reading an older
    one raises where the newer say otherwise, and torch does read them: so both are set.
    """

    def __init__(self) -> None:
        self.inside = 0
        self._lock = threading.Lock()
        self._before: tuple[Any, ...] = ()
        self._heard = False

    def enter(self) -> None:
        with self._lock:
            if not self.inside:
                # torch 2.9 says once in a process that the older ones are old; Python forgets what it has said by that
                with nullcontext() if self._heard else warnings.catch_warnings():
                    if not self._heard:
                        warnings.simplefilter("ignore")
                    self._turn_off()
                self._heard = True
            self.inside += 1

    def leave(self) -> None:
        with self._lock:
            self.inside -= 1
            if not self.inside:
                self._bring_back()

    def _turn_off(self) -> None:
        parts = [(part, part.fp32_precision) for part in _parts()]
        cudnn, matmul = _read(lambda: torch.backends.cudnn.allow_tf32), _read(torch.get_float32_matmul_precision)
        self._before = cudnn, matmul, parts
        torch.backends.cudnn.allow_tf32 = False
        torch.set_float32_matmul_precision("highest")
        for part, _ in parts:
            if part.fp32_precision in ("tf32", "bf16"):  # of `torch.backends.fp32_precision`, say
                part.fp32_precision = "ieee"

    def _bring_back(self) -> None:
        cudnn, matmul, parts = self._before
        if cudnn is not None:
            torch.backends.cudnn.allow_tf32 = cudnn
        if matmul is not None:
            torch.set_float32_matmul_precision(matmul)
        for part, value in parts:
            if part.fp32_precision != value:
                part.fp32_precision = value


def _parts() -> list[Any]:
    """What has a switch of its own in torch 2.9 and later."""
    b: Any = torch.backends
    if not hasattr(b, "fp32_precision"):
        return []
    return [b.cudnn.conv, b.cudnn.rnn, b.cuda.matmul, b.mkldnn.conv, b.mkldnn.rnn, b.mkldnn.matmul]


def _read(switch: Callable[[], Value]) -> Value | None:
    """None where the older switch and the newer ones differ: then the newer hold."""
    try:
        return switch()
    except RuntimeError:
        return None


_reduced = _Reduced()


@contextmanager
def exact() -> Iterator[None]:
    """Inside, float32 is multiplied as float32, on every device; also in the backward passes of what ran outside."""
    _reduced.enter()
    try:
        yield
    finally:
        _reduced.leave()


def is_exact() -> bool:
    """Whether somebody is inside `exact`."""
    return _reduced.inside > 0


@contextmanager
def deterministic(wanted: bool = True) -> Iterator[None]:
    """Inside, operations add in one order, so that a run gives the same bits each time on one kind of device.

    Raises `UserError` for an operation that has no such algorithm, and where cuBLAS already works in another way.
    """
    if not wanted:
        yield
        return
    cudnn, config = torch.backends.cudnn, os.environ.get(WORKSPACE)
    before = cudnn.benchmark, cudnn.deterministic
    with _algorithms(True):
        try:
            cudnn.benchmark, cudnn.deterministic = False, True
            os.environ[WORKSPACE] = repeatable_workspace()
            _refuse_begun()
            yield
        except Exception as error:
            if (refusal := _refusal(error)) is None:
                raise
            raise refusal from error
        finally:
            cudnn.benchmark, cudnn.deterministic = before
            if config is None:
                os.environ.pop(WORKSPACE, None)
            else:
                os.environ[WORKSPACE] = config


def repeatable_workspace() -> str:
    """A value of `WORKSPACE` that torch trusts, the user's own if it is one. Processes that may go on to deterministic
    runs begin with it: it counts from where cuBLAS is first used."""
    config = os.environ.get(WORKSPACE)
    return config if config in REPEATABLE else REPEATABLE[0]


@contextmanager
def in_any_order() -> Iterator[None]:
    """Inside, torch does not insist on algorithms that it knows to be repeatable: for whole numbers, whose sums are the
    same in any order (it would sort them), and for what is repeatable without its knowledge."""
    if not torch.are_deterministic_algorithms_enabled():
        yield
        return
    with _algorithms(False):
        yield


@contextmanager
def _algorithms(repeatable: bool) -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(repeatable)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def _refuse_begun() -> None:
    """Torch looks at the variable once, when cuBLAS is first used."""
    if torch.cuda.is_initialized():
        one = torch.ones(1, 1, device="cuda")
        one @ one


def _refusal(error: BaseException | None) -> UserError | None:
    """The sentence for what torch raises in place of numbers that would be others in the next run, whatever has been
    made of that on its way; None for all other errors."""
    while error is not None:
        if isinstance(error, RuntimeError) and WORKSPACE in str(error):
            return UserError(
                "deterministic=True, but this process has used the GPU without it; expected a repeatable cuBLAS: "
                f"set {WORKSPACE}={REPEATABLE[0]} before Python starts, or leave deterministic=True out."
            )
        match = re.search(r"(\S+) does not have a deterministic implementation", str(error))
        if match and isinstance(error, RuntimeError):
            return UserError(
                f"deterministic=True, but torch has no repeatable algorithm for {match[1]} on this device; expected "
                "operations that have one: replace the layer or loss that uses it, or leave deterministic=True out."
            )
        error = error.__cause__ or error.__context__
    return None
