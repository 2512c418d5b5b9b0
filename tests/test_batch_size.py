"""How many samples a device has room for: found by few measurements, and never more than fit."""

import math
import re
from contextlib import nullcontext

import pytest
import torch
from accelerate import Accelerator
from tools import model, pictures, plan

import protege
from protege.data import Augment
from protege.errors import UserError
from protege.run.recipe import make_recipe
from protege.signals import Views
from protege.training import batch_size
from protege.training.phase import FitSettings
from protege.training.plan import Plan


def device(base: int, each: int, capacity: int = 10**9):
    """A step's memory, and the counts it was measured with; no more than ``capacity`` is there."""
    asked = []

    def measure(count: int) -> float:
        asked.append(count)
        size = base + each * count
        return size if size <= capacity else math.inf

    return measure, asked


@pytest.mark.parametrize(
    ("base", "each", "free", "first", "most", "possible"),
    [
        (100, 10, 10_100, 128, 5000, 1000),
        (100, 10, 10_100, 128, 640, 640),  # no more is wanted
        (100, 10, 1_000, 128, 5000, 90),  # less than one begins with
        (100, 10, 109, 128, 5000, 0),  # not even one
        (100, 10, 110, 128, 5000, 1),
        (10_000, 0, 20_000, 16, 100, 100),  # nothing grows
        (0, 10, math.inf, 128, 5000, 296),  # only the device itself tells that there is no more
    ],
)
def test_about_as_many_samples_as_fit_are_found_by_few_measurements(base, each, free, first, most, possible):
    measure, asked = device(base, each, min(free, 2960) if free == math.inf else free)
    count = batch_size.fitting(measure, free, first, most)
    assert 7 / 8 * possible <= count <= possible
    assert len(asked) <= 12


def views(count: int) -> Views:
    return Views(pictures(count), torch.arange(count), Augment(), 1, torch.device("cpu"))


def settled(monkeypatch, **given):
    """(settings, what was said) where 1,600 samples have room on a device."""
    free = [0]  # until torch gives back what it keeps for later
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: free.append(20_000))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free[-1], 0))
    monkeypatch.setattr(batch_size, "_measure", lambda *args: lambda count: 10 * count)
    monkeypatch.setattr(Plan, "checkpoint_bytes", lambda *args: 0)
    said: list[str] = []
    train = type("Many", (), {"__len__": lambda self: 160_000, "device": torch.device("cuda")})()
    settings = make_recipe({"student": "-", "data": "-", "method": "none", "batch_size": "auto", **given})
    return batch_size.with_batch_size(
        settings, plan("none", model(), None), train, None, Accelerator(), said.append
    ), said


def test_auto_fills_a_device_and_scales_the_rate(monkeypatch):
    settings, said = settled(monkeypatch)
    assert 1400 <= settings.batch_size <= 1600
    assert settings.lr == pytest.approx(0.1 * math.sqrt(settings.batch_size / 128))
    assert re.fullmatch(r"batch_size = \d+ fills the device; lr = 0\.3\d+, 3\.\d times that for 128\.", said[0])


def test_a_rate_that_was_set_stays(monkeypatch):
    settings, said = settled(monkeypatch, lr=0.05)
    assert settings.lr == 0.05
    assert "stays as it was set" in said[0]


def test_another_optimizer_begins_with_its_own_rate(monkeypatch):
    settings, _ = settled(monkeypatch, optimizer="adamw")
    assert settings.lr == pytest.approx(1e-3 * math.sqrt(settings.batch_size / 128))


def test_auto_on_a_processor_is_the_default(tmp_path):
    how = {"data": "digits", "method": "none", "samples": 200, "epochs": 1}
    result = protege.distill(None, "zoo:mlp", **how, batch_size="auto", out=tmp_path / "auto")
    usual = protege.distill(None, "zoo:mlp", **how, out=tmp_path / "usual")
    assert "batch_size = 20\n" in (tmp_path / "auto" / "recipe.toml").read_text()
    assert result.metrics == usual.metrics


def test_auto_is_for_all_phases_together(tmp_path):
    with pytest.raises(UserError, match=r"batch_size = 'auto' is for all phases.*expected a number"):
        protege.distill(
            None, "zoo:mlp", "digits", "none", out=tmp_path / "out", phases={"labels": {"batch_size": "auto"}}
        )
    with pytest.raises(UserError, match=r"batch_size = 'some' does not fit: expected a number of samples, or 'auto'"):
        make_recipe({"student": "-", "data": "-", "method": "none", "batch_size": "some"})


def test_out_of_memory_on_a_device_is_one_sentence_with_the_batch_that_fits(tmp_path, monkeypatch):
    measure, _ = device(0, 10, 440)
    monkeypatch.setattr(batch_size, "_measure", lambda *args: measure)

    def step(*args):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr(protege.training.step.Step, "set", step)
    with pytest.raises(UserError) as told:
        protege.distill(None, "zoo:mlp", "digits", "none", out=tmp_path / "out", batch_size=100, epochs=1)
    assert str(told.value) == (
        "phase 'labels' does not fit the device with batch_size = 100; expected at most about 43 samples at once: set "
        "batch_size=43, or accumulate=3 for the same batch in pieces."
    )


def test_a_step_is_measured_forward_and_back_and_leaves_nothing(monkeypatch):
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 5)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 25)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    student, train = model(norm=True), views(8)
    (phase,) = plan("none", student, None)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    assert batch_size.step_bytes(phase, train, 20, nullcontext) == 20
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    assert all(parameter.grad is None for parameter in student.parameters())
    assert FitSettings(batch_size="16").batch_size == 16
