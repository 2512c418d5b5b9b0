"""Float32 is float32 wherever a run, a plan or a solve computes, and deterministic runs give the same bits; afterwards
torch's switches stand as their user had them."""

import os
import threading
import warnings

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import protege
from protege import numerics, surgery
from protege.errors import UserError
from protege.methods import Fit, Method, MethodSettings
from protege.models import count_macs
from protege.models.precision import autocast_for
from protege.numerics import WORKSPACE, deterministic, exact, in_any_order, is_exact
from protege.signals import TeacherCache
from protege.tasks import TASKS
from protege.training import Solve

B = torch.backends
NEWER = hasattr(B, "fp32_precision")
PARTS = [B.cudnn.conv, B.cudnn.rnn, B.cuda.matmul, B.mkldnn.conv, B.mkldnn.rnn, B.mkldnn.matmul] if NEWER else []
newer = pytest.mark.skipif(not NEWER, reason="torch before 2.9 has the older switches only")
CPU = torch.device("cpu")


def switches():
    """As far as they can be read: where older and newer ones differ, torch raises."""

    def read(switch):
        try:
            return switch()
        except RuntimeError:
            return "differs"

    older = [lambda: B.cudnn.allow_tf32, lambda: B.cuda.matmul.allow_tf32, torch.get_float32_matmul_precision]
    return [read(switch) for switch in older] + [part.fp32_precision for part in PARTS]


def is_off():
    """Whether float32 is float32, as both kinds of switches say."""
    *older, matmul = switches()[:3]
    return older == [False, False] and matmul == "highest" and not {"tf32", "bf16"} & set(switches()[3:])


@pytest.fixture(autouse=True)
def _switches_as_before():
    before = [B.cudnn.allow_tf32, torch.get_float32_matmul_precision(), *(part.fp32_precision for part in PARTS)]
    yield
    if NEWER:
        B.fp32_precision = "none"
    B.cudnn.allow_tf32 = before[0]
    torch.set_float32_matmul_precision(before[1])
    for part, value in zip(PARTS, before[2:], strict=True):
        part.fp32_precision = value


def _by_older():
    B.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("medium")


def _by_one():
    B.cudnn.conv.fp32_precision = "ieee"  # reading the older ones raises from here on


def _by_all():
    B.fp32_precision = "tf32"


def _by_parts():
    B.cudnn.conv.fp32_precision, B.cudnn.rnn.fp32_precision = "ieee", "tf32"
    B.cuda.matmul.fp32_precision, B.mkldnn.matmul.fp32_precision = "tf32", "bf16"


USERS = [_by_older, *(pytest.param(user, marks=newer) for user in (_by_one, _by_all, _by_parts))]


@pytest.mark.parametrize("user", USERS)
def test_float32_in_full_inside_and_as_the_user_had_it_outside(user):
    user()
    before = switches()
    with exact():
        assert is_off()
        with exact():
            assert is_off()
        assert is_off()
        assert count_macs(nn.Conv2d(1, 2, 3), torch.randn(1, 1, 5, 5)) == 9 * 2 * 9
        assert is_off()
    assert switches() == before
    with pytest.raises(KeyError), exact():
        raise KeyError
    assert switches() == before
    assert count_macs(nn.Conv2d(1, 2, 3), torch.randn(1, 1, 5, 5)) == 9 * 2 * 9
    assert switches() == before


def test_with_the_switches_of_older_torch(monkeypatch):
    monkeypatch.setattr(numerics, "_parts", list)
    _by_older()
    with exact():
        assert is_off()
    assert (B.cudnn.allow_tf32, torch.get_float32_matmul_precision()) == (True, "medium")


def test_of_threads_the_last_one_brings_the_switches_back():
    _by_older()
    before, inside, leave = switches(), threading.Event(), threading.Event()

    def other():
        with exact():
            inside.set()
            leave.wait()

    thread = threading.Thread(target=other)
    with exact():
        thread.start()
        inside.wait()
    assert is_off()
    leave.set()
    thread.join()
    assert switches() == before


def test_no_warning_of_torchs_own_switches_and_none_of_others_again():
    with exact():
        pass
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("default")
        for _ in range(3):
            with exact():
                warnings.warn("once", stacklevel=1)
    assert [str(warning.message) for warning in heard] == ["once"]


def test_the_context_of_a_precision():
    _by_older()
    with autocast_for("fp32", CPU)():
        assert is_off()
        with autocast_for("fp32", CPU)():
            assert is_off()
    with autocast_for("bf16", CPU)():
        assert not is_exact()
        assert torch.is_autocast_enabled("cpu")


class _Watched(torch.autograd.Function):
    """Notes the switches where a pass goes forward, and where it goes backward."""

    seen: dict[str, list[bool]]

    @staticmethod
    def forward(ctx, x):
        _note("forward")
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        _note("backward")
        return gradient


def _note(where):
    _Watched.seen.setdefault(where, []).append(is_off())


class _Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.flat, self.fc = nn.Flatten(), nn.Linear(64, 10)

    def forward(self, x):
        return _Watched.apply(self.fc(self.flat(x)))


def _method():
    def plan(setup):
        _note("plan")

        def step(student, batch):
            _note("step")
            rows, truth, weights = setup.rows(student(batch.inputs), batch)
            return {"loss": setup.task_loss(rows, truth, weights)}

        def solve(report):
            _note("solve")
            return {}

        return [Solve("solve", solve), Fit("fit", setup.student, step)]

    def preview(setup):
        _note("plan")
        return []

    return Method(plan, MethodSettings, needs_teacher=False, preview=preview)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run(precision, tmp_path):
    _by_older()
    before, _Watched.seen = switches(), {}
    settings = {"samples": 20, "epochs": 1, "batch_size": 10, "precision": precision}
    protege.distill(None, _Network(), "digits", _method(), tmp_path / "out", **settings)
    assert switches() == before
    seen = {where: set(offs) for where, offs in _Watched.seen.items()}
    assert seen["plan"] == seen["solve"] == {True}
    if precision == "fp32":
        assert seen["forward"] == seen["backward"] == seen["step"] == {True}
    else:
        assert seen["backward"] == {False}
        assert False in seen["step"]


def test_loading_evaluating_and_caching(tmp_path):
    _by_older()
    before, _Watched.seen = switches(), {}
    network = protege.load_model(_Network(), data=protege.load_data("digits"))
    cache = TeacherCache(network, "digits", precision="fp32", folder=tmp_path / "cache")
    next(iter(cache.loader(64)))
    protege.evaluate(network, "digits", precision="fp32")
    assert set(_Watched.seen["forward"]) == {True}
    assert switches() == before


def test_surgery():
    _by_older()
    before, seen = switches(), []
    network = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10))

    class Watching(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            if func is torch.conv2d:
                seen.append(is_off())
            return func(*args, **(kwargs or {}))

    x = torch.randn(2, 1, 8, 8)
    with Watching():
        for change in (
            lambda: surgery.shrink(network, x, ratio=0.5),
            lambda: surgery.widen(network, 2, x),
            lambda: surgery.share(network, 2, x),
            lambda: surgery.Walk(network, "student", x),
            lambda: surgery.split(network, [surgery.find_cuts(network, x)[0].name], x),
        ):
            seen.clear()
            change()
            assert seen
            assert all(seen)
    assert switches() == before


# ---- deterministic runs ----------------------------------------------------------------------------------------------

SETTINGS = {"samples": 40, "epochs": 2, "batch_size": 10, "precision": "fp32"}


def repeatability():
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        B.cudnn.benchmark,
        B.cudnn.deterministic,
        os.environ.get(WORKSPACE),
    )


@pytest.mark.parametrize("config", [None, ":16:8", ":4096:2"])
def test_repeatable_inside_and_as_the_user_had_it_outside(config, monkeypatch):
    monkeypatch.delenv(WORKSPACE, raising=False)
    if config:
        monkeypatch.setenv(WORKSPACE, config)
    monkeypatch.setattr(B.cudnn, "benchmark", True)
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        before = repeatability()
        with deterministic():
            assert repeatability() == (True, False, False, True, ":16:8" if config == ":16:8" else ":4096:8")
            with in_any_order():
                assert not torch.are_deterministic_algorithms_enabled()
            assert torch.are_deterministic_algorithms_enabled()
        assert repeatability() == before
        with pytest.raises(KeyError), deterministic():
            raise KeyError
        assert repeatability() == before
        with deterministic(False):
            assert repeatability() == before
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_gpu_that_was_used_in_another_way_before(monkeypatch):
    class Refusing:
        def __matmul__(self, other):
            raise RuntimeError(f"this operation is not deterministic because it uses CuBLAS: set {WORKSPACE}=:4096:8")

    before = repeatability()
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch, "ones", lambda *sizes, device: Refusing())
    with pytest.raises(UserError, match="set CUBLAS_WORKSPACE_CONFIG=:4096:8 before Python starts"), deterministic():
        pytest.fail("a run began")
    assert repeatability() == before


def test_a_deterministic_run_has_the_same_bits_on_a_cpu_and_stays_one(tmp_path):
    before, seen = repeatability(), set()

    def plan(setup):
        def step(student, batch):
            seen.add(repeatability())
            rows, truth, weights = setup.rows(student(batch.inputs), batch)
            return {"loss": setup.task_loss(rows, truth, weights)}

        return [Fit("fit", setup.student, step)]

    method = Method(plan, MethodSettings, needs_teacher=False)
    students = []
    for wanted in (False, True):
        out = tmp_path / f"{wanted}"
        protege.distill(None, "zoo:cnn_small", "digits", method, out, deterministic=wanted, **SETTINGS)
        students.append((out / "student" / "model.safetensors").read_bytes())
    assert students[0] == students[1]
    assert {state[0] for state in seen} == {False, True}
    assert {state[1:] for state in seen if state[0]} == {(False, False, True, ":4096:8")}
    assert repeatability() == before
    with pytest.raises(UserError, match=r"deterministic = False, but .* was begun with True"):
        protege.distill(None, "zoo:cnn_small", "digits", method, out, resume=True, deterministic=False, **SETTINGS)


class _Put(torch.autograd.Function):
    """An operation that torch has no repeatable algorithm for: a scattered write."""

    @staticmethod
    def forward(ctx, x, backward):
        ctx.backward = backward
        return x.clone() if backward else x.clone().put_(torch.tensor([0]), x[:1, 0])

    @staticmethod
    def backward(ctx, gradient):
        return gradient.clone().put_(torch.tensor([0]), gradient[:1, 0]) if ctx.backward else gradient, None


class _Putting(_Network):
    def __init__(self, backward):
        super().__init__()
        self.backward = backward

    def forward(self, x):
        return _Put.apply(self.fc(self.flat(x)), self.backward)


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("method", ["none", "own"])
def test_an_operation_that_is_not_repeatable_is_told_before_anything_is_written(backward, method, tmp_path):
    before, _Watched.seen, out = repeatability(), {}, tmp_path / "out"
    method = _method() if method == "own" else method
    with pytest.raises(UserError) as refused:
        protege.distill(None, _Putting(backward), "digits", method, out, deterministic=True, **SETTINGS)
    assert str(refused.value) == (
        "deterministic=True, but torch has no repeatable algorithm for put_ on this device; expected operations that "
        "have one: replace the layer or loss that uses it, or leave deterministic=True out."
    )
    assert repeatability() == before
    assert not out.exists()
    protege.distill(None, _Putting(backward), "digits", method, out, **SETTINGS)


@pytest.mark.parametrize("classes", [4, 30])
def test_metrics_are_the_same_and_sort_nothing(classes):
    logits, labels = torch.randn(500, classes), torch.randint(0, classes, (500,))
    sums = []

    class Watching(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if "scatter_add" in func.name() and not args[0].is_floating_point():
                sums.append(torch.are_deterministic_algorithms_enabled())
            return func(*args, **(kwargs or {}))

    results = []
    for wanted in (False, True):
        with deterministic(wanted), Watching():
            metrics = TASKS["classification"].metrics(classes)
            metrics.update(logits, labels)
            results.append((metrics.compute(), metrics.details()))
    assert results[0] == results[1]
    assert sums
    assert not any(sums)
